"A constitution that is wrong says where; one that is right is drawn from, split and counted the same way everywhere."

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai_nb.constitution import (
    SPLITS,
    Constitution,
    ConstitutionError,
    Ensemble,
    Exemplar,
    LabelledPair,
    Principle,
    rng,
    split_of,
)
from cai_nb.duplicates import audit, near_duplicates

PAPER = Path(__file__).resolve().parents[2] / "shared" / "data" / "paper-prompts"
BUNDLED = ("harmlessness", "anti-overreaction", "helpfulness")

GOOD = """\
name: manners
principles:
  - id: kind
    critique: Was it unkind?
    revision: Write it kindly.
    exemplars:
      - id: e1
        prompt: I burnt it.
        response: How stupid.
        critique: Unkind.
        revision: What a pity.
    pairs:
      - id: p1
        prompt: I burnt it.
        better: A pity.
        worse: Ha.
"""


def load(tmp_path, text, name="c.yaml"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Constitution.load(tmp_path / name)


# ---------------------------------------------------------------- files that are wrong

WRONG = [  # file, line (none: about the file as a whole), what the message says
    ("", None, ("has to begin with", "principles")),
    ("just text", None, ("is text", "a list 'principles:'")),
    ("- id: a", None, ("is a list",)),
    ("id: a\ncomparison: q", None, ("one principle alone", "principles:")),
    ("name: x", None, ("'principles' is missing",)),
    ("principles:", 1, ("'principles'", "is empty")),
    ("principles: []", 1, ("'principles'", "empty list", "- id")),
    ("principles: {a: b}", 1, ("'principles'", "a mapping", "list is expected")),
    ("principles: [3]", 1, ("entry 1 of 'principles' is a number",)),
    ("principal:\n  - id: a", 1, ("unknown key 'principal'", 'did you mean "principles"')),
    (GOOD.replace("revision: Write", "revison: Write"), 5, ("unknown key 'revison'", 'did you mean "revision"')),
    (GOOD.replace("    revision: Write it kindly.\n", ""), 4, ("'critique'", "without 'revision'", "add")),
    (GOOD.replace("    critique: Was it unkind?\n    revision: Write it kindly.\n", ""), 3, ("'kind' has no use",)),
    (GOOD.replace("  - id: kind\n   ", "  -"), 3, ("'id' is missing",)),
    (GOOD.replace("        response: How stupid.\n", ""), 7, ("'response' of 'e1' is missing",)),
    (GOOD.replace("How stupid.", ""), 9, ("'response'", "is empty")),
    (GOOD.replace("How stupid.", "' '"), 9, ("'response'", "is empty")),
    (GOOD.replace("How stupid.", "[a, b]"), 9, ("'response'", "a list", "text is expected")),
    (GOOD.replace("How stupid.", "42"), 9, ("'response'", "a number", "quotes")),
    (GOOD.replace("How stupid.", "yes"), 9, ("'response'", "true or false", "quotes")),
    (GOOD.replace("How stupid.", "2024-13-45"), 9, ("'response'", "quotes")),
    (GOOD.replace("How stupid.", "!!timestamp soon"), 9, ("'response'", "quotes")),
    (GOOD.replace("How stupid.", "How: stupid"), 9, ("column", "broken YAML", "colons")),
    (GOOD.replace("How stupid.", "'How stupid."), 17, ("broken YAML", "quotes")),
    (GOOD.replace("        response", "\t\tresponse"), 9, ("broken YAML", "no tabs")),
    (GOOD.replace("How stupid.", "!!python/object/apply:os.getcwd []"), 9, ("broken YAML",)),
    (GOOD.replace("How stupid.", "&a [*a]"), 9, ("alias",)),
    (GOOD.replace("I burnt it.\n        better", "&a I burnt it.\n        better").replace("worse: Ha.", "worse: *a"), 14, ("alias",)),
    (GOOD.replace("        revision: What", "        kind: harmfull\n        revision: What"),
     11, ("'kind'", "harmfull", 'did you mean "harmful"')),
    (GOOD.replace("        revision: What", "        split: held-out\n        revision: What"),
     11, ("'split'", 'did you mean "heldout"')),
    (GOOD.replace("        response: How stupid.", "        response: How stupid.\n        response: Ha."),
     10, ("'response'", "c.yaml:9")),
    (GOOD + "  - id: kind\n    comparison: q\n", 17, ("'kind' is used twice",)),
    (GOOD + "      - id: p1\n        prompt: x\n        better: y\n        worse: z\n", 17, ("'p1' is used twice",)),
    (GOOD + "  - id: two\n    comparison: q\n    pairs: [{id: p1, prompt: x, better: y, worse: z}]\n",
     19, ("'p1' is used twice",)),
    ("a: 1\n---\nb: 2\n", 2, ("broken YAML",)),
    ("[" * 20_000, 2, ("broken YAML",)),
    (b"\xff\xfea\x00", None, ("byte 0 is not UTF-8", "save")),
    ("a: \x07", None, ("broken YAML", "control characters")),
    ("? [a, b]\n: c", 1, ("a key must be a word",)),
]


@pytest.mark.parametrize("text, line, says", WRONG, ids=range(len(WRONG)))
def test_a_malformed_file_names_file_line_key_and_what_to_write(tmp_path, text, line, says):
    with pytest.raises(ConstitutionError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'c.yaml'}:{line or ''}" + ": " * bool(line)) and "\n" not in message
    for part in says:
        assert part in message, message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD)), st.integers(0, 12),
       st.text(st.sampled_from("\t\n :-[]{}'\"&*!|>%@#?,aé\x00 "), max_size=4))
def test_whatever_is_done_to_a_file_the_error_is_ours(tmp_path, at, cut, put):
    try:
        load(tmp_path, GOOD[:at] + put + GOOD[at + cut :])
    except ConstitutionError as error:
        assert str(error).startswith(str(tmp_path))


json_keys = st.sampled_from(["prompt", "edit_request", "corrects", "incorrects", "principles", "id", "name"])
json_values = st.recursive(
    st.sampled_from([None, True, 3, "", "Options:", "x"]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(json_keys, inner, max_size=4)), max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_whatever_a_json_file_holds_the_error_is_ours(tmp_path, value):
    try:
        assert len(load(tmp_path, json.dumps(value), "c.json")) > 0
    except ConstitutionError as error:
        assert str(error).startswith(str(tmp_path))


@pytest.mark.parametrize("name, says", [
    ("harmlesness", 'did you mean "harmlessness"'), ("zzz", "anti-overreaction, harmlessness, helpfulness"),
    ("no/such.yaml", "no such file"), ("such.yaml", "no such file"), (None, "by name or file"), ("", "by name or file"),
    ("x" * 5000, "no constitution is named"), ("\0", "no constitution")])
def test_an_unknown_name_is_told_the_nearest(name, says):
    with pytest.raises(ConstitutionError, match=says) as error:
        Constitution.load(name)
    assert "\x00" not in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "c.yaml").mkdir()
    for folder in (tmp_path, tmp_path / "c.yaml"):
        with pytest.raises(ConstitutionError, match=f"{folder}: cannot be read, Is a directory"):
            Constitution.load(folder)


# ---------------------------------------------------------------- files that are right


def test_what_a_file_says_is_what_is_loaded(tmp_path):
    c = load(tmp_path, GOOD.replace("How stupid.", ">-\n          How\n          stupid.\n"))
    assert (c.name, c.description, len(c), [p.id for p in c]) == ("manners", "", 1, ["kind"])
    assert c["kind"].exemplars == (Exemplar("e1", "I burnt it.", "How stupid.", "Unkind.", "What a pity."),)
    assert c["kind"].pairs == (LabelledPair("p1", "I burnt it.", "A pity.", "Ha."),)
    assert load(tmp_path, GOOD.replace("name: manners\n", "")).name == "c"  # the file's name, where it says none
    assert Constitution.load(c) is c


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=80).filter(
    lambda t: t.strip() == t and all(c in "\n" or c.isprintable() for c in t))
long_words = st.lists(st.sampled_from([
    "word", "- item", "  indented", "a: b", "# no", "\n", "\n\n", "'", '"', ">", "|", "%", "é😀",
    "- id: x", "  - id: y"]), min_size=1, max_size=60).map(" ".join).map(str.strip).filter(bool)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(words, long_words), st.one_of(words, long_words), st.one_of(words, long_words))
def test_what_is_written_loads_to_the_same_strings(tmp_path, a, b, c):
    p = Principle("p", a, b, c, comparison=a, exemplars=(Exemplar("e", c, a, b, c, "benign", b, split="judge"),),
                  pairs=(LabelledPair("j", a, b, c, a),))
    made = Constitution(a, b, [p, Principle("q", comparison=c)])
    again = load(tmp_path, made.to_yaml())
    assert again == made and again.fingerprint == made.fingerprint


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_files_load_fast_and_survive_a_round_trip(tmp_path, name):
    seconds = []
    for _ in range(3):
        start = time.process_time()  # not what others do on the machine
        c = Constitution.load(name)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
    assert load(tmp_path, c.to_yaml()) == c


def test_the_fingerprint_changes_with_every_text_that_a_model_sees():
    c = Constitution.load("harmlessness")
    assert replace(c, name="x", description="y").fingerprint == c.fingerprint
    first = c.principles[0]
    seen = {c.fingerprint, replace(c, principles=c.principles[1:] + c.principles[:1]).fingerprint}
    for key in ("title", "critique", "revision", "comparison", "opposite", "better", "worse"):
        seen.add(replace(c, principles=(replace(first, **{key: "x"}), *c.principles[1:])).fingerprint)
    for key in ("prompt", "response", "critique", "revision", "kind", "split"):
        value = {"kind": "benign", "split": "heldout"}.get(key, "x")
        changed = replace(first, exemplars=(replace(first.exemplars[0], **{key: value}), *first.exemplars[1:]))
        seen.add(replace(c, principles=(changed, *c.principles[1:])).fingerprint)
    assert len(seen) == 15 and all(len(s) == 12 for s in seen)


def test_double_ids_are_refused_in_code_too():
    p = Principle("p", comparison="q", exemplars=(Exemplar("e", *"abcd"),))
    for wrong in ([p, p], [p, replace(p, id="q")]):
        with pytest.raises(ConstitutionError, match="is used twice"):
            Constitution("x", "", wrong)


# ---------------------------------------------------------------- drawing


def test_a_draw_depends_on_its_key_alone():
    c = Constitution.load("harmlessness")
    keys = [(f"red-{i}", r) for i in range(40) for r in range(4)]
    once = {k: c.draw(*k, seed=3).id for k in keys}
    assert {k: c.draw(*k, seed=3).id for k in random.Random(0).sample(keys, len(keys))} == once
    assert {k: c.draw(*k, seed=4).id for k in keys} != once
    assert len({once[k] for k in keys}) == 16
    assert any(once["red-1", r] != once["red-1", 0] for r in range(4))  # rounds draw independently
    assert c.draw("red-1", use="critique") is c.draw("red-1", use="critique")


def test_draws_are_the_same_in_another_process():
    code = ("from cai_nb.constitution import Constitution, rng, split_of\n"
            "print([Constitution.load('harmlessness').draw('red', i).id for i in range(9)],"
            " rng('a', 1).random(), split_of('x'))")
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(out) == 1


def test_draws_are_fair_and_uses_are_kept_apart():
    c = Constitution.load("harmlessness")
    for use in ("critique", "comparison"):
        counts = Counter(c.draw(i, use=use).id for i in range(8000))
        assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 45  # chi-square, 15 degrees of freedom: p = 0.0001
    only = Constitution("x", "", [Principle("a", critique="c", revision="r"), Principle("b", comparison="q")])
    assert {only.draw(i).id for i in range(20)} == {"a"}
    assert {only.draw(i, use="comparison").id for i in range(20)} == {"b"}
    with pytest.raises(ConstitutionError, match="has no principle for comparison"):
        only.subset(["a"]).draw(1, use="comparison")
    with pytest.raises(ConstitutionError, match='did you mean "critique"'):
        only.draw(1, use="critic")


def test_rng_tells_keys_apart():
    assert len({rng(*key).random() for key in [(), (1,), ("1",), (1, 2), (12,), ("1", "2"), ("12",)]}) == 7


def test_subset_and_listing():
    c = Constitution.load("harmlessness")
    few = c.subset(["crime", "care"])
    assert [p.id for p in few] == ["crime", "care"] and few["care"] is c["care"]
    assert sum(len(c.exemplars(s)) for s in SPLITS) == len(c.exemplars())
    assert all(p.id == "crime" or p.id == "care" for p, _ in few.pairs("train"))
    with pytest.raises(ConstitutionError, match='did you mean "crime"'):
        c.subset(["crimes"])
    with pytest.raises(ConstitutionError, match='did you mean "heldout"'):
        c.pairs("held-out")


def test_an_ensemble_draws_by_weight_and_looks_like_a_constitution():
    both = Ensemble([("harmlessness", 3), (Constitution.load("helpfulness"), 1)])
    mild = {p.id for p in Constitution.load("helpfulness")}
    share = sum(both.draw(i).id in mild for i in range(4000)) / 4000
    assert abs(share - 0.25) < 0.03
    assert len(both) == 24 == len(list(both)) and both["crime"].id == "crime"
    assert len(both.exemplars("train")) == sum(len(c.exemplars("train")) for c, _ in both.members)
    assert both.fingerprint != Ensemble([("harmlessness", 1), ("helpfulness", 1)]).fingerprint
    assert both.draw("a", 1, seed=2) is both.draw("a", 1, seed=2)
    assert audit(both, prompts=[])["principles"] == 24


@pytest.mark.parametrize("members, says", [
    ([], "needs a constitution"), ([("harmlessness", 0)], "number above 0"),
    ([("harmlessness", "1")], "number above 0"), ([("harmlessness", float("nan"))], "number above 0"),
    ([("harmlesness", 1)], 'did you mean "harmlessness"'),
    ([("harmlessness", 1), ("harmlessness", 2)], "is used twice")])
def test_a_wrong_ensemble_is_refused(members, says):
    with pytest.raises(ConstitutionError, match=says):
        Ensemble(members)


# ---------------------------------------------------------------- the paper's files

paper = pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's prompts are not here")
MARKS = ("CritiqueRequest", "RevisionRequest", "Critique:", "Revision:", "Options:", "\n\nHuman:\n", "[[[", "{}")


@paper
@pytest.mark.parametrize("name", ["CritiqueRevisionInstructions", "RLMadisonInstructions"])
def test_the_papers_lists_load_as_they_are(name):
    c = Constitution.load(PAPER / f"{name}.json")
    assert len(c) == 16 and c.name == name
    for p in c:
        for text in (p.critique, p.revision, p.comparison):
            assert text == text.strip() and not any(mark in text for mark in MARKS), text
            assert not text.endswith("Human:")


@paper
def test_the_papers_lists_together_are_an_ensemble():
    lists = [(PAPER / f"{name}.json", 1) for name in ("CritiqueRevisionInstructions", "RLMadisonInstructions")]
    both = Ensemble(lists)
    assert len(both) == 32 and len(both.for_critique) == len(both.for_comparison) == 16
    assert {both.draw(i).id[:7] for i in range(50)} == {"harmful"}
    assert {both.draw(i, use="comparison").id[:10] for i in range(50)} == {"comparison"}
    assert Ensemble(lists).fingerprint == both.fingerprint


@paper
@pytest.mark.parametrize("name", [
    "CritiqueRevisionFewShotPrompts", "RLMadisonFewShotPrompts", "RLMadisonPrecogFewShotPrompts"])
def test_the_papers_other_files_are_refused(name):
    with pytest.raises(ConstitutionError, match="has to begin with"):
        Constitution.load(PAPER / f"{name}.json")


@pytest.mark.parametrize("data, says", [
    (["Which? Options:", " Options:"], "'comparison' is empty"),
    ({"a": {"edit_request": "RevisionRequest: x Revision:"}}, "'critique' is empty"),
    ({"a": {"prompt": 3, "edit_request": "x"}}, "'critique' is a number"),
    ({"a": {"prompt": ["x", "y"], "edit_request": "x"}}, "'critique' is a list"),
    (["Which? Options:", 3], "the file is a list"), ({}, "begin with")])
def test_a_damaged_list_of_the_paper_is_an_error(tmp_path, data, says):
    with pytest.raises(ConstitutionError, match=says):
        load(tmp_path, json.dumps(data), "c.json")


# ---------------------------------------------------------------- the bundled constitutions, audited


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_constitutions_pass_their_audit(name):
    report = audit(Constitution.load(name))
    assert report["problems"] == []
    assert 0.35 <= report["better_is_longer"] <= 0.65
    assert report["better_is_refusal"] <= 0.75 and report["refusal_wins"] <= 0.75


def test_harmlessness_has_what_was_promised():
    c = Constitution.load("harmlessness")
    assert len(c) == len(c.for_critique) == len(c.for_comparison) == 16
    assert all(p.opposite and p.better and p.worse and p.title for p in c)
    assert len(c.exemplars()) >= 128 and min(len(p.exemplars) for p in c) >= 8
    assert len(c.pairs()) >= 160 and min(len(p.pairs) for p in c) >= 8
    from cai_nb.prompts import load_prompts
    harms = {p["category"] for p in load_prompts("harmful")}
    for kind, items in (("exemplar", c.exemplars()), ("pair", c.pairs())):
        have = Counter(item.category for _, item in items)
        assert harms <= set(have), f"no {kind} on {harms - set(have)}"
        assert Counter(item.kind for _, item in items)["benign"] >= 30


def test_texts_of_different_principles_differ():
    principles = [p for name in BUNDLED for p in Constitution.load(name)]
    for key in ("critique", "revision", "comparison", "opposite"):
        found = near_duplicates([getattr(p, key) for p in principles], 0.8)
        assert not found, [(principles[i].id, principles[j].id, key) for i, j, _ in found]


def test_most_labelled_pairs_are_the_default_models_own_responses():
    sources = Counter(j.source for name in BUNDLED for _, j in Constitution.load(name).pairs())
    assert "" not in sources  # every pair says where its responses come from
    own = sources["default-model"] + sources["default-model after SL-CAI"]  # both responses, not one of them
    assert own > sources.total() / 2, sources


def test_a_fifth_is_held_out_and_splits_follow_the_prompt():
    items = [item for name in BUNDLED for c in [Constitution.load(name)] for _, item in c.exemplars() + c.pairs()]
    assert all(item.split == split_of(item.prompt) for item in items)
    share = Counter(item.split for item in items)
    assert 0.15 <= share["heldout"] / len(items) <= 0.25 and 0.15 <= share["judge"] / len(items) <= 0.25


def test_no_prompt_in_two_splits_across_constitutions_either():
    items = [item for name in BUNDLED for c in [Constitution.load(name)] for _, item in c.exemplars() + c.pairs()]
    for i, j, _ in near_duplicates([item.prompt for item in items]):
        assert items[i].split == items[j].split, (items[i].id, items[j].id)


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def formulaic_share(texts, n=4, others=3):
    "Share of the texts with any phrase of `n` words that more than `others` other texts have too"
    phrases = [{tuple(w[i:i + n]) for i in range(len(w) - n + 1)} for w in map(words, texts)]
    counts = Counter(phrase for found in phrases for phrase in found)
    return sum(any(counts[phrase] - 1 > others for phrase in found) for found in phrases) / len(texts)


def attributed_share(texts, principles, folds=6):
    "Accuracy of a bag of words that says, of texts held out from it, under which principle each was written"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=30, max_iter=300))
    return cross_val_score(model, texts, principles, cv=StratifiedKFold(folds, shuffle=True, random_state=0)).mean()


def test_measures_of_critiques_on_texts_that_one_can_check_by_hand():
    assert formulaic_share(["It goes along with it.", "He goes along with it!", "No."], others=0) == 2 / 3
    assert formulaic_share(["It goes along with it.", "He goes along with it!", "No."], others=1) == 0
    assert attributed_share(["red rose", "blue sea"] * 6, ["a", "b"] * 6) == 1
    assert attributed_share(["the response goes along"] * 12, ["a", "b"] * 6) == 0.5  # says nothing: chance


# measured with these functions: (formulaic, attributed) was 0.78, 0.20 of 288 and 0.44, 0.21 of 48 when most critiques
# said that a response "goes along with it"; it is 0.02, 0.95 and 0.00, 0.67. Chance is 1/16 and 1/6.
@pytest.mark.parametrize("name, attributed", [("harmlessness", 0.85), ("anti-overreaction", 0.5)])
def test_a_critique_says_what_its_own_principle_finds(name, attributed):
    found = Constitution.load(name).exemplars()
    texts, principles = [e.critique for _, e in found], [p.id for p, _ in found]
    assert formulaic_share(texts) <= 0.1
    assert attributed_share(texts, principles) >= attributed
    assert attributed_share([e.prompt for _, e in found], principles) < 0.35  # not by the subject of the prompt


def test_a_critique_quotes_what_was_said():
    for _, e in Constitution.load("harmlessness").exemplars():
        said = " ".join(words(f"{e.prompt} {e.response}".replace("’", "'")))
        quotes = re.findall(r'"([^"]+)"', e.critique)
        assert quotes, f"{e.id} points at no word of the response"
        assert all(" ".join(words(quote)) in said for quote in quotes), f"{e.id} quotes what nobody said: {quotes}"
