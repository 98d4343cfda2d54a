"""What judges see in a response that was cut off: all of its text, or its complete sentences.

    python benchmarks/cut_off.py RUN [--policy initial] [--samples 8] [--json OUT]

A model of the run responds to the held-out prompts several times. Each response is scored by the feedback model that
labelled the comparisons, by the preference model, by the evaluation's probe and by the rule-based judge. Two judges
that mean the same thing should order the responses to one prompt alike. The first table has their correlations within
prompts, with all of the text and truncated to the last complete sentence, and the same for two things that say nothing
about content: whether a response was finished, and how many words it has. The second table: what the evaluation says of
each prompt's best response by the preference model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from bench import show, write

from cai_nb.artifacts import get_model, prompts_of
from cai_nb.dialogue import CaiError, user
from cai_nb.evaluation import RuleJudge
from cai_nb.feedback import FeedbackError
from cai_nb.figures import probes
from cai_nb.judge import Judges
from cai_nb.preference import PreferenceModel
from cai_nb.recipe import load_recipe
from cai_nb.records import QUESTIONS
from cai_nb.run import Run
from cai_nb.stats import bootstrap
from cai_nb.text import refuses

SHOWN = {"all of the text": "text", "complete sentences": "complete_sentences"}  # name -> attribute of a Completion


def within(x, n):
    "`(N,)` values minus their prompt's mean, `n` responses a prompt"
    x = np.asarray(x, float).reshape(-1, n)
    return (x - x.mean(1, keepdims=True)).ravel()


def scores_of(question, prompts, completions, texts, judges):
    "{name: (N,) scores}: the judges, and what says nothing about content"
    kind = QUESTIONS[question]
    dialogues = [[*p, {"role": "assistant", "content": t}] for p, t in zip(prompts, texts)]
    return {
        "feedback model": judges["feedback model"].each[kind].score(prompts, texts),
        "preference model": judges["preference model"].score(dialogues, [kind] * len(texts)),
        "probe": judges["probes"][question].score(prompts, texts),
        "rules": RuleJudge(question).score(prompts, texts),
        "finished": np.array([float(c.finished) for c in completions]),
        "words": np.array([float(len(t.split())) for t in texts]),
    }


def correlations(scores, n, **about):
    "Rows: the correlation within prompts of each learnt judge with everything else"
    for a in ("probe", "preference model", "feedback model"):
        for b in scores:
            if a != b:
                r = np.corrcoef(within(scores[a], n), within(scores[b], n))[0, 1]
                yield {**about, "of": a, "with": b, "r": float(r), "n": len(scores[a])}


def best_rows(scores, n, prompts, texts, **about):
    "Rows: what probe and rules say of each prompt's best response by the preference model"
    best = np.asarray(scores["preference model"]).reshape(-1, n)
    best = best.argmax(1) + n * np.arange(len(best))
    refused = np.mean([refuses(prompts[k], texts[k]) for k in best])
    for name in ("probe", "rules"):
        s = np.asarray(scores[name], float)
        p = 1 / (1 + np.exp(s.reshape(-1, n) - s[best][:, None]))  # against each response to the prompt, also itself
        i = bootstrap((p.sum(1) - 0.5) / (n - 1))
        yield {**about, "judge": name, f"best of {n} > another": i.mean, "low": i.low, "high": i.high,
               "refusal": float(refused), "finished": float(scores["finished"][best].mean()), "n": i.n}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--policy", default="initial", choices=("initial", "sl-cai", "rl-cai"), help="whose responses")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="responses to a prompt (8)")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    run, n = Run(Path(args.run), load_recipe(args.run)), args.samples
    if not (run.path("feedback") / "judge" / "judges.json").exists():
        raise FeedbackError(f"{run.folder}: its labels were not made by a probe (feedback.method).")
    e, asked = run.recipe.evaluation, prompts_of(run, part="heldout")
    every = get_model(run, args.policy).sample(
        [[user(p["prompt"])] for p in asked for _ in range(n)], e.max_tokens, e.temperature, seed=run.recipe.seed,
        keys=[f"{p['id']}/{k}" for p in asked for k in range(n)], batch_size=e.batch_size, desc="responses",
    )  # fmt: skip
    judges = {
        "feedback model": Judges.load(run.path("feedback") / "judge", get_model(run, "feedback", local=True)),
        "preference model": PreferenceModel.load(run.path("preference") / "model"),
        "probes": probes(run),
    }
    rows, best = [], []
    for question in judges["probes"]:
        mine = [i for i, p in enumerate(asked) if p["kind"] == QUESTIONS[question]]
        prompts = [[user(asked[i]["prompt"])] for i in mine for _ in range(n)]
        completions = [every[i * n + k] for i in mine for k in range(n)]
        for shown, attribute in SHOWN.items():
            texts = [getattr(c, attribute) for c in completions]
            scores = scores_of(question, prompts, completions, texts, judges)
            rows += correlations(scores, n, question=question, shown=shown)
            best += best_rows(scores, n, prompts, texts, question=question, shown=shown)
    for table in (rows, best):
        show(table)
        print()
    write(args.json, rows=rows, best=best, run=run.folder.name, policy=args.policy, samples=n)


if __name__ == "__main__":
    try:
        main()
    except (CaiError, OSError) as e:
        sys.exit(f"cut_off: {e}")
