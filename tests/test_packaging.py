"A wheel carries the modules and the data; requirements are in one place, and every one of them is pinned."

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DATA = ("constitutions", "prompts", "recipes", "adapters", "templates")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CUDA = ("nvidia-", "cuda-", "triton")  # torch says itself which versions of these it takes


def settings():
    "settings.ini: key -> list of lines."
    ini = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return {key: [line for line in text.splitlines() if line] for key, text in ini["DEFAULT"].items()}


def requirements():
    "Every requirement of settings.ini, those of the extras included; vLLM, tied to one CUDA build of torch, is not pinned."
    keys = [key for key in settings() if key.endswith("requirements") and key != "vllm_requirements"]
    return [Requirement(line) for key in keys for line in settings()[key]]


def pins():
    "constraints.txt: normalised name -> version."
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^\s;+]*", line) for line in lines), "one NAME==VERSION a line"
    found = [line.split("==") for line in lines]
    assert len({canonicalize_name(name) for name, _ in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found}


def call(*command, cwd, **env):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from a source distribution of a copy of this tree: what somebody without the repository gets."
    tmp = tmp_path_factory.mktemp("wheel")
    sys.path.insert(0, str(ROOT / "tools"))
    from check import project_copy

    copy = project_copy(tmp / "project")
    python = [sys.executable, "-c"]
    call(*python, "from setuptools.build_meta import build_sdist; build_sdist('../sdist')", cwd=copy)
    (sdist,) = (tmp / "sdist").glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    call(sys.executable, "-m", "pip", "wheel", str(sdist), "-w", str(tmp), *options, cwd=tmp)
    (path,) = tmp.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def facts(wheel):
    "The wheel's METADATA as an email message, and its entry points as text."
    with zipfile.ZipFile(wheel) as z:
        read = {Path(name).name: z.read(name).decode() for name in z.namelist() if ".dist-info/" in name}
    return Parser().parsestr(read["METADATA"]), read["entry_points.txt"]


def test_wheel_holds_the_modules_and_the_data_and_nothing_else(wheel):
    tree = wheel.parent / "project"  # the copy that the wheel was made from
    expected = {path.relative_to(tree).as_posix() for path in (tree / "cai_nb").rglob("*.py")}
    for kind in DATA:
        files = [path.relative_to(tree) for path in (tree / kind).rglob("*") if path.is_file()]
        expected |= {f"cai_nb/_data/{p.as_posix()}" for p in files if not any(q[0] in "._" for q in p.parts)}
    with zipfile.ZipFile(wheel) as z:
        found = {name for name in z.namelist() if ".dist-info/" not in name}
        assert found == expected
        for name in found:
            assert z.read(name) == (tree / name.replace("cai_nb/_data/", "")).read_bytes(), name


def test_wheel_states_what_settings_ini_states(facts):
    said, entry_points = facts
    found = {str(Requirement(text)).replace('"', "'") for text in said.get_all("Requires-Dist")}
    expected = {str(Requirement(line)) for line in settings()["requirements"]}
    for key, lines in settings().items():
        if key.endswith("_requirements"):
            extra = key.removesuffix("_requirements")
            assert extra in said.get_all("Provides-Extra")
            expected |= {str(Requirement(f"{line}; extra == '{extra}'")).replace('"', "'") for line in lines}
    assert found == expected
    for line in settings()["console_scripts"]:
        assert line in entry_points
    assert "cai_nb = cai_nb._modidx:d" in entry_points


def test_wheel_states_version_name_and_licence(facts):
    said, _ = facts
    init = (ROOT / "cai_nb" / "__init__.py").read_text(encoding="utf-8")
    assert said["Version"] == re.search(r'^__version__ = "(.+)"$', init, re.M)[1]
    assert said["Name"] == PYPROJECT["project"]["name"]
    assert said["Requires-Python"] == PYPROJECT["project"]["requires-python"]
    assert said["License-Expression"] == "Apache-2.0"


def test_installed_wheel_finds_its_own_data(wheel, tmp_path):
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as z:
        z.extractall(target)
    code = "import cai_nb; from cai_nb.dialogue import data_path; print(cai_nb.__file__); " + "; ".join(
        f"print(data_path({kind!r}, {next((ROOT / kind).glob('[!._]*')).name!r}))"
        for kind in DATA if any((ROOT / kind).glob("[!._]*")))
    lines = call(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert len(lines) > 1
    for line in lines:
        assert Path(line).is_relative_to(target) and Path(line).exists(), line


def test_pyproject_and_settings_ini_repeat_nothing():
    project = PYPROJECT["project"]
    filled_in = {"version", "dependencies", "optional-dependencies", "scripts", "entry-points"}
    assert set(project["dynamic"]) == filled_in
    assert not filled_in & set(project)
    others = {key for key in settings() if not key.endswith("requirements")}
    assert others == {"console_scripts"}, "facts other than requirements and commands belong in pyproject.toml"
    assert "nbdev" in PYPROJECT["tool"], "without [tool.nbdev] no nbdev command works"


def test_every_requirement_is_a_range_and_its_pin_lies_within():
    pinned = pins()
    for requirement in requirements():
        assert requirement.specifier, f"{requirement.name}: settings.ini gives no range"
        assert not any(s.operator == "==" for s in requirement.specifier), f"{requirement}: pins go to constraints.txt"
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no pin: python3.11 tools/pin.py torch=={pinned['torch']}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} excludes its pin {version}"
    assert pinned["torch"] == "2.13.0"


@pytest.mark.parametrize("folder, key", [("cai_nb", "requirements"), ("tests", "dev_requirements"),
                                         ("tools", "dev_requirements")])  # fmt: skip
def test_every_import_is_a_requirement(folder, key):
    "What comes along with another package today may not come along tomorrow: say it in settings.ini."
    names = set()
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    own = {"cai_nb", "setup", *(path.stem for path in [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").glob("*.py")])}
    lines = settings()["requirements"] + settings()[key]
    if key == "dev_requirements":  # `make test` installs both
        lines += settings()["docs_requirements"]
    if folder == "cai_nb":  # imported where they are used, by `wanted`, which names the extra
        lines += settings()["api_requirements"] + settings()["vllm_requirements"]
    said = {canonicalize_name(Requirement(line).name) for line in lines}
    installed = metadata.packages_distributions()
    foreign = names - own - set(sys.stdlib_module_names)
    missing = [n for n in sorted(foreign) if not said & {canonicalize_name(p) for p in installed.get(n, [n])}]
    assert not missing, f"{folder}/ imports {', '.join(missing)}: add to {key} in settings.ini"


def test_everything_that_gets_installed_is_pinned():
    "Walks the installed packages from the requirements down: one without a pin could change under us any day."
    pinned, seen, queue = pins(), set(), [(r.name, tuple(r.extras)) for r in requirements()]
    while queue:
        name, extras = queue.pop()
        if (name := canonicalize_name(name), extras) in seen or name.startswith(CUDA):
            continue
        seen.add((name, extras))
        assert name in pinned, f"{name} has no pin: python3.11 tools/pin.py torch=={pinned['torch']}"
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system, or an extra that is not installed here
        for requirement in map(Requirement, needed):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                queue.append((requirement.name, tuple(requirement.extras)))
    assert len(seen) > 50


def test_import_is_quick_because_torch_waits():
    "The command must answer --help at once: these modules import the heavy libraries inside functions."
    light = ["cai_nb"] + [f"cai_nb.{name}" for name in ("__main__", "report", "reading", "figures")]
    code = f"import sys, {', '.join(light)}; print(*{{'torch', 'transformers', 'sklearn'}} & set(sys.modules))"
    assert call(sys.executable, "-c", code, cwd=ROOT).split() == []
