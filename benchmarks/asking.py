"""Ways of asking a feedback model, by its size: accuracy, calibration, steering, labels a second.

    python benchmarks/asking.py --json benchmarks/results/asking.json                   everything: hours on two cores
    python benchmarks/asking.py --models default --pairs 40 --slow 10                   a first look
    python benchmarks/asking.py --json benchmarks/results/asking.json --models          the figures again

Three sets of pairs whose better response is known: the constitutions' held-out pairs, the paper's comparisons (left out
where the file is missing; each gets a principle that is drawn by its id), and the held-out pairs again under the
mechanical principles, where a program knows the better response. Every pair is labelled under its principle and under
the principle's opposite; *steered* is the share of pairs in which the better response is more probable under the
principle, ties counting as half. Where the label is a difference between the two, one follows from the other, and
*steered* is the accuracy. Intervals: 95 %. Scales of log-odds are fitted on training pairs, once a model and way.

A row is saved as soon as it is measured, and a row that the file has (same model, way, set and number of pairs) is not
measured again. A question that an earlier row asked is not asked again either, but its time counts: `labels_per_second`
is what a way costs alone. Two figures are drawn beside the file.
"""

import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from bench import arguments, machine, show

from cai_nb.constitution import Constitution, Ensemble, rng
from cai_nb.dialogue import CaiError
from cai_nb.feedback import (
    chain_of_thought,
    contrastive_choice,
    contrastive_log_likelihood,
    multiple_choice,
    over_principles,
    pointwise,
    principle_for,
)
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs, load_comparisons
from cai_nb.records import kind_of, read_json, write_json
from cai_nb.stats import accuracy, fit_temperature
from cai_nb.steering import mechanical_pairs, steering

MODELS = ["default", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
BUNDLED = {"harmful": ["harmlessness"], "benign": ["helpfulness", "anti-overreaction"]}
SHOWN = ("model", "way", "set", "accuracy", "low", "high", "ece", "steered", "labels_per_second", "n")


def peers(pair, constitution):
    "Ids of the principles that an ensemble averages for a pair: all for its kind of prompt, or its principle's wordings"
    bundled = {kind: [p.id for name in names for p in Constitution.load(name)] for kind, names in BUNDLED.items()}
    if any(pair["principle"] in ids for ids in bundled.values()):
        return tuple(bundled[kind_of(pair)])
    stem = pair["principle"].rsplit("-", 1)[0]
    return tuple(p.id for p in constitution if p.id.rsplit("-", 1)[0] == stem)


def averaged(model, pairs, constitution, n=4):
    "Multiple choice averaged over the wordings of a mechanical principle, or over `n` of the constitution's principles"
    out, groups = {}, {}
    for pair in pairs:
        groups.setdefault(peers(pair, constitution), []).append(pair)
    for ids, mine in groups.items():
        some = Constitution("peers", "", tuple(constitution[i] for i in ids))
        out |= {r["id"]: r for r in over_principles(partial(multiple_choice, model), mine, some, n)}
    return [out[pair["id"]] for pair in pairs]


WAYS = {  # function (model, pairs, constitution), and what a label costs in questions without exemplars, about
    "multiple choice": (multiple_choice, 2),
    "contrastive choice": (contrastive_choice, 4),
    "contrastive choice, one order": (partial(contrastive_choice, both_orders=False), 2),
    "pointwise": (pointwise, 4),
    "contrastive log-likelihood": (contrastive_log_likelihood, 4),
    "four exemplars": (partial(multiple_choice, exemplars=4), 8),
    "ensemble of principles": (averaged, 8),
    "chain of thought": (partial(chain_of_thought, clamp=None), 60),
}
DIFFERENCES = ("contrastive", "pointwise")  # ways that begin so have a scale, and give 1 − p under the opposite


class Remembering:
    "A model that answers no question twice; `seconds` is what its answers took, remembered ones included"

    def __init__(self, model):
        self.model, self.id, self.known, self.seconds = model, model.id, {}, 0.0
        self.billions = round(sum(weights.numel() for weights in model.model.parameters()) / 1e9, 3)

    def _timed(self, method, *args, **settings):
        start = time.perf_counter()
        out = method(*args, **settings)
        return out, time.perf_counter() - start

    def sample(self, *args, **settings):
        out, took = self._timed(self.model.sample, *args, **settings)
        self.seconds += took
        return out

    def score(self, *args, **settings):
        out, took = self._timed(self.model.score, *args, **settings)
        self.seconds += took
        return out

    def option_logprobs(self, prompts, options=("A", "B"), prefix="", **settings):
        prefixes = [prefix] * len(prompts) if isinstance(prefix, str) else prefix
        keys = [json.dumps([prompt, options, begin]) for prompt, begin in zip(prompts, prefixes)]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            asked = [prompts[i] for i in new.values()]
            rows, took = self._timed(self.model.option_logprobs, asked, options,
                                     [prefixes[i] for i in new.values()], **settings)  # fmt: skip
            self.known |= {key: (row, took / len(new)) for key, row in zip(new, rows)}
        self.seconds += sum(self.known[key][1] for key in keys)
        return np.array([self.known[key][0] for key in keys])


def shuffled(pairs):
    "Pairs in an order of their own, the same in every run"
    return sorted(pairs, key=lambda pair: rng("asking", pair["id"]).random())


def sets(names, comparisons, bundled):
    "{name: (pairs, constitution)}; every pair names its principle"
    held = shuffled(as_pairs(labelled_pairs(bundled, "heldout", exemplars=False)))
    found = {"bundled": (held, bundled)} if "bundled" in names else {}
    if "paper" in names and Path(comparisons).is_file():
        pairs = shuffled(as_pairs(load_comparisons(comparisons)))
        found["paper"] = [pair | {"principle": principle_for(pair, bundled).id} for pair in pairs], bundled
    elif "paper" in names:
        print(f"{comparisons} is missing: the paper's comparisons are left out")
    if "mechanical" in names:
        mechanical = Constitution.load("mechanical")
        together = Constitution("mechanical", "", (*mechanical, *bundled))  # exemplars come from the bundled ones
        found["mechanical"] = mechanical_pairs(held, mechanical), together
    return found


def p_better(records, pairs):
    "P(the better response is better), one for each pair"
    first = {r["id"]: r["p_first"] for r in records}
    return [first[p["id"]] if p["better"] == 0 else 1 - first[p["id"]] for p in pairs]


def fitted_scale(ask, model, pairs, constitution):
    "The scale that calibrates a way of asking on these pairs; not below 0.1, where rounding would make ties of labels"
    p = np.clip(p_better(ask(model, pairs, constitution), pairs), 1e-9, 1 - 1e-9)
    return max(fit_temperature(np.log(p / (1 - p))), 0.1)


def measure(ask, model, pairs, constitution, symmetric):
    "What is measured of a way of asking on a set of pairs"
    labels, model.seconds = [], 0.0

    def label(pairs, c):
        labels.append(ask(model, pairs, c))
        return labels[-1]

    moved = steering(label, pairs, constitution, symmetric=symmetric)[0]
    right = accuracy(p_better(labels[0], pairs))  # those under the principle come first
    return {"accuracy": right["accuracy"], "low": right["low"], "high": right["high"],
            "ece": right["calibration_error"], "log_loss": right["cross_entropy"],
            "steered": moved["steered"], "steered_low": moved["low"], "steered_high": moved["high"],
            "labels_per_second": len(labels) * len(pairs) / model.seconds, "n": right["n"]}  # fmt: skip


def work(name, way, n):
    "How long a row takes, in any unit: questions times the size in the model's name"
    size = re.search(r"([\d.]+)b\b", name.lower())
    return n * WAYS[way][1] * (1 if way.startswith(DIFFERENCES) else 2) * (float(size[1]) if size else 0.135)


def draw(rows, path):
    "Accuracy and steering against size, a panel for each way of asking; returns the paths of the pictures"
    from matplotlib.figure import Figure

    paths, names = [], [way for way in WAYS if any(row["way"] == way for row in rows)]
    looks = {"bundled": ("#0072b2", "o"), "paper": ("#d55e00", "s"), "mechanical": ("#009e73", "^")}
    title = {"accuracy": "the better response gets the higher probability, share of pairs",
             "steered": "P(better) is higher under the principle than under its opposite, share of pairs"}  # fmt: skip
    for what, ends in (("accuracy", ("low", "high")), ("steered", ("steered_low", "steered_high"))):
        columns = min(4, len(names))
        fig = Figure(figsize=(1 + 2.4 * columns, 0.9 + 2.3 * -(-len(names) // columns)), layout="constrained")
        axes = [*fig.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True, squeeze=False).flat]
        sizes = sorted({row["billions"] for row in rows})
        for ax, way in zip(axes, names):
            for k, (name, (color, marker)) in enumerate(looks.items()):
                mine = sorted((r for r in rows if (r["way"], r["set"]) == (way, name)), key=lambda r: r["billions"])
                if mine:
                    x, y, low, high = (np.array([r[key] for r in mine]) for key in ("billions", what, *ends))
                    ax.errorbar(x * 1.09 ** (k - 1), y, [y - low, high - y], fmt=marker + "-", color=color, ms=5, lw=1.2,
                                capsize=2, label=f"{name} (n = {min(r['n'] for r in mine)})")  # fmt: skip
            ax.axhline(0.5, color="0.5", lw=0.8, ls=":")
            ax.set_xscale("log")
            ax.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
            ax.set_xticks(sizes, [f"{s:.1f}B" if s >= 1 else f"{1000 * s:.0f}M" for s in sizes], fontsize=9)
            ax.set_xticks([], minor=True)
            ax.set_ylim(0, 1)
            ax.set_title(way, fontsize=10)
            ax.grid(axis="y", alpha=0.25)
            ax.legend(fontsize=7.5, frameon=False, loc="lower right")
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        fig.supylabel(what, fontsize=10)
        fig.supxlabel(f"weights of the feedback model; {title[what]}; 95 % intervals", fontsize=9)
        paths.append(path.with_name(f"{path.stem}-{what}.png"))
        fig.savefig(paths[-1], dpi=110)
    return paths


def main():
    args = arguments(
        __doc__,
        models={"nargs": "*", "default": MODELS, "help": f"feedback models; default: {' '.join(MODELS)}"},
        ways={"nargs": "*", "default": list(WAYS), "help": f"words of the names of ways; default: {', '.join(WAYS)}"},
        sets={"nargs": "*", "default": ["bundled", "paper", "mechanical"], "help": "of: bundled paper mechanical"},
        pairs={"type": int, "default": 120, "help": "of a set; default: 120"},
        slow={"type": int, "default": 40, "help": "pairs for exemplars, ensembles and chain of thought; default: 40"},
        known={"type": int, "default": 60, "help": "training pairs that scales are fitted on; default: 60"},
        comparisons={"metavar": "FILE", "default": "../shared/data/hhh-comparisons.dev.jsonl",
                     "help": "the paper's comparisons"},
        dtype={"default": "float32", "help": "of the weights; bfloat16 rounds log-odds to a coarse grid"},
    )  # fmt: skip
    bundled = Ensemble([(name, 1) for names in BUNDLED.values() for name in names])
    known = shuffled(as_pairs(labelled_pairs(bundled, "train", exemplars=False)))[: args.known]
    found = sets(args.sets, args.comparisons, bundled)
    ways = [way for way in WAYS if any(word in way for word in args.ways)]
    rows = (args.json and read_json(args.json) or {}).get("rows", [])
    done = {(r["model"], r["way"], r["set"], r["n"]) for r in rows}
    todo = [(name, way, which, pairs[: args.slow if WAYS[way][1] > 4 else args.pairs])
            for name in args.models for way in ways for which, (pairs, _) in found.items()]  # fmt: skip
    todo = [(*names, pairs) for *names, pairs in todo if (*names, len(pairs)) not in done]
    left = [work(name, way, len(pairs)) for name, way, _, pairs in todo]
    model, loaded, start = None, None, time.perf_counter()
    for at, (name, way, which, pairs) in enumerate(todo, 1):
        if loaded != name:
            model = None  # its memory is free before the next one is loaded
            model, loaded, scales = Remembering(LanguageModel.load(name, dtype=args.dtype)), name, {}
        ask, scaled = WAYS[way][0], way.startswith(DIFFERENCES)
        if scaled:
            scales[way] = scales[way] if way in scales else fitted_scale(ask, model, known, bundled)
            ask = partial(ask, scale=scales[way])
        row = {"model": name, "way": way, "set": which, **measure(ask, model, pairs, found[which][1], scaled),
               "billions": model.billions, "scale": scales.get(way)}  # fmt: skip
        rows = [r for r in rows if (r["model"], r["way"], r["set"]) != (name, way, which)] + [row]
        if args.json:
            write_json(args.json, {"rows": rows, "dtype": args.dtype, "known": args.known, "machine": machine()})
        show([{key: row[key] for key in SHOWN}])
        minutes = (time.perf_counter() - start) / 60 * sum(left[at:]) / sum(left[:at])
        print(f"row {at} of {len(todo)}, about {minutes:.0f} minutes left", flush=True)
    print()
    show([{key: row[key] for key in SHOWN} for row in rows])
    if args.json and rows:
        print("wrote", args.json, *draw(rows, Path(args.json)))


if __name__ == "__main__":
    try:
        main()
    except CaiError as e:
        sys.exit(f"asking: {e}")
