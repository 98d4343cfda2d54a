"""The cai-nb command as people use it: in a process of its own."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_run
import pytest
from tiny import tiny_folder

from cai_nb.__main__ import HANDLERS, STAGE_COMMANDS, columns, explain, main
from cai_nb.run import STAGES, RunError


def cai_nb(*words, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "cai_nb", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "CAI_NB_QUIET": "1", "COLUMNS": "100", **env},
    )


def test_help_is_quick_and_shows_defaults():
    best = 9.0
    for _ in range(3):
        begin = time.monotonic()
        done = cai_nb("--help")
        best = min(best, time.monotonic() - begin)
        assert done.returncode == 0 and "finetune-critic" in done.stdout
    assert best < 1.0, f"{best:.2f} s: something heavy is imported at the top of a module"
    page = cai_nb("run", "--help").stdout
    assert "default: runs/RECIPE" in page and "--dry-run" in page


def test_import_of_the_package_loads_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "sklearn", "matplotlib", "jinja2", "numpy", "pydantic")
    code = f"import sys, cai_nb, cai_nb.__main__; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_each_stage_has_a_command():
    assert STAGE_COMMANDS == tuple(stage.command for stage in STAGES)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "labtop"], 'did you mean "laptop"'),
        (["runn"], 'did you mean "run"'),
        (["warm-up"], "it is called finetune-critic now"),
        (["run", "smoke", "--set", "ppo.kl=0.1"], "'ppo.kl_coef' now"),
        ([], "COMMAND"),
        (["run", "--ouput", "x"], 'did you mean "--out"'),
        (["run", "--dryrun"], 'did you mean "--dry-run"'),
        (["run", "smoke", "again"], "one word too many"),
        (["run", "laptop", "--dry-run", "--set", "constitution.harmful_prompts=nope"], "no constitution"),
        (["run", "smoke", "--set", "ppo.clp=1"], "'ppo.clip'"),
        (["run", "smoke", "--set", "seed=x"], "whole number"),
        (["run", "smoke", "--model", "no-such-model"], "no model"),
        (["ppo", "smoke"], "continues from sft"),
        (["report", "--out", "nothing"], "no run folder"),
        (["chat", "no-such-model"], "no model"),
        (["chat", "runs/none", "--prompt", "Hi"], "no run folder"),
        (["chat", "default", "--prompt", ""], "prompt is empty"),
        (["sample", "default", "--prompts", "none.txt", "--out", "a.jsonl"], "none.txt: no such file"),
        (["sample", "default", "--prompts", "harmful", "--out", "a.jsonl", "--samples", "0"], "--samples must be 1"),
        (["govern", "default", "--pairs", "1"], "--pairs must be 2"),
        (["govern", "default", "--constitution", "harmlesness"], 'did you mean "harmlessness"'),
        (["govern", "default", "--comparisons", "empty.jsonl"], "holds no comparison"),
        (["govern", "no-such-model", "--pairs", "2"], "no model"),
        (["blind", "empty.jsonl"], "holds no responses"),
        (["compare", ".", "."], "no run with an evaluation"),
        (["run", "broken.yaml"], "broken YAML"),
        (["run", "smoke", "--set", "prompts.harmful=empty.jsonl"], "empty"),
        (["run", "smoke", "--set", "prompts.harmful=none.jsonl"], "no such file"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(tmp_path, words, part):
    (tmp_path / "broken.yaml").write_text("seed: [1")
    (tmp_path / "empty.jsonl").write_text("")
    done = cai_nb(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()
    assert len(last) == 1 and last[0].startswith("cai-nb: ") and part in last[0], done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in cai_nb("run", "labtop", "--debug", cwd=tmp_path).stderr
    before = cai_nb("--debug", "run", "labtop", cwd=tmp_path).stderr  # wherever it stands
    assert "Traceback" in before and 'did you mean "laptop"' in before


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = cai_nb("run", "gpu-7b", "--dry-run", cwd=tmp_path)
    assert (
        done.returncode == 0
        and "GiB of memory" in done.stdout
        and "182,831" in done.stdout
        and not os.listdir(tmp_path)
    )
    assert "assumptions" in done.stdout and "H100" in done.stdout


def test_a_printed_recipe_can_be_used(tmp_path):
    (tmp_path / "mine.yaml").write_text(cai_nb("recipe", "smoke", "--set", "seed=4").stdout)
    assert "seed: 4" in cai_nb("recipe", "mine.yaml", cwd=tmp_path).stdout


def test_report_of_a_folder_that_is_there(tmp_path):
    fake_run.make_run(tmp_path / "runs" / "laptop")
    done = cai_nb("report", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "runs" / "laptop" / "report.html").is_file(), done.stderr


def test_a_run_folder_of_another_recipe_is_refused(tmp_path):
    fake_run.make_run(tmp_path / "run")
    done = cai_nb("run", "laptop", "--out", tmp_path / "run", "--set", "ppo.clip=0.1")
    assert done.returncode == 1 and "ppo.clip (0.2 there, 0.1 here)" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.old-*"))


def govern(tmp_path, *words):
    "The rows, and what was printed, for a model that has room for a comparison of a few hundred letters"
    folder = Path(tiny_folder(tmp_path / "tiny"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    done = cai_nb("govern", folder, "--pairs", 3, "--json", tmp_path / "out" / "rows.json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out" / "rows.json").read_text())["rows"], done.stdout


def test_govern_says_no_of_a_model_of_random_weights(tmp_path):
    rows, printed = govern(tmp_path)
    methods = ["multiple_choice", "contrastive_choice"]
    asked = [(row["principles"], row["method"]) for row in rows]
    assert asked == [(name, method) for name in ("mechanical", "harmlessness+helpfulness") for method in methods]
    assert all(row["n"] == 3 and row["model"] in printed for row in rows)
    assert all(0 <= row["low"] <= row["steered"] <= row["high"] <= 1 for row in rows)
    for row in rows[2:]:
        answer = "yes" if row["low"] > 0.5 else "no"
        assert f"{row['model']} reads harmlessness+helpfulness: {answer}, asked by {row['method']}" in printed
    assert printed.count(" reads ") == 2
    assert (tmp_path / "out" / "rows.png").stat().st_size > 5000


def test_govern_asks_about_a_constitution_and_comparisons_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nprinciples:\n- id: calm\n  comparison: Which is calmer?\n  opposite: Which is wilder?\n")
    lines = [{"chosen": f"\n\nHuman: Say {k}.\n\nAssistant: {k}, gladly.", "rejected": f"\n\nHuman: Say {k}.\n\nAssistant: No!"}
             for k in range(5)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    picture = tmp_path / "there.png"
    rows, _ = govern(tmp_path, "--constitution", tmp_path / "mine.yaml", "--comparisons", tmp_path / "pairs.jsonl",
                     "--figure", picture)
    assert [row["principles"] for row in rows] == ["mechanical"]*2 + ["mine"]*2 and picture.is_file()
    rows, printed = govern(tmp_path, "--constitution", tmp_path / "mine.yaml")  # no pairs of its own
    assert "mine has no held-out pairs" in printed and rows[2]["principles"] == "mine"
    (tmp_path / "mine.yaml").write_text("name: mine\nprinciples:\n- id: calm\n  comparison: Which is calmer?\n")
    done = cai_nb("govern", tmp_path / "tiny", "--pairs", 3, "--constitution", tmp_path / "mine.yaml")
    assert done.returncode == 1 and "add 'opposite: " in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c_says_how_to_resume(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(HANDLERS, "doctor", stop)
    assert main(["doctor"]) == 130
    assert "To resume: cai-nb doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room left"),
        (PermissionError(13, "denied", "/x"), "not allowed"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("CUDA out of memory. Tried"), "memory ran out"),
        (RunError("do this"), "do this"),
        (ValueError("two\nlines \x1b[31m"), "unexpected ValueError: two lines"),
        (Exception("I/O error: No space left on device (os error 28)"), "no room"),
    ],
)
def test_every_exception_has_one_line(error, part):
    line = explain(error, "cai-nb run")
    assert part in line and "\n" not in line and "\x1b" not in line


def test_a_full_disk_ends_in_one_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    out = tmp_path / "run"
    out.mkdir()
    code = (
        "import sys, cai_nb.stages as s, cai_nb.__main__ as m\n"
        "def full(run, folder):\n    with open('/dev/full', 'w') as f: f.write('x')\n"
        "s.STAGE_FUNCTIONS['revision'] = full\n"
        f"sys.exit(m.main(['revise', 'smoke', '--out', {str(out)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "no room left on the disk" in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )


def test_doctor_names_what_is_missing_and_the_fix(tmp_path):
    done = cai_nb("doctor", CAI_NB_CACHE=str(tmp_path))
    assert "cai-nb doctor --fetch" in done.stdout and "torch" in done.stdout and "device" in done.stdout
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_columns_fit_the_width_and_show_no_control_characters():
    text = columns({"initial": "word " * 40, "sl-cai": "a\nb\x1b[2J", "rl-cai": "x" * 200}, 100)
    assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text and "│" in text
    assert "│" not in columns({"initial": "a", "sl-cai": "b"}, 40)
