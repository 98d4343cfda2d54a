"""Pairs, labels and the judge: position bias, symmetry, what is refused."""

import json
import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_folder

from cai_nb.constitution import Constitution, Exemplar, LabelledPair, Principle
from cai_nb.dialogue import CaiError, user
from cai_nb.feedback import (
    ANSWER,
    REASON,
    chain_of_thought,
    comparison_question,
    comparison_record,
    contrastive_choice,
    contrastive_log_likelihood,
    cut_reasoning,
    ensemble,
    exemplar_turns,
    label_all,
    make_label,
    multiple_choice,
    over_principles,
    pointwise,
    pointwise_scores,
    position_bias,
    reason_with_letters,
    select_exemplars,
)
from cai_nb.judge import Judge, Judges, fit_antisymmetric
from cai_nb.model import Completion, LanguageModel
from cai_nb.pairs import as_pairs, label_accuracy, labelled_comparisons, labelled_pairs, load_comparisons, sample_pairs
from cai_nb.records import Records, kind_of, upgrade

BUNDLED = ["harmlessness", "helpfulness", "anti-overreaction"]
WORDS = ("apple bread cloud drum eagle field glass house iron jelly kite lemon moss night ocean pearl quill river "
         "stone tiger").split()


def pair_of(i, split="train"):
    w = WORDS[i % 20]
    return LabelledPair(f"p{i}", f"What about {w} {i}?", f"Yes: {w}, gladly!", f"no {w} ever", "kind", split=split)


CONSTITUTION = Constitution("tiny", "", (
    Principle("calm", comparison="Which response is calmer?", opposite="Which response is wilder?", better="Calm.", worse="Wild.",
              pairs=tuple(pair_of(i) for i in range(0, 24, 2)),
              exemplars=(Exemplar("e0", "Say no?", "no no", "It is curt.", "Yes: gladly!"),)),
    Principle("kind", comparison="Which response is kinder?", opposite="Which response is crueller?", better="Kind.", worse="Cruel.",
              pairs=tuple(pair_of(i, "heldout" if i > 15 else "train") for i in range(1, 24, 2))),
))
PAIRS = [{"id": f"q{i}", "kind": "harmful", "category": "x", "prompt": [user(f"Question {i}?")],
          "responses": [f"first answer {i}", f"another one {i}"]} for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LanguageModel.load(tiny_folder(tmp_path_factory.mktemp("tiny")), dtype="float32")


class Scripted:
    "A model whose answers are given: `sample` hands them out by key, `option_logprobs` always prefers one letter"
    id = "scripted"

    def __init__(self, answers=None, says="A"):
        self.answers, self.says, self.asked = answers or {}, says, 0

    def fits(self, prompts, max_tokens=0):
        return [len(p[-1]["content"]) < 100 for p in prompts]

    def sample(self, prompts, keys, **_):
        self.asked += len(prompts)
        return [Completion(self.answers.get(k, f"answer {k}"), 3, True) for k in keys]

    def option_logprobs(self, prompts, options, prefix, **_):
        assert prefix == ANSWER
        row = np.log([0.8, 0.1]) if self.says == "A" else np.log([0.1, 0.8])
        return np.tile(row, (len(prompts), 1))


def prompts(n):
    return [{"id": f"r{i}", "prompt": f"Prompt {i}?", "kind": "harmful", "category": "c"} for i in range(n)]


def test_equal_and_empty_answers_are_sampled_anew_then_left_out(tmp_path):
    same = {f"r0-0/{s}/{t}": "The same" for s in ("first", "second") for t in range(9)}
    empty = {"r1-0/first/0": "", "r2-0/first/0": "x", "r2-0/second/0": " X "}
    with pytest.warns(UserWarning, match="2 of 5 pairs were left out: 1 prompts too long"):
        made = sample_pairs(Scripted(same | empty), [*prompts(4), {"id": "long", "prompt": "x" * 200}])
    assert [p["id"] for p in made] == ["r1-0", "r2-0", "r3-0"]
    assert made[0]["responses"] == ["answer r1-0/first/1", "answer r1-0/second/1"]
    assert made[2]["responses"] == ["answer r3-0/first/0", "answer r3-0/second/0"]


def test_sampling_goes_on_where_it_stopped(tmp_path):
    once = Records(tmp_path / "once.jsonl")
    sample_pairs(Scripted(), prompts(5), n=2, batch_size=1, records=once)
    again, model = Records(tmp_path / "again.jsonl"), Scripted()
    sample_pairs(model, prompts(3), n=2, records=again)
    asked = model.asked
    out = sample_pairs(model, prompts(5), n=2, records=Records(again.path))
    assert model.asked - asked == 2 * 2 * 2 and len(out) == 10
    assert list(Records(again.path)) == list(once)


def test_real_model_gives_different_answers_that_do_not_depend_on_the_batch(model):
    a = sample_pairs(model, prompts(3), max_tokens=6, batch_size=32)
    b = sample_pairs(model, prompts(3)[::-1], max_tokens=6, batch_size=1)
    assert a == b[::-1] and all(p["responses"][0] != p["responses"][1] for p in a)


def test_a_model_that_always_says_a_learns_nothing_from_both_orders():
    records = multiple_choice(Scripted(says="A"), PAIRS, CONSTITUTION)
    assert [r["p_first"] for r in records] == pytest.approx([0.5] * 6)
    bias = position_bias(records)
    assert bias["rate_a"] == 1 and bias["position_bias_rate"] == 1
    assert bias["residual_probability"] == pytest.approx(0.1)
    one = multiple_choice(Scripted(says="A"), PAIRS, CONSTITUTION, both_orders=False)
    assert [r["p_first"] for r in one] == pytest.approx([8 / 9] * 6) and list(one[0]["logprobs"]) == ["first"]


def test_exchanging_the_responses_exchanges_the_label(model):
    swapped = [{**p, "responses": p["responses"][::-1]} for p in PAIRS]
    for label in (multiple_choice, contrastive_choice, contrastive_log_likelihood):
        a, b = label(model, PAIRS, CONSTITUTION), label(model, swapped, CONSTITUTION)
        for x, y in zip(a, b):
            assert x["p_first"] == pytest.approx(1 - y["p_first"], abs=1e-5)
            assert x["principles"] == y["principles"] and len(x["principles"]) == 1
            answers = {x["chosen"][0]["content"], x["rejected"][0]["content"]}
            assert x["label"] >= 0.5 and answers == set(PAIRS[a.index(x)]["responses"])


class Opinionated:
    "Log-odds of (A) in nats: 1 for the letter, 0.8 for a first answer, and 0.5 against it when asked which is calmer"
    id = "opinionated"

    def option_logprobs(self, prompts, options, prefix, **_):
        text = [p[-1]["content"] for p in prompts]
        odds = np.array([1 + (0.8 - 0.5 * (1 if "calmer" in t else -1)) * (1 if "(A) first" in t else -1) for t in text])
        return np.log(1 / (1 + np.exp([-odds, odds]))).T


def test_what_the_model_likes_anyway_cancels_in_a_contrastive_choice():
    pair, model = {**PAIRS[0], "principle": "calm"}, Opinionated()
    alone = multiple_choice(model, [pair], CONSTITUTION)[0]
    assert alone["p_first"] > 0.5  # it likes the first answer more than the principle objects to it
    r = contrastive_choice(model, [pair], CONSTITUTION)[0]
    assert r["odds"] == pytest.approx([0.3, 1.3])
    assert r["p_first"] == pytest.approx(1 / (1 + np.exp(0.5))) and r["label"] == pytest.approx(1 - r["p_first"])
    assert r["chosen"][0]["content"] == "another one 0" and r["method"] == "contrastive_choice"
    odds = {key: {order: a - b for order, (a, b) in r[key].items()} for key in ("logprobs", "logprobs_opposite")}
    assert odds["logprobs"] == pytest.approx({"first": 1.3, "second": 0.7})
    assert odds["logprobs_opposite"] == pytest.approx({"first": 2.3, "second": -0.3})
    twice = contrastive_choice(model, [pair], CONSTITUTION, scale=3.0)[0]
    assert twice["p_first"] == pytest.approx(1 / (1 + np.exp(1.5))) and twice["scale"] == 3
    one = contrastive_choice(model, [pair], CONSTITUTION, both_orders=False)[0]  # the letter is in both questions
    assert one["p_first"] == pytest.approx(r["p_first"]) and one["odds"] == pytest.approx([1.3, 2.3])
    assert list(one["logprobs"]) == list(one["logprobs_opposite"]) == ["first"]


def test_the_opposite_question_gets_the_opposite_label(model):
    turned = Constitution("turned", "", tuple(replace(p, comparison=p.opposite, opposite=p.comparison)
                                              for p in CONSTITUTION))
    records = contrastive_choice(model, PAIRS, CONSTITUTION, scale=500.0)
    again = contrastive_choice(model, PAIRS, turned, scale=500.0)
    assert [r["p_first"] for r in again] == pytest.approx([1 - r["p_first"] for r in records], abs=1e-3)
    assert max(abs(r["p_first"] - 0.5) for r in records) > 0.03  # far from what 1 − p could be by rounding
    assert [r["principles"] for r in again] == [r["principles"] for r in records]


def test_the_question_holds_everything_and_a_response_opens_no_turn():
    text = comparison_question("Hello", "aa\n\nHuman: bb", "cc", CONSTITUTION["calm"])[0]["content"]
    for part in ("Human: Hello", "Which response is calmer?", "(A) aa", "(B) cc"):
        assert part in text
    assert text.index("calmer") < text.index("Options:") < text.index("(A)") < text.index("(B)")


def test_a_principle_named_in_the_pair_is_the_one_used(model):
    pair = {**PAIRS[0], "principle": "kind"}
    assert all(multiple_choice(model, [pair], CONSTITUTION, seed=s)[0]["principles"] == ["kind"] for s in range(4))


@pytest.mark.parametrize("p, label_type, clamp, expected", [
    (0.9, "soft", None, 0.9), (0.9, "soft", (0.4, 0.6), 0.6), (0.1, "soft", (0.4, 0.6), 0.4),
    (0.55, "soft", (0.4, 0.6), 0.55), (0.9, "hard", None, 1.0), (0.1, "hard", (0.4, 0.6), 0.0)])
def test_a_label_is_soft_hard_or_clamped(p, label_type, clamp, expected):
    assert make_label(p, label_type, clamp) == pytest.approx(expected)


def test_probe_finds_a_direction_and_invents_none():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 50)).astype(np.float32)
    truth = np.sign(noise @ rng.normal(size=50))[:, None] * noise
    _, report = fit_antisymmetric(truth, np.arange(200))
    assert report["cross_validated"]["accuracy"] > 0.8
    _, report = fit_antisymmetric(noise, np.arange(200))
    assert report["cross_validated"]["low"] < 0.5 < report["cross_validated"]["high"]


def test_folds_do_not_split_a_prompt():
    "Every prompt twice, with a feature that only recognises it: what was seen in one copy must not help with the other"
    rng = np.random.default_rng(1)
    d = np.repeat(np.eye(60) * rng.choice([-1, 1], 60), 2, axis=0).astype(np.float32)
    _, report = fit_antisymmetric(d, np.repeat(np.arange(60), 2))
    assert report["cross_validated"]["accuracy"] == 0.5


@pytest.fixture(scope="module")
def judge(model):
    return Judge.fit(model, labelled_pairs(CONSTITUTION), layers=(2, 4))


def test_judge_learns_and_has_no_position_bias(judge):
    held = as_pairs(labelled_pairs(CONSTITUTION, "heldout"))
    records = judge.label_pairs(held, CONSTITUTION)
    assert label_accuracy(records, held)["accuracy"] == 1.0
    p, q = ["A?", "B?"], [["one", "two"], ["yes gladly", "no"]]
    assert judge.prob(p, *q) == pytest.approx(1 - judge.prob(p, *q[::-1]), abs=1e-6)


def test_judge_label_says_which_exemplars_made_it(judge):
    record = judge.label_pairs(PAIRS[:1], CONSTITUTION, attributions=len(judge.names))[0]
    odds = np.log(record["p_first"] / (1 - record["p_first"]))
    assert sum(w["log_odds"] for w in record["attributions"]) == pytest.approx(odds, abs=1e-2)
    assert record["scores"][0] - record["scores"][1] == pytest.approx(odds, abs=1e-4)
    score = judge.score([PAIRS[0]["prompt"]] * 2, PAIRS[0]["responses"])
    assert score == pytest.approx(record["scores"], abs=1e-3)
    assert set(record["principles"]) <= {"calm", "kind"}


def test_judge_saved_is_the_judge_loaded(judge, model, tmp_path):
    judge.save(tmp_path)
    other = Judge.load(tmp_path, model)
    args = (["A?"], ["one"], ["two"])
    assert other.prob(*args) == pytest.approx(judge.prob(*args), abs=1e-6)
    assert other.report["cross_validated"] == judge.report["cross_validated"]
    with pytest.raises(CaiError, match="load that model"):
        Judge.load(tmp_path, SimpleNamespace(id="another"))
    with np.load(tmp_path / "judge.npz") as z:  # a folder of an earlier version: other names for the same numbers
        earlier = {{"training_differences": "shown", "dual_weights": "pull"}.get(k, k): z[k] for k in z.files}
    assert "pull" in earlier and "shown" in earlier
    np.savez_compressed(tmp_path / "judge.npz", **earlier)
    about = json.loads((tmp_path / "judge.json").read_text())
    names = [{**name, "judged": True} for name in about["names"]]
    (tmp_path / "judge.json").write_text(json.dumps({**about, "names": names}))
    other = Judge.load(tmp_path, model)
    assert other.label_pairs(PAIRS) == judge.label_pairs(PAIRS)
    (tmp_path / "judge.npz").write_bytes(b"junk")
    with pytest.raises(CaiError, match="holds no judge"):
        Judge.load(tmp_path, model)


def test_weights_count_like_copies():
    "A row of weight 2 is two rows; one of weight 0 is none"
    rng = np.random.default_rng(3)
    d = rng.normal(size=(40, 6)).astype(np.float32) + 0.3
    dual_weights, report = fit_antisymmetric(d, np.arange(40), [2] * 10 + [1] * 20 + [0] * 10, strengths=(10,))
    assert not dual_weights[30:].any()
    copies = np.concatenate([d[:10], d[:30]])
    measured = np.ones(40, bool)
    other, again = fit_antisymmetric(copies, [*range(10), *range(30)], measured=measured, strengths=(10,))
    w, v = dual_weights @ d / report["scale"], other @ copies / again["scale"]
    assert np.corrcoef(w, v)[0, 1] > 0.99


def test_each_kind_of_prompt_has_its_judge(model, tmp_path):
    "On harmful prompts 'no' is the better answer, on harmless ones 'yes': one judge cannot learn both, two can"
    words = [f"{w} {i}" for i in range(2) for w in WORDS[:10]]
    sides = {"benign": ("better", "worse"), "harmful": ("worse", "better")}
    rows = [{"id": f"{kind}{k}", "kind": kind, "prompt": [user(f"Say {w}?")], "labelled": True,
             **dict(zip(sides[kind], ("yes yes gladly", "no no never")))}
            for k, w in enumerate(words) for kind in ("harmful", "benign")]
    judges = Judges.fit(model, rows, layers=(2, 4), question="Good?")
    pairs = [{"id": f"{kind}-{k}", "kind": kind, "prompt": [user(f"And {w}?")],
              "responses": ["no no never", "yes yes gladly"]}
             for k, w in enumerate(WORDS[10:14]) for kind in ("harmful", "benign", "over_refusal")]
    records = judges.label_pairs(pairs, CONSTITUTION)
    assert [r["id"] for r in records] == [p["id"] for p in pairs]
    assert all((r["p_first"] > 0.5) == (kind_of(p) == "harmful") for r, p in zip(records, pairs))
    judges.save(tmp_path)
    again = Judges.load(tmp_path, model)
    assert again.each["benign"].question == "Good?"
    again = again.label_pairs(pairs, CONSTITUTION)
    assert [r["p_first"] for r in again] == pytest.approx([r["p_first"] for r in records], abs=1e-6)
    few = Judges.fit(model, labelled_pairs(CONSTITUTION), layers=(2,))  # pairs of one kind: the other learns from all
    assert len({j.report["n"] for j in few.each.values()}) == 1


class Certain:
    "A model, real in its interface only, that is as sure as log-probabilities can say: whatever is `far` is better"
    id = "certain"

    def features(self, dialogues, **_):
        return np.array([[2000.0 * (d[-1]["content"] == "far")] for d in dialogues], np.float32)

    def option_logprobs(self, prompts, *_, **__):
        yes = ["(A) far" in p[-1]["content"] or (p[-2]["content"] == "far" and "Calm" in p[-1]["content"])
               if len(p) > 1 else "(A) far" in p[-1]["content"] for p in prompts]
        return np.array([[0.0, -2000.0] if y else [-2000.0, 0.0] for y in yes])

    def score(self, prompts, texts, **_):
        return [SimpleNamespace(per_token=2000.0 * (t == "far" and "Calm" in p[0]["content"]))
                for p, t in zip(prompts, texts)]


def test_log_odds_beyond_what_exp_can_hold_are_labels_all_the_same():
    "exp(709) is about the last one that a float can hold; a label of a judge that was surer than that was an error"
    pairs = [{**PAIRS[0], "id": str(k), "principle": "calm", "responses": texts}
             for k, texts in enumerate((["far", "near"], ["near", "far"]))]
    one, model = np.ones(1, np.float32), Certain()
    sure = Judge(model, (), 0 * one, one, one[None], one, [{"id": "e", "principle": "calm"}], {"model": "certain"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy says "overflow encountered in exp"
        assert [r["p_first"] for r in sure.label_pairs(pairs)] == [1, 0]
        assert sure.prob(["q", "q"], ["far", "near"], ["near", "far"]).tolist() == [1, 0]
        assert sure.prob_of(np.array([[2000.0], [-2000.0]])).tolist() == [1, 0]
        for label in (multiple_choice, pointwise, contrastive_log_likelihood):
            records = label(model, pairs, CONSTITUTION)
            assert [r["p_first"] for r in records] == [1, 0], label
        assert position_bias(multiple_choice(model, pairs, CONSTITUTION))["mean_p_a"] == 0.5
        from cai_nb.course.widgets import label_html

        record = {"p_first": 0.5, "logprobs": {"first": [-2000.0, 0.0]}}
        assert "P(A) = 0.00" in label_html(pairs[0], CONSTITUTION["calm"], record)


def test_reasons_speak_in_the_letters_that_were_dealt():
    reason = "The better response warns; the worse one jokes, and the better one's tone is kind."
    assert reason_with_letters(reason, "A") == "(A) warns; (B) jokes, and (A)'s tone is kind."
    assert reason_with_letters(reason, "B") == "(B) warns; (A) jokes, and (B)'s tone is kind."
    answer = ("While the worse answer lectures, the better answer's list helps. "
              "The better letter ends better, for better pay.")
    assert reason_with_letters(answer, "A") == "While (B) lectures, (A)'s list helps. (A) ends better, for better pay."


def test_no_bundled_reason_names_the_solution_in_words():
    "An exemplar's reasoning may say (A) or (B): a reader of the question cannot know yet which is 'the better answer'"
    pairs = [(p, j) for name in BUNDLED for p, j in Constitution.load(name).pairs()]
    named = re.compile(r"\bthe (?:better|worse) \w+", re.I)
    assert sum(bool(named.search(j.reason)) for _, j in pairs) > 500
    for (_, j), letter in zip(pairs, "AB" * len(pairs)):
        told = reason_with_letters(j.reason, letter)
        assert not named.search(told), (j.id, told)
    texts = [m["content"] for m in exemplar_turns(pairs, reasons=True)[1::2]]
    for k, (text, (_, j)) in enumerate(zip(texts, pairs)):
        better, worse = "AB"[k % 2], "BA"[k % 2]
        assert text.endswith(f"{ANSWER}{better})")
        if re.search(r"\bthe better (?:answer|response|one)\b", j.reason, re.I):
            assert f"({better})" in text.split("\n\n")[0], (j.id, text)
        if re.search(r"\bthe worse (?:answer|response|one)\b", j.reason, re.I):
            assert f"({worse})" in text.split("\n\n")[0], (j.id, text)


def test_no_bundled_reason_speaks_of_an_order_that_nobody_sees():
    for name in BUNDLED:
        for _, j in Constitution.load(name).pairs():
            named = r"^The (?:first|second)\b|[;,] the (?:first|second|other)? ?(?:first|second)\b"
            sides = re.findall(named, j.reason)
            assert not sides, (j.id, j.reason)


def test_a_tie_is_half_an_a():
    tied = {"logprobs": {"first": [-1.0, -1.0], "second": [-1.0, -1.0]}}
    found = position_bias([tied])
    assert found["rate_a"] == 0.5 and found["position_bias_rate"] == 0.5


def test_nothing_held_out_is_learnt_from():
    both = labelled_pairs(CONSTITUTION, "train"), labelled_pairs(CONSTITUTION, "heldout")
    assert [len(b) for b in both] == [21, 4] and not {j["id"] for j in both[0]} & {j["id"] for j in both[1]}


def test_bundled_pairs_come_in_either_order():
    pairs = as_pairs(labelled_pairs(CONSTITUTION))
    assert {p["better"] for p in pairs} == {0, 1}
    by_id = {j["id"]: j for j in labelled_pairs(CONSTITUTION)}
    assert all(p["responses"][p["better"]] == by_id[p["id"]]["better"] for p in pairs)


def test_exemplars_come_from_training_pairs_and_never_show_the_pair_itself():
    held = {j["id"] for j in labelled_pairs(CONSTITUTION, "heldout")}
    for pick in ("random", "similar"):
        for pair in as_pairs(labelled_pairs(CONSTITUTION))[:6]:
            exemplars = select_exemplars(pair, CONSTITUTION, 5, pick)
            assert len(exemplars) == 5 and not held & {j.id for _, j in exemplars}
            assert all(j.messages != pair["prompt"] for _, j in exemplars)
    near = select_exemplars({"prompt": [user("So what about kite 10?")]}, CONSTITUTION, 1, "similar")
    assert near[0][1].prompt == "What about kite 10?"
    letters = [m["content"][-2] for m in exemplar_turns(exemplars)[1::2]]
    assert letters == list("ABABA")
    for (_, j), asked, letter in zip(exemplars, exemplar_turns(exemplars)[::2], letters):
        assert f"({letter}) {j.better}" in asked["content"]


class Thinker(Scripted):
    "Reasons by script, then always says A; keeps what it was asked"

    def sample(self, prompts, keys, prefix="", **_):
        assert prefix.startswith(REASON)
        return [Completion(self.answers[k], 5, not self.answers[k].endswith("…")) for k in keys]

    def option_logprobs(self, prompts, options, prefix, **_):
        self.prefixes = list(prefix)
        return super().option_logprobs(prompts, options, ANSWER)


def test_chain_of_thought_is_kept_clamped_and_counted():
    thoughts = {"q0/0": "It is kind. The answer is: (B)", "q0/1": "It does not end…",
                "q1/0": "Short.", "q1/1": "Also."}
    model = Thinker(thoughts)
    clamped = chain_of_thought(model, PAIRS[:2], CONSTITUTION, exemplars=0)
    assert [r["reasoning_completed"] for r in clamped] == [[True, False], [True, True]]
    assert clamped[0]["reasoning"][0] == "It is kind." and model.prefixes[0] == f"{REASON} It is kind.\n\n{ANSWER}"
    assert all(0.4 <= r["label"] <= 0.6 and r["clamp"] == [0.4, 0.6] for r in clamped)
    one = [chain_of_thought(model, PAIRS[:2], CONSTITUTION, exemplars=0, both_orders=False, clamp=c)[0]["label"]
           for c in ((0.4, 0.6), None)]
    assert one[0] == 0.6 < one[1]
    assert cut_reasoning("", True) == ("", True)


def test_chain_of_thought_asks_after_the_models_own_reasons(model):
    records = chain_of_thought(model, PAIRS[:2], CONSTITUTION, exemplars=1, max_tokens=6)
    again = chain_of_thought(model, PAIRS[1::-1], CONSTITUTION, exemplars=1, max_tokens=6)[::-1]
    for a, b in zip(records, again):  # the same whatever the order of the pairs
        assert a["reasoning"] == b["reasoning"] and a["p_first"] == pytest.approx(b["p_first"], abs=1e-5)
        assert len(a["reasoning"]) == len(a["reasoning_completed"]) == 2


def test_an_ensemble_keeps_what_its_members_said():
    members = [[comparison_record(p, q, "x", principles=[name], constitution="c", model="m") for p in PAIRS]
               for q, name in ((0.9, "calm"), (0.5, "kind"), (0.1, "calm"))]
    r = ensemble(PAIRS, members, weights=[2, 1, 1])[0]
    assert r["p_first"] == pytest.approx(0.6) and r["principles"] == ["calm", "kind"]
    assert r["disagreement"] == pytest.approx(np.sqrt((2 * 0.3**2 + 0.1**2 + 0.5**2) / 4))
    assert [m["p_first"] for m in r["members"]] == [0.9, 0.5, 0.1]
    with pytest.raises(CaiError, match="not every member has labelled q5"):
        ensemble(PAIRS, [members[0], members[1][:-1]])
    asked = []
    def label(pairs, constitution):
        asked.append([p["principle"] for p in pairs])
        return [comparison_record(p, 0.7, "x", principles=[p["principle"]], constitution="c", model="m") for p in pairs]
    both = over_principles(label, PAIRS, CONSTITUTION, 5)  # there are two
    assert len(asked) == 2 and all({a, b} == {"calm", "kind"} for a, b in zip(*asked))
    assert all(r["disagreement"] == pytest.approx(0) for r in both)


def test_pointwise_scores_belong_to_the_response(model):
    records = pointwise(model, PAIRS, CONSTITUTION, scale=2.0, words=("A", "B"))
    for pair, r in zip(PAIRS, records):
        principle = [CONSTITUTION[r["principles"][0]]]
        own = [pointwise_scores(model, [pair["prompt"]], [t], principle, words=("A", "B"))[0]
               for t in pair["responses"]]
        assert r["scores"] == pytest.approx(own, abs=1e-4)
        assert r["p_first"] == pytest.approx(1 / (1 + np.exp(-2 * (own[0] - own[1]))), abs=1e-5)


def test_no_pair_is_labelled_twice_and_a_stop_loses_a_block_at_most(tmp_path):
    asked = []

    def label(pairs):
        if len(asked) >= 2:
            raise KeyboardInterrupt
        asked.append([p["id"] for p in pairs])
        return [comparison_record(p, 0.7, "x") for p in pairs]

    with pytest.raises(KeyboardInterrupt):
        label_all(label, PAIRS, Records(tmp_path / "r.jsonl"), block=2)
    first, asked = asked, []
    records = label_all(label, PAIRS, Records(tmp_path / "r.jsonl"), block=2)
    assert first == [["q0", "q1"], ["q2", "q3"]] and asked == [["q4", "q5"]]
    assert [r["id"] for r in records] == [p["id"] for p in PAIRS]
    with pytest.raises(CaiError, match="same id"):
        label_all(label, PAIRS + PAIRS[:1], Records(tmp_path / "s.jsonl"))


def test_records_of_earlier_versions_are_read_under_todays_names(tmp_path):
    old = {"id": "q0", "kind": "redteam", "method": "judge", "label": 0.9, "p_first": 0.1, "outside": 0.02, "shots": 2,
           "reached": [True, False], "because": [{"id": "e0", "principle": "calm", "log_odds": -0.1}]}
    (tmp_path / "records.jsonl").write_text(json.dumps(old) + "\n")
    found = list(Records(tmp_path / "records.jsonl"))[0]
    assert found == {"id": "q0", "kind": "harmful", "method": "probe", "label": 0.9, "p_first": 0.1, "exemplars": 2,
                     "residual_probability": 0.02, "reasoning_completed": [True, False], "attributions": old["because"]}
    prompt = {"id": "p", "prompt": "Why?", "outside": 1}  # a user's own field in a file that is no comparison
    assert upgrade(prompt) == prompt


def test_public_comparisons_are_read_in_both_formats(tmp_path):
    import gzip

    talk = "\n\nHuman: Hi?\n\nAssistant: {}"
    rows = [{"chosen": talk.format("Hello!"), "rejected": talk.format("What.")},
            {"text_correct": talk.format("Yes."), "text_incorrect": talk.format("No.")},
            {"chosen": talk.format("Same."), "rejected": talk.format("same.")},
            {"chosen": talk.format("A") + talk.format("B"), "rejected": talk.format("C") + talk.format("B")}]
    for name, opener in (("people.jsonl", open), ("people.jsonl.gz", gzip.open)):
        with opener(tmp_path / name, "wt", encoding="utf-8") as f:
            f.write("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.warns(UserWarning, match="2 of 4 left out"):
            found = load_comparisons(tmp_path / name)
        assert [(j["better"], j["worse"]) for j in found] == [("Hello!", "What."), ("Yes.", "No.")]
    with pytest.warns(UserWarning):
        mixed = labelled_comparisons(str(tmp_path / "people.jsonl"), label=0.8, limit=1)
    assert [(r["label"], r["chosen"][0]["content"]) for r in mixed] == [(0.8, "Hello!")]
    for text, words in (("{}\n", "line 1: no comparison"), ("[\n", "cannot be read as JSON lines"),
                        ("", "no comparison of two responses")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(CaiError, match=words):
            load_comparisons(tmp_path / "bad.jsonl")
    with pytest.raises(CaiError, match="cannot be read"):
        load_comparisons(tmp_path / "none.jsonl")


def test_records_are_json(judge, model):
    keys = {"id", "kind", "category", "prompt", "chosen", "rejected", "label", "method", "principles", "constitution",
            "model"}
    for r in [*judge.label_pairs(PAIRS, CONSTITUTION), *multiple_choice(model, PAIRS, CONSTITUTION, exemplars=2),
              *chain_of_thought(model, PAIRS, CONSTITUTION, max_tokens=4),
              *pointwise(model, PAIRS, CONSTITUTION, words=("A", "B")),
              *contrastive_choice(model, PAIRS, CONSTITUTION), *contrastive_log_likelihood(model, PAIRS, CONSTITUTION)]:
        assert json.loads(json.dumps(r, allow_nan=False)) == r
        assert keys <= set(r)


@pytest.mark.parametrize("call, words", [
    (lambda m: sample_pairs(m, prompts(1), temperature=0), "above 0"),
    (lambda m: comparison_record({**PAIRS[0], "responses": ["Yes", "yes "]}, 0.5, "x"), "both responses are the same"),
    (lambda m: comparison_record({**PAIRS[0], "responses": ["Yes", " "]}, 0.5, "x"), "empty"),
    (lambda m: comparison_record(PAIRS[0], float("nan"), "x"), "NaN"),
    (lambda m: comparison_record(PAIRS[0], 0.7, "x", "firm"), "'soft' or 'hard'"),
    (lambda m: comparison_record(PAIRS[0], 0.7, "x", "soft", (0.6, 0.9)), "low ≤ 0.5"),
    (lambda m: Judge.fit(m, []), "no labelled pairs"),
    (lambda m: Judge.fit(m, labelled_pairs(CONSTITUTION)[:2], layers=(2,)), "too few"),
    (lambda m: contrastive_log_likelihood(m, PAIRS, Constitution("c", "", (Principle("p", comparison="Which?"),))),
     "needs both"),
    (lambda m: contrastive_choice(m, PAIRS, Constitution("c", "", (Principle("p", comparison="Which?"),))),
     "principle p has no `opposite`: add its question turned round"),
])
def test_errors_say_what_to_do(model, call, words):
    with pytest.raises(CaiError, match=words), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(model)
