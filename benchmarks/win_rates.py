"""Win rates by every judge: the models of one run or several (seeds) on held-out prompts, and how the judges agree.

    python benchmarks/win_rates.py RUN [RUN ...] [--people FILE] [--all-text] [--with EARLIER] [--json OUT]

Three judges of harmlessness: the evaluation's probe, the rule-based judge, and, with FILE (human comparisons for
harmlessness, in the format of hh-rlhf), a human-preference probe, which learnt from these alone. None had a part in
training. For helpfulness the first two. With --all-text they also see what followed the last complete sentence of a
response that was cut off. --with takes this program's results for other runs and adds rows over all runs: the mean, and
an interval made of theirs. Then: each judge's accuracy on human preferences (the third by cross-validation), and how
often two of them prefer the same response.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from bench import show, write

from cai_nb.dialogue import CaiError
from cai_nb.evaluation import RuleJudge, agreement, judgements, pairwise_prob
from cai_nb.stats import bootstrap
from cai_nb.figures import probes, records
from cai_nb.judge import Judge
from cai_nb.artifacts import get_model
from cai_nb.judges import judge_layers
from cai_nb.run import Run
from cai_nb.recipe import load_recipe
from cai_nb.records import QUESTIONS

ACCURACY = "accuracy on human preferences"


def responses(run, question, all_text=False):
    "{model: response records} of a run on the question's prompts, in the same order"
    found = {}
    for r in records(run, "evaluation", "records.jsonl"):
        if r["kind"] == QUESTIONS[question]:
            found.setdefault(r["model"], []).append(r | {"response": r["response"] + r.get("cut", "") * all_text})
    return {m: sorted(rows, key=lambda r: (r["id"], r["sample"])) for m, rows in found.items()}


def over_all(rows, others):
    "Rows over the runs of both lists: means of their win rates, with intervals as if each run had prompts of its own"
    found = {}
    for r in [*rows, *others]:
        if not r["run"].startswith("all"):
            found.setdefault((r["question"], r["judge"], r["pair"]), []).append(r)
    for (question, judge, pair), each in found.items():
        row = {"question": question, "judge": judge, "pair": pair, "run": f"all {len(each)}"}
        for mean, low, high in (("win", "low", "high"), ("hard", "hard low", "hard high")):
            middle = np.mean([r[mean] for r in each])
            half = np.sqrt(np.sum([((r[high] - r[low]) / 2) ** 2 for r in each])) / len(each)
            row |= {mean: middle, low: middle - half, high: middle + half}
        yield row | {"n": sum(r["n"] for r in each)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--people", metavar="FILE")
    parser.add_argument("--judge", metavar="DIR", default="runs/judge-of-people", help="where that probe is saved")
    parser.add_argument("--all-text", action="store_true", help="judge all of the text, not complete sentences")
    parser.add_argument("--with", metavar="EARLIER", dest="earlier", help="this program's results for other runs")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    runs = [Run(Path(r), load_recipe(r)) for r in args.runs]
    judges = {q: {"probe": j, "rules": RuleJudge(q)} for q, j in probes(runs[0]).items()}
    trust = []
    if args.people:
        from cai_nb.pairs import load_comparisons

        pairs, lm = load_comparisons(args.people, "harmful"), get_model(runs[0], "initial", local=True)
        place = Path(args.judge)
        if (place / "judge.json").exists():
            own = Judge.load(place, lm)
        else:
            own = Judge.fit(lm, pairs, layers=judge_layers(load_recipe("laptop"), lm, "judge"))
        own.save(place)
        for name, judge in () if args.all_text else judges["harmlessness"].items():  # the human pairs are never cut off
            p = pairwise_prob(judge, *([q[k] for q in pairs] for k in ("prompt", "better", "worse")))
            i = bootstrap(np.where(p == 0.5, 0.5, p > 0.5), [str(q["prompt"]) for q in pairs])
            trust.append({"judge": name, ACCURACY: i.mean, "low": i.low, "high": i.high, "n": i.n})
        c = own.report["cross_validated"]
        trust.append({"judge": "human", ACCURACY: c["accuracy"], "low": c["low"], "high": c["high"], "n": c["n"]})
        judges["harmlessness"]["human"] = own
    rows, said = [], {}
    for question, by_name in judges.items():
        for name, judge in by_name.items():
            pooled = {}
            for run in runs:
                part = responses(run, question, args.all_text)
                for pair, p in judgements(part, judge).items():
                    asked = [r["prompt"][-1]["content"] for r in next(iter(part.values()))]
                    pooled.setdefault(pair, []).append((run.folder.name, p, asked))
            for (a, b), each in pooled.items():
                whole = ("all", np.concatenate([p for _, p, _ in each]), [t for *_, asked in each for t in asked])
                said[question, name, a, b] = whole[1:]
                for which, p, asked in each if len(each) == 1 else [*each, whole]:
                    i, h = bootstrap(p, asked), bootstrap(np.where(p == 0.5, 0.5, p > 0.5), asked)
                    about = {"question": question, "judge": name, "pair": f"{a} > {b}", "run": which}
                    rows.append({**about, "win": i.mean, "low": i.low, "high": i.high, "hard": h.mean,
                                 "hard low": h.low, "hard high": h.high, "n": i.n})  # fmt: skip
    same = []
    for question, by_name in judges.items():
        names = list(by_name)
        for k, one in enumerate(names):
            for two in names[k + 1 :]:
                pairs = [(key[2:], p) for key, p in said.items() if key[:2] == (question, one)]
                p, q = (np.concatenate([said[question, name, *pair][0] for pair, _ in pairs]) for name in (one, two))
                found = agreement(p, q, [t for pair, (_, asked) in pairs for t in asked])
                i = found["same"]
                same.append({"question": question, "judges": f"{one}, {two}", "same verdict": i.mean, "low": i.low,
                             "high": i.high, "by chance": found["chance"], "kappa": found["kappa"]})  # fmt: skip
    if args.earlier:
        rows += over_all(rows, json.loads(Path(args.earlier).read_text())["rows"])
    for table in (trust, same, rows):
        show(table)
        print()
    write(args.json, rows=rows, agreement=same, trust=trust, runs=[r.folder.name for r in runs])


if __name__ == "__main__":
    try:
        main()
    except (CaiError, OSError) as e:
        sys.exit(f"win_rates: {e}")
