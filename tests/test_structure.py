"The modules depend on each other in reading order only, and a stage knows no other stage: they meet in records."

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cai_nb

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {  # the most lines that the modules of a room may have together
    ("core", 5550): "dialogue chat_template records constitution text loading model prompts duplicates revision "
                    "training sft responses pairs feedback judge steering principle_judge preference ppo_math ppo_model ppo "
                    "stats measures evaluation",
    ("application", 3225): "schema recipe plan run artifacts judges stages report figures reading __main__ __init__",
    ("engine room", 900): "engine cpu backends distributed",
}
STAGES = {"revision", "sft", "feedback", "preference", "ppo", "evaluation"}


def places():
    "module -> number of the notebook that exports it (10, 10 and 10d are parts of one chapter)."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9A]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for name in re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join("".join(c["source"]) for c in cells), re.M):
            found[name] = re.match(r"\d+[a-z]?|A\d", path.name)[0]
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
    if module == "loading":  # `engine_room`, the one door to what only makes things fast; CAI_NB_PLAIN=1 keeps it shut
        wrong -= {"engine", "cpu"}
    if module in STAGES:
        wrong |= imported(module) & (STAGES - {module})
    assert not wrong, f"cai_nb.{module} imports {', '.join(sorted(wrong))}"


def test_the_package_offers_its_api_and_loads_no_torch():
    code = ("import sys, time; begin = time.perf_counter(); import cai_nb; took = time.perf_counter() - begin\n"
            "assert took < 1 and 'torch' not in sys.modules and 'numpy' not in sys.modules, took\n"
            "assert len(cai_nb.__all__) <= 60 and set(cai_nb.__all__) <= set(dir(cai_nb))\n"
            "for name in cai_nb.__all__: getattr(cai_nb, name)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_what_the_package_offers_is_public_where_it_is_defined():
    for module, names in cai_nb._MODULES.items():
        exported = importlib.import_module(f"cai_nb.{module}").__all__
        assert set(names.split()) <= set(exported), module
    assert not set(cai_nb.__all__) & set(cai_nb._MODULES)  # a module's name would hide what has the same name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Constitutions"):
        getattr(cai_nb, "Constitutions")  # noqa: B009


def constants(pattern):
    "{name: modules that assign it}, of the modules' top-level constants that match"
    found = {}
    for path in sorted((ROOT / "cai_nb").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Name) and re.fullmatch(pattern, target.id):
                    found.setdefault(target.id, []).append(path.stem)
    return found


def test_kinds_of_prompts_are_defined_once():
    assert constants("KINDS|GROUPS|QUESTIONS|POLICIES") == {
        "KINDS": ["records"], "GROUPS": ["records"], "QUESTIONS": ["records"], "POLICIES": ["run"]}
    for path in sorted((ROOT / "cai_nb").glob("*.py")):  # no second vocabulary
        old = re.findall(r"[\"'](redteam|overrefusal|harmless|helpful)[\"']", path.read_text(encoding="utf-8"))
        translate = ("records", "recipe", "prompts", "pairs")  # old names; hh-rlhf has folders of these names
        assert not old or path.stem in translate, f"{path.name}: {sorted(set(old))}"


def test_the_engine_room_has_one_door():
    "One function imports what only makes things fast; everything else works without it."
    importing = [path.stem for path in sorted((ROOT / "cai_nb").glob("*.py"))
                 if path.stem not in ("engine", "cpu") and {"engine", "cpu"} & imported(path.stem)]
    assert importing == ["loading"]
    body = ast.parse((ROOT / "cai_nb" / "loading.py").read_text(encoding="utf-8")).body
    doors = [f.name for f in body if isinstance(f, ast.FunctionDef) and re.search(r"import .*\b(cpu|engine)\b", ast.unparse(f))]
    assert doors == ["engine_room"]


def module_text(module):
    return (ROOT / "cai_nb" / f"{module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("room", "most"), ROOMS)
def test_a_room_can_be_read(room, most):
    "Lines are those that somebody wrote: blank lines and nbdev's `# %%` markers do not count."
    lines = [line for module in ROOMS[room, most].split() for line in module_text(module).splitlines()]
    written = [line for line in lines if line.strip() and not line.startswith(("# %%", "# AUTOGENERATED"))]
    assert len(written) <= most


def test_every_module_has_a_room_and_none_is_long():
    found = {path.stem for path in (ROOT / "cai_nb").glob("*.py")} - {"_modidx"}
    assert found == set(" ".join(ROOMS.values()).split())
    assert {m: n for m in found if (n := len(module_text(m).splitlines())) > 520} == {}
