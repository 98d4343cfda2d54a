"""Makes constraints.txt: the exact version of everything that cai_nb and its extras (but vllm) install.

    python3.11 tools/pin.py torch==2.13.0

Resolves from nothing in a new environment (nothing is installed, only looked up).  Use the oldest Python that
pyproject.toml allows: its versions run on the newer ones too, but not always the other way round.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The exact versions that were tested together, one set for Python {python} and later.  settings.ini has the ranges.
# Made by:  python{python} tools/pin.py {pins}
# Used by:  pip install -c constraints.txt -e .
# torch's CUDA builds bring nvidia-* packages and triton along; torch itself says which versions, so they are not here.
# On Linux without a GPU, pip takes a CUDA build (2 GB and more) unless it is told of PyTorch's index of CPU builds:
# both are the same torch, and both satisfy the line below.
"""
CUDA = re.compile(r"nvidia-|cuda-|triton$")


def normal(name):
    "The name as package indexes compare it: scikit_learn and Scikit-Learn are one."
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(pins):
    "name -> version of what `pip install .[every extra but vllm]` would bring into an empty environment."
    sys.path.insert(0, str(ROOT))
    from setup import read_settings

    extras = [key.removesuffix("_requirements") for key in read_settings() if key.endswith("_requirements")]
    extras.remove("vllm")  # which ties itself to one CUDA build of torch: it gets an environment of its own
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([sys.executable, "-m", "venv", f"{tmp}/venv"], check=True)
        report = Path(tmp, "report.json")
        pip = [f"{tmp}/venv/bin/python", "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        subprocess.run([*pip, *pins, f"{ROOT}[{','.join(extras)}]"], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    versions = {normal(item["name"]): item["version"].split("+")[0] for item in found}  # 2.13.0+cpu is 2.13.0
    return {name: v for name, v in versions.items() if name != "cai-nb" and not CUDA.match(name)}


if __name__ == "__main__":
    python = ".".join(map(str, sys.version_info[:2]))
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    if python != oldest:
        sys.exit(f"Run this with Python {oldest}, the oldest that pyproject.toml allows; this is Python {python}.")
    pins = sys.argv[1:]
    lines = [f"{name}=={version}\n" for name, version in sorted(resolve(pins).items())]
    (ROOT / "constraints.txt").write_text(HEADER.format(python=python, pins=" ".join(pins)) + "".join(lines))
    print(f"constraints.txt: {len(lines)} packages. Now try them: rm -rf .venv && make test")
