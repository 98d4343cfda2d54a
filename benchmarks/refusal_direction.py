"""Do refusing harmful prompts and refusing benign prompts need different changes of the weights?

    python benchmarks/refusal_direction.py RUN [RUN ...] [--json OUT]

For openings of a response: the gradient of SL-CAI's mean log-probability of the opening, with respect to the adapter
that PPO would train, after harmful, benign and over-refusal prompts; and the cosine of two such gradients. Harmful
prompts against other harmful prompts say how high it can be. The nearer to 1, the more a step that makes the opening
more likely after one kind does so after the other; "The" says how much of that is common to all openings.
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
from cai_nb.ppo import Row, collate
from cai_nb.ppo_model import prepare_policy
from cai_nb.recipe import load_recipe
from cai_nb.records import GROUPS, prompt_group

OPENINGS = ("I'm sorry, but I can't", "I", "The")
MOST = 36  # prompts of a kind
BATCH = 12


def gradient(model, tokenizer, prompts, opening):
    "Gradient `(P,)`, with respect to the trained weights, of an opening's mean log-probability after these prompts"
    learnt, total = [p for p in model.parameters() if p.requires_grad], 0
    completion = tokenizer(opening, add_special_tokens=False)["input_ids"]
    for k in range(0, len(prompts), BATCH):
        asked = chat_format(tokenizer).prompt_ids([as_messages(p["prompt"]) for p in prompts[k : k + BATCH]])
        rows = [Row(ids, completion_ids=completion) for ids in asked]
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
    for group in GROUPS:
        mine = [p for p in prompts if prompt_group(p) == group]
        mine = [mine[i] for i in draw.permutation(len(mine))]
        groups[group] = mine[:MOST]
        if group == "harmful":
            groups["others"] = mine[MOST : 2 * MOST]
    for opening in progress(OPENINGS, desc=run.folder.name, unit="opening"):
        g = {name: gradient(model, tokenizer, each, opening) for name, each in groups.items()}

        def cosine(a, b, g=g):
            return float(torch.nn.functional.cosine_similarity(g[a], g[b], dim=0))

        yield {
            "run": run.folder.name,
            "opening": opening,
            "harmful, benign": cosine("harmful", "benign"),
            "harmful, over_refusal": cosine("harmful", "over_refusal"),
            "harmful, other harmful": cosine("harmful", "others"),
        }


def main():
    args = arguments(__doc__, ("runs",), runs={"nargs": "+", "metavar": "RUN", "help": "runs with an SL-CAI model"})
    rows = [row for run in args.runs for row in rows_of(Run(Path(run), load_recipe(run)))]
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"refusal_direction: {e}")
