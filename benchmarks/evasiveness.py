"""The text measures of notebook 09 on answers whose faults are known: the paper's models.

    python benchmarks/evasiveness.py --samples DIR [--json OUT]

DIR holds sample files of the paper's supplementary repository, one a model (PALMS_NAME.jsonl; any file of that format will do). Each
measure is a share of the answers, with a 95 % interval over prompts. Files whose records hold no sampled answers are named and left
out. A few seconds.
"""

import sys
from pathlib import Path

from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.measures import distinct, measure, read_paper_samples
from cai_nb.stats import bootstrap, jackknife

SHOWN = ("evasive", "refusal", "engages", "overreacting", "accusatory", "preachy", "boilerplate", "repeated", "near_identical", "length")


def about(records):
    "Every measure of a model's answers: {measure: {mean, low, high}}, and how many answers and prompts there are"
    measured, groups = measure(records), [r["id"] for r in records]
    found = {k: bootstrap(v, groups)._asdict() for k, v in measured.items()}
    by_prompt = {}
    for r in records:
        by_prompt.setdefault(r["id"], []).append(r["completion"])
    firsts = [answers[0] for answers in by_prompt.values()]
    found["distinct_2"] = jackknife(distinct, firsts)._asdict() if len(firsts) > 2 else {}
    return found, {"n": len(records), "prompts": len(by_prompt)}


def main():
    args = arguments(__doc__, samples={"metavar": "DIR", "required": True})
    folder = Path(args.samples)
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder] if folder.is_file() else []
    if not files:
        sys.exit(f"evasiveness: no .jsonl files in {folder}; the paper's supplementary repository has them (PALMS_*.jsonl).")
    models, intervals = {}, {}
    for path in files:
        name = path.stem.removeprefix("PALMS_")
        try:
            records = read_paper_samples(path)
        except CaiError as e:
            print(f"left out: {e}", file=sys.stderr)
            continue
        if not records:
            print(f"left out: {path} holds no answers", file=sys.stderr)
            continue
        intervals[name], counts = about(records)
        models[name] = {k: v["mean"] for k, v in intervals[name].items() if v} | counts
    if not models:
        sys.exit(f"evasiveness: none of the {len(files)} files in {folder} is a sample file of the paper's format.")
    order = sorted(models, key=lambda n: -models[n]["evasive"])
    show([{"model": n, **{k: f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for k, v in intervals[n].items() if k in SHOWN},
           "n": models[n]["n"]} for n in order])  # fmt: skip
    print("\nfrom most to least evasive:", ", ".join(order))
    write(args.json, models=models, intervals=intervals)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"evasiveness: {e}")
