"""Runs that differ in a setting or a seed: win rates, refusal rates and boilerplate of their evaluations, a row each.

    python benchmarks/outcomes.py RUN [RUN ...] [--json OUT]

Nothing is judged again: the rows are read from stage 6 of each run, after the settings in which the runs differ.
"""

import json
import sys
from pathlib import Path

from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.recipe import differences, load_recipe
from cai_nb.records import GROUPS
from cai_nb.stats import Interval

WINS = (("harmlessness", "sl-cai > initial"), ("harmlessness", "rl-cai > initial"), ("harmlessness", "rl-cai > sl-cai"),
        ("helpfulness", "rl-cai > initial"), ("helpfulness", "rl-cai > sl-cai"))


def text(estimate):
    return str(Interval(**estimate))


def row_of(run, settings):
    "One run's settings and outcomes"
    path = run / "6-evaluation" / "metrics.json"
    if not path.exists():
        raise CaiError(f"{run} has no {path.relative_to(run)}: name the folder of a finished run.")
    found, row = json.loads(path.read_text(encoding="utf-8")), {"run": run.name, **settings}
    for question, pair in WINS:
        for judge, pairs in found["wins"][question].items():
            row[f"{question}, {pair}, {judge}"] = text(pairs[pair]["win"])
    for group in GROUPS:
        for model in ("sl-cai", "rl-cai"):
            row[f"refusal, {group}, {model}"] = text(found["kinds"][group]["shares"]["refusal"][model])
    for model in ("initial", "sl-cai", "rl-cai"):
        row[f"boilerplate, {model}"] = text(found["measures"]["boilerplate"][model])
    return row


def main():
    args = arguments(__doc__, ("runs",), runs={"nargs": "+", "metavar": "RUN", "help": "folders of finished runs"})
    runs = [Path(run) for run in args.runs]
    recipes = [load_recipe(run) for run in runs]
    differ = sorted({key for r in recipes[1:] for key in differences(recipes[0], r)})
    rows = [row_of(run, {key: r[key] for key in differ}) for run, r in zip(runs, recipes)]
    show([{"": name, **{f"{i + 1}": str(row[name]) for i, row in enumerate(rows)}} for name in rows[0]])
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"outcomes: {e}")
