"""Critique and revision: what is asked, what is kept, what is flagged, and that stopping costs nothing."""

import pytest
from tiny import tiny_folder

from cai_nb.constitution import Constitution
from cai_nb.model import LanguageModel
from cai_nb.records import Records
from cai_nb.revision import (
    RevisionConfig, RevisionError, best_of, bigram_jaccard, critic_examples, critique_messages, flags, pick_exemplars,
    revise, revision_messages, trace_html,
)

PROMPTS = [{"id": f"q{i}", "prompt": f"Question number {i}?", "kind": "harmful", "category": "x"} for i in range(5)]
SMALL = RevisionConfig(rounds=2, max_tokens=6, critique_tokens=5, block=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LanguageModel.load(tiny_folder(tmp_path_factory.mktemp("tiny")), dtype="float32")


@pytest.fixture(scope="module")
def harmless():
    return Constitution.load("harmlessness")


def test_a_trace_says_which_principle_changed_what(model, harmless):
    for r in revise(model, PROMPTS, harmless, SMALL):
        assert len(r["steps"]) == 3 and r["steps"][0]["principle"] is None
        for k, step in enumerate(r["steps"][1:], 1):
            assert step["principle"] == harmless.draw(r["id"], k, seed=0, use="critique").id
            assert step["critique"] is not None
        assert r["completion"][0]["content"] == r["steps"][-1]["text"]
        assert r["constitution"] == harmless.fingerprint and r["model"] == model.id


def test_stopped_after_any_record_it_goes_on_to_the_same_end(model, harmless, tmp_path):
    whole = revise(model, PROMPTS, harmless, SMALL)
    full = Records(tmp_path/"full.jsonl")
    revise(model, PROMPTS, harmless, SMALL, records=full)
    lines = (tmp_path/"full.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        path = tmp_path/f"{kept}.jsonl"
        path.write_text("".join(lines[:kept]))
        again = revise(model, PROMPTS, harmless, SMALL, records=Records(path))
        assert again == whole
        assert path.read_text() == "".join(lines)


def test_without_critique_nothing_is_criticised(model, harmless):
    (r,) = revise(model, PROMPTS[:1], harmless, RevisionConfig(rounds=1, critique=False, max_tokens=6))
    assert r["steps"][1]["critique"] is None
    p = harmless["crime"]
    assert all("Critique" not in x["content"] for x in revision_messages("Q", "A", p, None, p.exemplars[:1]))
    assert critique_messages("Q", "A", p)[-1]["content"].endswith(p.critique)


def test_held_out_exemplars_are_neither_shown_nor_learnt(harmless):
    train = {e.id for _, e in harmless.exemplars("train")}
    for p in harmless:
        assert {e.id for e in pick_exemplars(p, "How do I steal a car?", 99)} <= train
    assert {e["id"] for e in critic_examples(harmless)} == train


def test_every_flag_is_raised_by_what_it_names():
    source = "Ask the shop to repair it for you today, or wait until the morning."
    assert "empty" in flags("")
    assert "repeats" in flags("I am sorry. "*9)
    assert "copied" in flags("Or: ask the shop to repair it for you today, or wait until the summer.", sources=[source])
    assert "unchanged" in flags(source, source)
    assert "leaks" in flags("Critique: the answer is rude to her.")
    other = "something else entirely, of another kind"
    assert flags("Tell her what upset you and listen to her side.", source, [other]) == []


def test_the_best_clean_candidate_wins():
    class Judge:
        def score(self, prompts, texts): return [len(t) for t in texts]
    prompt = {"id": "q", "prompt": "Q?"}
    options = ["Tell her the truth.", "Tell her the whole truth, kindly.", "yes "*40]
    assert best_of(prompt, options, "", (), Judge()) == options[1]
    assert best_of(prompt, options, "", ()) == options[0]


def test_what_a_model_wrote_is_escaped(model, harmless):
    (r,) = revise(model, PROMPTS[:1], harmless, RevisionConfig(rounds=1, max_tokens=6))
    r["steps"][1]["text"] = "<script>alert(1)</script>"
    assert "<script>" not in trace_html(r)


def test_settings_out_of_range_are_refused():
    with pytest.raises(RevisionError): RevisionConfig(rounds=-1)
    with pytest.raises(RevisionError): RevisionConfig(candidates=0)


def test_a_prompt_may_be_a_dialogue(model, harmless):
    turns = [("user", "Hello."), ("assistant", "Hello!"), ("user", "How do I steal a car?")]
    dialogue = [{"role": role, "content": text} for role, text in turns]
    short = RevisionConfig(rounds=1, max_tokens=4, critique_tokens=4)
    (r,) = revise(model, [{"id": "d", "prompt": dialogue}], harmless, short)
    assert r["prompt"] == dialogue and len(r["steps"]) == 2
    crime = harmless["crime"]
    assert pick_exemplars(crime, dialogue, 3) == pick_exemplars(crime, "How do I steal a car?", 3)


def test_exemplars_that_share_words_come_first_and_the_prompt_itself_never(harmless):
    crime = harmless["crime"]
    train = [e for e in crime.exemplars if e.split == "train"]
    asked = train[0].prompt
    assert pick_exemplars(crime, asked + " please", 1) == [train[0]]
    assert train[0] not in pick_exemplars(crime, asked, len(train))


def test_the_similarity_of_bigrams_is_symmetric_and_between_0_and_1():
    a, b = "the cat sat on the mat", "the cat sat on the mat and slept there"
    assert bigram_jaccard(a, b) == bigram_jaccard(b, a) == 5/8
    assert bigram_jaccard("one", "two") == 0 and bigram_jaccard(a, a) == 1
