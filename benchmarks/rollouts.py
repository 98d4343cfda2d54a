"""What PPO's policy was paid for, and what it did about it: reward, KL and declining answers over thirds of its rollouts.

    python benchmarks/rollouts.py RUN [RUN ...] [--json OUT]

Rewards are the preference model's, normalised on SL-CAI's own answers; of the answers that decline and of the others apart, since
that difference is what a policy can learn a refusal from.
"""

import sys
from pathlib import Path

import numpy as np
from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.measures import refuses
from cai_nb.records import iter_jsonl


def rows_of(run, parts=3):
    "A row for each part of the rollouts and kind of prompt"
    path = run / "5-ppo" / "rollouts.jsonl"
    if not path.exists():
        raise CaiError(f"{run} has no {path.relative_to(run)}: name the folder of a run that has been through PPO.")
    answers = list(iter_jsonl(path))
    last = max(a["rollout"] for a in answers)
    for part in np.array_split(np.arange(1, last + 1), parts):
        for kind in ("all", *sorted({a["kind"] for a in answers})):
            mine = [a for a in answers if a["rollout"] in part and kind in ("all", a["kind"])]
            if not mine:
                continue
            reward = np.array([a["reward"] for a in mine])
            refused = np.array([refuses(a["prompt"][-1]["content"], a["response"]) for a in mine])
            yield {"run": run.name, "rollouts": f"{part[0]}-{part[-1]}", "kind": kind, "answers": len(mine), "reward": float(reward.mean()),
                   "kl": float(np.mean([a["kl"] for a in mine])), "refusal": float(refused.mean()),
                   "paid for refusing": float(reward[refused].mean()) if refused.any() else None,
                   "for the others": float(reward[~refused].mean()) if not refused.all() else None}


def main():
    args = arguments(__doc__, ("runs",), runs={"nargs": "+", "metavar": "RUN", "help": "run folders that have been through PPO"})
    rows = [row for run in args.runs for row in rows_of(Path(run))]
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"rollouts: {e}")
