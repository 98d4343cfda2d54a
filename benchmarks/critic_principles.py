"""Does the critic follow the principle that it is given?

    python benchmarks/critic_principles.py [--n 48] [--seeds 2] [--model NAME --adapter FOLDER] [--json OUT]

The default model responds to N harmful prompts of the training split; the bundled critic criticises and revises each response
in four ways: (a) under the principle that was drawn; (b) under a principle that was drawn for another prompt, with the same
random numbers; (c) under the drawn principle again, with other random numbers; (d) with both changed. If the principle
mattered, (a) would resemble (c) more than (d), and (b) would differ from (a). Similarity is the Jaccard similarity of word
bigrams.

The second part asks how much of the principle is in the critique: the critic scores each critique of (a) under the requests of
all principles, and the principle under which the critique is most probable is the guess. For comparison the same is done with
the critiques that were written for this project: those of held-out exemplars, which the critic did not learn from.
Intervals: bootstrap over prompts, 95 %.
"""

import sys
from dataclasses import replace

from bench import arguments, show, write

from cai_nb.constitution import Constitution, rng
from cai_nb.dialogue import CaiError, data_path
from cai_nb.model import LanguageModel
from cai_nb.prompts import load_prompts, split_prompts
from cai_nb.revision import RevisionConfig, bigram_jaccard, revise, revise_round
from cai_nb.stats import bootstrap, paired_difference
from cai_nb.steering import critique_attribution

WAYS = {"b": "other principle, same random numbers", "c": "same principle, other random numbers", "d": "other principle, other random numbers"}
OTHER_SEED = 1000  # added to the seed: other random numbers


def exchange(principles, seed):
    "The same principles among other prompts: none keeps its own"
    order = sorted(range(len(principles)), key=lambda i: (principles[i].id, rng("exchange", i, seed=seed).random()))
    shift = max(sum(p.id == q.id for q in principles) for p in principles)
    if 2 * shift > len(principles):
        raise CaiError(f"one principle was drawn for {shift} of {len(principles)} prompts: take a larger --n.")
    given = [None] * len(principles)
    for place, i in enumerate(order):
        given[i] = principles[order[(place + shift) % len(order)]]
    return given


def four_ways(policy, critic, prompts, constitution, seed):
    "({way: [(critique, revision)]}, first responses, drawn principles, exchanged principles)"
    config = RevisionConfig(rounds=0, seed=seed)
    first = [r["steps"][0]["text"] for r in revise(policy, prompts, constitution, config)]
    drawn = [constitution.draw(p["id"], 1, seed=seed, use="critique") for p in prompts]
    others = exchange(drawn, seed)
    again = replace(config, seed=seed + OTHER_SEED)
    settings = {"a": (drawn, config), "b": (others, config), "c": (drawn, again), "d": (others, again)}
    texts = {}
    for way, (principles, c) in settings.items():
        steps = revise_round(critic, prompts, first, principles, c, 1)
        texts[way] = [(s["critique"], s["text"]) for s in steps]
    return texts, first, drawn, others


def change_rows(runs, ids):
    "How much critique and revision resemble those of (a), with the difference that the principle makes"
    rows, groups = [], ids * len(runs)
    for k, what in enumerate(("critique", "revision")):
        alike = {way: [bigram_jaccard(x[k], y[k]) for texts in runs for x, y in zip(texts["a"], texts[way])] for way in WAYS}
        for way, name in WAYS.items():
            same = bootstrap([x[k] == y[k] for texts in runs for x, y in zip(texts["a"], texts[way])], groups)
            near = bootstrap(alike[way], groups)
            rows.append({"text": what, "against": name, "identical": same.mean, "identical_low": same.low,
                         "identical_high": same.high, "similarity": near.mean, "low": near.low, "high": near.high,
                         "prompts": near.n, "pairs": len(alike[way])})  # fmt: skip
        gain = paired_difference(alike["c"], alike["d"], groups)
        rows.append({"text": what, "against": "difference: same less other principle, with other random numbers",
                     "similarity": gain.mean, "low": gain.low, "high": gain.high, "prompts": gain.n,
                     "pairs": len(groups)})  # fmt: skip
    return rows


def main():
    args = arguments(__doc__, n={"type": int, "default": 48, "help": "prompts"},
                     seeds={"type": int, "default": 2, "help": "seeds, from 0"},
                     model={"default": "default", "help": "policy, and base model of the critic"},
                     adapter={"default": str(data_path("adapters", "critic")), "help": "the critic's; '' for none"})  # fmt: skip
    constitution = Constitution.load("harmlessness")
    prompts = split_prompts(load_prompts("harmful"), heldout=0.25)[0]
    prompts = sorted(prompts, key=lambda p: rng("critic", p["id"]).random())[: args.n]
    policy = LanguageModel.load(args.model)
    critic = LanguageModel.load(args.model, adapter=args.adapter or None)
    runs, asked, examples = [], [], []
    for seed in range(args.seeds):
        texts, first, drawn, others = four_ways(policy, critic, prompts, constitution, seed)
        runs.append(texts)
        asked += [{"prompt": p["prompt"], "response": r, "critique": t[0], "principle": q.id}
                  for p, r, t, q in zip(prompts, first, texts["a"], drawn)]  # fmt: skip
        examples += [{"id": p["id"], "seed": seed, "prompt": p["prompt"], "response": r,
                      "principles": {"a": q.id, "b": o.id, "c": q.id, "d": o.id},
                      **{way: dict(zip(("critique", "revision"), texts[way][i])) for way in texts}}
                     for i, (p, r, q, o) in enumerate(zip(prompts, first, drawn, others))][:6]  # fmt: skip
    ids = [p["id"] for p in prompts]
    rows = change_rows(runs, ids)
    show(rows)
    written = [{"prompt": e.messages, "response": e.response, "critique": e.critique, "principle": p.id}
               for p, e in constitution.exemplars("heldout") if p.critique]  # fmt: skip
    guesses = [{"critiques": name, **critique_attribution(critic, critiques, constitution)} for name, critiques in
               (("the critic's own, way (a)", asked), ("written, of held-out exemplars", written))]  # fmt: skip
    show(guesses)
    write(args.json, rows=rows, guesses=guesses, examples=examples, seeds=list(range(args.seeds)),
          command=f"benchmarks/critic_principles.py --n {args.n} --seeds {args.seeds}")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (CaiError, OSError) as e:
        sys.exit(f"critic_principles: {e}")
