"""The tables of docs/data-card.md and docs/instructor.md, counted from data files and notebooks.

    python tools/pages.py             write the tables between their marks
    python tools/pages.py --check     write nothing; exit 1 if a table is not what the files say

The data card counts prompts, exemplars and judged pairs.  The instructor's guide adds up the times that the notebooks
state, which are its only source for times: reading and running from the opening cell, exercises from their headings.
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
    sets = {name: [json.loads(line) for line in (ROOT / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() if line]
            for name in PROMPTS}
    rows = []
    for name, found in sets.items():
        words = sorted(len(r["prompt"].split()) for r in found)
        rows.append((f"`{name}`", len(found), len({r["category"] for r in found}), words[len(words) // 2], words[-1]))
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows), "", ""))
    kinds = [(f"`{name}`", ", ".join(f"{c} {n}" for c, n in sorted(Counter(r["category"] for r in found).items()))) for name, found in sets.items()]
    return table(("set", "prompts", "categories", "median words", "most words"), rows), table(("set", "prompts in each category"), kinds)


def constitution_tables():
    "(sizes, agreement of the two judgements, who wrote the answers, categories) as Markdown."
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
    return (table(("constitution", "principles", "exemplars", "train / judge / heldout", "judged pairs", "train / judge / heldout"), sizes),
            table(("constitution", "second judgement the same", "the other one", "unclear", "better answer is the longer"), agreement),
            table(("constitution", "both answers the default model's", "both its own after SL-CAI", "one of them written",
                   "on harmful prompts", "on harmless prompts"), sources),
            table(("category", "exemplars", "judged pairs"), kinds))



WORDS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10, "fifteen": 15, "twenty": 20, "some": 1, "half a": 0.5, "half an": 0.5,
         "a quarter of an": 0.25, "three quarters of an": 0.75, "an": 1, "two to three": 3}  # of a range the longer
UNITS = {"second": 1 / 60, "minute": 1, "hour": 60}
SPAN = re.compile(rf"(\d+|{'|'.join(sorted(WORDS, key=len, reverse=True))}) (second|minute|hour)s?\b")
DIFFICULTY = re.compile(r"\((easy|medium|harder|hard)(?:, ([^)]*))?\)")


def minutes(text):
    "The first span of time that a text names, in minutes: 0 for mere seconds, None if it names none."
    text = re.sub(r"\bone to run", "one minute to run", text.lower())  # after "ten minutes to read,"
    if re.match(r"(a few )?seconds\b", text):
        return 0.0
    found = SPAN.search(text)
    return (float(found[1]) if found[1].isdigit() else WORDS[found[1]]) * UNITS[found[2]] if found else None


def times():
    "{notebook's number: {file, title, read, run, words, exercises: [(difficulty, minutes)]}} as the notebooks state it; None: not stated."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9A]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        opening = " ".join(" ".join(texts[:3]).split())
        said = re.search(r"\*+(?:Time|How long it takes)(?: on two cores)?:?\*+(?: on two cores)?:?(.*?)(?:[.;(](?: |$)| \(|$)", opening)
        said = said[1].strip() if said else ""
        parts = re.split(r", (?:and )?|: ", said)
        read = next((minutes(part) for part in parts if "to read" in part), None)
        run = next((minutes(part) for part in parts if "to read" not in part and minutes(part) is not None), None)
        at = next((i for i, text in enumerate(texts) if re.search(r"^## Exercises", text, re.M)), len(texts))
        ending = "\n".join(texts[at:]).partition("## Exercises")[2]
        heads = [m for line in ending.splitlines() if re.match(r"\d+\. |#+ ", line) and (m := DIFFICULTY.search(line))]
        exercises = [(m[1].replace("harder", "hard"), minutes(m[2] or "")) for m in heads]
        found[path.stem.partition("_")[0]] = {"file": path.name, "title": texts[0].splitlines()[0].lstrip("# "), "read": read, "run": run,
                                              "words": said, "exercises": exercises}
    return found


ROUTES = {  # (notebook, difficulties of the exercises done)
    "half-day": [("01", ()), ("04", ("easy",)), ("06", ("easy", "medium")), ("07", ()), ("09", ())],
    "day-1": [("00", ()), ("01", ()), ("02", ("easy", "medium")), ("03", ()), ("04", ("easy", "medium")), ("05", ("easy",)), ("06", ("medium",))],
    "day-2": [("06a", ("medium",)), ("07", ()), ("08", ("easy", "medium")), ("08b", ("easy",)), ("09", ("easy",)), ("11", ("easy",))],
    "week-1": [("00", ("easy", "medium")), ("01", ("easy", "medium")), ("02", ("easy", "medium")), ("03", ("easy",))],
    "week-2": [("04", ("easy", "medium", "hard")), ("05", ("easy", "medium", "hard"))],
    "week-3": [("06", ("easy", "medium")), ("06a", ("medium", "hard")), ("07", ("easy", "medium", "hard"))],
    "week-4": [("08", ("easy", "medium")), ("08b", ("easy", "medium", "hard")), ("10", ("easy",)), ("10", ("easy",))],
    "week-5": [("09", ("easy", "medium", "hard")), ("10f", ()), ("11", ("easy", "medium")), ("12", ())],
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
    every = [(f"[{k} {n['title']}](../nbs/{n['file']})", span(n["read"]), span(n["run"]), len(n["exercises"])) for k, n in known.items() if n["words"]]
    return {"times": table(("notebook", "read", "run", "exercises"), every)} | {name: route_table(r, known) for name, r in ROUTES.items()}


def tables():
    "{page: {name of the mark: Markdown table}}."
    names = ("prompts", "prompt-categories", "sizes", "agreement", "sources", "categories")
    return {"data-card.md": dict(zip(names, prompt_tables() + constitution_tables())), "instructor.md": route_tables()}


def filled(page, own):
    "The page's text with each table between its marks as it has to be."
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, made in own.items():
        text, n = re.subn(rf"(<!-- counted: {name} -->\n).*?(<!-- end -->)", lambda m, made=made: m[1] + "\n" + made + "\n\n" + m[2], text, flags=re.S)
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
