"Figures say what is in the files: checked on folders made by hand, with a judge whose opinion is known."

import csv
import json

import numpy as np
import pytest

from cai_nb.figures import (
    FigureError,
    as_elo,
    change_of,
    changes,
    draw_figures,
    figure_changes,
    figure_ppo,
    figure_revisions,
    ppo_trajectory,
)
from cai_nb.artifacts import reuse_stages
from cai_nb.run import Run, RunError, inputs, open_run, read_json, write_json
from cai_nb.recipe import load_recipe

from fake_run import CASES, make_run, user, write_lines


class Length:
    "A judge for whom ten characters more make a response better by one"

    def score(self, prompts, responses):
        return np.array([len(r) / 10 for r in responses])


def begun(recipe, folder):
    with open_run(recipe, folder, note=lambda line: None) as run:
        return run


def a_run(folder, sets=(), stages=6):
    "A finished run whose files know what they were made from, with a judge that is known"
    run = Run(make_run(folder, stages, sets), load_recipe("laptop", sets), note=lambda line: None)
    for stage in run.steps[:stages]:
        write_json(run.path(stage.name) / "done.json", {**run.done(stage.name), "inputs": inputs(run, stage)})
    run.cache["probes"] = {"harmlessness": Length(), "helpfulness": Length()}
    return run


def test_revisions_are_measured_against_the_first_response(tmp_path):
    run = a_run(tmp_path / "run", stages=3)  # no preference model: its panel is left out
    rows = figure_revisions(run).rows
    steps = [json.loads(line) for line in open(run.path("revision") / "records.jsonl")]
    lengths = np.array([[len(s["text"]) for s in r["steps"]] for r in steps if not r["flags"]])
    for r in rows:
        assert r["mean"] == pytest.approx((lengths[:, r["x"]] - lengths[:, 0]).mean() / 10, abs=1e-4)
        assert r["low"] <= r["mean"] <= r["high"] and r["n"] == len(lengths)
    assert {r["panel"] for r in rows} == {"harmlessness", "helpfulness"}


def test_the_ppo_trajectory_compares_with_the_same_prompts_of_sl_cai(tmp_path):
    run = a_run(tmp_path / "run")
    asked = [c[2] for c in CASES]
    pairs = [{"id": str(i), "kind": "harmful", "prompt": [user(p)], "responses": ["x" * 20, "y"]}
             for i, p in enumerate(asked)]
    write_lines(run.path("feedback") / "pairs.jsonl", pairs)
    rolled = [{"id": f"{n}-{i}", "rollout": n, "kind": "harmful", "prompt": [user(p)],
               "response": "z" * (20 + 10 * n), "reward": float(n)}
              for n in range(1, 5) for i, p in enumerate([*asked, "never asked before"])]
    write_lines(run.path("ppo") / "rollouts.jsonl", rolled)
    found = ppo_trajectory(run, windows=2)
    assert [(r["first"], r["last"]) for r in found] == [(1, 2), (3, 4)]
    assert [r["reward"].mean for r in found] == [1.5, 3.5]
    expected = [np.mean([1 / (1 + np.exp(-n)) for n in part]) for part in ((1, 2), (3, 4))]
    assert [r["win"].mean for r in found] == pytest.approx(expected)
    assert [r["win"].n for r in found] == [4, 4], "intervals are over prompts; one without a counterpart is left out"
    uneven = ppo_trajectory(run, windows=3)
    assert [(r["first"], r["last"]) for r in uneven] == [(1, 2), (3, 3), (4, 4)]
    assert [r["reward"].mean for r in uneven] == [1.5, 3, 4], "a window's first and last rollout are what it holds"
    drawn = figure_ppo(run).rows
    assert [r["x"] for r in drawn if r["panel"].startswith("reward")] == [1, 2, 3, 4]
    (run.path("ppo") / "rollouts.jsonl").unlink()
    with pytest.raises(FigureError, match="cai-nb ppo --out"):
        ppo_trajectory(run)


def test_changes_put_the_models_of_several_runs_on_one_scale(tmp_path):
    first, second = a_run(tmp_path / "soft"), a_run(tmp_path / "hard", ["feedback.label=hard"])
    path = second.path("evaluation") / "records.jsonl"
    rows = [json.loads(line) for line in open(path)]
    for r in rows:
        if r["model"] == "rl-cai":
            r["response"] += " And much, much more than that." * 3
    write_lines(path, rows)
    write_json(second.path("ppo") / "done.json", {**second.done("ppo"), "seconds": 1.0})  # trained by itself
    found = {r["model"]: r for r in changes([first, second], draws=20)}
    assert set(found) == {"initial", "sl-cai, soft", "rl-cai, soft", "rl-cai, hard"}, "the same SL-CAI is one model"
    assert found["rl-cai, hard"]["change"] == "label hard" == change_of(first, second)
    assert found["initial"]["harmlessness, Elo"].mean == 0
    elos = [found[m]["harmlessness, Elo"].mean for m in ("initial", "rl-cai, soft", "rl-cai, hard")]
    assert elos == sorted(elos) and elos[1] < elos[2]
    assert figure_changes(first, [second]).rows
    with pytest.raises(FigureError, match="two or more runs"):
        figure_changes(first)


def test_what_cannot_be_drawn_is_said_and_the_rest_is_drawn(tmp_path):
    run, told = make_run(tmp_path / "run", 3), []
    made = draw_figures([run], note=told.append, only=["labels", "elo", "ppo"])
    assert set(made) == {"labels"} and len(told) == 3
    assert any(line.startswith("elo: not drawn.") and "cai-nb evaluate" in line for line in told)
    with open(run / "figures" / "labels.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [r["mean"] for r in rows] == ["0.51", "0.74"] and (run / "figures" / "labels.png").stat().st_size > 5000
    assert "n = 112 · seed 0" in made["labels"].about
    with pytest.raises(FigureError, match="no figure elos"):
        draw_figures([run], only=["elos"])
    with pytest.raises(FigureError, match="no run folder"):
        draw_figures([tmp_path / "none"])


def test_elo_points_of_a_win_rate():
    assert as_elo(0.5) == 0 and as_elo(10 / 11) == pytest.approx(400) and as_elo(1.0) > 1000


# ---- runs that share stages


def test_a_run_reuses_what_would_be_made_in_the_same_way(tmp_path):
    base = a_run(tmp_path / "base")
    recipe = load_recipe("laptop", ["preference.heads=one"])
    run = begun(recipe, tmp_path / "one")
    assert reuse_stages(run, base.folder) == ["revision", "sft", "feedback"]
    assert run.done("feedback") == base.done("feedback") and run.done("preference") is None
    kept = {json.loads(line)["model"] for line in open(run.path("evaluation") / "records.jsonl")}
    assert kept == {"initial", "sl-cai"}, "responses of a model that will be trained again are not reused"
    assert read_json(run.path("evaluation") / "done.json") is None
    everything = begun(load_recipe("laptop"), tmp_path / "same")
    assert reuse_stages(everything, base.folder) == [s.name for s in base.steps]


def test_nothing_of_a_run_that_differs_in_what_all_stages_share_is_reused(tmp_path):
    base = a_run(tmp_path / "base")
    for setting, what in (("seed=1", "seed"), ("prompts.n_harmful=20", "prompts")):
        run = begun(load_recipe("laptop", [setting]), tmp_path / what)
        with pytest.raises(RunError, match=f"differs in {what}"):
            reuse_stages(run, base.folder)
        assert not run.path("revision").exists()
