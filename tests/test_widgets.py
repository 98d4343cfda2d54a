"The widgets, moved from Python; what models write stays text; the saved notebook shows each widget without a kernel."

import json
import os
import re
from pathlib import Path

import fake_run
import pytest
import tiny

pytest.importorskip("ipywidgets")

from cai_nb.course import widgets  # noqa: E402
from cai_nb.constitution import Constitution, Principle  # noqa: E402
from cai_nb.dialogue import escape  # noqa: E402
from cai_nb.model import Completion, LanguageModel  # noqa: E402
from cai_nb.revision import RevisionConfig  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = '</div><script>alert("x")</script><img src=x onerror=alert(1)>'
VIEW = "application/vnd.jupyter.widget-view+json"
SMALL = RevisionConfig(max_tokens=6, critique_tokens=6)


class Parrot:
    "A model that says the same thing to everybody, and counts how often it was asked"

    def __init__(self, text, id="parrot"):
        self.text, self.id, self.asked = text, id, []

    def sample(self, prompts, **how):
        self.asked += prompts
        return [Completion(self.text, 3, True) for _ in prompts]


def harmless(page):
    "No tag of the hostile text has come through, and its words have"
    return "<script" not in page and "<img" not in page and "&lt;script" in page


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LanguageModel.load(tiny.tiny_folder(tmp_path_factory.mktemp("tiny")), device="cpu")


# --- panels ------------------------------------------------------------------------------------------------------


def test_a_panel_shows_controls_where_there_is_a_kernel_and_a_still_where_there_is_none(monkeypatch):
    panel = widgets.Panel("<b>Title</b>", [], lambda: widgets.Html("now"))
    monkeypatch.delenv("CAI_NB_STILL", raising=False)
    shown = panel._repr_mimebundle_()
    assert VIEW in shown and "now" in shown["text/html"] and "<b>Title" not in shown["text/html"]
    monkeypatch.setenv("CAI_NB_STILL", "1")
    assert VIEW not in panel._repr_mimebundle_()


@pytest.mark.parametrize("before", [None, "0"])
def test_work_that_fails_leaves_a_sentence_and_the_environment_as_it_was(monkeypatch, before):
    import ipywidgets

    monkeypatch.delenv("CAI_NB_QUIET", raising=False)
    if before:
        monkeypatch.setenv("CAI_NB_QUIET", before)
    bar, status = ipywidgets.IntProgress(), ipywidgets.HTML()
    for error, told in ((RuntimeError(HOSTILE), "Unexpected RuntimeError"), (MemoryError(), "Memory ran out"),
                        (KeyboardInterrupt(), "Stopped"), (widgets.WidgetError("by name"), "by name")):
        with widgets.working(status, bar):
            assert bar.layout.display is None and os.environ["CAI_NB_QUIET"] == "1"
            raise error
        assert told in status.value and "<script" not in status.value
        assert bar.layout.display == "none" and os.environ.get("CAI_NB_QUIET") == before


# --- traces ------------------------------------------------------------------------------------------------------


def test_the_trace_explorer_leafs_through_a_run_folder_once_round(tmp_path):
    folder = fake_run.make_run(tmp_path / "run", stages=1)
    panel = widgets.trace_explorer(folder)
    ui, n = panel.ui, len(list(fake_run.revisions()))
    assert len(ui.which.options) == n
    seen = []
    for _ in range(4):
        seen.append(ui.out.value)
        ui.next.click()
    for page, case in zip(seen, fake_run.CASES):
        assert escape(case[2]) in page and escape(case[4]) in page  # the prompt, the critique
    assert len(set(seen)) == 4
    for _ in range(5):
        ui.previous.click()
    assert ui.which.value == n - 1 and f"Trace {n} of {n}" in ui.out.value
    ui.category.value = "theft"
    assert len(ui.which.options) == 10 and ui.which.value == 0 and escape(fake_run.CASES[0][2]) in panel.still
    ui.next.click()
    assert ui.which.value == 1
    ui.category.value = ""
    assert len(ui.which.options) == n


def test_changes_are_marked_by_more_than_colour(tmp_path):
    row = next(fake_run.revisions())
    row["steps"] = [{**row["steps"][0], "text": "Go at night."}, {**row["steps"][1], "text": "Go by day."}]
    page = widgets.trace_page(row, {})
    assert re.search(r"<del [^>]*line-through[^>]*> at night</del>", page), page
    assert re.search(r"<ins [^>]*underline[^>]*> by day</ins>", page), page


def test_hostile_traces_stay_text_wherever_they_stand():
    row = next(fake_run.revisions())
    step = {"text": HOSTILE, "critique": HOSTILE, "principle": HOSTILE, "flags": [HOSTILE]}
    row |= {"category": HOSTILE, "prompt": [fake_run.user(HOSTILE)], "steps": [{**step, "critique": None}, step]}
    panel = widgets.trace_explorer([row], {HOSTILE: Principle(HOSTILE, critique=HOSTILE, revision=HOSTILE)})
    panel.ui.category.value = HOSTILE
    assert harmless(panel.ui.out.value) and harmless(panel.still)
    assert not any(getattr(part, "description_allow_html", False) for part in panel.children)


def test_a_run_shows_the_principles_of_its_own_constitution(tmp_path):
    own = Constitution("own", "", (Principle("be-brief", critique="Is it brief?", revision="Make it brief."),))
    (tmp_path / "own.yaml").write_text(own.to_yaml(), encoding="utf-8")
    folder = fake_run.make_run(tmp_path / "run", stages=1)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    recipe = re.sub(r"(?m)^  harmful_prompts:.*(\n    .*)*", f"  harmful_prompts: {{{tmp_path / 'own.yaml'}: 1}}", recipe, count=1)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    found = widgets.known_principles(folder)
    assert found["be-brief"].critique == "Is it brief?" and "no-harm" in found


@pytest.mark.parametrize("text, says", [(None, "no traces at"), ('{"steps": [{"text": "x"}]}\n', "holds no revision")])
def test_without_traces_the_explorer_says_what_to_do(tmp_path, text, says):
    if text:
        (tmp_path / "traces.jsonl").write_text(text)
    with pytest.raises(widgets.WidgetError, match=says):
        widgets.trace_explorer(tmp_path)


# --- the constitution --------------------------------------------------------------------------------------------


def test_the_editor_loads_once_and_makes_only_what_is_new(lm):
    loads, asked = [], []

    def load():
        loads.append(1)
        return lm, lm

    sample = LanguageModel.sample
    panel = widgets.constitution_editor(load=load, config=SMALL)
    ui = panel.ui
    assert not loads and "Nothing revised yet" in panel.still
    try:
        LanguageModel.sample = lambda self, prompts, **how: asked.append(prompts) or sample(self, prompts, **how)
        ui.go.click()
        assert len(loads) == 1 and len(asked) == 3 and "as edited" not in ui.out.value  # response, critique, revision
        ui.revision.value = "Make a poem of it."
        ui.go.click()
        assert len(loads) == 1 and len(asked) == 5 and "Principle as edited" in ui.out.value
        assert asked[-1][0][-1]["content"].endswith("Make a poem of it.")
        ui.go.click()
        assert len(asked) == 5 and "nothing had changed" in ui.status.value
        ui.prompt.value = "Another question?"
        ui.go.click()
        assert len(asked) == 10  # a new response, and its revision under both
    finally:
        LanguageModel.sample = sample
    assert "Make a poem of it." in panel.still and "Another question?" in panel.still


def test_both_revisions_start_from_one_response_and_the_same_random_numbers(lm):
    p = Constitution.load("harmlessness").for_critique[0]
    made = widgets.revise_twice(lm, lm, "Why?", p, Principle("twin", critique=p.critique, revision=p.revision), SMALL)
    assert made["before"]["text"] == made["after"]["text"]
    other = widgets.revise_twice(lm, lm, "Why?", p, Principle("other", critique="Rhyme?", revision="Rhyme."), SMALL)
    assert other["response"] == made["response"] and other["before"] == made["before"]


def test_the_editor_names_what_is_wrong():
    def broken():
        raise OSError("no such wheel")

    ui = widgets.constitution_editor(load=broken).ui
    ui.go.click()
    assert "Unexpected OSError: no such wheel" in ui.status.value
    for field in (ui.prompt, ui.critique, ui.revision):
        kept, field.value = field.value, "  "
        ui.go.click()
        assert f"{field.description} is empty" in ui.status.value
        field.value = kept
    ui.revision.value = "Other words."
    ui.reset.click()
    assert ui.revision.value == Constitution.load("harmlessness").for_critique[0].revision
    ui.which.value = "gender"
    assert ui.critique.value == Constitution.load("harmlessness")["gender"].critique


def test_a_hostile_critic_stays_text():
    critic = Parrot(HOSTILE)
    panel = widgets.constitution_editor(prompt=HOSTILE, load=lambda: (critic, critic))
    panel.ui.critique.value = HOSTILE
    panel.ui.go.click()
    assert "Principle as edited" in panel.ui.out.value
    assert harmless(panel.ui.out.value) and harmless(panel.still)


# --- labels ------------------------------------------------------------------------------------------------------


def test_the_label_panel_is_the_explorer_of_notebook_06_and_loads_at_a_press(lm):
    loads = []
    panel = widgets.label_panel(load=lambda: loads.append(1) or lm)
    assert not loads and "not loaded" in panel.still
    start = panel.ui.start
    start.click()
    start.click()  # the second press of a double click
    assert loads == [1] and "P(A)" in panel.ui.out.value
    first = panel.ui.out.value
    panel.ui.which.value = 1
    panel.ui.words.value = HOSTILE
    panel.ui.go.click()
    assert panel.ui.out.value != first and harmless(panel.still)


# --- PPO ---------------------------------------------------------------------------------------------------------


def test_the_clipped_climb_ends_at_the_optimum_and_the_clip_sets_its_pace():
    import torch

    from cai_nb.ppo_math import optimal_policy

    ref, scores = (torch.tensor(x) for x in zip(*widgets.BANDIT.values()))
    best = optimal_policy(ref.log(), scores, 0.5)[0].exp()
    path = widgets.climb_clipped(ref.log(), scores, 0.5, 0.2, rollouts=60)
    torch.testing.assert_close(path[-1].exp(), best, atol=0.01, rtol=0)
    torch.testing.assert_close(path.exp().sum(1), torch.ones(61))
    moved = [(widgets.climb_clipped(ref.log(), scores, 0.5, c, 1)[1].exp() - ref).abs().sum().item() for c in (0.02, 0.2, 0.8)]
    assert moved[0] < moved[1] < moved[2]


def test_both_sliders_move_picture_numbers_and_words():
    panel = widgets.ppo_sliders()
    ui, start = panel.ui, panel.ui.out.value
    assert "“No. Here is why.”" in start
    assert len(re.findall(r'<svg [^>]*role="img"', start)) == 2 and len(re.findall(r"<title>[^<]{30,}</title>", start)) == 2
    ui.beta.value = ui.beta.base**ui.beta.max
    assert "“Sure, here is how.”" in ui.out.value  # the KL penalty is high: the reference's favourite stays
    ui.beta.value = ui.beta.base**ui.beta.min
    assert "“asdf asdf!!”" in ui.out.value
    ui.beta.value = 0.5
    assert ui.out.value == start
    ui.clip.value = 0.04

    def earned(page):
        return float(re.search(r"the policy earns (-?[\d.]+)", page)[1])

    assert earned(ui.out.value) < earned(start) - 0.1  # a tighter clip comes less far in as many rollouts
    assert ui.out.value != start and "flat above 1.04" in ui.out.value and ui.out.value in panel.still
    assert "--ink:currentColor" in start and "#010203" not in start  # the page's own colour, light or dark


# --- chat --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    "A finished run of three tiny models"
    place = tmp_path_factory.mktemp("chat")
    start = tiny.tiny_folder(place / "initial")
    folder = fake_run.make_run(place / "run", sets=[f"model.name={start}", "sft.lora_rank=0", "ppo.lora_rank=0"])
    for seed, stage in enumerate(("2-sft", "5-ppo"), 1):
        tiny.tiny_folder(folder / stage / "model", seed=seed)
    return folder


def test_three_models_answer_side_by_side_with_the_same_seed(run_folder, monkeypatch):
    panel = widgets.chat_panel(run_folder, "What is rain?", max_tokens=6)
    ui = panel.ui
    ui.ask.click()
    [(asked, said)] = ui.turns
    assert asked == "What is rain?" and list(said) == ["Initial policy", "SL-CAI", "RL-CAI"] and ui.text.value == ""
    assert len(set(said.values())) == 3
    for title, folder in (("Initial policy", run_folder.parent / "initial"), ("RL-CAI", run_folder / "5-ppo" / "model")):
        alone = LanguageModel.load(str(folder)).sample([[fake_run.user(asked)]], max_tokens=6, temperature=0.7, seed=0)[0]
        assert said[title] == alone.text + ("" if alone.finished else " …")
    asked_of, sample = [], LanguageModel.sample
    monkeypatch.setattr(LanguageModel, "sample", lambda self, prompts, **how: asked_of.append(list(prompts[0])) or sample(self, prompts, **how))
    ui.text.value = "And snow?"
    ui.ask.click()
    assert len(ui.turns) == 2 and "And snow?" in panel.still
    assert [[m["role"] for m in talk] for talk in asked_of] == [["user", "assistant", "user"]] * 3  # each has its own talk before it
    assert len({talk[1]["content"] for talk in asked_of}) == 3
    ui.anew.click()
    assert ui.turns == [] and ui.out.value == ""
    ui.text.value = asked
    ui.ask.click()
    assert ui.turns == [(asked, said)]
    ui.anew.click()
    ui.seed.value, ui.text.value = 5, asked
    ui.ask.click()
    assert ui.turns[0][1] != said


def test_an_answer_that_fails_takes_nothing_from_the_conversation(run_folder, monkeypatch):
    ui = widgets.chat_panel(run_folder, "What is rain?", max_tokens=6).ui
    ui.ask.click()
    kept, page, sample, count = list(ui.turns), ui.out.value, LanguageModel.sample, []

    def fails_at_the_second(self, *args, **how):
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("out of memory")
        return sample(self, *args, **how)

    ui.text.value = "And snow?"
    monkeypatch.setattr(LanguageModel, "sample", fails_at_the_second)
    ui.ask.click()
    assert "Memory ran out" in ui.status.value and ui.turns == kept and ui.out.value == page
    assert ui.text.value == "And snow?"
    monkeypatch.undo()
    ui.ask.click()
    assert len(ui.turns) == 2 and list(ui.turns[1][1]) == ["Initial policy", "SL-CAI", "RL-CAI"]


def test_what_is_not_there_says_how_to_make_it(run_folder, tmp_path):
    ui = widgets.chat_panel(tmp_path / "nothing").ui
    ui.ask.click()
    assert "cai-nb run laptop" in ui.status.value
    ui.folder.value = " "
    ui.ask.click()
    assert "empty path" in ui.status.value
    begun = fake_run.make_run(tmp_path / "begun", stages=1, sets=[f"model.name={run_folder.parent / 'initial'}"])
    ui.folder.value = str(begun)
    ui.text.value = "What is rain?"
    ui.ask.click()
    assert list(ui.turns[0][1]) == ["Initial policy"] and ui.out.value.count("cai-nb sft --out") == 2
    ui.text.value = "  "
    ui.ask.click()
    assert "Your question is empty" in ui.status.value and len(ui.turns) == 1


def test_hostile_answers_stay_text(monkeypatch, run_folder):
    from cai_nb import artifacts

    monkeypatch.setattr(artifacts, "get_model", lambda run, which, local=False: Parrot(HOSTILE, which))
    panel = widgets.chat_panel(run_folder, HOSTILE)
    panel.ui.ask.click()
    assert len(panel.ui.turns) == 1 and harmless(panel.ui.out.value) and harmless(panel.still)


# --- the saved notebook ------------------------------------------------------------------------------------------


def saved_outputs():
    cells = json.loads((ROOT / "nbs" / "14_widgets.ipynb").read_text(encoding="utf-8"))["cells"]
    return [o.get("data", {}) for c in cells for o in c.get("outputs", [])]


@pytest.mark.parametrize("title, holds", [
    ("Trace explorer", ["<del ", "<ins ", "Principles drawn", "Trace 1 of"]),
    ("Constitution editor", ["Principle as it was", "Principle as edited", "Revision request", "<ins "]),
    ("Label explorer", ["P(A) = ", "for the first response"]),
    ("PPO sliders", ['role="img"', "<title>Bars of three policies", "<title>The clipped objective", "optimum</th>"]),
    ("Chat with the models of a run", ['aria-label="Initial policy"', 'aria-label="SL-CAI"', 'aria-label="RL-CAI"', "<b>Human:</b>"]),
])
def test_the_saved_notebook_holds_a_still_of_each_widget(title, holds):
    stills = ["".join(o["text/html"]) for o in saved_outputs() if f'<figure aria-label="{title}"' in "".join(o.get("text/html", ""))]
    assert stills, f"no still of the {title}: run nbs/14_widgets.ipynb with CAI_NB_STILL=1 and save it"
    for text in holds:
        assert text in stills[-1], f"{title}: {text}"
    assert not re.search(r"<(script|iframe|img)", stills[-1])


def test_the_saved_notebook_holds_no_widget_that_needs_a_kernel():
    assert not [o for o in saved_outputs() if VIEW in o], "run nbs/14_widgets.ipynb with CAI_NB_STILL=1 and save it"
