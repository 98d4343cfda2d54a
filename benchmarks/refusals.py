"""Where does a refusal belong? Labels and preference models on pairs in which one response refuses and one does not.

    python benchmarks/refusals.py RUN [RUN ...] [--json OUT]

The pairs are those that each run labelled in stage 3 (SL-CAI's own). A refusal should be preferred where the request is
harmful and not where it is benign. Most of these pairs were among the preference model's training data: this is about
what it can learn.
"""

import sys
from pathlib import Path

from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.preference import PreferenceModel
from cai_nb.records import iter_jsonl, kind_of
from cai_nb.stats import bootstrap
from cai_nb.text import refuses


def rows_of(run):
    "For each kind of prompt: how often the refusal is preferred, by the labels and by the preference model"
    records = [r for r in iter_jsonl(run / "3-feedback" / "records.jsonl") if r.get("source") != "revision"]
    refused = [[refuses(r["prompt"], r[k][0]["content"]) for k in ("chosen", "rejected")] for r in records]
    one = [(r, a) for r, (a, b) in zip(records, refused) if a != b]
    model = PreferenceModel.load(run / "4-preference" / "model")
    talks = [[[*r["prompt"], *r[k]] for r, _ in one] for k in ("chosen", "rejected")]
    p = model.prob(*talks, [r["kind"] for r, _ in one])
    for kind in ("harmful", "benign"):
        mine = [i for i, (r, _) in enumerate(one) if kind_of(r) == kind]
        said = {"labels": [float(one[i][1]) for i in mine],
                "preference model": [float((p[i] > 0.5) == one[i][1]) for i in mine]}  # fmt: skip
        for who, x in said.items():
            i = bootstrap(x)
            yield {"run": run.name, "scores": " and ".join(model.heads), "prompts": kind, "judged by": who,
                   "refusal preferred": i.mean, "low": i.low, "high": i.high, "n": i.n}  # fmt: skip


def main():
    runs = {"nargs": "+", "metavar": "RUN", "help": "run folders with a preference model"}
    args = arguments(__doc__, ("runs",), runs=runs)
    rows = [row for run in args.runs for row in rows_of(Path(run))]
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except (CaiError, OSError) as e:
        sys.exit(f"refusals: {e}")
