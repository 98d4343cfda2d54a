"Every exercise of every notebook: its solution passes, its stub fails, and each named mistake is recognised under its own name."

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cai_nb.course import exercises as ex

NBS = Path(__file__).resolve().parent.parent / "nbs"
WRITTEN = [w for path in sorted(NBS.glob("*.ipynb")) for w in ex.written(path)]


def run(w, code):
    "The verdict of the exercise's own check on `code`, with what the cells between its heading and itself import"
    cells = json.loads((NBS / f"{w.notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    start = next(i for i, c in enumerate(cells) if re.search(r"^## Exercises", "".join(c["source"]), re.M))
    space = {}
    for cell in cells[start:w.cell]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "# exercise " not in source:
            exec(source, space)
    exec(code, space)
    return eval(w.check.strip(), space)


@pytest.mark.parametrize("w", WRITTEN, ids=lambda w: w.name)
def test_the_solution_passes_and_the_stub_does_not(w):
    assert run(w, w.solution), run(w, w.solution).says
    verdict = run(w, w.stub)
    assert not verdict and "nothing is written" in verdict.says, verdict.says
    assert w.hint.strip() and w.hint not in w.solution


def cases():
    ex.find("elo")
    return [(name, sentence) for name, e in ex.EXERCISES.items() for sentence in e.mistakes]


@pytest.mark.parametrize("name, sentence", cases(), ids=lambda x: x[:40])
def test_a_named_mistake_is_recognised_under_its_own_name(name, sentence):
    for seed in range(3):
        assert ex.check(name, ex.find(name).mistakes[sentence], seed=seed).mistake == sentence


def test_each_exercise_is_written_once_has_mistakes_and_none_is_left_out():
    ex.find("elo")
    names = [w.name for w in WRITTEN]
    assert sorted(names) == sorted(ex.EXERCISES)
    for w in WRITTEN:
        e = ex.EXERCISES[w.name]
        assert e.notebook == w.notebook and e.mistakes
        assert all(s[:1].islower() and not s.endswith(".") for s in e.mistakes), w.name


def test_a_check_spoils_neither_its_own_inputs_nor_asks_the_same_twice():
    def greedy(a, b):
        seen.append((a, b))
        return 0.5

    seen = []
    ex.check("elo", greedy)
    ex.check("elo", greedy)
    assert len({*seen}) == len(seen) == 10


def test_numbers_agree_within_the_tolerance_whatever_holds_them():
    torch = pytest.importorskip("torch")
    assert ex.same(np.float32(0.1), 0.1) and ex.same(torch.tensor([1, 2]), [1.0, 2.0]) and ex.same(float("nan"), np.nan)
    assert not ex.same([1, 2], [[1, 2]]) and not ex.same({"a": 1}, {"b": 1}) and not ex.same(True, False) and not ex.same("a", ["a"])
