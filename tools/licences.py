"""THIRD_PARTY.md: the licence of everything that constraints.txt pins, as the installed packages state it.

    python tools/licences.py [--check]

With --check nothing is written; the exit is 1 if the list is out of date, or a licence is missing or not one that a
package under Apache 2.0 may depend on.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FREE = r"MIT|BSD|Apache|ISC|PSF|Python|MPL|Mozilla|Unlicense|CC0|HPND|Zlib|0BSD|LGPL|Public Domain|ZPL|CNRI"
KNOWN = {"axe-playwright-python": "MIT"}  # name: licence, for packages whose metadata are silent; each read in the package's own licence file
CARRIED = {"sphinx-revealjs": "carries reveal.js 5.2.0: MIT"}  # name: what a package brings of others that we pass on, as its own files say


def licence(name):
    "What a package states: SPDX expression, else classifiers, else the first line of its licence field"
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    if about.get("License-Expression"):
        return about["License-Expression"]
    stated = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = [s for s in stated if s != "OSI Approved"]
    return "; ".join(stated) or (about.get("License") or "").strip().split("\n")[0][:60] or KNOWN.get(name)


def pins():
    return re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.M)


def table():
    "The page, and what is wrong with it"
    rows, wrong = [], []
    for name, version in sorted(pins(), key=lambda p: p[0].lower()):
        found = licence(name)
        if found is None:
            found = "not installed here"
            wrong.append(f"{name}: not installed, so its licence is not known")
        elif not re.search(FREE, found, re.I) or re.search(r"\bA?GPL", re.sub(r"LGPL", "", found)) and not re.search(r"MIT|BSD|MPL|Apache", found):
            wrong.append(f"{name}: {found or 'no licence stated'}")
        rows.append(f"| {name} | {version} | {found}{'; ' + CARRIED[name] if name in CARRIED else ''} |")
    head = ["# Third-party packages", "", "What `constraints.txt` pins, and the licence that each package states. Made by `python tools/licences.py`.",
            "", "| package | version | licence |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n", wrong


def main(words):
    page, wrong = table()
    path = ROOT / "THIRD_PARTY.md"
    stale = not path.exists() or path.read_text() != page
    if "--check" not in words:
        path.write_text(page)
        print(f"wrote {path.name}: {len(pins())} packages")
    elif stale:
        print(f"{path.name} is out of date: python tools/licences.py")
    for line in wrong:
        print(line)
    return 1 if wrong or ("--check" in words and stale) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
