"""The tables of docs/conformance.md: what each stage does with each kind of chat template, and of architecture.

    python tools/conformance.py             run the checks and write the tables between their marks
    python tools/conformance.py --check     write nothing; exit 1 if a table is not what the checks say

A table is made from `conformance_rows()` of a test module: a dict for each row, whose first value is its name and whose
others are "same numbers" or "refused: …". The test of that module holds the page to it, so nothing here needs a run.
"""

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
TABLES = {  # name on the page -> test module with `conformance_rows()`
    "templates": "test_templates",
    "architectures": "test_architectures",
}


def table_of(name, rows):
    "A table between its marks; refusals are numbered, and their sentences follow it."
    refusals, lines = [], []
    for row in rows:
        cells = []
        for said in row.values():
            if said.startswith("refused: "):
                said = re.sub(r'message \d+ \(".*?"\)', 'message K ("…")', said)
                if said not in refusals:
                    refusals.append(said)
                said = f"refused ({refusals.index(said) + 1})"
            cells.append(said)
        lines.append(cells)
    head = list(rows[0])
    table = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]
    notes = [f"{k}. `{said.removeprefix('refused: ')}`" for k, said in enumerate(refusals, 1)]
    return "\n".join([f"<!-- made: {name} -->", "", *table, "", *notes, "", f"<!-- end: {name} -->"])


def filled(text, name, rows):
    "The page's text with one table made anew."
    mark = re.compile(rf"<!-- made: {name} -->.*?<!-- end: {name} -->", re.S)
    if not mark.search(text):
        sys.exit(f"{PAGE.name} has no place for a table: write <!-- made: {name} --> and <!-- end: {name} --> into it.")
    return mark.sub(lambda _: table_of(name, rows), text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a table is out of step")
    check = parser.parse_args().check
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    old = new = PAGE.read_text(encoding="utf-8")
    for name, module in TABLES.items():
        new = filled(new, name, import_module(module).conformance_rows())
    if check and new != old:
        sys.exit("docs/conformance.md does not say what the checks say. Type: python tools/conformance.py")
    if not check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
