"README.md is made as a reader of the notebook would expect; the tools refuse with a sentence that says what to do."

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import check  # noqa: E402
import fuzz  # noqa: E402
import licences  # noqa: E402
import readme  # noqa: E402


def code(source, *outputs, id="c0"):
    return {"cell_type": "code", "id": id, "source": source, "outputs": list(outputs)}


def shown(**data):
    return {"output_type": "display_data", "data": {key.replace("_", "/"): value for key, value in data.items()}}


def text_of(*cells):
    return readme.render({"cells": list(cells)})[0].removeprefix(readme.NOTE).strip()


def test_directives_hide_what_they_hide():
    out = {"output_type": "stream", "name": "stdout", "text": ["told\n"]}
    assert text_of(code("#| hide\nsecret", out)) == ""
    assert text_of(code("#| include: false\nsecret", out)) == ""
    assert text_of(code("#| default_exp module")) == ""
    assert text_of(code("#| echo: false\nsecret", out)) == "```text\ntold\n```"
    assert text_of(code("#| output: false\nsaid", out)) == "```python\nsaid\n```"
    assert text_of(code("#| export\nsaid", out)) == "```python\nsaid\n```\n\n```text\ntold\n```"


def test_outputs_take_their_most_readable_form():
    assert text_of(code("", shown(text_plain="x", text_markdown="| a |", text_html="<b>a</b>"))) == "| a |"
    html = "<style>p {}</style><div>\n\n<del>old</del>\n<script>bad()</script></div>"
    assert text_of(code("", shown(text_plain="x", text_html=html))) == "<div>\n<del>old</del>\n</div>"
    assert text_of(code("", shown(text_plain="\x1b[31mred\x1b[0m"))) == "```text\nred\n```"
    bar = {"output_type": "stream", "name": "stdout", "text": "10%\r100%\ndone\n"}
    assert text_of(code("", bar)) == "```text\n100%\ndone\n```"
    assert text_of(code("", {"output_type": "stream", "name": "stderr", "text": "warning"})) == ""


def test_pictures_become_files_named_after_their_cell():
    picture = shown(image_png=base64.b64encode(b"PNG").decode(), text_plain="<Figure>")
    text, pictures, _ = readme.render({"cells": [code("plot()", picture, id="ab12")]})
    assert pictures == {"nbs/images/index-ab12-0.png": b"PNG"}
    assert "![](nbs/images/index-ab12-0.png)" in text


def test_a_failed_cell_stops_the_readme():
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        text_of(code("1/0", {"output_type": "error", "ename": "ZeroDivisionError"}))


@pytest.mark.parametrize("written, expected", [
    ("[a](00_dialogue.ipynb#top)", "[a](nbs/00_dialogue.ipynb#top)"),
    ("![a](images/x.png)", "![a](nbs/images/x.png)"),
    ('<img src="images/x.png">', '<img src="nbs/images/x.png">'),
    ("[a](../LICENSE)", "[a](LICENSE)"),
    ("[`f`](01_constitution.ipynb)", "[`f`](nbs/01_constitution.ipynb)"),
    ("[a](https://arxiv.org/abs/2212.08073) [b](#map)", "[a](https://arxiv.org/abs/2212.08073) [b](#map)"),
    ("[`f` and\nmore](01_a.ipynb \"title\")", "[`f` and\nmore](nbs/01_a.ipynb \"title\")"),
    ("[![alt](images/x.png)](01_a.ipynb)", "[![alt](nbs/images/x.png)](nbs/01_a.ipynb)"),
    ("`[a](b)` [a](b) `x`", "`[a](b)` [a](nbs/b) `x`"),
    ("```\n[a](b)\n```", "```\n[a](b)\n```"),
])  # fmt: skip
def test_links_start_from_the_readme(written, expected):
    assert text_of({"cell_type": "markdown", "source": written}) == expected


def test_links_in_an_output_start_from_the_readme_and_are_checked():
    cell = code("#| echo: false\nsaid", shown(text_markdown="[a](00_dialogue.ipynb) [b](../docs/gone.md)"))
    text, _, links = readme.render({"cells": [cell]})
    assert "[a](nbs/00_dialogue.ipynb) [b](docs/gone.md)" in text
    assert links == {"nbs/00_dialogue.ipynb", "docs/gone.md"}


def test_badges_stand_below_the_title_once_the_repository_is_known(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "index.ipynb").write_text('{"cells": [{"cell_type": "markdown", "source": ["# T\\n\\n> sub\\n\\nText."]}]}')
    config = tmp_path / "nbs" / "nbdev.yml"
    for url in ('""', "", "https://example.org/a/b"):
        config.write_text(f"website:\n  repo-branch: trunk\n  repo-url: {url}\n")
        assert "badge" not in readme.build(tmp_path)[0]["README.md"].decode()
    config.write_text('website:\n  repo-branch: trunk\n  repo-url: "https://github.com/o-o/n.b"\n')
    text = readme.build(tmp_path)[0]["README.md"].decode()
    assert text.index("> sub") < text.index("/gh/o-o/n.b/trunk?") < text.index("github/o-o/n.b/blob/trunk/nbs/00_dialogue.ipynb") < text.index("Text.")
    assert not readme.build(tmp_path)[2]


def test_readme_names_what_is_out_of_step(tmp_path):
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    (tmp_path / "nbs" / "images" / "index-old-0.png").touch()
    (tmp_path / "nbs" / "index.ipynb").write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# T [x](gone.ipynb)"]}]}')
    found = "\n".join(readme.differences(tmp_path))
    assert all(name in found for name in ("README.md", "index-old-0.png", "nbs/gone.ipynb"))


def test_a_copy_of_the_project_leaves_environments_and_runs_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ROOT", tmp_path / "here")
    for name in ("nbs/a.ipynb", "runs/laptop/report.html", "env/pyvenv.cfg", ".git/HEAD", "cai_nb/__pycache__/a.pyc"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    copy = check.project_copy(tmp_path / "copy")
    files = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
    assert files == ["nbs/a.ipynb"]


def test_a_failing_cell_is_named_with_its_traceback(tmp_path):
    import nbformat

    cells = [nbformat.v4.new_code_cell("ok = 1"), nbformat.v4.new_code_cell("#| eval: false\nunknown"),
             nbformat.v4.new_code_cell("import os\nassert os.environ['MARK'] == 'no', 'wrong mark'")]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_toy.ipynb")
    told = check.execute(tmp_path / "00_toy.ipynb", {"MARK": "yes"})
    assert "00_toy.ipynb, cell 3" in told and "wrong mark" in told
    assert check.execute(tmp_path / "00_toy.ipynb", {"MARK": "no"}) is None


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_says_which_python_it_needs(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo Python 3.8.18 && exit\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "run", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode and "needs Python 3.11 or later" in done.stdout and "Python 3.8.18" in done.stdout
    assert "make run PYTHON=python3.12" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_damaged_files_give_errors_and_never_tracebacks(monkeypatch):
    "As `python tools/fuzz.py` does with a hundred thousand"
    monkeypatch.setenv("CAI_NB_QUIET", "1")
    fates, wrong = fuzz.fuzz(1500, seed=1)
    assert not wrong, wrong[0]
    assert min(fates[kind, fate] for kind in ("constitutions", "recipes") for fate in ("read", "refused")) > 30


def test_licences_of_everything_pinned_are_known_and_free():
    page, wrong = licences.table()
    assert not wrong
    assert page == (ROOT / "THIRD_PARTY.md").read_text(), "out of date: python tools/licences.py"


@pytest.mark.parametrize("stated, right", [("MIT", True), ("GPL-3.0-only", False), ("GNU General Public License v3 (GPLv3)", False),
                                           ("LGPL-2.1-or-later", True), ("AGPL-3.0", False), ("", False), ("MIT OR GPL-3.0", True),
                                           ("Commercial", False)])
def test_a_licence_that_is_not_free_is_named(monkeypatch, stated, right):
    monkeypatch.setattr(licences, "pins", lambda: [("thing", "1.0")])
    monkeypatch.setattr(licences, "licence", lambda name: stated)
    assert (licences.table()[1] == []) is right
