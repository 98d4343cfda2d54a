"The modules depend on each other in reading order only, and a stage knows no other stage: they meet in records."

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"revision", "sft", "feedback", "preference", "ppo", "evaluation"}


def places():
    "module -> number of the notebook that exports it (10, 10 and 10d are parts of one chapter)."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for name in re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join("".join(c["source"]) for c in cells), re.M):
            found[name] = re.match(r"\d+[a-z]?", path.name)[0]
    return found


def imported(module):
    "Names of the cai_nb modules that a module imports, at its top or inside a function."
    names = set()
    for node in ast.walk(ast.parse((ROOT / "cai_nb" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("cai_nb.") for a in node.names if a.name.startswith("cai_nb.")}
        elif isinstance(node, ast.ImportFrom):
            package = ["cai_nb", *module.split(".")[:-1]]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
            if base == "cai_nb":
                names |= {alias.name for alias in node.names}
            elif base.startswith("cai_nb."):
                names.add(base.removeprefix("cai_nb."))
    return names


@pytest.mark.parametrize("module", places())
def test_imports_point_to_what_was_read_before(module):
    place = places()
    wrong = {name for name in imported(module) & set(place) if place[name] > place[module] or name == "__main__"}
    if module in STAGES:
        wrong |= imported(module) & (STAGES - {module})
    assert not wrong, f"cai_nb.{module} imports {', '.join(sorted(wrong))}"


def test_init_holds_the_version_and_nothing_else():
    body = ast.parse((ROOT / "cai_nb" / "__init__.py").read_text(encoding="utf-8")).body
    code = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    assert len(code) == 1 and ast.unparse(code[0]).startswith("__version__ = ")
