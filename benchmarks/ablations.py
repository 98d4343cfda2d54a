"""What each change of the recipe does: runs that differ from a finished run in one thing, and the figures that compare them.

    python benchmarks/ablations.py [--run runs/laptop] [--out runs/ablations] [--figures DIR] [--only NAME NAME ...] [--json OUT]

A variant reuses of the run whatever its change does not touch (`cai-nb run … --from`), so most cost a few minutes on two
cores. Some ask about the revisions alone and stop after stage 1. What is there already is not repeated.
"""

import sys
from pathlib import Path

from bench import arguments, show, write

from cai_nb.constitution import Constitution
from cai_nb.dialogue import CaiError
from cai_nb.figures import draw_figures
from cai_nb.artifacts import bundled_adapter
from cai_nb.stages import run_recipe
from cai_nb.recipe import load_recipe

GENTLE = ["constitution.harmful_prompts={harmlessness: 1.0}", "preference.extra_comparisons=[helpfulness]"]  # nothing against over-reaction
VARIANTS = {  # name: (what is set, the stages that are run; None: all)
    "no critiques": (["revision.critique=false"], ["revision"]),
    "1 principle": (1, ["revision"]),
    "4 principles": (4, ["revision"]),
    "16 principles": (16, ["revision"]),
    "hard labels": (["feedback.label=hard"], None),
    "clamped labels": (["feedback.clamp=[0.4, 0.6]"], None),
    "one score": (["preference.heads=one"], None),
    "no KL": (["ppo.kl_coef=0"], None),
    "one revision": (["revision.rounds=1"], None),
    "no anti-overreaction": (GENTLE, None),
    "no remedies": ([*GENTLE, "feedback.label=hard"], None),  # neither of the paper's remedies against boilerplate
    "two helpful responses": (["sft.helpful_samples=2", "sft.epochs=1"], None),  # the paper's numbers: fewer refusals of harmless prompts
    "more room for PPO": (["ppo.num_rollouts=24", "ppo.epochs=1", "ppo.kl_coef=0.02", "ppo.missing_eos_penalty=0.2"], None),
    "8 exemplars a critique": (["revision.exemplars=8"], ["revision"]),
}


def first_principles(n, out):
    "A constitution of the first n principles for critiques, as a file"
    whole = Constitution.load("harmlessness")
    path = out / f"harmlessness-{n}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole.subset([p.id for p in whole if p.critique][:n]).to_yaml(), encoding="utf-8")
    return [f"constitution.harmful_prompts={{{path}: 1.0}}", f"critic.adapter={bundled_adapter('critic')}"]  # always the same critic


def main():
    args = arguments(
        __doc__, run={"default": "runs/laptop"}, out={"default": "runs/ablations"}, figures={}, only={"nargs": "+", "choices": tuple(VARIANTS)}
    )
    base, out, made = Path(args.run), Path(args.out), []
    for name, (sets, stages) in VARIANTS.items():
        if args.only and name not in args.only:
            continue
        sets = first_principles(sets, out) if isinstance(sets, int) else sets
        shares, sister = not any(s.startswith("constitution") for s in sets), out / "no-anti-overreaction"
        source = base if shares else sister if name == "no remedies" and (sister / "recipe.yaml").exists() else None
        folder = out / name.replace(" ", "-")
        run_recipe(load_recipe(base, sets), folder, stages, f"benchmarks/ablations.py --only '{name}'", source=source)
        made.append(folder)
    plots = draw_figures([base, *made], args.figures or out / "figures")
    rows = plots["changes"].rows if "changes" in plots else []
    show(rows)
    write(args.json, rows=rows, revisions=plots["revisions"].rows if "revisions" in plots else [], run=base.name)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"ablations: {e}")
