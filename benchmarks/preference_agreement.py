"""How often a preference model that learnt from AI labels alone agrees with people.

    python benchmarks/preference_agreement.py --pairs FILE [--run runs/laptop] [--json OUT]

FILE holds hh-rlhf's pairs (chosen, rejected; .jsonl or .jsonl.gz). The preference model is that of --run; where that folder
has none, the recipe `laptop` is run there as far as its preference model (about 12 minutes on two cores). The interval is a
bootstrap over pairs, 95 %.
"""

import sys
from pathlib import Path

import numpy as np
from bench import arguments, show, write

from cai_nb.dialogue import CaiError, assistant
from cai_nb.feedback import judge_pairs, load_comparisons
from cai_nb.pipeline import run_recipe
from cai_nb.preference import PreferenceModel, preference_metrics
from cai_nb.recipe import load_recipe


def agreement(model, judged):
    "Agreement with the better halves, as `preference_metrics` gives it"
    talks = [[*j["prompt"], assistant(j[k])] for j in judged for k in ("better", "worse")]
    scores = np.array(model.score(talks)).reshape(-1, 2)
    p = 1 / (1 + np.exp(-(scores[:, 0] - scores[:, 1]) * model.std))
    return {k: v for k, v in preference_metrics(p, np.ones(len(p))).items() if k in ("agreement", "low", "high", "n")}


def main():
    args = arguments(
        __doc__,
        pairs={"metavar": "FILE", "required": True},
        run={"default": "runs/laptop", "help": "run folder with a preference model"},
        limit={"type": int, "help": "pairs to look at; default: all"},
    )
    people, folder = load_comparisons(args.pairs)[: args.limit], Path(args.run) / "4-preference" / "model"
    if not (folder / "preference.json").exists():
        run_recipe(load_recipe("laptop"), args.run, stages=["revision", "sft", "feedback", "preference"], command="benchmark")
    model = PreferenceModel.load(folder)
    context = model.model.config.max_position_embeddings
    people = [j for j in people if sum(len(m["content"]) for m in j["prompt"]) < 3 * context]
    found = agreement(model, people)
    bundled = [j for j in judge_pairs(["harmlessness", "helpfulness", "anti-overreaction"], "heldout", exemplars=False)]
    rows = [{"pairs": Path(args.pairs).name, **found}, {"pairs": "bundled, held out", **agreement(model, bundled)}]
    show(rows)
    write(args.json, **found, rows=rows, model=model.id)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"preference_agreement: {e}")
