"The judge that reads its principle: what has to hold by construction, and what the package's judge reads"

import numpy as np
import pytest
import yaml
from tiny import tiny_folder

from cai_nb.constitution import Constitution, Principle
from cai_nb.dialogue import data_path, user
from cai_nb.feedback import FeedbackError
from cai_nb.judge import Judges
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs
from cai_nb.principle_judge import QUALITY, PrincipleJudge, fit_probes, training_sentences
from cai_nb.steering import CHECKS, mechanical_pairs, opposite, steering

HARMLESS = Constitution.load("harmlessness")
SENTENCES = training_sentences([HARMLESS])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LanguageModel.load(tiny_folder(tmp_path_factory.mktemp("tiny")), dtype="float32")


@pytest.fixture(scope="module")
def judge(model):
    "A judge of random weights' hidden states, taught by sixty short pairs"
    pairs = sorted(labelled_pairs(HARMLESS, exemplars=False), key=lambda p: len(p["better"]) + len(p["worse"]))[:60]
    sentences = {axis: SENTENCES[axis][:3] for axis in ("longer", "negation", "addresses-the-reader", QUALITY)}
    return PrincipleJudge.fit(Judges.fit(model, pairs, layers=(2, 4)), pairs, sentences, layers=(1, 3))


@pytest.fixture(scope="module")
def held():
    return as_pairs(labelled_pairs(HARMLESS, "heldout", exemplars=False))[:8]


def p_first(judge, pairs, constitution=HARMLESS):
    return np.array([r["p_first"] for r in judge.label_pairs(pairs, constitution)])


def test_turning_a_principle_round_turns_the_label_round(judge, held):
    p = p_first(judge, held)
    assert np.ptp(p) > 0.01  # the labels are not all the same, or the next line says nothing
    np.testing.assert_allclose(p_first(judge, held, opposite(HARMLESS)), 1 - p, atol=1e-4)


def test_exchanging_the_responses_exchanges_the_label(judge, held):
    exchanged = [{**pair, "responses": pair["responses"][::-1]} for pair in held]
    np.testing.assert_allclose(p_first(judge, exchanged), 1 - p_first(judge, held), atol=1e-4)


def test_a_record_says_what_the_principle_was_read_as(judge, held):
    record = judge.label_pairs(held[:1], HARMLESS)[0]
    assert record["method"] == "principle_judge" and record["principles"] == [held[0]["principle"]]
    assert len(record["read_as"]) == 3 and set(record["read_as"]) <= set(judge.reader.axes)
    assert sum(map(abs, record["read_as"].values())) <= 1.01


def test_a_label_is_the_weighted_sum_of_the_axes(judge, held):
    weights, directions = judge.reader.read([HARMLESS[pair["principle"]] for pair in held])
    odds = (weights*directions*judge.log_odds(held)).sum(1)
    np.testing.assert_allclose(p_first(judge, held), 1/(1 + np.exp(-odds)), atol=1e-6)


def test_saved_is_loaded_and_another_model_is_refused(judge, held, model, tmp_path, tmp_path_factory):
    judge.save(tmp_path)
    np.testing.assert_allclose(p_first(PrincipleJudge.load(tmp_path, model), held), p_first(judge, held), atol=5e-3)
    other = LanguageModel.load(tiny_folder(tmp_path_factory.mktemp("other"), seed=1), dtype="float32")
    with pytest.raises(FeedbackError, match="hidden states"):
        PrincipleJudge.load(tmp_path, other)
    with pytest.raises(FeedbackError, match="holds no principle judge"):
        PrincipleJudge.load(tmp_path/"nowhere", model)


def test_a_principle_that_cannot_be_turned_round_is_refused(judge, held):
    mine = Constitution("mine", principles=(Principle("rhyme", comparison="Which response rhymes?"),))
    with pytest.raises(FeedbackError, match="principle rhyme lacks 'opposite': add"):
        judge.label_pairs([{**held[0], "principle": "rhyme"}], mine)


def test_a_probe_finds_the_feature_that_its_check_counts():
    rng = np.random.default_rng(0)
    pairs = [{"prompt": [user(f"q{i % 8}")], "better": "word "*int(n), "worse": "word "*6} for i, n in enumerate(rng.integers(1, 12, 80))]
    d = np.array([[len(p["better"]) - len(p["worse"]), *rng.normal(size=3)] for p in pairs])/10
    found = fit_probes(d, pairs)
    assert "money" not in found  # no pair tells
    assert found["longer"][0] > 5*np.abs(found["longer"][1:]).max()


def test_the_sentences_teach_every_check_and_none_of_them_measures_it():
    sentences = yaml.safe_load((data_path("adapters", "judges")/"sentences.yaml").read_text("utf-8"))
    assert list(sentences) == list(CHECKS)
    texts = [text for pairs in sentences.values() for pair in pairs for text in pair]
    assert min(map(len, sentences.values())) >= 7 and {len(pair) for pairs in sentences.values() for pair in pairs} == {2}
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {text for p in Constitution.load("mechanical") for text in (p.comparison, p.opposite)}


@pytest.fixture(scope="module")
def bundled():
    lm = LanguageModel.load()
    return PrincipleJudge.load(data_path("adapters", "judges")/"train", lm)


def test_the_bundled_judge_reads_wordings_that_it_never_saw(bundled):
    mechanical = list(Constitution.load("mechanical"))
    weights, directions = bundled.reader.read(mechanical)
    right = [bundled.reader.axes[k] == p.id.rpartition("-")[0] for k, p in zip(weights.argmax(1), mechanical)]
    assert np.mean(right) > 0.75  # 0.87 when it was fitted; one of 66 axes by chance
    assert (directions[np.arange(len(mechanical)), weights.argmax(1)] > 0).mean() > 0.9


def test_the_bundled_judge_follows_a_sentence_and_its_opposite(bundled):
    mechanical = Constitution.load("mechanical")
    pairs = as_pairs(labelled_pairs(["harmlessness", "helpfulness"], "heldout", exemplars=False))[:40]
    asked = [p for p in mechanical_pairs(pairs, mechanical) if p["principle"] in ("longer-2", "asks-a-question-3", "number-1")]
    row = steering(bundled.label_pairs, asked[:40], mechanical)[0]
    assert row["accuracy"] > 0.7 and row["accuracy_opposite"] < 0.3
