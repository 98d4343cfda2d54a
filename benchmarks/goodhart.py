"""What a policy becomes without a KL penalty: PPO against a run's preference model, with β = 0 and the recipe's β.

    python benchmarks/goodhart.py [--run runs/laptop] [--rollouts 14] [--keep DIR] [--json OUT]

Everything else is the recipe's: SL-CAI, prompts, preference model, responses a rollout; only the learning rate is twice
as large and constant, so that a short run shows what would take a long one. The curves and the responses to the same
few prompts are saved; with --keep also the two policies, as adapters. About 12 minutes on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path

from bench import arguments, show, write

from cai_nb.dialogue import CaiError
from cai_nb.measures import boilerplate, distinct
from cai_nb.training import lora_config
from cai_nb.artifacts import load_model, rl_prompts
from cai_nb.run import Run, checkpoint_paths
from cai_nb.stages import ppo_settings
from cai_nb.ppo import PPOConfig, PPOTrainer
from cai_nb.preference import PreferenceModel
from cai_nb.recipe import load_recipe

SHOWN = ("rollout", "reward", "kl", "entropy", "length", "finished", "clip_fraction", "explained_variance")


def climb(run, beta, rollouts, keep=None):
    "One PPO run: its curves, its samples, and the last rollout's responses"
    from transformers import PrinterCallback

    recipe, o, work = run.recipe, run.recipe.ppo, Path(tempfile.mkdtemp())
    lm = load_model(recipe, *checkpoint_paths(run, "sl-cai"))
    prompts = rl_prompts(run)
    data = [{**p, "prompt": [{"role": "user", "content": p["prompt"]}]} for p in prompts]
    settings = {**ppo_settings(recipe), "rollouts": rollouts, "kl_coef": beta, "learning_rate": 2 * o.learning_rate,
                "lr_scheduler_type": "constant", "save_strategy": "no", "sample_rollouts": max(1, rollouts // 2),
                "num_samples": 6}  # fmt: skip
    trainer = PPOTrainer(
        lm, PreferenceModel.load(run.path("preference") / "model"), PPOConfig(str(work), **settings), data,
        eval_dataset=data[:3] + data[-3:], peft_config=lora_config(lm.model, o.lora_rank, o.lora_layer_fraction),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if keep:
        trainer.save_model(str(Path(keep) / f"beta-{beta:g}"))
    curves = [{k: e[k] for k in SHOWN} for e in trainer.state.log_history if "rollout" in e]
    samples = [json.loads(line) for line in (work / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [{"rollout": s["rollout"], "prompt": s["prompt"][-1]["content"], "completion": s["completion"],
                "reward": s["raw"]} for s in samples]
    return curves, samples, [r.completion for r in trainer.rows]


def main():
    args = arguments(__doc__, run={"default": "runs/laptop"}, rollouts={"type": int, "default": 14}, keep={})
    folder = Path(args.run)
    if not (folder / "4-preference" / "done.json").exists():
        sys.exit(f"goodhart: {folder} has no preference model; train it first: cai-nb run laptop --out {folder}")
    run = Run(folder, load_recipe(folder / "recipe.yaml"))
    runs, rows = {}, []
    for beta in (0.0, run.recipe.ppo.kl_coef):
        curves, samples, responses = climb(run, beta, args.rollouts, args.keep)
        runs[str(beta)] = {"curves": curves, "samples": samples}
        last = {f"{k}, last": round(curves[-1][k], 3) for k in ("reward", "kl", "entropy", "length")}
        rows.append({"beta": beta, **last, "boilerplate": float(boilerplate(responses).mean()),
                     "distinct bigrams": distinct(responses)})  # fmt: skip
        show(rows[-1:])
    write(args.json, runs=runs, rows=rows, model=run.recipe.model.name)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"goodhart: {e}")
