"""Tokens a second for critique and revision, against plain batched generate in input order.

    python benchmarks/sampling.py [--prompts 96] [--batch 96] [--plain 24] [--json OUT]

The requests are those of stage 1 (responses, critiques, revisions with the bundled critic): ours makes them, and the plain
loop is given the same dialogues, limits, temperature and weights, batch after batch in the order in which they came. It runs
twice, with batches of its own and with batches as large as ours.
"""

import time

import torch
from bench import arguments, machine, show, write

from cai_nb.constitution import Constitution
from cai_nb.model import LanguageModel
from cai_nb.artifacts import bundled_adapter
from cai_nb.prompts import load_prompts
from cai_nb.revision import RevisionConfig, revise


class Listening:
    "A model whose calls are timed and kept"

    def __init__(self, lm, calls):
        self.lm, self.calls, self.id = lm, calls, lm.id
        self.model = lm.model  # so that `prefix_caching` reaches it

    def sample(self, prompts, **settings):
        start = time.perf_counter()
        said = self.lm.sample(prompts, **settings)
        self.calls.append((self.lm, prompts, settings, sum(c.tokens for c in said), time.perf_counter() - start))
        return said


@torch.inference_mode()
def plain(lm, prompts, max_tokens, temperature, batch_size):
    "Number of new tokens, ends included"
    rows, new = lm.encode(prompts), 0
    for at in range(0, len(rows), batch_size):
        batch = lm.tokenizer.pad({"input_ids": rows[at: at + batch_size]}, padding_side="left", return_tensors="pt").to(lm.device)
        out = lm.model.generate(**batch, max_new_tokens=max_tokens, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
                                pad_token_id=lm.tokenizer.pad_token_id, eos_token_id=lm.end_ids)
        for row in out[:, batch["input_ids"].shape[1]:].tolist():
            end = next((i for i, t in enumerate(row) if t in lm.end_ids), None)
            new += len(row) if end is None else end + 1
    return new


def row(what, speed):
    "One line of the table from {who: (tokens, seconds)}"
    each = {who: t / s for who, (t, s) in speed.items()}
    ours = each.pop("ours")
    return ({"what": what, "ours, tokens/s": ours} | {f"plain in batches of {n}": v for n, v in each.items()}
            | {f"ratio to {n}": ours / v for n, v in each.items()})


def main():
    args = arguments(__doc__, prompts={"type": int, "default": 96}, batch={"type": int, "default": 96},
                     plain={"type": int, "default": 24})
    prompts = load_prompts("harmful")[: args.prompts]
    calls, lm = [], LanguageModel.load()
    critic = LanguageModel.load(adapter=bundled_adapter("critic"))
    lm.sample([[{"role": "user", "content": "Hello?"}]], max_tokens=4)  # warm up
    config = RevisionConfig(rounds=2, max_tokens=64, critique_tokens=56, batch_size=args.batch)
    revise(Listening(lm, calls), prompts, Constitution.load("harmlessness"), config, critic=Listening(critic, calls))
    sizes = dict.fromkeys([args.plain, args.batch])
    rows, total = [], {"ours": [0, 0.0], **{n: [0, 0.0] for n in sizes}}
    for model, asked, settings, tokens, seconds in calls:
        speed = {"ours": (tokens, seconds)}
        for size in sizes:
            start = time.perf_counter()
            speed[size] = plain(model, asked, settings["max_tokens"], settings["temperature"], size), time.perf_counter() - start
        for who, (t, s) in speed.items():
            total[who][0] += t
            total[who][1] += s
        rows.append(row(settings["desc"], speed))
    rows.append(row("in all", total))
    print(machine())
    show(rows)
    write(args.json, rows=rows, prompts=len(prompts), batch=args.batch, plain=args.plain)


if __name__ == "__main__":
    main()
