"""Fills in the fields that pyproject.toml calls dynamic, and packs the data folders into the wheel."""

import ast
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DATA = ("constitutions", "prompts", "recipes", "adapters", "templates")  # top-level folders -> cai_nb/_data/ in a wheel


def read_settings():
    "settings.ini as a dict of key -> list of lines."
    ini = ConfigParser(interpolation=None, delimiters=("=",))
    if not ini.read(ROOT / "settings.ini", encoding="utf-8"):
        raise SystemExit("settings.ini is missing: setup.py takes the requirements from it.")
    return {key: [line.strip() for line in text.splitlines() if line.strip()] for key, text in ini["DEFAULT"].items()}


def read_version():
    "__version__ out of cai_nb/__init__.py, without importing it."
    for node in ast.parse((ROOT / "cai_nb" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
            return ast.literal_eval(node.value)
    raise SystemExit('cai_nb/__init__.py has no line __version__ = "…".')


def data_files():
    "(file in the repository, its place below cai_nb/) for everything that a wheel carries besides code."
    for kind in DATA:
        for path in sorted((ROOT / kind).rglob("*")):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not any(part.startswith((".", "__")) for part in parts):
                yield path, Path("_data", *parts)


class BuildWithData(build_py):
    "Copies the data folders to cai_nb/_data; an editable install reads the folders themselves."

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "cai_nb")
        shutil.rmtree(target / "_data", ignore_errors=True)  # nothing stale from an earlier build
        for source, place in data_files():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / place)

    def get_outputs(self, include_bytecode=True):
        data = [] if self.editable_mode else [str(Path(self.build_lib, "cai_nb", place)) for _, place in data_files()]
        return super().get_outputs(include_bytecode) + data


if __name__ == "__main__":
    settings = read_settings()
    setup(
        version=read_version(),
        packages=["cai_nb", "cai_nb.course"],
        install_requires=settings["requirements"],
        extras_require={
            key.removesuffix("_requirements"): lines
            for key, lines in settings.items()
            if key.endswith("_requirements")
        },
        entry_points={"console_scripts": settings["console_scripts"], "nbdev": ["cai_nb = cai_nb._modidx:d"]},
        cmdclass={"build_py": BuildWithData},
    )
