"""What `make test` runs, in order; a part that fails says what to type, and nothing after it is run.

    python tools/check.py                               everything
    python tools/check.py --only ruff                   one part (make test PART=ruff)
    python tools/check.py --only notebooks 02 04        one part, on some notebooks

No part changes a file of the repository: what writes does so in a temporary copy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", "runs", "_docs", "_slides", "_proc", "build", "dist", "tmp.*", "__pycache__", ".ipynb_checkpoints",
              ".pytest_cache", ".ruff_cache", "*.egg-info", "*.pyc")
CELL_TIMEOUT = 600  # seconds; a cell that takes longer at smoke size hangs
NOTEBOOK_SECONDS = 45  # what a notebook may take at smoke size on two cores; longer ones are marked


class Failed(Exception):
    "A part found something. Its message is what to read and what to type."


def project_copy(target):
    "Copies the working tree to `target`: no history, no environments, no runs, nothing that a build left behind."

    def skip(folder, names):
        skipped = shutil.ignore_patterns(*NOT_COPIED)(folder, names)
        return skipped | {name for name in names if Path(folder, name, "pyvenv.cfg").exists()}

    return Path(shutil.copytree(ROOT, target, ignore=skip, dirs_exist_ok=True))


def notebooks(folder=ROOT / "nbs", only=()):
    "The notebooks in reading order, index last; with `only`, those whose names begin so."
    found = sorted(folder.glob("[!_.]*.ipynb"))
    return [path for path in found if not only or path.stem.startswith(tuple(only))]


def script(name):
    "The path of a command that was installed next to this Python."
    return str(Path(sys.executable).with_name(name))


def run(command, folder, **env):
    "Runs a command, its output kept; a failure of the command itself is an error with that output."
    done = subprocess.run(command, cwd=folder, env={**os.environ, **env}, text=True, capture_output=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def files_below(folder):
    "{relative path: bytes} of the files that belong to a package's source."
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


# --- the parts ---------------------------------------------------------------------------------------------------


def check_clean(args):
    "notebooks are clean: nbdev-clean changes nothing"
    import nbformat

    found = []
    for path in notebooks():
        try:
            nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
        except Exception as error:
            found.append(f"nbs/{path.name} is no valid notebook: {str(error).splitlines()[0]}")
    if found:
        raise Failed("\n".join(found) + "\nTake the last version that was (git checkout) or fix it in Jupyter.")
    with tempfile.TemporaryDirectory() as tmp:
        copy = project_copy(Path(tmp, "clean"))
        run([script("nbdev-clean")], copy, XDG_CONFIG_HOME=tmp)
        changed = [p.name for p in notebooks() if p.read_bytes() != (copy / "nbs" / p.name).read_bytes()]
    if changed:
        raise Failed(f"nbdev-clean would change {', '.join(changed)}.\nType: make prepare")


def check_export(args):
    "cai_nb/ is what the notebooks export, and nothing else"
    with tempfile.TemporaryDirectory() as tmp:
        copy = project_copy(Path(tmp, "export"))
        for path in (copy / "cai_nb").rglob("*"):
            if path.is_file() and path != copy / "cai_nb" / "__init__.py":
                path.unlink()
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev exports nothing where that is set
        done = subprocess.run([script("nbdev-export")], cwd=copy, env={**env, "XDG_CONFIG_HOME": tmp}, text=True,
                              capture_output=True)
        if done.returncode:
            raise Failed(f"nbdev-export failed:\n{done.stdout}{done.stderr}")
        made, here = files_below(copy / "cai_nb"), files_below(ROOT / "cai_nb")
        if stray := sorted(set(here) - set(made)):
            raise Failed(f"No notebook exports {', '.join(f'cai_nb/{name}' for name in stray)}.\n"
                         "Delete it, or export it from a notebook (#| default_exp NAME).")
        differ = [f"cai_nb/{name}" for name in sorted(made) if made[name] != here.get(name)]
        for name in ("pyproject.toml", "nbs/llms.txt"):  # the other files that nbdev-export may write
            pair = [(root / name).read_bytes() if (root / name).is_file() else b"" for root in (copy, ROOT)]
            differ += [name] if pair[0] != pair[1] else []
    if differ:
        raise Failed(f"{', '.join(differ)}: not what the notebooks export.\n"
                     "Type: make prepare   (a change made in cai_nb/ by hand is lost: change the notebook)")


def check_ruff(args):
    "ruff has nothing to say"
    if subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format=concise", "."], cwd=ROOT).returncode:
        raise Failed("In tests/ and tools/, type: .venv/bin/ruff check --fix\n"
                     "In nbs/ and cai_nb/, change the cell (cai_nb/ names the notebook), then type: make prepare")


def check_readme(args):
    "README.md is what nbs/index.ipynb makes of it"
    sys.path.insert(0, str(ROOT / "tools"))
    from readme import differences

    if found := differences(ROOT):
        raise Failed("\n".join(found) + "\nType: make prepare")


def check_model(args):
    "the default model is there (fetched now, if the cache is empty)"
    print(run([sys.executable, "-c", "from cai_nb.loading import default_model; print(default_model())"], ROOT).strip())


def execute(path, env):
    "Runs a notebook in its folder with this Python as its kernel; returns None, or what went wrong and where."
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, env=env, language="python", display_name="this Python")

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:  # as nbdev-test does
        if cell.cell_type == "code" and "#|eval:false" in cell.source.replace(" ", ""):
            cell.metadata["tags"] = ["skip-execution"]
    at = {}
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_manager_class=ThisPython, resources={"metadata": {"path": path.parent}},
        on_cell_start=lambda cell, cell_index: at.update(cell=cell, number=cell_index + 1),
    )
    try:
        client.execute()
    except Exception as error:
        where = f"nbs/{path.name}, cell {at['number']} ({at['cell'].id})" if at else f"nbs/{path.name}, no cell yet"
        failures = [o for o in at["cell"].get("outputs", []) if o.output_type == "error"] if at else []
        trace = "\n".join(failures[0].traceback) if failures else f"{type(error).__name__}: {error}"
        return f"{where}:\n{trace}"


def check_notebooks(args):
    "every notebook runs at smoke size"
    failures, took = [], {}
    with tempfile.TemporaryDirectory() as tmp:
        copy = project_copy(Path(tmp, "project"))
        env = {"CAI_NB_SMOKE": "1", "PYTHONPATH": str(copy), "IPYTHONDIR": tmp, "TOKENIZERS_PARALLELISM": "false"}
        os.environ.pop("CAI_NB_RUN", None)  # a saved run on this machine is none of the tests' business
        for path in notebooks(copy / "nbs", args.names):
            start = time.time()
            failure = execute(path, env)
            took[path.stem] = time.time() - start
            slow = f" (over {NOTEBOOK_SECONDS} s)" if took[path.stem] > NOTEBOOK_SECONDS else ""
            mark = " FAILED" if failure else slow
            print(f"  {path.stem:<24}{took[path.stem]:7.1f} s{mark}", flush=True)
            if failure:
                failures.append(failure)
                print(failure, flush=True)
    if not took:
        raise Failed(f"No notebook in nbs/ has a name that begins with {' or '.join(args.names)}.")
    if failures:
        names = [failure.split(":\n")[0] for failure in failures]
        raise Failed("A notebook does not run: " + "; ".join(names) + "\nTo see it: make lab, with CAI_NB_SMOKE=1 set. "
                     "Fix the cell, save, then type: make prepare")
    return took


def check_pytest(args):
    "pytest"
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "--durations=10", *args.names], cwd=ROOT))


PARTS = {
    "clean": check_clean,
    "export": check_export,
    "ruff": check_ruff,
    "readme": check_readme,
    "model": check_model,
    "notebooks": check_notebooks,
    "pytest": check_pytest,  # last: its closing line ends the output
}


def main():
    parser = argparse.ArgumentParser(description="What `make test` runs, in order: " + ", ".join(PARTS) + ".")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("names", nargs="*", help="with --only notebooks or pytest: on these alone")
    args = parser.parse_args()
    if args.names and args.only not in ("notebooks", "pytest"):
        parser.error("names go with --only notebooks or --only pytest")

    chosen = [args.only] if args.only else list(PARTS)
    table = []
    if started := os.environ.get("CAI_NB_CI_STARTED"):
        table.append(("environment", time.time() - float(started)))
    for number, name in enumerate(chosen, 1):
        if name == "pytest" and table:
            print("\n" + "\n".join(f"{part:<16}{seconds:7.1f} s" for part, seconds in table))
        print(f"\n[{number}/{len(chosen)}] {name}: {PARTS[name].__doc__}", flush=True)
        start = time.time()
        try:
            PARTS[name](args)
        except Failed as error:
            sys.exit(f"\nFAILED: {name}, after {time.time() - start:.1f} s\n{error}")
        table.append((name, time.time() - start))
        print(f"ok, {table[-1][1]:.1f} s", flush=True)


if __name__ == "__main__":
    main()
