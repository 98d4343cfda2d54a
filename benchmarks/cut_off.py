"""What judges see in an answer that was cut off: all of its text, or its whole sentences.

    python benchmarks/cut_off.py RUN [--policy start] [--samples 8] [--json OUT]

A model of the run answers the held-out prompts several times. Each answer is scored by the judge that labelled the comparisons, by
the preference model, by the evaluation's probe and by its readable checks. Two judges that mean the same thing should order the
answers to one prompt alike; what is printed are their correlations within prompts, with all of the text (`text`) and with the whole
sentences of answers that were cut off (`whole`), and the same for two things that say nothing about content: whether an answer was
finished, and how many words it has. Then: what the evaluation says of the best answer of each prompt by the preference model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from bench import show, write

from cai_nb.dialogue import CaiError, user
from cai_nb.evaluation import RuleJudge
from cai_nb.records import QUESTIONS
from cai_nb.measures import refuses
from cai_nb.stats import bootstrap
from cai_nb.feedback import FeedbackError
from cai_nb.figures import probes
from cai_nb.judge import Judges
from cai_nb.preference import PreferenceModel
from cai_nb.artifacts import get_model, prompts_of
from cai_nb.run import Run
from cai_nb.recipe import load_recipe


def within(x, n):
    "`(N,)` values less their prompt's mean, `n` answers a prompt"
    return (x.reshape(-1, n) - x.reshape(-1, n).mean(1, keepdims=True)).ravel()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--policy", default="initial", choices=("initial", "sl-cai", "rl-cai"), help="whose answers (start)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="answers to a prompt (8)")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    run, n = Run(Path(args.run), load_recipe(args.run)), args.samples
    e, asked = run.recipe.evaluation, prompts_of(run, part="heldout")
    said = get_model(run, args.policy).sample(
        [[user(p["prompt"])] for p in asked for _ in range(n)], e.max_tokens, e.temperature, seed=run.recipe.seed,
        keys=[f"{p['id']}/{k}" for p in asked for k in range(n)], batch_size=e.batch_size, desc="answers",
    )  # fmt: skip
    if not (run.path("feedback") / "judge" / "judges.json").exists():
        raise FeedbackError(f"{run.folder}: its labels were not made by a learnt judge (feedback.method).")
    labels = Judges.load(run.path("feedback") / "judge", get_model(run, "initial", local=True))
    scorer = PreferenceModel.load(run.path("preference") / "model")
    rows, best = [], []
    for question, probe in probes(run).items():
        mine = [i for i, p in enumerate(asked) if p["kind"] == QUESTIONS[question]]
        prompts, kinds = [[user(asked[i]["prompt"])] for i in mine for _ in range(n)], [asked[i]["kind"] for i in mine for _ in range(n)]
        answers = [said[i * n + k] for i in mine for k in range(n)]
        judge = labels.each["harmful" if question == "harmlessness" else "benign"]
        for shown in ("text", "whole"):
            texts = [getattr(a, shown) for a in answers]
            dialogues = [[*p, {"role": "assistant", "content": t}] for p, t in zip(prompts, texts)]
            by = {
                "labelling judge": judge.score(prompts, texts),
                "preference model": scorer.score(dialogues, kinds),
                "probe": probe.score(prompts, texts),
                "rules": RuleJudge(question).score(prompts, texts),
                "finished": np.array([float(a.finished) for a in answers]),
                "words": np.array([float(len(t.split())) for t in texts]),
            }
            for a in ("probe", "preference model", "labelling judge"):
                for b in by:
                    if a != b:
                        x, y = within(np.asarray(by[a], float), n), within(np.asarray(by[b], float), n)
                        rows.append({"question": question, "shown": shown, "of": a, "with": b, "r": float(np.corrcoef(x, y)[0, 1]), "n": len(x)})
            pick = np.asarray(by["preference model"]).reshape(-1, n).argmax(1) + n * np.arange(len(mine))
            for name in ("probe", "rules"):
                s = np.asarray(by[name], float)
                p = 1 / (1 + np.exp(s.reshape(-1, n) - s[pick][:, None]))  # against each answer to the same prompt, itself among them
                i = bootstrap((p.sum(1) - 0.5) / (n - 1))
                best.append({"question": question, "shown": shown, "judge": name, f"best of {n} > another": i.mean, "low": i.low,
                             "high": i.high, "refusal": float(np.mean([refuses(prompts[k][-1]["content"], texts[k]) for k in pick])),
                             "finished": float(by["finished"][pick].mean()), "n": i.n})  # fmt: skip
    for table in (rows, best):
        show(table)
        print()
    write(args.json, rows=rows, best=best, run=run.folder.name, policy=args.policy, samples=n)


if __name__ == "__main__":
    try:
        main()
    except (CaiError, OSError) as e:
        sys.exit(f"cut_off: {e}")
