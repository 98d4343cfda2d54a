"No prompt on both sides of a split, and no record lost or written by half."

import json
import os
import random
import subprocess
import sys
import warnings
from collections import Counter

import pytest

from cai_nb.dialogue import CaiError
from cai_nb.duplicates import near_duplicates, similarity
from cai_nb.prompts import PromptError, deduplicate, load_prompts, split_prompts
from cai_nb.records import prompt_group

BUNDLED = ("harmful", "benign", "over_refusal")


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


# ---------------------------------------------------------------- the bundled sets


@pytest.mark.parametrize("name, least, categories", [
    ("harmful", 300, 16), ("benign", 200, 10), ("over_refusal", 50, 6)])
def test_bundled_prompts_hold_what_was_promised(name, least, categories):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no duplicates among them
        records = load_prompts(name)
    assert len(records) >= least and len(deduplicate(records)) == len(records)
    assert all(set(r) - {"over_refusal"} == {"id", "prompt", "category", "kind"} and all(r.values()) for r in records)
    assert {prompt_group(r) for r in records} == {name} and len({r["id"] for r in records}) == len(records)
    per_category = Counter(r["category"] for r in records)
    assert len(per_category) >= categories and min(per_category.values()) >= 5
    openings = Counter(" ".join(r["prompt"].split()[:2]).lower() for r in records)
    assert openings.most_common(1)[0][1] <= 0.15 * len(records)  # varied in wording


def test_no_prompt_stands_in_two_bundled_sets():
    records = [r for name in BUNDLED for r in load_prompts(name)]
    assert near_duplicates([r["prompt"] for r in records]) == []
    assert len({r["id"] for r in records}) == len(records)


def test_a_larger_limit_holds_the_smaller_one_and_the_seed_matters():
    sizes = [load_prompts("harmful", limit=n) for n in (4, 32, 100)]
    for small, large in zip(sizes, sizes[1:]):
        assert all(r in large for r in small)
    assert len({r["category"] for r in sizes[1]}) > 8  # not the beginning of a sorted file
    assert load_prompts("harmful", limit=32, seed=1) != sizes[1]
    assert load_prompts("harmful", limit=10**6) == load_prompts("harmful")


# ---------------------------------------------------------------- files


def test_a_text_file_has_a_prompt_a_line(write):
    path = write("mine.txt", "\ufeffWhat is é?\r\n\r\n  Why?  \n")
    assert load_prompts(path) == [{"id": "mine-0001", "prompt": "What is é?", "category": "", "kind": "harmful"},
                                  {"id": "mine-0003", "prompt": "Why?", "category": "", "kind": "harmful"}]
    assert load_prompts(str(path)) == load_prompts(path)
    assert {r["kind"] for r in load_prompts(path, kind="benign")} == {"benign"}


@pytest.mark.parametrize("row, prompt", [
    ("Hi", "Hi"), ({"prompt": " Hi "}, "Hi"), ({"instruction": "Sum", "input": "1 2"}, "Sum\n\n1 2"),
    ({"instruction": "Sum", "input": ""}, "Sum"), ({"question": "Hi"}, "Hi"), ({"text": "Hi"}, "Hi"),
    ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]}, "Hi"),
    ({"prompt": [{"role": "user", "content": "Hi"}]}, "Hi"),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}]}, "Hi"),
    ({"transcript": "\n\nHuman: Hi\n\nAssistant: x\n\nHuman: y"}, "Hi"),
    ({"chosen": "\n\nHuman: Hi\nthere\n\nAssistant: x", "rejected": "y"}, "Hi\nthere"),
    ({"chosen": "\n\nHuman: Hi\n\nHuman: again\n\nAssistant: x"}, "Hi"),  # such rows exist in hh-rlhf
    ({"prompt": "\n\nHuman: Hi\n\nAssistant:"}, "Hi")])
def test_the_forms_of_the_worlds_data_sets(write, row, prompt):
    assert [r["prompt"] for r in load_prompts(write("x.jsonl", json.dumps(row) + "\n"))] == [prompt]


def test_ids_categories_and_kinds_are_kept(write):
    row = {"id": 7, "prompt": "Hi", "category": "greeting", "kind": "harmful", "more": 1}
    assert load_prompts(write("x.jsonl", json.dumps(row))) == \
        [{"id": "7", "prompt": "Hi", "category": "greeting", "kind": "harmful"}]
    old = {"prompt": "Hi", "kind": "overrefusal"}
    assert load_prompts(write("x.jsonl", json.dumps(old)), kind="harmful") == \
        [{"id": "x-0001", "prompt": "Hi", "category": "", "kind": "benign", "over_refusal": True}]


def test_duplicates_are_dropped_and_counted(write):
    path = write("x.txt", "Why is the sky blue?\nwhy is the sky blue\nWhy?\nWhy is the sky blue?\n")
    with pytest.warns(UserWarning, match="2 of 4 prompts"):
        assert [r["prompt"] for r in load_prompts(path)] == ["Why is the sky blue?", "Why?"]


@pytest.mark.parametrize("name, content, says", [
    ("x.jsonl", "", "file is empty"), ("x.txt", " \n\n", "file is empty"),
    ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "line 2: broken JSON"),
    ("x.jsonl", '{"prompt": "a"}\n\n{"prompt": ""}\n', "line 3: no prompt"),
    ("x.jsonl", '{"answer": "a"}\n', "line 1: no prompt"), ("x.jsonl", '{"prompt": 3}\n', "line 1: no prompt"),
    ("x.jsonl", '{"prompt": null}\n', "line 1: no prompt"), ("x.jsonl", "3\n", "line 1: not an object"),
    ("x.jsonl", "[1]\n", "line 1: not an object"), ("x.jsonl", b'{"prompt": "\xff"}\n', "line 1: broken JSON"),
    ("x.jsonl", "[" * 100_000, "line 1: broken JSON"), ("x.txt", b"\xff\xfea", "byte 0 is not UTF-8"),
    ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b", "kind": "harmfull"}\n', 'line 2: the kind "harmfull".*did you mean "harmful"'),
    ("x.jsonl", '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', 'the id "1" belongs to two')])
def test_a_wrong_file_is_named_with_its_line(write, name, content, says):
    with pytest.raises(PromptError, match=says) as error:
        load_prompts(write(name, content))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, says", [
    ("harmfull", 'did you mean "harmful"'), ("redteam", 'is called "harmful" now'), ("prompts.csv", r"ends in .jsonl or .txt"),
    ("no/such.jsonl", "no such file"), (None, "by name or file"), ("hub:", "no data set"),
    ("hub:name", "no data set"), ("", "Known: benign")])
def test_an_unknown_name_is_told_what_there_is(name, says):
    with pytest.raises(PromptError, match=says):
        load_prompts(name)


def test_a_kind_is_one_of_two():
    with pytest.raises(PromptError, match='did you mean "harmful"'):
        load_prompts("benign", kind="harmfull")


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_is_a_number_of_prompts(limit):
    with pytest.raises(PromptError, match="limit"):
        load_prompts("harmful", limit=limit)


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch):
    "The hub's loader, replaced by data sets in memory: address -> rows."
    import datasets
    sets = {}

    def load_dataset(path, data_dir=None, split=None):
        if (path, data_dir, split) not in sets:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist\nmore lines")
        return datasets.Dataset.from_list(sets[path, data_dir, split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return sets


def test_red_team_attempts_and_preferences_of_hh_rlhf(hub):
    hub["Anthropic/hh-rlhf", "red-team-attempts", "train"] = [
        {"transcript": "\n\nHuman: How do I?\n\nAssistant: No.", "rating": 4.0, "tags": ["Theft", "Fraud"]},
        {"transcript": "\n\nHuman: And now?\n\nAssistant: No.", "rating": 0.0, "tags": None}]
    hub["Anthropic/hh-rlhf", None, "test"] = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi"}]
    assert load_prompts("hub:Anthropic/hh-rlhf/red-team-attempts") == [
        {"id": "hh-rlhf-000000", "prompt": "How do I?", "category": "Theft", "kind": "harmful"},
        {"id": "hh-rlhf-000001", "prompt": "And now?", "category": "", "kind": "harmful"}]
    assert [r["prompt"] for r in load_prompts("hub:Anthropic/hh-rlhf:test")] == ["Hi"]


def test_rows_without_a_prompt_are_counted(hub):
    hub["org/set", None, "train"] = [{"messages": [{"role": "user", "content": "Hi"}]}, {"messages": []}]
    with pytest.warns(UserWarning, match="1 of 2 rows have no prompt"):
        assert [r["prompt"] for r in load_prompts("hub:org/set")] == ["Hi"]
    hub["org/none", None, "train"] = [{"label": 1}]
    with pytest.raises(PromptError, match=r"no prompts in its columns \(label\)"):
        load_prompts("hub:org/none")


def test_a_data_set_that_cannot_be_had_is_one_line(hub):
    with pytest.raises(PromptError, match="cannot be loaded from the hub .*doesn't exist.*use a bundled set") as error:
        load_prompts("hub:org/missing")
    assert "\n" not in str(error.value)


def test_without_the_network_the_error_is_as_clear(tmp_path):
    code = ("from cai_nb.prompts import PromptError, load_prompts\n"
            "try: load_prompts('hub:org/missing')\nexcept PromptError as error: print(error)")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.count("\n") == 1 and "cannot be loaded from the hub" in done.stdout, done.stderr


# ---------------------------------------------------------------- near-duplicates and the split


def messy(seed=0, n=60):
    "Prompts and variants of them: one word changed, a greeting in front, other case and punctuation."
    chance = random.Random(seed)
    words = ("garden bridge lamp river coffee window engine paper summer kitchen doctor pencil ticket mountain "
             "orange").split()
    texts = []
    for i in range(n):
        base = [f"word{i}", *chance.choices(words, k=10)]
        texts.append(" ".join(base))
        if i % 2:
            base[chance.randrange(1, 11)] = "other"
            texts += ["Hello, " + " ".join(base) + "!", " ".join(base).upper()]
    return [{"id": f"m{i}", "prompt": t, "category": "", "kind": "x"} for i, t in enumerate(texts)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_nothing_held_out_was_trained_on_in_other_words_either(seed, share):
    prompts = messy(seed)
    train, heldout = split_prompts(prompts, heldout=share, seed=seed)
    assert sorted(r["id"] for r in train + heldout) == sorted(r["id"] for r in prompts)
    assert all(similarity(a["prompt"], b["prompt"]) < 0.5 for a in train for b in heldout)
    assert abs(len(heldout) / len(prompts) - share) < 0.2


def test_chains_of_near_duplicates_stay_together():
    words = [f"w{i}" for i in range(14)]
    chain = [" ".join(words[i : i + 8]) for i in range(0, 7)]  # each resembles the next, the ends share two words
    assert similarity(chain[0], chain[6]) < 0.5 <= similarity(chain[0], chain[1])
    for seed in range(20):
        train, heldout = split_prompts([*chain, "something else"], seed=seed)
        assert len(set(chain) & set(train)) in (0, 7)


def test_the_split_depends_on_content_not_on_order_nor_on_what_else_is_there():
    prompts = messy()
    _, heldout = split_prompts(prompts)
    held = {r["id"] for r in heldout}
    shuffled = random.Random(1).sample(prompts, len(prompts))
    assert {r["id"] for r in split_prompts(shuffled)[1]} == held
    new = [{"id": f"new{i}", "prompt": f"entirely new text {i} about nothing known {i * i}"} for i in range(50)]
    more = prompts + new
    assert {r["id"] for r in split_prompts(more)[1] if r["id"].startswith("m")} == held
    assert {r["id"] for r in split_prompts(prompts, seed=1)[1]} != held


def test_a_sample_of_the_bundled_prompts_is_split_as_the_whole():
    whole = {r["id"] for r in split_prompts(load_prompts("harmful"))[1]}
    part = {r["id"] for r in split_prompts(load_prompts("harmful", limit=100))[1]}
    assert part and part == whole & {r["id"] for r in load_prompts("harmful", limit=100)}
    assert 0.18 < len(whole) / 320 < 0.32


def test_neither_side_is_empty_where_that_is_possible():
    for seed in range(30):
        for texts in (["alpha beta", "gamma delta"], ["one", "two", "three"]):
            train, heldout = split_prompts(texts, heldout=0.1, seed=seed)
            assert train and heldout
    assert sorted(map(len, split_prompts(["same"] * 4))) == [0, 4]
    assert split_prompts([]) == ([], [])


@pytest.mark.parametrize("heldout", [0, 1, 25, -0.1, "0.2", True, float("nan")])
def test_heldout_is_a_share(heldout):
    with pytest.raises(PromptError, match="between 0 and 1"):
        split_prompts(["a", "b"], heldout=heldout)


def test_deduplication_keeps_the_first_and_nothing_alike():
    left = deduplicate(messy())
    assert len(left) == 60 and all(r["prompt"].startswith("word") for r in left)
    assert near_duplicates([r["prompt"] for r in left]) == []
    assert deduplicate(["b c d", "a", "B, c d!", "a"]) == ["b c d", "a"]
    with pytest.raises(CaiError, match="threshold"):
        deduplicate(["a"], threshold=70)


@pytest.mark.parametrize("texts", [["a b c d e f", "a b c d e g", "a b c d h g"], ["x"] * 5, []])
def test_deduplication_done_twice_changes_nothing_more(texts):
    assert deduplicate(deduplicate(texts)) == deduplicate(texts)
