"""How often a preference model that learnt from AI labels alone agrees with people, with soft labels and with hard ones.

    python benchmarks/preference_agreement.py --pairs FILE [--run runs/laptop] [--json OUT]

FILE holds hh-rlhf's pairs (chosen, rejected; .jsonl or .jsonl.gz). The SL-CAI model and the judges are those of --run; where
that folder has none, the recipe `laptop` is run there as far as its AI feedback (about 9 minutes on two cores). Then SL-CAI
answers every bundled prompt twice more, the judges label these pairs, and two preference models learn from the labels of all
pairs, from nothing else: about 12 minutes more, kept in RUN/agreement and gone on with. The interval is a bootstrap over pairs,
95 %.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench import arguments, show, write

from cai_nb.dialogue import CaiError, assistant
from cai_nb.pairs import labelled_pairs, load_comparisons, sample_pairs
from cai_nb.artifacts import get_model
from cai_nb.run import Run, constitution_of
from cai_nb.stages import make_labeller, run_recipe
from cai_nb.preference import PreferenceModel, PreferenceSettings, preference_metrics, train_preference_model
from cai_nb.prompts import load_prompts
from cai_nb.records import GROUPS, KINDS, Records
from cai_nb.recipe import load_recipe

SETTINGS = PreferenceSettings(learning_rate=1e-3, epochs=1, heldout=0)


def ai_labels(run):
    "Comparison records: the run's own pairs of SL-CAI's answers, and a pair for each bundled prompt, labelled by its judges"
    folder = run.folder / "agreement"
    prompts = [p for group in GROUPS for p in load_prompts(group)]
    pairs, labels = Records(folder / "pairs.jsonl"), Records(folder / "labels.jsonl")
    sample_pairs(get_model(run, "sl-cai"), [{**p, "id": f"more-{p['id']}"} for p in prompts], max_tokens=64, temperature=0.8,
                 seed=1, records=pairs)  # fmt: skip
    label = make_labeller(run, run.path("feedback"))
    for kind in KINDS:
        mine = [p for p in pairs if p["id"] not in labels.ids and p["kind"] == kind]
        labels.extend(label(mine, constitution_of(run.recipe, kind)))
    return [*(r for r in Records(run.path("feedback") / "records.jsonl") if r.get("source") != "revision"), *labels]


def agreement(model, judged):
    "Agreement with the better halves, as `preference_metrics` gives it"
    better, worse = ([[*j["prompt"], assistant(j[k])] for j in judged] for k in ("better", "worse"))
    p = model.prob(better, worse, [j.get("kind", "") for j in judged])
    shown = ("agreement", "low", "high", "n", "cross_entropy", "calibration_error")
    return {k: v for k, v in preference_metrics(p, np.ones(len(p))).items() if k in shown}


def main():
    args = arguments(
        __doc__,
        pairs={"metavar": "FILE", "required": True},
        run={"default": "runs/laptop", "help": "run folder with SL-CAI and AI feedback"},
        limit={"type": int, "help": "pairs to look at; default: all"},
    )
    people, folder = load_comparisons(args.pairs)[: args.limit], Path(args.run)
    if not (folder / "3-feedback" / "done.json").exists():
        run_recipe(load_recipe("laptop"), folder, stages=["revision", "sft", "feedback"], command="benchmark")
    run = Run(folder, load_recipe(folder / "recipe.yaml"))
    bundled = labelled_pairs(["harmlessness", "helpfulness", "anti-overreaction"], "heldout", exemplars=False)
    sets = {Path(args.pairs).name: people, "bundled, held out": bundled,
            "bundled, held out, both answers the model's own": [j for j in bundled if "written" not in j["source"]],
            **{f"bundled, held out, {kind} prompts": [j for j in bundled if j["kind"] == kind] for kind in ("harmful", "benign")}}
    rows = []
    for label in ("soft", "hard"):
        out = folder / "agreement" / label
        if not (out / "preference.json").exists():
            train_preference_model(run.recipe.model.name, ai_labels(run), out, replace(SETTINGS, label=label))
        model = PreferenceModel.load(out)
        most = 3 * model.model.config.max_position_embeddings  # characters
        for name, judged in sets.items():
            fit = [j for j in judged if sum(len(m["content"]) for m in j["prompt"]) < most]
            rows.append({"labels": label, "pairs": name, **agreement(model, fit)})
    show(rows)
    found = {k: rows[0][k] for k in ("agreement", "low", "high", "n")}  # soft labels, the file asked about
    write(args.json, **found, rows=rows, model=model.id)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"preference_agreement: {e}")
