"""Labels a second, with four exemplars before each question, against a plain transformers loop.

    python benchmarks/label_speed.py [--pairs 48] [--json OUT]

The plain loop runs one whole prompt after the other, in input order, and computes logits at every position. Ours caches
the shared prefix, sorts by length, works in batches and computes logits at the last position only. Both ask in both
orders, in one run on one machine; the labels are compared in float32.
"""

import time

import numpy as np
import torch
from bench import arguments, machine, show, write

from cai_nb.constitution import Ensemble
from cai_nb.feedback import (
    ANSWER,
    comparison_questions,
    exemplar_turns,
    multiple_choice,
    principle_for,
    select_exemplars,
)
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs

EXEMPLARS = 4


@torch.inference_mode()
def plain(lm, talks):
    "P(first is better) of each pair: one forward pass a prompt"
    a, b = lm.option_ids(("A", "B"), ANSWER)
    p_a = []
    for order in talks:
        logits = [lm.model(torch.tensor(lm.encode([t], ANSWER), device=lm.device)).logits[0, -1].float() for t in order]
        p_a.append([torch.sigmoid(x[a] - x[b]).item() for x in logits])
    return np.mean([p_a[0], 1 - np.array(p_a[1])], axis=0)


def main():
    pairs = {"type": int, "default": 48, "help": "how many pairs"}
    args = arguments(__doc__, pairs=pairs, model={"default": "default"})
    both = Ensemble([(n, 1) for n in ("harmlessness", "helpfulness", "anti-overreaction")])
    pairs, rows = as_pairs(labelled_pairs(both, "heldout", exemplars=False))[: args.pairs], []
    for dtype in ("float32", "auto"):
        lm = LanguageModel.load(args.model, dtype=None if dtype == "auto" else dtype)
        chosen = [principle_for(p, both) for p in pairs]
        before = [exemplar_turns(select_exemplars(p, both, EXEMPLARS)) for p in pairs]
        talks = comparison_questions(pairs, chosen, before)
        tokens = [len(ids) for ids in lm.encode([t for order in talks for t in order], ANSWER)]
        multiple_choice(lm, pairs[:2], both, exemplars=EXEMPLARS)  # warm up
        start = time.perf_counter()
        ours = [r["p_first"] for r in multiple_choice(lm, pairs, both, exemplars=EXEMPLARS)]
        mine, start = time.perf_counter() - start, time.perf_counter()
        theirs = plain(lm, talks)
        other = time.perf_counter() - start
        rows.append({"dtype": str(lm.model.dtype).removeprefix("torch."), "plain, labels/s": len(pairs) / other,
                     "ours, labels/s": len(pairs) / mine, "ratio": other / mine,
                     "largest difference": f"{np.abs(np.array(ours) - theirs).max():.1e}",
                     "tokens a prompt": int(np.mean(tokens))})  # fmt: skip
    print(machine())
    show(rows)
    write(args.json, rows=rows, pairs=len(pairs), exemplars=EXEMPLARS)


if __name__ == "__main__":
    main()
