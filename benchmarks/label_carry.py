"""What a method of labelling is worth to the preference model that learns from it.

    python benchmarks/label_carry.py [--limit N] [--json OUT]

The bundled training pairs are labelled by several methods, and a preference model learns from each: here its fast form,
the best linear head on the frozen trunk's last state (notebook 07). It is measured against the truth on the bundled
held-out pairs. The judge's labels are those of cross-validation: of each pair by a judge that did not see it.
Intervals are 95 %.
"""

import json
import sys

import numpy as np
from bench import arguments, show, write
from label_accuracy import KINDS, NAMES
from scipy.special import expit

from cai_nb.constitution import Ensemble
from cai_nb.dialogue import CaiError, assistant
from cai_nb.feedback import make_label, multiple_choice, over_principles
from cai_nb.judge import Judge
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs
from cai_nb.preference import PreferenceModel, encode_dialogue, preference_metrics, sequence_classifier, soft_probe
from cai_nb.records import kind_of
from cai_nb.stats import accuracy

ONE = {"harmful": "no-harm", "benign": "answers-the-question"}
MANY = 4  # principles averaged


def asked(lm, pairs):
    "{way: {pair id: P(first is better)}} of multiple choice: one principle, one drawn for each pair, several averaged"
    one, drawn, many = {}, {}, {}
    for kind, names in KINDS.items():
        mine, c = [p for p in pairs if kind_of(p) == kind], Ensemble([(name, 1) for name in names])
        one |= {r["id"]: r["p_first"] for r in multiple_choice(lm, [{**p, "principle": ONE[kind]} for p in mine], c)}
        for r in over_principles(lambda p, c: multiple_choice(lm, p, c), mine, c, MANY):
            drawn[r["id"]], many[r["id"]] = r["members"][0]["p_first"], r["p_first"]
    return {"one principle for all": one, "a principle drawn for each": drawn, f"{MANY} principles averaged": many}


def label_unseen(lm, labelled):
    "(N,) P(better is better) of each pair by a judge that learnt from the others of its kind"
    p = np.zeros(len(labelled))
    for kind in KINDS:
        mine = [k for k, j in enumerate(labelled) if kind_of(j) == kind]
        p[mine] = Judge.fit(lm, [labelled[k] for k in mine]).report["out_of_fold"]
    return p


def main():
    args = arguments(__doc__, model={"default": "default"}, limit={"type": int, "help": "training pairs; default: all"})
    lm, labelled = LanguageModel.load(args.model), labelled_pairs(NAMES, "train", exemplars=False)[: args.limit]
    held, pairs = labelled_pairs(NAMES, "heldout", exemplars=False), as_pairs(labelled)
    ways = {name: np.array([p[x["id"]] if x["better"] == 0 else 1 - p[x["id"]] for x in pairs])
            for name, p in asked(lm, pairs).items()}  # fmt: skip
    ways |= {"a judge for each kind": label_unseen(lm, labelled), "the truth": np.ones(len(labelled))}
    model, tokenizer, _ = sequence_classifier(args.model)
    reader = PreferenceModel(model, tokenizer)

    def read(items):
        "(N, H) differences of last states, better − worse"
        dialogues = {k: [[*j["prompt"], assistant(j[k])] for j in items] for k in ("better", "worse")}
        x = {k: reader.hidden([encode_dialogue(d, tokenizer) for d in some]) for k, some in dialogues.items()}
        return x["better"] - x["worse"]

    d, d_held, rows = read(labelled), read(held), []
    groups = np.unique([json.dumps(j["prompt"]) for j in labelled], return_inverse=True)[1]
    for name, p in ways.items():
        right = accuracy(p)
        for how, labels in {
            "soft": p,
            "hard": [make_label(x, "hard") for x in p],
            "clamped": [make_label(x, clamp=(0.4, 0.6)) for x in p],
        }.items():
            if name == "the truth" and how != "soft":
                continue
            w = soft_probe(d, labels, groups)
            m = preference_metrics(expit(d_held @ w), np.ones(len(held)))
            rows.append({"labels by": name, "labels": how, "right labels": right["accuracy"], "of": right["n"],
                         **{k: m[k] for k in ("agreement", "low", "high", "n", "cross_entropy", "calibration_error")}})
            show(rows[-1:])
    print()
    show(rows)
    write(args.json, rows=rows, model=lm.id)


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"label_carry: {e}")
