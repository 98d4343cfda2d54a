"""Tokens a second for critique and revision, against plain batched generate in input order.

    python benchmarks/sampling.py [--prompts 24] [--batch 24] [--json OUT]

The requests are those of stage 1 (responses, critiques, revisions with the bundled critic): ours makes them, and the plain
loop is given the same dialogues, limits, temperature and weights, batch after batch in the order in which they came.
"""

import time

import torch
from bench import arguments, machine, show, write

from cai_nb.constitution import Constitution
from cai_nb.model import LanguageModel
from cai_nb.pipeline import shipped_critic
from cai_nb.prompts import load_prompts
from cai_nb.revision import RevisionConfig, revise


class Listening:
    "A model whose calls are timed and kept"

    def __init__(self, lm, calls):
        self.lm, self.calls, self.id = lm, calls, lm.id

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


def main():
    args = arguments(__doc__, prompts={"type": int, "default": 24}, batch={"type": int, "default": 24})
    prompts = load_prompts("redteam")[: args.prompts]
    calls, lm = [], LanguageModel.load()
    critic = LanguageModel.load(adapter=shipped_critic())
    lm.sample([[{"role": "user", "content": "Hello?"}]], max_tokens=4)  # warm up
    config = RevisionConfig(rounds=2, max_tokens=64, critique_tokens=56, batch_size=args.batch)
    revise(Listening(lm, calls), prompts, Constitution.load("harmlessness"), config, critic=Listening(critic, calls))
    rows, total = [], {"ours": [0, 0.0], "plain": [0, 0.0]}
    for model, asked, settings, tokens, seconds in calls:
        start = time.perf_counter()
        theirs = plain(model, asked, settings["max_tokens"], settings["temperature"], args.batch)
        spent = time.perf_counter() - start
        for who, t, s in (("ours", tokens, seconds), ("plain", theirs, spent)):
            total[who][0] += t
            total[who][1] += s
        rows.append({"what": settings["desc"], "plain, tokens/s": theirs / spent, "ours, tokens/s": tokens / seconds,
                     "ratio": tokens / seconds / (theirs / spent)})
    a, b = (t / s for t, s in total.values())
    rows.append({"what": "in all", "plain, tokens/s": b, "ours, tokens/s": a, "ratio": a / b})
    print(machine())
    show(rows)
    write(args.json, rows=rows, prompts=len(prompts), batch=args.batch)


if __name__ == "__main__":
    main()
