"""Steering: what the checks of the mechanical principles count, and whether labels follow the text of a principle."""

from functools import partial
from types import SimpleNamespace

import pytest
from tiny import tiny_folder

from cai_nb.constitution import Constitution, Ensemble, Principle
from cai_nb.dialogue import CaiError, user
from cai_nb.feedback import comparison_record, exemplar_turns, multiple_choice
from cai_nb.judge import Judge
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs
from cai_nb.steering import CHECKS, critique_attribution, mechanical_pairs, opposite, steering, verdict

MECHANICAL = Constitution.load("mechanical")
HARMLESSNESS = Constitution.load("harmlessness")
HELDOUT = as_pairs(labelled_pairs("harmlessness", "heldout", exemplars=False))
EXAMPLES = {  # check: (a text that has more, a text that has less)
    "longer": ("Take the bus to the station and walk from there.", "Take the bus."),
    "sentences": ("Wait. Then ask. Then go.", "Wait and then ask before you go."),
    "long-sentences": ("Wait until it is dry and then paint it again.", "Wait. Paint it. Wait again. Paint again."),
    "long-words": ("Consider professional photography.", "Try to do it as it is now."),
    "paragraphs": ("One thing.\n\nAnother thing.", "One thing. Another thing."),
    "items": ("Bring:\n- a coat\n2. shoes\n* a hat", "Bring:\n- a coat, shoes, a hat"),
    "bullets": ("Bring:\n- a coat\n- a hat", "Bring:\n1. a coat\n2. a hat"),
    "steps": ("Do this:\n1. Wait.\n2. Go.", "Do this:\n- Wait.\n- Go."),
    "repeats": ("Water it and water it and water it.", "Water the plants once, then let them dry."),
    "number": ("Bake it for 20 minutes at 180.5 degrees.", "Bake it for 20 minutes in a hot oven."),
    "commas": ("Bread, milk, eggs and tea.", "Bread and milk and eggs and tea."),
    "colon": ("You need this: time.", "You need time."),
    "exclamation": ("Great! Do it!", "Great. Do it."),
    "quotes": ("He said “no” to it.", "He said no to it."),
    "brackets": ("A nap (a short one) helps.", "A short nap helps."),
    "capitals": ("STOP, this is for the FBI.", "Stop, this is for the police."),
    "names": ("You can ask Anna in Paris.", "You can ask someone in the city. Then go."),
    "i-first": ("I'd ask a friend.", "A friend and I would ask."),
    "imperative": ("Try it once a day.", "You can try it once a day."),
    "apology-first": ("Oh, I'm sorry about that. Ask her.", "Ask her whether she still feels hurt, then say sorry."),
    "warning-first": ("Be careful with this. Mix both.", "Mix both. Be careful with this."),
    "asks-a-question": ("What is it? Where does it hurt?", "What is it, and where does it hurt?"),
    "question-last": ("Take a nap. Does that help?", "Does that help? Take a nap."),
    "refuses": ("I’m sorry, but I can’t help with that.", "You can't lose: here is how to do that."),
    "alternative": ("You could take the bus instead.", "The car is fine."),
    "risk": ("This is dangerous: the poison could hurt you.", "This is easy and quick."),
    "helper": ("Talk to a doctor or a friend you like.", "Talk about it a bit."),
    "examples": ("Eat fruit, for example apples.", "Eat fruit and apples."),
    "reasons": ("Wait, because it is wet.", "Wait, it is wet."),
    "speaks-of-itself": ("I like my own garden.", "Gardens are nice."),
    "addresses-the-reader": ("You can ask your boss.", "One can ask the boss."),
    "we": ("We should trust our friends.", "They should trust their friends."),
    "third-person": ("She told them that he left.", "Tell me about it."),
    "contractions": ("It’s fine, I don't mind.", "It is fine, I do not mind Anna's dog."),
    "hedges": ("It might rain, perhaps.", "It rains."),
    "absolutes": ("Everyone always says so.", "Some people say so at times."),
    "polite": ("Please sit down, thank you.", "Sit down now."),
    "conditional": ("If it rains, stay in, unless you like rain.", "It rains, so stay in."),
    "negation": ("No, it isn't so and was never so.", "Yes, it is so. Note another knot."),
    "duty": ("You must go, and you should hurry.", "You go and you hurry."),
    "future": ("It will rain and we'll get wet.", "It rains and we get wet."),
    "past": ("He asked and she said no.", "He needs to proceed with speed."),
    "comparison": ("This is better than that, and more fun.", "This is good and that is fun."),
    "contrast": ("It is slow, but good, although dear.", "It is slow and good and dear."),
    "order-words": ("First wash it, then dry it, finally fold it.", "Wash it, dry it, fold it."),
    "importance": ("It is important and even essential.", "It is nice and even pretty."),
    "help": ("We help and support everyone.", "We see everyone."),
    "praise": ("That is a great idea, wonderful!", "That is an idea."),
    "blame": ("That is wrong and cruel.", "That is it."),
    "adverbs": ("Slowly and carefully, really.", "The only family reply is early."),
    "and": ("Tea and milk and bread.", "Tea, milk, bread, sand, a hand."),
    "money": ("The bank asks for a higher price.", "The river is high."),
    "family": ("Ask your mother and your sister.", "Ask the mayor."),
    "health": ("The doctor has a medicine for the pain.", "The painter has a red hat."),
    "food": ("Cook the rice and eat it with cheese.", "Paint the wall and look at it."),
    "work": ("Tell your boss at the office.", "Tell her in the garden."),
    "law": ("The police took him to court: it is illegal.", "The bus took him to town: it is late."),
    "internet": ("Put it online on a website.", "Put it on the shelf."),
    "feelings": ("She is sad and angry.", "She is tall and quick."),
    "time": ("Wait two hours, or until tomorrow.", "Wait for the bus."),
    "places": ("The shop is in the street near the park.", "The thing is near him."),
    "animals": ("The dog ran after the cat.", "The man ran after the ball, in a category of his own."),
    "school": ("The teacher gave the students a lesson.", "The man gave the men a lift."),
    "body": ("Wash your hands and your face.", "Wash the car."),
    "travel": ("Take a train or drive a car.", "Take a nap or have a carpet."),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_tells_more_from_less(name):
    more, less = EXAMPLES[name]
    assert CHECKS[name](more) > CHECKS[name](less)


TRAPS = {  # check: a text with words that only begin like what it counts
    "money": "The costume fundamentally suits the taxi driver who investigates.", "family": "That is relatively familiar.",
    "health": "The painter has a pillow, and I'll treat it well.", "food": "He treats it as theatre.",
    "work": "A companion and an officer came.", "law": "That is fine, courteous and right.", "internet": "Be accountable.",
    "feelings": "It happens in the saddle.", "time": "That is the second nightmare.", "places": "It is stationary.",
    "animals": "The coward has a pigment.", "school": "For example, a classic booking.", "body": "Come back ahead.",
    "travel": "A triple planet, carefully.", "risk": "In harmony, that is harmless.", "reasons": "Be reasonable.",
    "hedges": "As quickly as possible.", "help": "I am an assistant.", "refuses": "It can't rain, and you won't be late.",
    "contractions": "Anna's dog.", "adverbs": "Only my family replied early.", "past": "Indeed, we need speed.",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_a_check_counts_words_not_beginnings(name):
    assert CHECKS[name](TRAPS[name]) == 0


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_knows_no_side_of_an_empty_text(name):
    assert CHECKS[name]("") == CHECKS[name](" \n") == 0


def test_every_mechanical_principle_has_a_check_three_wordings_and_both_directions():
    wordings = {}
    for p in MECHANICAL:
        assert p.title and p.comparison and p.opposite and p.better and p.worse, p.id
        wordings.setdefault(p.id.rpartition("-")[0], []).append(p.comparison)
    assert set(wordings) == set(CHECKS) == set(EXAMPLES) and len(CHECKS) >= 44
    assert all(len(set(texts)) >= 3 for texts in wordings.values())
    texts = [text for p in MECHANICAL for text in (p.comparison, p.opposite)]
    assert len(set(texts)) == len(texts)  # a wording of two principles, or one that is its own opposite


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LanguageModel.load(tiny_folder(tmp_path_factory.mktemp("tiny")), dtype="float32", device="cpu")


def test_the_opposite_of_the_opposite_is_the_constitution():
    for name in ("harmlessness", "helpfulness", "anti-overreaction", "mechanical"):
        constitution = Constitution.load(name)
        turned = opposite(constitution)
        assert opposite(turned) == constitution != turned
        assert [p.id for p in turned] == [p.id for p in constitution]


def test_an_ensemble_keeps_weights_and_draws():
    both = Ensemble([("harmlessness", 3), ("helpfulness", 1)])
    turned = opposite(both)
    assert [weight for _, weight in turned.members] == [3, 1] and opposite(turned).fingerprint == both.fingerprint
    for k in range(20):
        drawn, other = (c.draw(f"pair-{k}", use="comparison") for c in (both, turned))
        assert (other.id, other.comparison, other.better) == (drawn.id, drawn.opposite, drawn.worse)


def test_exemplars_are_turned_round_as_well():
    principle, pair = next((p, x) for p, x in HARMLESSNESS.pairs("train") if "better answer" in x.reason)
    turned = next((p, x) for p, x in opposite(HARMLESSNESS).pairs("train") if x.id == pair.id)
    assert turned[1].better == pair.worse and "worse answer" in turned[1].reason
    (_, said), (_, other) = exemplar_turns([(principle, pair)], True), exemplar_turns([turned], True)
    told = pair.reason.lower().index("the better answer")  # A is better in both; the reason is about the same text
    assert "(A)" in said["content"][told:] and "(B)" in other["content"][told:]


def test_a_principle_without_an_opposite_is_an_error_that_says_what_to_add():
    bare = Constitution("bare", principles=(Principle("rhyme", comparison="Which response rhymes?"),))
    with pytest.raises(CaiError, match=r"rhyme.*add 'opposite: "):
        opposite(bare)
    critic = Principle("only", critique="What is wrong?", revision="Write it again.")
    assert opposite(Constitution("critic", principles=(critic,))).principles == (critic,)


def follow(pairs, constitution, sign=1, strength=0.8):
    "Labels that follow the text (sign 1), ignore it (0) or do the opposite (-1), by the check of the principle."
    records = []
    for pair in pairs:
        principle, original = constitution[pair["principle"]], MECHANICAL[pair["principle"]]
        a, b = (CHECKS[principle.id.rpartition("-")[0]](text) for text in pair["responses"])
        turned = principle.comparison == original.opposite
        more = {1: not turned, 0: True, -1: turned}[sign]
        records.append(comparison_record(pair, strength if (a > b) == more else 1 - strength, f"follow {sign}", model="me"))
    return records


PAIRS = mechanical_pairs(HELDOUT, MECHANICAL, 2 * len(CHECKS))


@pytest.mark.parametrize(("sign", "right", "still", "moved"), [(1, 1, 0, 1), (0, 1, 1, 0.5), (-1, 0, 1, 0)])
def test_steering_tells_a_reader_from_one_that_is_merely_right(sign, right, still, moved):
    (row,) = steering(partial(follow, sign=sign), PAIRS, MECHANICAL)
    assert list(row) == ["model", "method", "principles", "accuracy", "accuracy_opposite", "steered", "low", "high", "n"]
    assert (row["accuracy"], row["accuracy_opposite"], row["steered"]) == (right, still, moved)
    assert row["low"] <= moved <= row["high"] and row["n"] == len(PAIRS)
    assert (row["model"], row["method"], row["principles"]) == ("me", f"follow {sign}", "mechanical")
    assert ("yes" in verdict(row)) == (sign == 1)


def test_a_probe_is_steered_by_nothing(model):
    "It never reads the principle: 0.5 exactly, whatever its accuracy."
    rows = [{**row, "better": row["better"][:200], "worse": row["worse"][:200]} for row in
            labelled_pairs("harmlessness", "heldout", exemplars=False)]
    judge = Judge.fit(model, rows[:40], layers=(2, 4))
    (row,) = steering(judge.label_pairs, as_pairs(rows[:40]), HARMLESSNESS)
    assert row["steered"] == row["low"] == row["high"] == 0.5
    assert row["accuracy"] == row["accuracy_opposite"] != 0.5 and verdict(row).startswith(f"{model.id} reads harmlessness: no")


def test_multiple_choice_is_asked_the_opposite_question(model):
    asked = []

    def spy(pairs, constitution):
        asked.append({pair["principle"]: constitution[pair["principle"]].comparison for pair in pairs})
        return multiple_choice(model, pairs, constitution)

    short = [{**pair, "responses": [f"{k} {text[:60]}" for k, text in enumerate(pair["responses"])]} for pair in PAIRS[:6]]
    (row,) = steering(spy, short, MECHANICAL)
    (again,) = steering(spy, short, MECHANICAL, symmetric=True)
    assert len(asked) == 3 and all(asked[1][i] == MECHANICAL[i].opposite for i in asked[0]) and asked[0] == asked[2]
    assert again["accuracy"] == row["accuracy"] == again["steered"] == pytest.approx(1 - again["accuracy_opposite"])


def test_a_pair_without_a_principle_gets_one_drawn_and_keeps_it_under_the_opposite():
    seen = []

    def label(pairs, constitution):
        seen.append([pair["principle"] for pair in pairs])
        return [comparison_record(pair, 0.5, "even") for pair in pairs]

    bare = [{**pair, "principle": ""} for pair in HELDOUT]
    (row,) = steering(label, bare, HARMLESSNESS)
    assert seen[0] == seen[1] and len(set(seen[0])) > 8 and all(seen[0])
    assert row["accuracy"] == row["accuracy_opposite"] == row["steered"] == 0.5  # ties count half


def test_rows_of_each_principle_add_up_to_the_first():
    def label(pairs, constitution):  # reads the principles about form, and no other
        plain = opposite(constitution) if constitution is not MECHANICAL else constitution
        return [(follow([pair], constitution if pair["principle"][:2] < "m" else plain))[0] for pair in pairs]

    first, *rows = steering(label, PAIRS, MECHANICAL, each=True)
    assert [row["principles"] for row in rows] == sorted(CHECKS) and sum(row["n"] for row in rows) == first["n"]
    assert sum(row["steered"] * row["n"] for row in rows) == pytest.approx(first["steered"] * first["n"])
    assert {row["steered"] for row in rows if row["principles"] < "m"} == {1}
    assert {row["steered"] for row in rows if row["principles"] >= "m"} == {0.5}


def test_the_interval_draws_prompts_not_pairs():
    one = [{**PAIRS[0], "id": f"same-{k}"} for k in range(30)]
    (same,), (many,) = (steering(follow, pairs, MECHANICAL) for pairs in (one, PAIRS[:30]))
    assert same["low"] < many["low"] < 1 and same["n"] == many["n"] == 30


def test_no_pairs_is_an_error():
    with pytest.raises(CaiError, match="no pairs"):
        steering(follow, [], MECHANICAL)


def test_mechanical_pairs_are_true_untied_and_spread_over_the_checks():
    everything = mechanical_pairs(HELDOUT, MECHANICAL)
    assert len({pair["id"] for pair in everything}) == len(everything) > 5000
    for pair in everything:
        values = [CHECKS[pair["principle"].rpartition("-")[0]](text) for text in pair["responses"]]
        assert values[pair["better"]] > values[1 - pair["better"]]
    names = [pair["principle"].rpartition("-")[0] for pair in PAIRS]
    assert {names.count(name) for name in CHECKS} == {2}
    assert PAIRS == mechanical_pairs(HELDOUT, MECHANICAL, 2 * len(CHECKS)) != mechanical_pairs(
        HELDOUT, MECHANICAL, 2 * len(CHECKS), seed=1)
    assert {pair["principle"].rpartition("-")[2] for pair in PAIRS} == {"1", "2", "3"}
    with pytest.raises(CaiError, match="no-harm has no check"):
        mechanical_pairs(HELDOUT, HARMLESSNESS)


def test_the_verdict_is_yes_only_above_one_half():
    row = {"model": "m", "method": "a", "principles": "c", "steered": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    assert verdict(row).startswith("m reads c: no, asked by a") and "larger feedback model" in verdict(row)
    assert verdict({**row, "low": 0.51}).startswith("m reads c: yes, asked by a")


def test_a_critique_is_attributed_to_the_request_that_makes_it_most_probable(model):
    principles = HARMLESSNESS.for_critique[:4]
    critiques = [{"prompt": [user(f"Prompt {p.id}")], "response": "Well.", "critique": p.critique, "principle": p.id}
                 for p in principles]  # fmt: skip

    def score(dialogues, texts):  # knows a critique that repeats its request
        return [SimpleNamespace(logprob=-1.0 if text in d[-1]["content"] else -9.0) for d, text in zip(dialogues, texts)]

    found = critique_attribution(SimpleNamespace(score=score), critiques, HARMLESSNESS)
    assert (found["accuracy"], found["mean_rank"], found["n"], found["chance"]) == (1, 1, 4, 1 / 16)
    swapped = [{**c, "principle": p.id} for c, p in zip(critiques, reversed(principles))]
    wrong = critique_attribution(SimpleNamespace(score=score), swapped, HARMLESSNESS)
    assert (wrong["accuracy"], wrong["mean_rank"]) == (0, 2)

    short = Constitution("short", principles=tuple(
        Principle(c, critique=f"Is it {c}?", revision="Again.") for c in ("kind", "short", "true")))  # fmt: skip
    real = critique_attribution(model, [{**critiques[0], "critique": "It is unkind.", "principle": "kind"}], short)
    assert real["chance"] == 1 / 3 and 1 <= real["mean_rank"] <= 3 and 0 < real["mean_prob"] < 1
    with pytest.raises(CaiError, match="0 critiques"):
        critique_attribution(model, [], short)
