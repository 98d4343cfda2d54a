"""Steering: what the checks of the mechanical principles count, and whether labels follow the text of a principle."""

import pytest

from cai_nb.constitution import Constitution
from cai_nb.steering import CHECKS

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


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_knows_no_side_of_an_empty_text(name):
    assert CHECKS[name]("") == CHECKS[name](" \n") == 0


def test_every_mechanical_principle_has_a_check_three_wordings_and_both_directions():
    wordings = {}
    for p in Constitution.load("mechanical"):
        assert p.title and p.comparison and p.opposite and p.better and p.worse, p.id
        wordings.setdefault(p.id.rpartition("-")[0], []).append(p.comparison)
    assert set(wordings) == set(CHECKS) == set(EXAMPLES) and len(CHECKS) >= 44
    assert all(len(set(texts)) >= 3 for texts in wordings.values())
    texts = [text for p in Constitution.load("mechanical") for text in (p.comparison, p.opposite)]
    assert len(set(texts)) == len(texts)  # a wording of two principles, or one that is its own opposite
