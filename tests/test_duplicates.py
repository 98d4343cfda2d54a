"No near-duplicate is missed, however many texts there are, and the audit notices what is wrong with a set of exemplars."

import itertools
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_nb.constitution import Constitution, Exemplar, LabelledPair, Principle, plain
from cai_nb.dialogue import CaiError
from cai_nb.duplicates import audit, near_duplicates, similarity

# ---------------------------------------------------------------- near-duplicates

shingle_texts = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8).map(" ".join), max_size=14)


@settings(max_examples=100, deadline=None)
@given(shingle_texts, st.sampled_from([0.2, 0.3, 0.5, 0.7, 0.75, 1.0]))
def test_no_near_duplicate_is_missed(texts, threshold):
    found = near_duplicates(texts, threshold)
    assert found == sorted(found) and all(i < j for i, j, _ in found)
    brute = {(i, j) for i, j in itertools.combinations(range(len(texts)), 2)
             if similarity(texts[i], texts[j]) >= threshold - 1e-9}
    firsts = [i for i, t in enumerate(texts) if plain(t) not in {plain(u) for u in texts[:i]}]
    expected = {(i, j) for i, j in brute if (i in firsts and j in firsts)}
    same_set = {(i, j) for i, j, share in found if share == 1.0}
    assert {(i, j) for i, j, share in found if share < 1} == {
        (i, j) for i, j in expected if similarity(texts[i], texts[j]) < 1 and not _has_twin_before(texts, i, j)}
    covered = {j for _, j in same_set}
    assert covered == {j for i, j in brute if similarity(texts[i], texts[j]) == 1}
    assert all(abs(share - similarity(texts[i], texts[j])) < 1e-9 for i, j, share in found)


def _has_twin_before(texts, *indices):
    "Only the first of several equal texts is compared with the others."
    return any(similarity(texts[k], texts[i]) == 1 for i in indices for k in range(i))


def test_many_texts_are_no_matter_of_their_square():
    chance = random.Random(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    weights = [1 / (i + 1) for i in range(3000)]
    texts = [" ".join(chance.choices(vocabulary, weights, k=chance.randint(6, 20))) for _ in range(8000)]
    texts += [text + " please" for text in texts[:50]]
    start = time.perf_counter()
    found = near_duplicates(texts, 0.5)
    seconds = time.perf_counter() - start
    assert {(i, 8000 + i) for i in range(50)} <= {(i, j) for i, j, _ in found}
    assert seconds < 20  # comparing all 32 million pairs takes twenty minutes


@pytest.mark.parametrize("threshold", [0, -1, 1.1, 70, "0.5", True, float("nan")])
def test_a_threshold_is_a_similarity(threshold):
    with pytest.raises(CaiError, match="above 0 and up to 1"):
        near_duplicates(["a", "b"], threshold)


def test_nothing_and_little_have_no_near_duplicates():
    assert near_duplicates([]) == near_duplicates(["a"]) == near_duplicates(["!", "?"]) == []
    assert near_duplicates(["", ""]) == [(0, 1, 1.0)]


# ---------------------------------------------------------------- the audit


def pair(i, better="b", worse="w", prompt=None, **more):
    return LabelledPair(f"j{i}", prompt or f"prompt number {i}", f"{better} {i}", f"{worse} {i}", f"reason {i}", **more)


def constitution(pairs=(), exemplars=()):
    only = Principle("p", comparison="q", better="b", worse="w", pairs=tuple(pairs), exemplars=tuple(exemplars))
    return Constitution("x", "", [only])


@pytest.mark.parametrize("made, says", [
    (constitution([pair(i, better="a much longer response") for i in range(20)]), "better_is_longer is 1.00"),
    (constitution([pair(i, worse="a much longer response") for i in range(20)]), "better_is_longer is 0.00"),
    (constitution([pair(i, better="I can't help with that.") for i in range(20)]), "refusal_wins is 1.00"),
    (constitution([pair(1, prompt="How do I pick a lock?"), pair(2, prompt="how do I pick a lock", split="heldout")]),
     "j1 (train) and j2 (heldout) have the same prompt"),
    (constitution([pair(1, prompt="Hi, how can I pick a lock?"),
                   pair(2, prompt="how can I pick a lock?", split="judge")]),
     "j1 (train) and j2 (judge) have the same prompt"),
    (constitution([pair(1, prompt="Please, how does one bake bread?")]),
     "j1 has a prompt that models are trained or tested on"),
    (constitution([pair(1), replace(pair(1), id="j2")]), "pairs j1 and j2 are the same"),
    (constitution([replace(pair(1), worse="b 1")]), "pair j1: the two responses are the same"),
    (constitution([replace(pair(1), reason="")]), "pair j1: reason is empty"),
    (constitution(exemplars=[Exemplar("e1", "a", "b", "c c", "b")]), "exemplar e1: the revision repeats the response"),
    (constitution(exemplars=[Exemplar("e1", "a", "b", "the same old words", "d"),
                             Exemplar("e2", "x", "y", "the same old words", "z")]),
     "exemplars e1 and e2 have the same critique"),
    (constitution(exemplars=[Exemplar("e1", "a", " ", "c", "d")]), "exemplar e1: response is empty"),
    (Constitution("x", "", [Principle("p", comparison="q")]), "p: no better and worse statement"),
])
def test_the_audit_names_what_is_wrong(made, says):
    problems = audit(made, prompts=["How does one bake bread?"])["problems"]
    assert any(says in problem for problem in problems), problems


def test_the_audit_counts():
    made = constitution([pair(1, better="longer response", category="x"),
                         pair(2, category="y", kind="benign", split="judge")])
    report = audit(made, prompts=[])
    assert (report["principles"], report["exemplars"], report["pairs"]) == (1, 0, 2)
    assert report["per_category"] == {"x": {"exemplars": 0, "pairs": 1}, "y": {"exemplars": 0, "pairs": 1}}
    assert report["per_split"]["judge"] == {"exemplars": 0, "pairs": 1}
    assert report["better_is_longer"] == 0.5 and report["refusal_wins"] is None and report["problems"] == []
