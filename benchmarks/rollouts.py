"""What PPO rewarded, and what the policy made of it: reward, KL and refusals over thirds of the rollouts.

    python benchmarks/rollouts.py RUN [RUN ...] [--json OUT]

Rewards are the preference model's, normalised on SL-CAI's own responses. The rewards of refusals and of other responses
are given apart: from that difference a policy can learn to refuse.
"""

import sys
from pathlib import Path

import numpy as np
from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.text import refuses
from cai_nb.records import iter_jsonl


def rows_of(run, parts=3):
    "A row for each part of the rollouts and kind of prompt"
    path = run / "5-ppo" / "rollouts.jsonl"
    if not path.exists():
        raise CaiError(f"{run} has no {path.relative_to(run)}: name the folder of a run whose PPO stage is done.")
    responses = list(iter_jsonl(path))
    last = max(r["rollout"] for r in responses)
    for part in np.array_split(np.arange(1, last + 1), parts):
        for kind in ("all", *sorted({r["kind"] for r in responses})):
            mine = [r for r in responses if r["rollout"] in part and kind in ("all", r["kind"])]
            if not mine:
                continue
            reward = np.array([r["reward"] for r in mine])
            refused = np.array([refuses(r["prompt"], r["response"]) for r in mine])
            yield {
                "run": run.name,
                "rollouts": f"{part[0]}-{part[-1]}",
                "kind": kind,
                "responses": len(mine),
                "reward": float(reward.mean()),
                "kl": float(np.mean([r["kl"] for r in mine])),
                "refusal": float(refused.mean()),
                "reward of refusals": float(reward[refused].mean()) if refused.any() else None,
                "reward of other responses": float(reward[~refused].mean()) if not refused.all() else None,
            }


def main():
    args = arguments(__doc__, ("runs",), runs={"nargs": "+", "metavar": "RUN", "help": "run folders with PPO done"})
    rows = [row for run in args.runs for row in rows_of(Path(run))]
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"rollouts: {e}")
