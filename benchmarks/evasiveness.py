"""The text measures of notebook 09 on responses whose faults are known: those of the paper's models.

    python benchmarks/evasiveness.py --samples DIR [--json OUT]

DIR contains sample files of the paper's supplementary repository, one a model (PALMS_NAME.jsonl; any file of that
format will do). Each measure is a share of the responses, with a 95 % interval over prompts. Files without sampled
responses are named and left out. A few seconds.
"""

import sys
from pathlib import Path

from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.measures import distinct, measure, read_paper_samples
from cai_nb.stats import Interval, bootstrap, jackknife

SHOWN = ("evasive", "refusal", "engages", "overreacting", "accusatory", "preachy", "boilerplate", "repeated",
         "near_identical", "length")


def about(records):
    "Every measure of a model's responses: {measure: {mean, low, high}}, and the numbers of responses and prompts"
    measured, groups = measure(records), [r["id"] for r in records]
    found = {k: bootstrap(v, groups)._asdict() for k, v in measured.items()}
    by_prompt = {}
    for r in records:
        by_prompt.setdefault(r["id"], []).append(r["response"])
    firsts = [responses[0] for responses in by_prompt.values()]
    found["distinct_2"] = jackknife(distinct, firsts)._asdict() if len(firsts) > 2 else {}
    return found, {"n": len(records), "prompts": len(by_prompt)}


def main():
    args = arguments(__doc__, samples={"metavar": "DIR", "required": True})
    folder = Path(args.samples)
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder] if folder.is_file() else []
    if not files:
        sys.exit(f"evasiveness: no .jsonl files in {folder}; the paper's repository has them (PALMS_*.jsonl).")
    models, intervals = {}, {}
    for path in files:
        name = path.stem.removeprefix("PALMS_")
        try:
            records = read_paper_samples(path)
        except CaiError as e:
            print(f"left out: {e}", file=sys.stderr)
            continue
        if not records:
            print(f"left out: {path} contains no responses", file=sys.stderr)
            continue
        intervals[name], counts = about(records)
        models[name] = {k: v["mean"] for k, v in intervals[name].items() if v} | counts
    if not models:
        sys.exit(f"evasiveness: none of the {len(files)} files in {folder} is a sample file of the paper's format.")
    order = sorted(models, key=lambda n: -models[n]["evasive"])
    shown = {n: {k: str(Interval(**v)) for k, v in intervals[n].items() if k in SHOWN} for n in order}
    show([{"model": n, **shown[n], "n": models[n]["n"]} for n in order])
    print("\nfrom most to least evasive:", ", ".join(order))
    write(args.json, models=models, intervals=intervals)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"evasiveness: {e}")
