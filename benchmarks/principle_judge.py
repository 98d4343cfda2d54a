"""The judge that reads its principle (notebook 06c): where it follows the text and where not; what else was tried.

    python benchmarks/principle_judge.py [--json benchmarks/results/principle-judge.json]

The pairs are those of the split `judge`, on which nothing of the judge was chosen or fitted (`heldout`, on which its
settings were chosen, is shown beside it). A row is a set of principles and what of it was left out in training:

- the constitutions' principles on their own labelled pairs: all read in training; one principle at a time left out;
- the mechanical principles in the wordings of `constitutions/mechanical.yaml`, none of which was in training, on every pair
  that the check tells apart: with all checks in training; an eighth of the checks left out at a time; and with fewer
  sentences a check;
- the ceiling: the same probes, told which check is meant;
- the other ideas: one bilinear form of sentence and response, of low rank, with the direction read on its own or not; and
  the model's own attention: features of a response after the principle's `better` sentence less those after its `worse`
  one, and one linear probe for all principles, on six pairs a check and tested on four.

Accuracy under the opposite is one minus accuracy for all of them, so `steered` is the accuracy. Mechanical rows are means over
checks with at least ten pairs; intervals draw checks (mechanical) or prompts (constitutions) 2,000 times. About half an hour on
two cores in float32; hidden states are kept for the process only.
"""

import json

import numpy as np
import torch
from bench import arguments, machine, show, write
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from cai_nb.constitution import Constitution
from cai_nb.dialogue import as_messages, assistant, data_path, user
from cai_nb.judge import Judges
from cai_nb.model import LanguageModel
from cai_nb.pairs import as_pairs, labelled_pairs
from cai_nb.principle_judge import QUALITY, PrincipleJudge, Reader, sentence_features, sentence_pairs, training_sentences
from cai_nb.records import kind_of
from cai_nb.stats import bootstrap
from cai_nb.steering import CHECKS

NAMES = ("harmlessness", "anti-overreaction", "helpfulness")
EVERY = "all wordings new, all checks known"


class Remembering:
    "A model whose features are computed once"

    def __init__(self, model):
        self.lm, self.id, self.known = model, model.id, {}

    def features(self, dialogues, layers, **settings):
        keys = [json.dumps([dialogue, layers]) for dialogue in dialogues]
        if new := [i for i, key in enumerate(keys) if key not in self.known]:
            found = self.lm.features([dialogues[i] for i in new], layers=layers, **settings)
            self.known.update(zip([keys[i] for i in new], found))
        return np.stack([self.known[key] for key in keys])


def truths(pairs):
    "{check: (N,) +1 where the first response has more of it, -1 where the second has, 0 for a tie}"
    values = {name: [[check(text) for text in p["responses"]] for p in pairs] for name, check in CHECKS.items()}
    return {name: np.sign([first - second for first, second in found]) for name, found in values.items()}


class Measured:
    "Pairs of one split, with each axis's log-odds; rows of the table"

    def __init__(self, split, judge, constitutions):
        self.split, self.pairs = split, as_pairs(labelled_pairs(constitutions, split, exemplars=False))
        self.odds, self.truth = judge.log_odds(self.pairs), truths(self.pairs)
        self.right = np.array([1 if p["better"] == 0 else -1 for p in self.pairs])
        self.checks = [name for name in CHECKS if name in judge.reader.axes and (self.truth[name] != 0).sum() >= 10]

    def of_constitution(self, what, margins, reads=True):  # (N,), nats for the first response
        prompts = [json.dumps(as_messages(p["prompt"])) for p in self.pairs]
        found = bootstrap((margins*self.right > 0).astype(float), prompts)
        row = self.row("constitutions", what, found, len(self.pairs))
        same = {"accuracy_opposite": row["accuracy"], "steered": 0.5, "low": 0.5, "high": 0.5}  # nothing changes
        return row if reads else row | same

    def of_checks(self, what, by_check):  # {check: [share of pairs]}, a list of wordings
        means = [float(np.mean(shares)) for shares in by_check.values()]
        return self.row("mechanical", what, bootstrap(means, list(by_check)), len(means))

    def row(self, principles, what, found, n):
        return {"principles": principles, "what": what, "split": self.split, "accuracy": found.mean,
                "accuracy_opposite": 1 - found.mean, "steered": found.mean, "low": found.low, "high": found.high, "n": n}

    def share(self, check, margins):
        known = self.truth[check] != 0
        return float((margins*self.truth[check] > 0)[known].mean())

    def mechanical(self, what, directions, wordings, only=None):  # directions: (wordings, N) margins for each pair
        shares = {}
        for principle, margins in zip(wordings, directions):
            name = principle.id.rpartition("-")[0]
            if name in self.checks and (only is None or name in only):
                shares.setdefault(name, []).append(self.share(name, margins))
        return self.of_checks(what, shares) if only is None else shares


def with_reader(judge, reader):
    "The judge with another reader, whose axes may be fewer"
    at = {axis: k for k, axis in enumerate(judge.reader.axes)}
    return reader, [at[axis] for axis in reader.axes]


def margins_of(measured, reader, columns, principles):
    "(principles, N) nats for the first response of each pair"
    weights, directions = reader.read(principles)
    return (weights*directions) @ measured.odds[:, columns].T


def two_probes(model, judge, sentences, sets, constitutions, mechanical):
    "Rows of the judge: everything known, principles left out one at a time, checks left out, fewer sentences"
    rows, own = [], [p for c in constitutions for p in c]
    where = {p.id: i for i, p in enumerate(own)}
    reader, columns = with_reader(judge, judge.reader)
    for m in sets:
        named = [where[p["principle"]] for p in m.pairs]
        every = margins_of(m, reader, columns, own)
        rows += [m.of_constitution("in training", every[named, range(len(named))]),
                 m.of_constitution("the probe of 06a, which reads nothing",
                                   m.odds[:, judge.reader.axes.index(QUALITY)], reads=False),
                 m.mechanical(EVERY, margins_of(m, reader, columns, mechanical), mechanical)]
        told = {name: [m.share(name, m.odds[:, judge.reader.axes.index(name)])] for name in m.checks}
        rows.append(m.of_checks("ceiling: told which check is meant", told))
    alone = {m.split: np.zeros(len(m.pairs)) for m in sets}
    for left_out in own:
        kept = sentences | {QUALITY: [pair for pair in sentences[QUALITY] if pair not in sentence_pairs(left_out)]}
        reader, columns = with_reader(judge, Reader.fit(model, kept))
        for m in sets:
            mine = [i for i, p in enumerate(m.pairs) if p["principle"] == left_out.id]
            alone[m.split][mine] = margins_of(m, reader, columns, [left_out])[0, mine]
    rows += [m.of_constitution("each principle left out of training", alone[m.split]) for m in sets]
    checks, unseen = [axis for axis in judge.reader.axes if axis != QUALITY], {m.split: {} for m in sets}
    for train, test in GroupKFold(8, shuffle=True, random_state=0).split(checks, groups=checks):
        kept = {QUALITY: sentences[QUALITY], **{checks[i]: sentences[checks[i]] for i in train}}
        reader, columns = with_reader(judge, Reader.fit(model, kept))
        for m in sets:
            only = {checks[i] for i in test}
            unseen[m.split] |= m.mechanical("", margins_of(m, reader, columns, mechanical), mechanical, only)
    rows += [m.of_checks("checks left out of training", unseen[m.split]) for m in sets]
    for n in (1, 2, 4):
        fewer = {axis: pairs if axis == QUALITY else pairs[:n] for axis, pairs in sentences.items()}
        reader, columns = with_reader(judge, Reader.fit(model, fewer))
        for m in sets:
            rows.append(m.mechanical(f"{n} sentences a check", margins_of(m, reader, columns, mechanical), mechanical))
    return rows


def standardised(x, train, size):
    "Principal components of x, fitted on its rows `train`, with mean square 1 there"
    mean = x[train].mean(0)
    _, _, v = np.linalg.svd(x[train] - mean, full_matrices=False)
    y = (x - mean) @ v[:size].T
    return torch.tensor(y/np.sqrt((y[train]**2).mean()), dtype=torch.float32)


def bilinear(model, judge, pairs, sentences, measured, constitutions, mechanical, polar, rank=16, steps=400, seed=0):
    "Rows of the one-piece form: score = Σ_r (A s)_r (B d)_r, s: features of both sentences, d: of a response's difference"
    torch.manual_seed(seed)
    ids, rows, differences = {p["id"]: p for p in pairs}, [], []
    for one in judge.judges.each.values():
        rows += [ids[name["id"]] for name in one.names]
        differences.append(one.training_differences*one.std)
    d = np.concatenate(differences).astype(np.float32)/judge.std
    tests = [np.stack([np.subtract(*x) for x in response_features(m, judge)])/judge.std for m in measured]
    z = standardised(np.concatenate([d, *tests]), slice(0, len(d)), 128)
    cuts = np.cumsum([len(d), *map(len, tests)])
    own = [p for c in constitutions for p in c]
    lessons = [(axis, pair) for axis, some in sentences.items() if axis in judge.reader.axes for pair in some]
    asked = [*(pair for _, pair in lessons), *(sentence_pairs(p)[0] for p in [*own, *mechanical])]
    x = sentence_features(model, [s for pair in asked for s in pair]).reshape(len(asked), 2, -1)
    x = (x - x.mean((0, 1)))/(x.std((0, 1)) + 1e-6)
    s = standardised(x.sum(1), slice(0, len(lessons)), 64)
    a = standardised(np.concatenate([x[:, 0] - x[:, 1], x[:, 1] - x[:, 0]]), slice(0, len(lessons)), 64)[:len(asked)]
    truth = {name: np.sign([check(r["better"]) - check(r["worse"]) for r in rows]) for name, check in CHECKS.items()}
    items = [(i, np.flatnonzero(y), y[y != 0]) for i, (axis, _) in enumerate(lessons)
             for y in [truth[axis] if axis != QUALITY else np.ones(len(rows))]]
    which = torch.tensor(np.concatenate([np.full(len(k), i) for i, k, _ in items]))
    pair, sign = (torch.tensor(np.concatenate([item[j] for item in items])) for j in (1, 2))
    weight = torch.tensor(np.concatenate([np.full(len(k), 1/max(20, len(k))) for _, k, _ in items]), dtype=torch.float32)
    A, B = torch.randn(64, rank)*0.01, torch.randn(rank, z.shape[1])*0.05
    C, v, c = torch.randn(64, rank)*0.01, torch.randn(64)*0.01, torch.zeros(rank)
    parameters = [p.requires_grad_() for p in (A, B, C, v, c)]

    def direction(i):
        if polar:
            return torch.tanh(3*(a[i] @ v))[:, None]*((s[i] @ C + c) @ B)
        return (a[i] @ A) @ B

    optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        r = torch.randint(len(which), (2048,))
        margin = sign[r]*(z[pair[r]]*direction(which[r])).sum(-1)
        loss = (weight[r]*torch.nn.functional.softplus(-margin)).mean()/weight.mean()
        optimiser.zero_grad(); loss.backward(); optimiser.step(); schedule.step()
    with torch.no_grad():
        found = direction(torch.arange(len(lessons), len(asked)))
    name, out = "bilinear, direction on its own" if polar else "bilinear", []
    for m, start, end in zip(measured, cuts, cuts[1:]):
        margins = (found @ z[start:end].T).numpy()
        out.append(m.mechanical(f"{name}: {EVERY}", margins[len(own):], mechanical))
        where = {p.id: i for i, p in enumerate(own)}
        named = [where[p["principle"]] for p in m.pairs]
        out.append(m.of_constitution(f"{name}: in training", margins[named, range(len(named))]))
    return out


def attention(model, measured, pairs, mechanical, layers=(6, 12, 18, 24, 30), seed=0):
    "Rows of the model's own attention: checks known, and an eighth of the checks left out at a time"
    rng, rows = np.random.default_rng(seed), []
    by_check = {name: [p for p in mechanical if p.id.rpartition("-")[0] == name] for name in measured.checks}
    tests = [{**p, "better": p["responses"][0], "worse": p["responses"][1]} for p in measured.pairs]
    for part, n, some in (("train", 6, [p for p in pairs if p.get("labelled", True)]), ("test", 4, tests)):
        for name, wordings in by_check.items():
            differ = [(p, np.sign(CHECKS[name](p["better"]) - CHECKS[name](p["worse"]))) for p in some]
            differ = [(p, sign) for p, sign in differ if sign]
            for k in rng.permutation(len(differ))[:n]:
                p, sign = differ[k]
                texts = [p["better"], p["worse"]][::int(sign)]
                rows.append((part, name, wordings[rng.integers(len(wordings))], texts))
    dialogues = [[user(f"{sentence}\n\nWrite to me."), assistant(text)] for _, _, principle, texts in rows
                 for sentence in (principle.better, principle.worse) for text in texts]
    x = model.features(dialogues, layers=layers, desc="responses after principles").reshape(len(rows), 2, 2, -1)
    d = x[:, 0, 0] - x[:, 0, 1] - x[:, 1, 0] + x[:, 1, 1]
    d /= np.sqrt((d**2).mean(0)*d.shape[1]) + 1e-9
    part, name = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    def right(train, test):
        classifier = LogisticRegression(C=10, fit_intercept=False, max_iter=500)
        classifier.fit(np.concatenate([d[train], -d[train]]), np.repeat([1, 0], train.sum()))
        return (d[test] @ classifier.coef_[0] > 0).astype(float)

    known = dict(zip(np.flatnonzero(part == "test"), right(part == "train", part == "test")))
    unseen = {}
    for _, out in GroupKFold(8, shuffle=True, random_state=0).split(measured.checks, groups=measured.checks):
        left_out = np.isin(name, [measured.checks[i] for i in out])
        test = left_out & (part == "test")
        unseen |= dict(zip(np.flatnonzero(test), right((part == "train") & ~left_out, test)))
    return [measured.of_checks(f"attention: {what}", {n: [v for i, v in found.items() if name[i] == n] for n in measured.checks})
            for what, found in (("wordings and checks known", known), ("checks left out of training", unseen))]


def response_features(measured, judge):
    "(N, 2, D) features of both responses"
    first = next(iter(judge.judges.each.values()))
    dialogues = [[*as_messages(p["prompt"]), assistant(text)] for p in measured.pairs for text in p["responses"]]
    return first.model.features(dialogues, layers=first.layers).reshape(len(measured.pairs), 2, -1)


def main():
    args = arguments(__doc__)
    model = Remembering(LanguageModel.load())
    judges = Judges.load(data_path("adapters", "judges")/"train", model)
    constitutions, mechanical = [Constitution.load(name) for name in NAMES], list(Constitution.load("mechanical"))
    sentences, pairs = training_sentences(constitutions), labelled_pairs(constitutions, "train")
    judge = PrincipleJudge.fit(judges, pairs, sentences)
    sentences = {axis: sentences[axis] for axis in judge.reader.axes}
    sets = [Measured(split, judge, constitutions) for split in ("judge", "heldout")]
    rows = two_probes(model, judge, sentences, sets, constitutions, mechanical)
    for polar in (False, True):
        rows += bilinear(model, judge, pairs, sentences, sets, constitutions, mechanical, polar)
    rows += attention(model.lm, sets[0], pairs, mechanical)
    each = {name: float(np.mean([sets[0].share(name, m) for p, m in zip(mechanical, margins_of(
        sets[0], *with_reader(judge, judge.reader), mechanical)) if p.id.rpartition("-")[0] == name])) for name in sets[0].checks}
    weights, _ = judge.reader.read(mechanical)
    right = float(np.mean([judge.reader.axes[k] == p.id.rpartition("-")[0] for k, p in zip(weights.argmax(1), mechanical)]))
    print(machine())
    show(rows)
    print(f"the check that is meant has the largest weight for {right:.2f} of {len(mechanical)} wordings")
    write(args.json, rows=rows, each_check=each, axis_right=right, wordings=len(mechanical), kinds=sorted({kind_of(p) for p in pairs}))


if __name__ == "__main__":
    main()
