"""How often each method of labelling is right, on pairs whose better response is known.

    python benchmarks/label_accuracy.py                                        the bundled held-out pairs
    python benchmarks/label_accuracy.py --comparisons FILE                     the paper's comparisons, or hh-rlhf
    python benchmarks/label_accuracy.py --comparisons FILE --exemplars FILE    a judge learns from such pairs too

Where --exemplars is the file of --comparisons, the judge is cross-validated: five parts, no prompt in two of them.
A judge of such pairs reads seven layers and, after each response, the state in which the model would say whether it
was a good one; the rows "plain probe" read three layers of the response alone, as the pipeline's judge does.
Accuracy counts p = 0.5 as half right; the interval is Wilson's, 95 %. Each row keeps its calibration bins and, where
the pairs tell, the accuracy on harmful and on benign prompts.
"""

import json
import sys
from pathlib import Path

import numpy as np
from bench import arguments, show, write

from cai_nb.constitution import Ensemble
from cai_nb.dialogue import CaiError
from cai_nb.feedback import (
    chain_of_thought,
    comparison_record,
    contrastive_choice,
    contrastive_log_likelihood,
    multiple_choice,
    over_principles,
    pointwise,
)
from cai_nb.judge import LAYERS, Judge, Judges, pair_features
from cai_nb.model import LanguageModel
from cai_nb.judges import scale_layers
from cai_nb.pairs import as_pairs, labelled_pairs, load_comparisons
from cai_nb.records import kind_of
from cai_nb.stats import accuracy, calibration_bins, fit_temperature

SHOWN = ("method", "accuracy", "low", "high", "n", "calibration_error")
KINDS = {"harmful": ["harmlessness"], "benign": ["helpfulness", "anti-overreaction"]}
NAMES = [name for names in KINDS.values() for name in names]
OWN = {"both responses the model's own": ("default-model", "default-model after SL-CAI"),
       "both the default model's": ("default-model",), "both SL-CAI's": ("default-model after SL-CAI",)}
SIZES = (25, 50, 100, 200, 400, 800)
WIDE = (6, 10, 14, 18, 22, 26, 30)  # of the default model's 30
QUESTION = "Was the assistant's last answer a good one: helpful, honest and harmless?"


def asked(lm, pairs, both, few, names):
    "{method: comparison records} of the methods that learn nothing"
    def scaled(way, **settings):
        "The same with its scale fitted on training pairs of the constitution"
        known = as_pairs(labelled_pairs(both, "train", exemplars=False))[:60]
        first = way(lm, known, both, **settings)
        odds = [np.log(r["p_first"] / (1 - r["p_first"])) * (1 if p["better"] == 0 else -1)
                for r, p in zip(first, known)]  # fmt: skip
        return way(lm, pairs, both, scale=max(fit_temperature(odds), 1e-3), **settings)

    some, reasoned = pairs[:few], []

    def thought(clamp):
        "Chain of thought, generated once"
        if not reasoned:
            reasoned.extend(chain_of_thought(lm, some, both, clamp=None))
        return [comparison_record(p, r["p_first"], r["method"], clamp=clamp) for p, r in zip(some, reasoned)]

    def averaged(n):
        "Multiple choice averaged over n principles, drawn from the constitution that belongs to the kind of prompt"
        out = []
        for kind, names in KINDS.items():
            mine = [p for p in some if kind_of(p) == kind]
            c = Ensemble([(name, 1) for name in names])
            out += over_principles(lambda p, c: multiple_choice(lm, p, c), mine, c, n) if mine else []
        return out

    def exemplars(n, pick):
        "A function that asks with n exemplars before the question"
        return lambda: multiple_choice(lm, some, both, exemplars=n, pick=pick)

    ways = {
        "multiple choice, one order": lambda: multiple_choice(lm, pairs, both, both_orders=False),
        "multiple choice": lambda: multiple_choice(lm, pairs, both),
        **{f"multiple choice, {n} exemplars, {pick}": exemplars(n, pick)
           for n in (1, 2, 4, 8) for pick in ("random", "similar")},
        "chain of thought, unclamped": lambda: thought(None),
        "chain of thought, clamped": lambda: thought((0.4, 0.6)),
        "contrastive choice": lambda: scaled(contrastive_choice),
        "contrastive log-likelihood, per token": lambda: scaled(contrastive_log_likelihood),
        "contrastive log-likelihood, summed": lambda: scaled(contrastive_log_likelihood, per_token=False),
        "pointwise": lambda: scaled(pointwise),
        **{f"ensemble of {n} principles": (lambda n=n: averaged(n)) for n in (1, 2, 4, 8)},
    }  # fmt: skip
    for name, way in ways.items():
        if any(word in name for word in names):
            yield name, way()


def folds(groups, seed, k=5):
    "(train, test) row numbers, no group in both; without groups (a number of rows) wherever chance puts them"
    from sklearn.model_selection import GroupKFold

    groups = np.arange(groups) if isinstance(groups, int) else groups
    return GroupKFold(k, shuffle=True, random_state=seed).split(groups, groups=groups)


def learnt(lm, target, source, same):
    "Rows of judges that learnt from n of `source`, tested on `target` (on what is left over, where both are the same)"
    wide = scale_layers(lm, WIDE)
    x = pair_features(lm, source, wide, QUESTION)
    y = x if same else pair_features(lm, target, wide, QUESTION)
    yield from curve(lm, x, y, source, same, wide, QUESTION, "judge")
    few = [wide.index(layer) for layer in scale_layers(lm, LAYERS)]

    def answer_alone(z):
        "What a judge without the question reads: last state and mean of three layers"
        return z.reshape(len(z), 2, len(wide), 3, -1)[:, :, few, :2].reshape(len(z), 2, -1)

    yield from curve(lm, answer_alone(x), answer_alone(y), source, same, scale_layers(lm, LAYERS), "", "plain probe")


def curve(lm, x, y, source, same, layers, question, name):
    "Rows by number of pairs; `x` and `y` are features of source and target"
    groups = np.unique([json.dumps(j["prompt"]) for j in source], return_inverse=True)[1]

    def test(learn, on):
        judge = Judge.from_features(lm, x[learn], [source[k] for k in learn], layers, question=question)
        return judge.prob_of(y[on, 0] - y[on, 1])

    draws, whole = 5 if len(source) < 400 else 3, ["all"]
    if same:
        whole = ["five-fold, 4/5", "five-fold with prompts on both sides, 4/5"]
    for n in [*(s for s in SIZES if s < len(source) * (0.8 if same else 1)), *whole]:
        found = []
        for seed in range(draws):
            order = np.random.default_rng(seed).permutation(len(source))
            if same and n in whole:
                p = np.zeros(len(source))
                for learn, on in folds(groups if n == whole[0] else len(source), seed):
                    p[on] = test(learn, on)
            elif same:
                learn = order[:n]
                on = np.flatnonzero(~np.isin(groups, groups[learn]))
                p = test(learn, on)
            else:
                p = test(order[: None if n == "all" else n], np.arange(len(y)))
            found.append(accuracy(p))
            if n == "all":
                break
        mean = {k: float(np.mean([f[k] for f in found])) for k in ("accuracy", "low", "high", "calibration_error")}
        count = len(source) if n == "all" else n
        yield {"method": f"{name}, {count} pairs of this kind", **mean, "n": found[0]["n"], "draws": len(found)}


def describe(records, pairs):
    "`accuracy` of the labels (clamped ones as clamped), with calibration bins and the kinds of prompts apart"
    of = {p["id"]: p for p in pairs}

    def right(r):
        "What the label gives to the better response"
        pair = of[r["id"]]
        return r["label"] if r["chosen"][0]["content"] == pair["responses"][pair["better"]] else 1 - r["label"]

    kinds = {kind: [right(r) for r in records if kind_of(of[r["id"]]) == kind] for kind in KINDS}
    apart = {kind: {k: v for k, v in accuracy(p).items() if k in ("accuracy", "low", "high", "n")}
             for kind, p in kinds.items() if p}  # fmt: skip
    p = [right(r) for r in records]
    return {**accuracy(p), "bins": calibration_bins(p), "kinds": apart if len(apart) > 1 else {}}


def main():
    args = arguments(
        __doc__,
        comparisons={"metavar": "FILE", "help": "default: the bundled held-out pairs"},
        exemplars={"metavar": "FILE", "help": "labelled pairs that a judge learns from, in the same formats"},
        model={"default": "default", "help": "the feedback model: default, a folder or a hub id"},
        methods={"nargs": "*", "default": ["multiple", "chain", "contrastive", "pointwise", "ensemble", "judge"],
                 "help": "words of the methods to run; 'judge' for the learnt ones"},
        few={"type": int, "default": 80, "help": "pairs for the slow methods (exemplars, chain of thought, ensembles)"},
        limit={"type": int, "help": "pairs for all the others; default: all"},
    )  # fmt: skip
    lm, both = LanguageModel.load(args.model), Ensemble([(n, 1) for n in NAMES])
    labelled = labelled_pairs(both, "heldout", exemplars=False)
    if args.comparisons:
        labelled = load_comparisons(args.comparisons)
    pairs = as_pairs(labelled[: args.limit])
    pairs = [p | {"principle": p["principle"] or None} for p in pairs]
    rows = []

    def add(row):
        rows.append({k: row[k] for k in (*SHOWN, "bins", "kinds", "draws") if k in row})
        show([{k: row[k] for k in SHOWN}])

    for name, records in asked(lm, pairs, both, args.few, args.methods):
        add({"method": name, **describe(records, pairs)})
    if "judge" in args.methods:
        train = labelled_pairs(NAMES, "train")
        x = pair_features(lm, train)
        ways = {"one judge": Judge.from_features(lm, x, train), "two judges": Judges.from_features(lm, x, train)}
        for name, judge in ways.items():
            records = judge.label_pairs(pairs, both)
            add({"method": f"{name}, bundled pairs", **describe(records, pairs)})
            for whose, sources in OWN.items():
                mine = [(r, p) for r, p in zip(records, pairs) if p["source"] in sources]
                if mine:
                    add({"method": f"{name}, bundled pairs ({whose})", **describe(*map(list, zip(*mine)))})
        if args.exemplars:
            same = args.comparisons and Path(args.exemplars).resolve() == Path(args.comparisons).resolve()
            source = labelled if same else load_comparisons(args.exemplars)
            for row in learnt(lm, labelled, source, same):
                add(row)
    print()
    show([{k: row[k] for k in SHOWN} for row in rows])
    write(args.json, rows=rows, comparisons=Path(args.comparisons).name if args.comparisons else "bundled", model=lm.id)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"label_accuracy: {e}")
