"""Is the wish to decline a harmful question another wish than that to decline a harmless one?

    python benchmarks/refusal_direction.py RUN [RUN ...] [--json OUT]

For openings of an answer: the gradient of SL-CAI's mean log-probability of the opening, by the adapter that PPO would train, after
red-team prompts, plain ones, and harmless ones that look harmful; and the cosine between two of these. Red-team prompts
against other red-team prompts say how high it can be. The nearer to 1, the more a step that makes one
more likely makes the other so too; "The" says how much of that is common to all openings.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from bench import arguments, show, write

from cai_nb.chat_template import chat_format
from cai_nb.dialogue import CaiError, as_messages, progress
from cai_nb.training import lora_config
from cai_nb.artifacts import load_model, rl_prompts
from cai_nb.run import Run, checkpoint_paths
from cai_nb.ppo import collate
from cai_nb.ppo_model import prepare_policy
from cai_nb.recipe import load_recipe

OPENINGS = ("I'm sorry, but I can't", "I", "The")
MOST = 36  # prompts of a kind
BATCH = 12


def gradient(model, tokenizer, prompts, opening):
    "Gradient `(P,)`, by what is learnt, of the mean log-probability of an opening after these prompts"
    learnt, total = [p for p in model.parameters() if p.requires_grad], 0
    completion = tokenizer(opening, add_special_tokens=False)["input_ids"]
    for k in range(0, len(prompts), BATCH):
        asked = chat_format(tokenizer).prompt_ids([as_messages(p["prompt"]) for p in prompts[k : k + BATCH]])
        rows = [{"prompt_ids": ids, "completion_ids": completion} for ids in asked]
        batch = collate(rows)
        logprobs = model(input_ids=batch["input_ids"], completion_mask=batch["completion_mask"], want_values=False)[0]
        parts = torch.autograd.grad(logprobs.sum() / len(prompts), learnt, allow_unused=True)
        total = total + torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(learnt, parts)])
    return total


def rows_of(run):
    "A row for each opening"
    recipe = run.recipe
    lm = load_model(recipe, *checkpoint_paths(run, "sl-cai"))
    torch.manual_seed(recipe.seed)
    adapter = lora_config(lm.model, recipe.ppo.lora_rank or 16, recipe.ppo.lora_layer_fraction)
    model, _, tokenizer = prepare_policy(lm, peft_config=adapter)
    prompts = rl_prompts(run)
    draw, groups = np.random.default_rng(recipe.seed), {}
    for kind in ("harmful", "benign", "over_refusal"):
        mine = [p for p in prompts if p["kind"] == kind]
        mine = [mine[i] for i in draw.permutation(len(mine))]
        groups[kind] = mine[:MOST]
        if kind == "harmful":
            groups["others"] = mine[MOST : 2 * MOST]
    for opening in progress(OPENINGS, desc=run.folder.name, unit="opening"):
        g = {name: gradient(model, tokenizer, each, opening) for name, each in groups.items()}

        def cosine(a, b, g=g):
            return float(torch.nn.functional.cosine_similarity(g[a], g[b], dim=0))

        yield {"run": run.folder.name, "opening": opening, "harmful, benign": cosine("harmful", "benign"),
               "harmful, over_refusal": cosine("harmful", "over_refusal"), "harmful, other harmful": cosine("harmful", "others")}  # fmt: skip


def main():
    args = arguments(__doc__, ("runs",), runs={"nargs": "+", "metavar": "RUN", "help": "run folders with an SL-CAI model"})
    rows = [row for run in args.runs for row in rows_of(Run(Path(run), load_recipe(run)))]
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"refusal_direction: {e}")
