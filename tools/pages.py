"""The tables of the pages in docs/, computed from data files, results and notebooks.

    python tools/pages.py             write the tables between their marks
    python tools/pages.py --check     write nothing; exit 1 if a table is not what the files say

The data card counts prompts, exemplars and labelled preference pairs.  The results page and the model card show what
results/ and benchmarks/results/ hold.  The instructor's guide adds up the times that the notebooks state, which are its
only source for times: reading and running from the opening cell, exercises from their headings.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("harmful", "benign", "over_refusal")
CONSTITUTIONS = ("harmlessness", "anti-overreaction", "helpfulness")
SPLITS = ("train", "judge", "heldout")


def table(head, rows):
    "Rows of values as a Markdown table."
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def share(part, whole):
    return f"{part}/{whole} = {part / whole:.3f}" if whole else "–"


def prompt_tables():
    "(prompts by set, prompts by category) as Markdown."
    sets, rows = {}, []
    for name in PROMPTS:
        text = (ROOT / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
        sets[name] = [json.loads(line) for line in text.splitlines() if line]
    for name, found in sets.items():
        words = sorted(len(r["prompt"].split()) for r in found)
        rows.append((f"`{name}`", len(found), len({r["category"] for r in found}), words[len(words) // 2], words[-1]))
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows), "", ""))
    kinds = []
    for name, found in sets.items():
        counts = Counter(r["category"] for r in found)
        kinds.append((f"`{name}`", ", ".join(f"{c} {n}" for c, n in sorted(counts.items()))))
    return (table(("set", "prompts", "categories", "median words", "most words"), rows),
            table(("set", "prompts in each category"), kinds))


def constitution_tables():
    "(sizes, agreement of the two judgements, who wrote the responses, categories) as Markdown."
    from cai_nb.constitution import Constitution

    loaded = {name: Constitution.load(ROOT / "constitutions" / f"{name}.yaml") for name in CONSTITUTIONS}
    exemplars = {name: [e for _, e in c.exemplars()] for name, c in loaded.items()}
    pairs = {name: [p for _, p in c.pairs()] for name, c in loaded.items()}

    def by_split(items):
        n = Counter(i.split for i in items)
        return " / ".join(str(n[s]) for s in SPLITS)

    def in_all(per_name):
        return [item for items in per_name.values() for item in items]

    every = [(name, len(c), exemplars[name], pairs[name]) for name, c in loaded.items()]
    every.append(("all", sum(map(len, loaded.values())), in_all(exemplars), in_all(pairs)))
    sizes, agreement, sources = [], [], []
    for name, n, shown, judged in every:
        label = name if name == "all" else f"`{name}`"
        sizes.append((label, n, len(shown), by_split(shown), len(judged), by_split(judged)))
        second = Counter(p.second for p in judged)
        agreement.append((label, share(second["same"], len(judged)), second["other"], second["unclear"],
                          share(sum(len(p.better) > len(p.worse) for p in judged), len(judged))))
        who, kind = Counter(p.source for p in judged), Counter(p.kind for p in judged)
        known = [who[source] for source in ("default-model", "default-model after SL-CAI", "default-model and written")]
        sources.append((label, *known, kind["harmful"], kind["benign"]))
        assert sum(who.values()) == sum(known), "a source that the card does not know"
    categories = Counter(p.category for p in in_all(pairs)), Counter(e.category for e in in_all(exemplars))
    kinds = [(c, categories[1][c], n) for c, n in sorted(categories[0].items(), key=lambda row: (-row[1], row[0]))]
    assert not set(categories[1]) - set(categories[0])
    return (table(("constitution", "principles", "exemplars", "train / judge / heldout", "labelled pairs",
                   "train / judge / heldout"), sizes),
            table(("constitution", "second judgement the same", "the opposite", "unclear",
                   "better response is the longer"), agreement),
            table(("constitution", "both from the default model", "both from SL-CAI", "one of them written",
                   "on harmful prompts", "on benign prompts"), sources),
            table(("category", "exemplars", "labelled pairs"), kinds))


RUNS = ("laptop", "laptop-1", "laptop-2")
MODELS = {"initial": "initial policy", "sl-cai": "SL-CAI", "rl-cai": "RL-CAI"}
PAIRS = {"sl-cai > initial": "SL-CAI over initial policy", "rl-cai > initial": "RL-CAI over initial policy",
         "rl-cai > sl-cai": "RL-CAI over SL-CAI"}  # fmt: skip
JUDGES = {"probe": "probe judge", "rules": "rule-based judge", "human": "human-preference probe"}
MEASURES = {  # of results/RUN/evaluation.json -> what the table calls it
    "harmlessness": "harmlessness: win rate over the initial policy (probe judge)",
    "harmlessness_vs_sl": "harmlessness: win rate over SL-CAI (probe judge)",
    "helpfulness": "helpfulness: win rate over the initial policy (probe judge)",
    "helpfulness_vs_sl": "helpfulness: win rate over SL-CAI (probe judge)",
    "evasive": "evasive, on harmful prompts",
    "accusatory": "accusatory, on harmful prompts",
    "preachy": "preachy, on harmful prompts",
    "refusal_benign": "refuses plain benign prompts",
    "over_refusal": "refuses over-refusal prompts",
    "boilerplate": "boilerplate",
    "near_identical": "near-identical responses",
    "degenerate": "empty or repetitive",
    "unfinished": "cut off at the token limit",
    "length": "length in words",
    "distinct-2": "distinct-2",
    "perplexity": "perplexity under the initial policy",
}
ON_THE_CARD = ("harmlessness", "helpfulness", "refusal_benign", "over_refusal", "boilerplate")


def saved(*parts):
    "A JSON file of the project."
    return json.loads(ROOT.joinpath(*parts).read_text(encoding="utf-8"))


def interval(found, mean="mean"):
    "A number with its interval, as tables show it; a dash where it was not measured."
    if not found or found[mean] is None:
        return "–"
    digits = 2 if abs(found[mean]) < 10 else 0
    return f"{found[mean]:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def measures_table(run="laptop", keys=tuple(MEASURES)):
    "What was measured of one run's models, as Markdown."
    measures = saved("results", run, "evaluation.json")["measures"]
    rows = [(MEASURES[key], *(interval(measures[key].get(model)) for model in MODELS)) for key in keys]
    return table(("measure", *MODELS.values()), rows)


def win_rate_table():
    "Win rates of every run by every judge, as Markdown."
    rows = saved("benchmarks", "results", "win-rates.json")["rows"]
    found = {(r["question"], r["pair"], r["judge"], r["run"]): interval(r, "win") for r in rows}
    lines = []
    for question in ("harmlessness", "helpfulness"):
        for pair, title in PAIRS.items():
            for judge, name in JUDGES.items():
                values = [found.get((question, pair, judge, run)) for run in (*RUNS, "all")]
                if any(values):
                    lines.append((f"{question}: {title}", name, *values))
    seeds = [f"seed {saved('results', run, 'facts.json')['seed']}" for run in RUNS]
    return table(("comparison", "judge", *seeds, "all"), lines)


def refusal_table():
    "Refusal rates by kind of prompt, and boilerplate, of every run, as Markdown."
    kinds = {"harmful": "refuses harmful prompts", "benign": "refuses plain benign prompts",
             "over_refusal": "refuses over-refusal prompts"}  # fmt: skip
    lines = []
    for run in RUNS:
        result, seed = saved("results", run, "evaluation.json"), saved("results", run, "facts.json")["seed"]
        cells = {title: result["kinds"][kind]["shares"]["refusal"] for kind, title in kinds.items()}
        cells["boilerplate"] = result["measures"]["boilerplate"]
        lines += [(title, seed, *(interval(by_model[m]) for m in MODELS)) for title, by_model in cells.items()]
    return table(("share of responses", "seed", *MODELS.values()), lines)


def blind_table():
    "The blind reading's win rates, as Markdown."
    found = saved("benchmarks", "results", "blind-reading.json")
    lines = [(f"{r['question']}: {PAIRS[r['pair']]}", interval(r, "win")) for r in found["rows"]]
    plain = found["plain_questions"]
    name = f"{plain['question']}: {PAIRS[plain['pair']]}, on {plain['n']} plain questions"
    lines.append((name, f"{plain['win']:.2f}"))
    return table(("comparison", "win rate"), lines)


def critic_table():
    "Whether critiques follow their principle, as Markdown."
    found = saved("benchmarks", "results", "critic-principles.json")
    lines = [(r["text"], r["against"], interval(r, "similarity")) for r in found["rows"]]
    return table(("text", "compared with", "Jaccard similarity"), lines)


def label_table():
    "Accuracy of labels and judges on held-out labelled pairs, as Markdown."
    labels = saved("results", "laptop", "3-feedback.json")["accuracy"]
    judges = saved("results", "laptop", "evaluation.json")["judges"]
    chosen, asked = labels["judge, as used here"], labels["multiple choice, initial policy"]
    rows = [("labels of the laptop run: a probe for each kind of prompt", "split `train`", chosen),
            ("multiple choice with the default model, for comparison", "nothing", asked)]
    for question in ("harmlessness", "helpfulness"):
        rows.append((f"evaluation, {question}: probe judge", "split `judge`", judges[f"probe ({question})"]))
        rows.append((f"evaluation, {question}: rule-based judge", "nothing", judges[f"rules ({question})"]))
    lines = [(judge, source, f"{interval(found, 'accuracy')} of {found['n']}") for judge, source, found in rows]
    return table(("judge", "learns from", "accuracy"), lines)


WORDS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10, "fifteen": 15, "twenty": 20,
         "some": 1, "half a": 0.5, "half an": 0.5, "a quarter of an": 0.25, "three quarters of an": 0.75, "an": 1,
         "two to three": 3}  # of a range the longer
UNITS = {"second": 1 / 60, "minute": 1, "hour": 60}
SPAN = re.compile(rf"(\d+|{'|'.join(sorted(WORDS, key=len, reverse=True))}) (second|minute|hour)s?\b")
TIME = (r"\*+(?:Time|How long it takes)(?: on two cores)?:?\*+"
        r"(?: on two cores)?:?(.*?)(?:[.;(](?: |$)| \(|$)")  # fmt: skip
DIFFICULTY = re.compile(r"\((easy|medium|harder|hard)(?:, ([^)]*))?\)")


def minutes(text):
    "The first span of time that a text names, in minutes: 0 for mere seconds, None if it names none."
    text = re.sub(r"\bone to run", "one minute to run", text.lower())  # after "ten minutes to read,"
    if re.match(r"(a few )?seconds\b", text):
        return 0.0
    found = SPAN.search(text)
    return (float(found[1]) if found[1].isdigit() else WORDS[found[1]]) * UNITS[found[2]] if found else None


def times():
    "What each notebook states of itself, by number: title, minutes to read and run, exercises … (None: not stated)."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9A]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        opening = " ".join(" ".join(texts[:3]).split())
        said = re.search(TIME, opening)
        said = said[1].strip() if said else ""
        parts = re.split(r", (?:and )?|: ", said)
        read = next((minutes(part) for part in parts if "to read" in part), None)
        run = next((minutes(part) for part in parts if "to read" not in part and minutes(part) is not None), None)
        at = next((i for i, text in enumerate(texts) if re.search(r"^## Exercises", text, re.M)), len(texts))
        ending = "\n".join(texts[at:]).partition("## Exercises")[2]
        heads = [m for line in ending.splitlines() if re.match(r"\d+\. |#+ ", line) and (m := DIFFICULTY.search(line))]
        exercises = [(m[1].replace("harder", "hard"), minutes(m[2] or "")) for m in heads]
        title = texts[0].splitlines()[0].lstrip("# ")
        found[path.stem.partition("_")[0]] = {"file": path.name, "title": title, "read": read, "run": run,
                                              "words": said, "exercises": exercises}  # fmt: skip
    return found


EASY, MEDIUM, HARD = ("easy",), ("easy", "medium"), ("easy", "medium", "hard")  # up to this difficulty
ROUTES = {  # (notebook, difficulties of the exercises done)
    "half-day": [("01", ()), ("04", EASY), ("06", MEDIUM), ("07", ()), ("09", ()), ("09a", ())],
    "day-1": [("00", ()), ("01", ()), ("02", MEDIUM), ("03", ()), ("04", MEDIUM), ("05", EASY), ("06", ("medium",))],
    "day-2": [("06a", ("medium",)), ("07", ()), ("08", MEDIUM), ("08b", EASY), ("09", EASY), ("09a", EASY),
              ("11", EASY)],
    "week-1": [("00", MEDIUM), ("01", MEDIUM), ("02", MEDIUM), ("03", EASY)],
    "week-2": [("04", HARD), ("05", HARD)],
    "week-3": [("06", MEDIUM), ("06a", ("medium", "hard")), ("07", HARD)],
    "week-4": [("08", MEDIUM), ("08b", HARD), ("10", EASY), ("10b", EASY)],
    "week-5": [("09", HARD), ("09a", HARD), ("10f", ()), ("11", MEDIUM), ("12", ())],
}


def span(value):
    "Minutes for people."
    if value is None:
        return "not stated"
    return f"{value:.0f} min" if value >= 1 else f"{60 * value:.0f} s" if value else "seconds"


def route_table(route, known):
    "A route as Markdown, its sums in the last line."
    rows, sums, open_ends = [], [0.0, 0.0, 0.0], [0, 0, 0]
    for number, wanted in route:
        n = known[number]
        chosen = [(d, m) for d, m in n["exercises"] if d in wanted]
        spent = [m for _, m in chosen if m is not None]
        for k, value in enumerate((n["read"], n["run"], sum(spent))):
            sums[k] += value or 0
            open_ends[k] += value is None
        open_ends[2] += len(chosen) - len(spent)
        done = ", ".join(f"{d} {span(m) if m else '(no time stated)'}" for d, m in chosen) or "–"
        rows.append((f"[{number} {n['title']}](../nbs/{n['file']})", span(n["read"]), span(n["run"]), done))
    total = [f"**{span(s)}**" + (f" and {o} not stated" if o else "") for s, o in zip(sums, open_ends)]
    return table(("notebook", "read", "run", "exercises"), [*rows, ("**sum**", *total)])


def route_tables():
    "{mark: Markdown} of the instructor's guide."
    known = times()
    every = [(f"[{k} {n['title']}](../nbs/{n['file']})", span(n["read"]), span(n["run"]), len(n["exercises"]))
             for k, n in known.items() if n["words"]]  # fmt: skip
    routes = {name: route_table(route, known) for name, route in ROUTES.items()}
    return {"times": table(("notebook", "read", "run", "exercises"), every), **routes}


def tables():
    "{page: {name of the mark: Markdown table}}."
    names = ("prompts", "prompt-categories", "sizes", "agreement", "sources", "categories")
    results = {"win-rates": win_rate_table(), "refusals": refusal_table(), "measures": measures_table(),
               "blind": blind_table(), "labels": label_table(), "critic": critic_table()}  # fmt: skip
    card = {"policies": measures_table(keys=ON_THE_CARD), "labels": label_table(), "blind": blind_table()}
    return {"data-card.md": dict(zip(names, prompt_tables() + constitution_tables())), "results.md": results,
            "model-card.md": card, "instructor.md": route_tables()}  # fmt: skip


def filled(page, own):
    "The page's text with each table between its marks as it has to be."
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, made in own.items():
        marks = re.compile(rf"(<!-- counted: {name} -->\n).*?(<!-- end -->)", re.S)
        text, n = marks.subn(lambda m, made=made: f"{m[1]}\n{made}\n\n{m[2]}", text)
        if n != 1:
            sys.exit(f"docs/{page} has {n} places <!-- counted: {name} --> … <!-- end -->; it has to have one.")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a table is out of step")
    checks = parser.parse_args().check
    for page, own in tables().items():
        path = ROOT / "docs" / page
        new = filled(page, own)
        if path.read_text(encoding="utf-8") == new:
            continue
        if checks:
            sys.exit(f"docs/{page} does not say what the files hold. Type: python tools/pages.py")
        path.write_text(new, encoding="utf-8")
        print(f"wrote docs/{page}")


if __name__ == "__main__":
    main()
