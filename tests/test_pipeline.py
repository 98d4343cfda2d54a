"""Recipe, run folder, resume and report: what a reader of notebooks 10 to 15 does not need to see."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import fake_run
import pytest
import yaml
from test_records import check_run
from tiny import tiny_folder

from cai_nb import artifacts, judges, plan as plan_, run as run_, stages
from cai_nb.__main__ import main
from cai_nb.constitution import Constitution
from cai_nb.dialogue import CaiError
from cai_nb.pairs import labelled_comparisons, labelled_pairs
from cai_nb.model import LanguageModel
from cai_nb.prompts import load_prompts
from cai_nb.records import KINDS, Records
from cai_nb.plan import HARDWARE, Work, model_shape, plan, plan_text
from cai_nb.recipe import Recipe, RecipeError, bundled_recipes, load_recipe
from cai_nb.report import gather, render, write_report
from cai_nb.schema import SchemaError, check_schema, read_yaml, schema_keys


def refused(text, tmp_path, sets=()):
    "The message with which a recipe is refused"
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as e:
        load_recipe(path, sets)
    assert "\n" not in str(e.value)
    return str(e.value)


# recipes


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_load_and_survive_a_round_trip(name):
    recipe = load_recipe(name)
    assert check_schema(Recipe, *read_yaml(recipe.to_yaml())) == recipe
    assert check_schema(Recipe, *read_yaml(recipe.to_yaml(help=False))) == recipe
    assert recipe.name == name


def test_every_key_has_a_line_of_help():
    for key, field in schema_keys(Recipe).items():
        assert 5 < len(field.description) < 160, key


def test_unknown_key_is_refused_with_line_and_nearest_key(tmp_path):
    message = refused("seed: 1\nrevision:\n  rounds: 2\n  max_tokns: 4\n", tmp_path)
    assert "mine.yaml:4" in message and "'revision.max_tokens'" in message
    assert "'revision.rounds'" in refused("rounds: 2", tmp_path)
    assert "'revision'" in refused("revison:\n  rounds: 2", tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: true", "whole number"),
        ("seed: 1.5", "whole number"),
        ("seed: -1", "at least 0"),
        ("ppo:\n  clip: .nan", "finite"),
        ("ppo:\n  clip: 1.5", "at most 1"),
        ("ppo: 3", "is a section"),
        ("seed:\n  a: 1", "whole number"),
        ("- a\n- b", "holds no keys"),
        ("", "holds no keys"),
        ("seed: [1", "broken YAML"),
        ("seed: 1\nseed: 2", "is there twice"),
        ("a: &x 1\nb: *x", "alias"),
        ("seed: !!python/name:os.system", "broken YAML"),
        ("[1, 2]: 3", "must be a word"),
        ("seed: 2024-99-99", "looks like a date"),
        ("revision:\n  critique: maybe", "true or false"),
        ("feedback:\n  method: prob", "did you mean 'probe'"),
        ("constitution:\n  harmful_prompts: {}", "names with weights"),
        ("constitution:\n  harmful_prompts: {harmlessness: 0}", "add up to 0"),
        ("model:\n  name: /no/such/folder", "no model"),
        ("model:\n  name: vllm:x/y", "model.engine: vllm"),
        ("model:\n  name: server:http://h/v1#m", "critic.name"),
        ("critic:\n  name: server:h#m", "server:http://HOST"),
        ("critic:\n  name: server:http://u:secret@h/v1#m", "CAI_NB_API_KEY"),
        ("critic:\n  name: server:http://h/v1#m\n  adapter: finetune", "serve the model with its adapter"),
        ("critic:\n  name: /no/such/folder", "critic.name"),
        ("model:\n  name: " + "x/" * 3000, "no such folder"),
        ("critic:\n  adapter: " + "x" * 5000, "adapter_model.safetensors"),
        ("ppo:\n  num_rollouts: " + "9" * 400, "bits"),
        ("ppo:\n  num_rollouts: 0x" + "f" * 9000, "bits"),
        ("ppo:\n  rollout_batch_size: 7", "multiple"),
        ("feedback:\n  clamp: [0.6, 0.7]", "around 0.5"),
        ("feedback:\n  probe_layers: []", "one or more"),
        ("model: {four_bit: true}\nsft: {lora_rank: 0}", "adapter's rank"),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path, text, part):
    assert part in refused(text, tmp_path)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "r.yaml").write_text("ppo:\n  learning_rate: 1e-5\n  kl_coef: 1")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.ppo.learning_rate == 1e-5 and recipe.ppo.kl_coef == 1.0 and recipe.name == "r"


def test_a_renamed_key_is_refused_by_its_new_name_and_read_in_a_run_folder(tmp_path):
    assert "called 'ppo.kl_coef' now" in refused("ppo:\n  kl: 1", tmp_path)
    assert "called 'sft.revisions' now" in refused("seed: 1", tmp_path, ["sft.which=all"])
    assert "it is called 'probe' now" in refused("feedback:\n  method: judge", tmp_path)
    assert "called 'finetune' now" in refused("critic:\n  adapter: warm-up", tmp_path)
    old = "ppo:\n  kl: 1\n  clip: 0.3\nfeedback:\n  method: judge\nprompts:\n  redteam: [redteam, a.txt]\nmade_with: {version: 0}\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(old)
    recipe = load_recipe(tmp_path / "run")
    assert (recipe.ppo.kl_coef, recipe.feedback.method, recipe.prompts.harmful) == (1, "probe", ("harmful", "a.txt"))
    assert recipe.ppo.cliprange_value == recipe.ppo.clip == 0.3, "an earlier version had one number for both"
    for path in sorted(Path("results").glob("*/recipe.yaml")):
        assert load_recipe(path).seed >= 0


def test_files_of_a_recipe_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "p.txt").write_text("How are you?\n")
    (tmp_path / "mine" / "r.yaml").write_text("prompts:\n  benign: [p.txt, benign]\nconstitution:\n  benign_prompts: {c.yaml: 1}\n")
    (tmp_path / "c.yaml").write_text("name: c")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("mine/r.yaml", ["prompts.harmful=mine/p.txt"])
    assert recipe.prompts.benign == (str(tmp_path / "mine" / "p.txt"), "benign"), "beside the recipe; a bundled name stays"
    assert recipe.prompts.harmful == (str(tmp_path / "mine" / "p.txt"),)
    assert list(recipe.constitution.benign_prompts) == [str(tmp_path / "c.yaml")]
    (tmp_path / "copy.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir("/")
    assert load_recipe(tmp_path / "copy.yaml") == recipe


CHANGES_NO_RESULT = {  # of a trainer's or a method's settings; and those of PPOConfig that the pipeline decides by itself
    "RevisionConfig": {"block"}, "SFTSettings": {"padding_free"}, "PreferenceSettings": set(),
    "PPOConfig": {"sampler", "vllm_settings", "max_prompt_length", "num_samples", "sample_rollouts", "kl_stop", "update_kl_stop",
                  "reward_mean", "reward_std", "score_clip", "save_strategy"},
}


def test_every_setting_of_every_stage_comes_from_the_recipe():
    from transformers import TrainingArguments

    from cai_nb.ppo import PPOConfig
    from cai_nb.preference import PreferenceSettings
    from cai_nb.revision import RevisionConfig
    from cai_nb.sft import SFTSettings

    recipe = load_recipe("laptop")
    given = {
        RevisionConfig: stages.revision_settings(recipe), SFTSettings: stages.training_settings(recipe, "sft"),
        PreferenceSettings: stages.preference_settings(recipe), PPOConfig: stages.ppo_settings(recipe),
    }  # fmt: skip
    for settings, values in given.items():
        fields = {f.name: f for f in dataclasses.fields(settings)}
        if settings is PPOConfig:  # its own, and what it has another default for than transformers
            theirs = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
            fields = {name: f for name, f in fields.items() if theirs.get(name, dataclasses.MISSING) != f.default}
            fields = {name: f for name, f in fields.items() if name not in ("output_dir", "ddp_find_unused_parameters")}
        left = set(fields) - set(values) - CHANGES_NO_RESULT[settings.__name__]
        assert not left, f"{settings.__name__}: {sorted(left)} are not in the recipe"
    changed = load_recipe("laptop", ["ppo.vf_coef=0.7", "ppo.cliprange_value=0.4", "ppo.entropy_coef=0.1", "sft.lora_alpha_ratio=1"])
    ppo = stages.ppo_settings(changed)
    assert (ppo["vf_coef"], ppo["cliprange_value"], ppo["cliprange"], ppo["entropy_coef"]) == (0.7, 0.4, 0.2, 0.1)
    assert stages.training_settings(changed, "sft")["lora_alpha_ratio"] == 1
    assert len({load_recipe("laptop", [f"{key}=0.45"]).fingerprint for key in ("ppo.vf_coef", "ppo.cliprange_value")}) == 2


def test_the_recipes_numbers_are_those_of_the_methods():
    "The defaults of the probe and of the plan's hardware are written down twice: here and where they are used"
    from cai_nb.judge import LAYERS

    assert Recipe().feedback.probe_layers == LAYERS
    kinds = schema_keys(Recipe)["machine.kind"].annotation.__args__
    assert set(kinds) == set(HARDWARE)


def of_depth(depth, id=""):
    "What the judges' layers depend on: a model's configuration"
    from transformers import LlamaConfig

    return SimpleNamespace(id=id, model=SimpleNamespace(config=LlamaConfig(num_hidden_layers=depth)))


def test_the_layers_of_a_probe_are_scaled_to_the_models_depth():
    recipe = load_recipe("laptop", ["feedback.probe_layers=[3, 15]"])
    assert judges.judge_layers(recipe, of_depth(30), "train") == (3, 15)
    assert judges.judge_layers(recipe, of_depth(60), "train") == (6, 30)
    assert judges.judge_layers(recipe, of_depth(30), "judge") == (22, 30)


def test_set_overrides_and_is_checked_like_the_file():
    assert load_recipe("smoke", ["ppo.clip=0.3", "prompts.harmful=[harmful, a.txt]"]).prompts.harmful == (
        "harmful",
        "a.txt",
    )
    assert (
        load_recipe("smoke", ["constitution.harmful_prompts={harmlessness: 1, helpfulness: 2}"]).constitution.harmful_prompts[
            "helpfulness"
        ]
        == 2
    )
    for bad in ("ppo.clip", "ppo.clip=x", "ppo.clp=1", "=1", "ppo..clip=1", "ppo=1", "seed.x=1"):
        with pytest.raises(RecipeError, match="--set"):
            load_recipe("smoke", [bad])


def test_malformed_recipes_give_errors_and_never_tracebacks():
    base, draw = load_recipe("laptop").to_yaml(), random.Random(0)
    alphabet = "{}[]:,&*!|>%@`\"'#-\n \t\x00é0a~?"
    for _ in range(400):
        text = list(base)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(text))
            text[at : at + draw.randint(0, 4)] = draw.choices(alphabet, k=draw.randint(0, 4))
        try:
            values, places = read_yaml("".join(text))
            if isinstance(values, dict):
                check_schema(Recipe, values, places)
        except SchemaError as e:
            assert "\n" not in str(e)


def test_the_plan_grows_with_the_work():
    n = load_recipe("laptop").prompts.n_harmful
    small, large = plan(load_recipe("laptop")), plan(load_recipe("laptop", [f"prompts.n_harmful={2 * n}"]))
    assert large["seconds"] > 1.2 * small["seconds"]
    full, lora = (plan(load_recipe("laptop", [f"sft.lora_rank={r}"])) for r in (0, 16))
    row = {
        p["hardware"].title + str(i): r
        for i, p in enumerate((full, lora))
        for r in p["rows"]
        if r["stage"] == "sft" and r["trained"]
    }
    a, b = row.values()
    assert a["flops"] == pytest.approx(2 * b["flops"])  # three passes against one, and back through half of the layers
    read, learnt = Work("", "", 1, trained=1000, share=0.5), Work("", "", 1, trained=1000, share=0.5, cached=True)
    assert (read.passes(), learnt.passes(), learnt.passes(caches_frozen=True)) == (1.5, 1.5, 1)
    own, kept = (plan(load_recipe("laptop", [f"feedback.probe_pairs={k}"])) for k in (850, 0))  # a probe that is fitted, or comes with the package
    assert "fitting the probe" in [r["what"] for r in own["rows"]] and own["seconds"] > kept["seconds"] + 20
    assert "182,831" in plan_text(load_recipe("gpu-7b")) and "FLOPs" in plan_text(load_recipe("gpu-7b"))


# run folders


@pytest.fixture
def recipe():
    return load_recipe("smoke")


def quiet(line):
    pass


def begin(recipe, folder, command="", force_new=False):
    "A run folder that has a recipe and nothing else"
    with run_.open_run(recipe, folder, command, force_new, quiet) as run:
        return run


def test_a_run_folder_of_another_recipe_is_refused_and_kept(tmp_path, recipe):
    out = tmp_path / "run"
    begin(recipe, out)
    (out / "1-revision").mkdir()
    other = load_recipe("smoke", ["seed=5", "ppo.clip=0.1"])
    with pytest.raises(run_.RunError, match=r"seed \(0 there, 5 here\).*ppo.clip.*--force-new"):
        begin(other, out)
    assert (out / "1-revision").is_dir()
    begin(other, out, force_new=True)
    assert (tmp_path / "run.old-1" / "1-revision").is_dir() and load_recipe(out).seed == 5


def test_a_changed_constitution_counts_as_another_recipe(tmp_path, recipe):
    out = tmp_path / "run"
    begin(recipe, out)
    path = out / "recipe.yaml"
    path.write_text(re.sub(r"(constitution\.harmful_prompts): \S+", r"\1: 0123456789ab", path.read_text()))
    with pytest.raises(run_.RunError, match="constitution.harmful_prompts .its text has changed"):
        begin(recipe, out)


def test_recipe_yaml_in_a_run_folder_says_what_made_it(tmp_path, recipe):
    begin(recipe, tmp_path / "run", "cai-nb run smoke")
    made = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["made_with"]
    assert (
        made["command"] == "cai-nb run smoke"
        and made["packages"]["torch"]
        and made["fingerprints"]["recipe"] == recipe.fingerprint
    )
    assert load_recipe(tmp_path / "run") == recipe


def test_a_folder_with_other_things_is_left_alone(tmp_path, recipe):
    (tmp_path / "thesis.txt").write_text("mine")
    for force_new in (False, True):
        with pytest.raises(run_.RunError, match="holds something else"):
            begin(recipe, tmp_path, force_new=force_new)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_force_new_leaves_a_run_that_is_at_work_alone(tmp_path, recipe):
    out, other = tmp_path / "run", load_recipe("smoke", ["seed=5"])
    with run_.open_run(recipe, out, note=quiet):
        before = (out / "recipe.yaml").read_bytes()
        for again in (recipe, other):
            with pytest.raises(run_.RunError, match="another cai-nb is at work"):
                stages.run_recipe(again, out, stages=["revision"], force_new=True, note=quiet)
        assert (out / "recipe.yaml").read_bytes() == before and not (tmp_path / "run.old-1").exists()
    with run_.open_run(other, out, force_new=True, note=quiet):  # and its own folder is locked once the old one is archived
        with pytest.raises(run_.RunError, match="another cai-nb is at work"):
            begin(other, out)
    assert load_recipe(tmp_path / "run.old-1").seed == 0 and load_recipe(out).seed == 5


def test_a_recipe_that_cannot_be_read_is_archived_with_force_new(tmp_path, recipe):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: [")
    with pytest.raises(CaiError, match="broken YAML"):
        begin(recipe, tmp_path / "run")
    begin(recipe, tmp_path / "run", force_new=True)
    assert (tmp_path / "run.old-1" / "recipe.yaml").read_text() == "seed: ["


def test_too_little_room_is_said_before_anything_is_written(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(run_.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e6})())
    with pytest.raises(run_.RunError, match="no room.*--out"):
        begin(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_share_a_run_folder(tmp_path):
    code = f"from cai_nb.run import locked\nwith locked({str(tmp_path)!r}): pass"
    with run_.locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another cai-nb is at work" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# stages, with toys in place of models

TOYS = textwrap.dedent("""
    import os, signal
    from cai_nb.run import Run, Stage, run_stage
    from cai_nb.prompts import load_prompts
    from cai_nb.records import KINDS, Records

    def numbers(run, folder):
        records = Records(folder / "records.jsonl")
        records.extend({"id": i, "n": i} for i in range(8) if i not in records.ids)
        return {"numbers": len(records)}

    def squares(run, folder):
        records = Records(folder / "records.jsonl")
        for row in Records(run.path("numbers") / "records.jsonl"):
            if row["id"] in records.ids:
                continue
            if row["id"] == int(os.environ.get("DIE_AT", -1)):
                with open(folder / "records.jsonl", "a") as f:
                    f.write('{"id": %d, "squ' % row["id"])
                os.kill(os.getpid(), signal.SIGKILL)
            records.append({"id": row["id"], "square": row["n"] ** 2})
        return {"squares": len(records)}

    def total(run, folder):
        n = sum(row["square"] for row in Records(run.path("squares") / "records.jsonl"))
        Records(folder / "records.jsonl").append({"id": 0, "total": n})
        return {"total": n}

    STAGES = (Stage("numbers", "numbers", "Numbers", (), numbers),
              Stage("squares", "squares", "Squares", ("numbers",), squares),
              Stage("total", "total", "Total", ("squares",), total))

    def go(folder):
        run = Run(folder, None, STAGES, note=lambda line: None)
        for stage in STAGES:
            run_stage(run, stage)
        return run
""")


@pytest.fixture
def toys():
    space = {}
    exec(TOYS, space)
    return space


def test_a_killed_stage_resumes_and_ends_like_an_uninterrupted_one(tmp_path, toys):
    toys["go"](tmp_path / "whole")
    code = TOYS + f"\ngo({str(tmp_path / 'killed')!r})"
    for at in (0, 3, 7):
        killed = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "DIE_AT": str(at)}, capture_output=True
        )
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "2-squares" / "done.json").exists()
    with pytest.warns(UserWarning, match="cut off"):
        run = toys["go"](tmp_path / "killed")
    for name in ("1-numbers", "2-squares", "3-total"):
        same = [(tmp_path / w / name / "records.jsonl").read_bytes() for w in ("whole", "killed")]
        assert same[0] == same[1]
    assert run.done("squares")["tries"] == 4


def test_a_stage_is_repeated_when_an_earlier_one_was(tmp_path, toys):
    run = toys["go"](tmp_path)
    before = run.done("total")
    toys["go"](tmp_path)
    assert run.done("total") == before, "nothing has changed, nothing is done again"
    (run.path("numbers") / "done.json").unlink()
    toys["go"](tmp_path)
    assert (tmp_path / "2-squares.old-1").is_dir() and (tmp_path / "3-total.old-1").is_dir()
    assert run.done("total")["counts"] == before["counts"]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
@pytest.mark.parametrize("stage", ["1-numbers", "2-squares", "3-total"])
def test_a_damaged_file_of_a_finished_stage_is_named_and_the_stage_repeated(tmp_path, toys, stage, harm):
    lines, path = [], tmp_path / stage / "records.jsonl"
    toys["go"](tmp_path)
    right, rng = path.read_bytes(), random.Random(stage + harm)
    wrong = bytearray(right)
    wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
    path.unlink() if harm == "gone" else path.write_bytes(bytes(wrong) if harm == "flip" else right[: rng.randrange(len(right))])
    run = run_.Run(tmp_path, None, toys["STAGES"], note=lines.append)
    if stage != "3-total":  # a later stage alone does not build on it
        later = run.stage({"1-numbers": "squares", "2-squares": "total"}[stage])
        (run.path(later.name) / "done.json").unlink()
        with pytest.raises(run_.RunError, match=f"{stage}/records.jsonl is not what was written"):
            run_.run_stage(run, later)
    for s in run.steps:
        run_.run_stage(run, s)
    assert any(f"{stage}/records.jsonl is not what was written" in line for line in lines)
    assert path.read_bytes() == right and (tmp_path / f"{stage}.old-1").is_dir()
    assert Records(tmp_path / "3-total" / "records.jsonl").ids == {0}


def test_a_clock_that_was_set_back_changes_nothing(tmp_path, toys, monkeypatch):
    class Past(run_.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1999, 12, 31)

    toys["go"](tmp_path)
    (tmp_path / "2-squares" / "done.json").unlink()
    monkeypatch.setattr(run_, "datetime", Past)
    monkeypatch.setattr(run_.time, "time", lambda: 946598400.0)
    run = toys["go"](tmp_path)
    assert run.done("total")["counts"] == {"total": 140} and run.done("total")["seconds"] >= 0
    assert run.done("total")["ended_at"].startswith("1999")
    before = run.done("total")
    assert toys["go"](tmp_path).done("total") == before


def without_rights(tmp_path):
    "Words before a command that take root's rights away; none if there are none"
    if os.geteuid():
        return []
    words = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all"]
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    if not shutil.which("setpriv") or subprocess.run([*words, sys.executable, "-c", "import cai_nb.model"], capture_output=True).returncode:
        pytest.skip("root may write anywhere, and nobody else may run this Python")
    return words


def test_a_read_only_folder_ends_in_one_line(tmp_path):
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro").chmod(0o555)
    command = [*without_rights(tmp_path), sys.executable, "-m", "cai_nb", "revise", "smoke", "--out", str(tmp_path / "ro" / "run")]
    env = os.environ | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "not allowed to write" in done.stderr and "--out" in done.stderr


def test_a_later_stage_alone_makes_no_folder(tmp_path, recipe):
    with pytest.raises(run_.RunError, match="continues from sft"):
        stages.run_recipe(recipe, tmp_path / "nowhere", ["evaluation"])
    assert not (tmp_path / "nowhere").exists()


def test_a_stage_without_its_input_names_the_command(tmp_path, toys):
    run = run_.Run(tmp_path, None, toys["STAGES"], note=quiet)
    with pytest.raises(run_.RunError, match="cai-nb squares --out"):
        run_.run_stage(run, run.stage("total"))
    with pytest.raises(run_.RunError, match='did you mean "squares"'):
        run.stage("square")
    assert not (tmp_path / "3-total").exists()


def test_done_json_has_time_memory_and_counts(tmp_path, toys):
    done = toys["go"](tmp_path).done("squares")
    assert (
        done["seconds"] >= 0
        and done["memory_mib"] > 10
        and done["counts"] == {"squares": 8}
        and done["inputs"]["numbers"]
    )


def test_a_broken_done_json_counts_as_not_done(tmp_path, toys):
    run = toys["go"](tmp_path)
    (run.path("total") / "done.json").write_text('{"stage": ')
    assert run.done("total") is None


# prompts of a run


HARMFUL = {"kind": "harmful"}


def short(texts):
    return [len(t.split()) < 100 for t in texts]


def test_no_prompt_is_both_trained_on_and_held_out(recipe, tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [*load_prompts("harmful", limit=80), {"id": "x", "prompt": "long " * 900}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    chosen, long = artifacts.select_prompts(
        load_recipe("smoke", ["prompts.n_harmful=30"]), [str(file)], 30, 10, HARMFUL, short
    )
    parts = {p: {r["prompt"] for r in chosen if r["part"] == p} for p in ("train", "heldout")}
    assert len(parts["train"]) == 30 and 1 <= len(parts["heldout"]) <= 10 and not parts["train"] & parts["heldout"]
    assert long == 1 and all(short([r["prompt"] for r in chosen]))
    assert (
        artifacts.select_prompts(load_recipe("smoke", ["prompts.n_harmful=30"]), [str(file)], 30, 10, HARMFUL, short)[0]
        == chosen
    )


def test_ids_that_two_sources_share_are_told_apart(recipe, tmp_path):
    for name, topic in (("a", "bread and salt"), ("b", "ships at sea")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"id": str(i), "prompt": f"Question {i} on {topic}, {i * 7919}"}) + "\n" for i in range(9)
            )
        )
    chosen, _ = artifacts.select_prompts(
        recipe, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], 6, 4, HARMFUL, short
    )
    assert len({r["id"] for r in chosen}) == len(chosen)


def test_a_prompt_file_with_duplicates_is_used_and_the_duplicates_are_reported(recipe, tmp_path):
    rows = load_prompts("harmful", limit=20)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": r["prompt"]}) + "\n" for r in rows + rows[:5]))
    with pytest.warns(UserWarning, match="5 of 25 prompts were there already"):
        chosen, _ = artifacts.select_prompts(recipe, [str(tmp_path / "p.jsonl")], 8, 4, HARMFUL, short)
    assert len({r["prompt"] for r in chosen}) == len(chosen)


def test_prompts_leave_room_for_the_longest_request():
    recipe = load_recipe("laptop")
    assert artifacts.longest_prompt(recipe, 8192) == recipe.prompts.max_tokens
    assert artifacts.longest_prompt(recipe, 400) < recipe.prompts.max_tokens
    with pytest.raises(run_.RunError, match="context of 128"):
        artifacts.longest_prompt(recipe, 128)


# report


class Check(HTMLParser):
    "Collects what a page would run or load"

    def __init__(self):
        super().__init__()
        self.bad, self.images, self.named = [], 0, 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "iframe", "object", "link", "img", "base", "form"):
            self.bad.append(tag)
        self.bad += [
            k for k, v in attrs.items() if k.startswith("on") or (k in ("src", "href") and not v.startswith("#"))
        ]
        if tag == "svg":
            self.images += 1
            self.named += attrs.get("role") == "img"


def test_the_report_of_a_whole_run_is_one_file_with_everything(tmp_path):
    page = write_report(
        fake_run.make_run(tmp_path / "run"), "runs/laptop", {"thoughtful": "A friend's title"}
    ).read_text()
    check = Check()
    check.feed(page)
    assert not check.bad and check.images == check.named > 10
    assert (
        "prefers-color-scheme: dark" in page and "viewport" in page and not re.search(r"https?://(?!www.w3.org)", page)
    )
    for text in (
        "66%",
        "57–75%",
        "unchanged",
        "<del",
        "<ins",
        "A friend&#39;s title",
        "multiple choice, nothing trained",
        "harmful-acts",
        "Agrees with the label",
        "KL to SL-CAI",
        "RL-CAI",
        "seed 0",
        "SmolLM2-135M-Instruct",
        "cai-nb run laptop",
    ):
        assert text in page, text
    assert "has not run" not in page


@pytest.mark.parametrize("stages", range(6))
def test_sections_whose_stage_has_not_run_say_so(tmp_path, stages):
    page = write_report(fake_run.make_run(tmp_path / "run", stages), "runs/laptop").read_text()
    commands = ["revise", "sft", "feedback", "preference", "ppo", "evaluate"]
    for i, command in enumerate(commands):
        if command != "sft":
            assert (f"cai-nb {command} --out runs/laptop" in page) == (i >= stages), command


def test_an_empty_folder_has_a_report_too(tmp_path):
    assert "has not run" in render(gather(tmp_path))


HOSTILE = (
    "</style></div><script>alert(1)</script><img src=x onerror=alert(2)><!-- ]]> \x00\x1b[2J\x9b \u202etxet \ud83d "
    "{{ 7*7 }} {% raw %} \" ' onmouseover=alert(3) &lt; <|im_start|> $x_1$ " + "long" * 2000
)


def hostile(value):
    "The same structure with every text hostile"
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_nothing_a_model_wrote_gets_out_of_its_place(tmp_path):
    folder = fake_run.make_run(tmp_path / "run")
    for path in [*folder.rglob("records.jsonl"), *folder.rglob("metrics.json"), *folder.rglob("done.json")]:
        rows = [hostile(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(
            {**made, "name": HOSTILE[:200].replace("\ud83d", ""), "description": "</title><script>x</script>"}
        )
    )
    page = write_report(folder, HOSTILE).read_bytes().decode("utf-8")
    check = Check()
    check.feed(page)
    assert not check.bad
    assert page.count("<style>") == page.count("</style>") == 1 and "{{ 7*7 }}" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)


def test_records_of_unexpected_shape_do_not_stop_the_report(tmp_path):
    folder = fake_run.make_run(tmp_path / "run")
    odd = [
        {},
        {"id": 1},
        {"steps": [{}]},
        {"label": "x", "prompt": []},
        {"label": None},
        {"chosen": [], "principles": []},
    ]
    for path in folder.rglob("records.jsonl"):
        with open(path, "a") as f:
            f.write("".join(json.dumps(r) + "\n" for r in odd) + '[1, 2]\n{"cut": ')
    assert "<h2>Results</h2>" in render(gather(folder))


def test_the_report_streams_its_records(tmp_path):
    folder = fake_run.make_run(tmp_path / "run", 1)
    Records(folder / "1-revision" / "records.jsonl").extend(
        {**r, "id": f"{r['id']}-b{i}"} for i in range(50) for r in fake_run.revisions(40)
    )
    data = gather(folder)
    assert data["revision"]["count"] == 2040 and len(data["revision"]["traces"]) == 12


def test_principles_are_named_by_title(tmp_path, recipe):
    run = begin(recipe, tmp_path / "run")
    titles = {p.title for p in run_.constitution_of(recipe, "harmful")}
    assert titles and stages.report(run).is_file()


def test_unknown_constitution_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(CaiError):
        begin(load_recipe("smoke", ["constitution.harmful_prompts={harmlesness: 1}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# all stages, with a tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A model of random weights with a context long enough for every request"
    folder = Path(tiny_folder(tmp_path_factory.mktemp("tiny")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 6000}))
    return folder


SETS = [
    "critic.adapter=none", "prompts.heldout=0.5",
    "prompts.n_harmful=4", "prompts.n_benign=3", "prompts.n_over_refusal=2", "prompts.max_tokens=200",
    "revision.max_tokens=12",
    "revision.critique_tokens=8", "sft.helpful_tokens=12", "sft.max_length=1024", "feedback.max_tokens=10",
    "feedback.probe_pairs=8", "feedback.check=2", "preference.max_length=1024", "preference.heldout=0.4",
    "preference.extra_comparisons=helpfulness",
    "ppo.max_tokens=8", "ppo.boilerplate_penalty=0.5",
    "evaluation.n_harmful=2", "evaluation.n_benign=2", "evaluation.n_over_refusal=2", "evaluation.max_tokens=10",
    "evaluation.draws=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    "(recipe, run folder) with the first four stages done"
    recipe, out = load_recipe("smoke", SETS, model=str(tiny)), tmp_path_factory.mktemp("half") / "run"
    stages.run_recipe(recipe, out, stages=["revision"], note=quiet)
    records = out / "1-revision" / "records.jsonl"  # random weights write nothing that passes for a revision
    fake_run.write_lines(records, [{**r, "id": row["id"]} for r, row in zip(fake_run.revisions(4), Records(records))])
    fake_run.unseal(records.parent)
    stages.run_recipe(recipe, out, stages=["sft", "feedback", "preference"], note=quiet)
    return recipe, out


def test_all_stages_run_with_a_tiny_model(half, tmp_path, capsys):
    recipe, lines = half[0], []
    shutil.copytree(half[1], tmp_path / "run")
    run = stages.run_recipe(recipe, tmp_path / "run", note=lines.append)
    assert sum("done already" in line for line in lines) == 4
    assert all(run.done(s.name) for s in run.steps)
    check_run(run.folder)  # every record is what its type says
    result = run_.read_json(run.path("evaluation") / "metrics.json")
    assert all(result["measures"]["perplexity"][m]["mean"] > 1 for m in run_.POLICIES) and result["elo"]["harmlessness"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "has not run" not in page and "RL-CAI" in page and "KL to SL-CAI" in page
    assert "Harmlessness: Elo points against initial" in page and "Perplexity under the initial policy" in page
    for which in run_.POLICIES:
        assert len(artifacts.load_model(recipe, *run_.checkpoint_paths(run, which)).sample([[fake_run.user("Hello?")]], 4)) == 1
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "run"), "--prompt", "Hello?", "--max-tokens", "4"]) == 0
    assert re.search("initial.*sl-cai.*rl-cai", capsys.readouterr().out, re.S)
    assert main(["figures", str(tmp_path / "run")]) == 0
    drawn = {p.stem for p in (tmp_path / "run" / "figures").glob("*.png")}
    assert {"elo", "labels", "revisions", "ppo"} <= drawn, capsys.readouterr().out
    before = {s.name: run.done(s.name) for s in run.steps}
    stages.run_recipe(recipe, tmp_path / "run", note=quiet)
    assert before == {s.name: run.done(s.name) for s in run.steps}


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_from_another_holds_out_as_many_prompts_as_its_recipe_says(half, tmp_path):
    recipe, old = half
    fewer = load_recipe(old, ["evaluation.n_harmful=1", "evaluation.n_over_refusal=0"])
    run = stages.run_recipe(fewer, tmp_path / "fewer", stages=["revision"], source=old, note=quiet)
    held = [(p["kind"], p.get("over_refusal", False)) for p in artifacts.prompts_of(run, part="heldout")]
    assert held == [("harmful", False), ("benign", False), ("benign", False)]
    assert run.done("preference") == run_.Run(old, recipe).done("preference"), "the same prompts to train on: all is reused"
    more = load_recipe(old, ["evaluation.n_harmful=30"])  # with so many held out, others are left to train on
    with pytest.raises(run_.RunError, match="other prompts to train on .evaluation.n_"):
        stages.run_recipe(more, tmp_path / "more", stages=["revision"], source=old, note=quiet)
    assert not (tmp_path / "more" / "1-revision").exists()
    same = stages.run_recipe(load_recipe(old, ["ppo.clip=0.1"]), tmp_path / "same", stages=["revision"], source=old, note=quiet)
    assert (same.folder / "prompts.jsonl").read_bytes() == (old / "prompts.jsonl").read_bytes()


def test_a_changed_comparison_keeps_revisions_and_sl_cai(half, tmp_path):
    recipe, old = half
    kinds = [k for k in ("harmful_prompts", "benign_prompts") if "harmlessness" in recipe[f"constitution.{k}"]]
    before = Constitution.load("harmlessness")
    principle = before["no-harm"]

    def changed(name, **texts):
        file = tmp_path / f"{name}.yaml"
        principles = [dataclasses.replace(p, **texts) if p == principle else p for p in before]
        file.write_text(dataclasses.replace(before, principles=tuple(principles)).to_yaml(), encoding="utf-8")
        weights = [f"constitution.{k}={json.dumps({str(file) if n == 'harmlessness' else n: w for n, w in recipe[f'constitution.{k}'].items()})}"
                   for k in kinds]
        return stages.run_recipe(load_recipe(old, weights), tmp_path / name, stages=["revision"], source=old, note=quiet)

    run = changed("compared", comparison="Which response is longer?", opposite="Which response is shorter?")
    assert run.done("sft") == run_.Run(old, recipe).done("sft")
    assert not run.done("feedback"), "labels are under another sentence"
    with pytest.raises(run_.RunError, match="every stage depends on"):
        changed("criticised", critique="Say whether the response is long.")


@pytest.fixture
def local(tiny, tmp_path):
    "A folder with a recipe whose files are all named from it, and the model beside them"
    home = tmp_path / "home"
    shutil.copytree(tiny, home / "model")
    (home / "rules.yaml").write_text((Path("constitutions") / "harmlessness.yaml").read_text())
    prompts = load_prompts("harmful", limit=40)
    (home / "p.jsonl").write_text("".join(json.dumps({"id": p["id"], "prompt": p["prompt"]}) + "\n" for p in prompts))
    names = ["constitution.harmful_prompts={rules.yaml: 1}", "prompts.harmful=[p.jsonl]", "revision.rounds=2"]
    lines = load_recipe("smoke", [*SETS, *names, "model.dtype=float32"]).to_yaml()
    (home / "mine.yaml").write_text(lines.replace("name: default", "name: model"))
    return home


def test_a_run_resumed_elsewhere_reads_the_same_prompts_and_gives_the_same_records(local, tmp_path, monkeypatch):
    "In another working directory, where other files have the same names"
    monkeypatch.chdir(local)
    whole = stages.run_recipe(load_recipe("mine.yaml"), "whole", stages=["revision", "sft"], note=quiet)
    counts = whole.done("revision")["counts"]
    stages.run_recipe(load_recipe("mine.yaml"), "moved", stages=["revision"], note=quiet)
    records = local / "moved" / "1-revision" / "records.jsonl"
    records.write_text("".join(line + "\n" for line in records.read_text().splitlines()[:1]))  # as if it had been stopped
    (records.parent / "done.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)
    (elsewhere / "rules.yaml").write_text((local / "rules.yaml").read_text().replace("harm", "fun"))
    (elsewhere / "p.jsonl").write_text(json.dumps({"prompt": "Another prompt?"}) + "\n")
    monkeypatch.chdir(elsewhere)
    stages.run_recipe(load_recipe(local / "moved"), local / "moved", stages=["revision", "sft"], note=quiet)
    for file in ("prompts.jsonl", "1-revision/records.jsonl", "2-sft/helpful.jsonl"):
        assert (local / "moved" / file).read_bytes() == (local / "whole" / file).read_bytes(), file
    assert run_.Run(local / "moved", whole.recipe).done("revision")["counts"] == counts


def test_a_run_resumed_on_another_day_gives_the_same_records(local, monkeypatch):
    "A template that writes today's date, as Llama 3's does"
    import datetime as dt

    from transformers.utils import chat_template_utils

    template = json.loads((local / "model" / "tokenizer_config.json").read_text())
    chat = (local / "model" / "chat_template.jinja")
    text = chat.read_text() if chat.exists() else template["chat_template"]
    dated = "{{ 'It is ' + strftime_now('%d %b %Y') + '. ' }}" + text
    if chat.exists():
        chat.write_text(dated)
    else:
        (local / "model" / "tokenizer_config.json").write_text(json.dumps({**template, "chat_template": dated}))

    def day(n):
        class Day(dt.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2031, 1, n)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)

    monkeypatch.chdir(local)
    for name, second in (("whole", 1), ("resumed", 2)):
        day(1)
        stages.run_recipe(load_recipe("mine.yaml"), name, stages=["revision"], note=quiet)
        day(second)
        stages.run_recipe(load_recipe("mine.yaml"), name, stages=["sft"], note=quiet)
    assert (local / "whole" / "2-sft" / "helpful.jsonl").read_bytes() == (local / "resumed" / "2-sft" / "helpful.jsonl").read_bytes()


ROLLOUT = """
import json, sys
from pathlib import Path
from cai_nb.distributed import lead, together
from cai_nb.model import LanguageModel
from cai_nb.training import trainer_defaults
from cai_nb.ppo import PPOConfig, PPOTrainer

def same_beginning(prompts, completions, id=None, **columns):
    "-1 where three others of the rollout begin with the same letter"
    seen.append(len(completions))
    firsts = [c[:1] for c in completions]
    return [-float(firsts.count(f) > 3) for f in firsts]

same_beginning.needs_rollout = True
seen = []

def length(prompts, completions, **columns): return [len(c) / 10 for c in completions]

def learn(model, out, n):
    settings = trainer_defaults() | {"rollouts": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4 // n,
        "num_mini_batches": 2, "num_ppo_epochs": 1, "max_completion_length": 6, "sampling_batch_size": 16, "learning_rate": 1e-3,
        "reward_weights": [1.0, 0.5], "seed": 0, "sample_rollouts": 1}
    data = [{"prompt": [{"role": "user", "content": "x" * k}], "id": k} for k in range(3, 43)]
    trainer = PPOTrainer(LanguageModel.load(model, dtype="float32"), [length, same_beginning], PPOConfig(out, **settings), data, data[:4])
    trainer.train()
    return [row for row in trainer.state.log_history if "rollout" in row], seen, trainer.evaluate()

def main():
    n = int(sys.argv[3])
    found = together(learn, sys.argv[1], sys.argv[2], n)
    Path(sys.argv[2], "found.json").write_text(json.dumps(found))
    return 0

sys.exit(lead(main))
"""


def launch(n, *words):
    start = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else [])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CAI_NB_QUIET": "1"}
    done = subprocess.run([*start, *map(str, words)], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_a_reward_that_needs_the_whole_rollout_sees_it_in_any_number_of_processes(tmp_path):
    model = tiny_folder(tmp_path / "model")
    (tmp_path / "rollout.py").write_text(ROLLOUT)
    found = {}
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        launch(n, tmp_path / "rollout.py", model, tmp_path / str(n), n)
        found[n] = json.loads((tmp_path / str(n) / "found.json").read_text())
    for _, seen, measured in (*found[1], *found[2]):
        assert seen == [32, 32], "once a rollout, with all of its rows; never for samples or an evaluation"
        assert not any("same_beginning" in key for key in measured) and "eval_reward" in measured
    one, two = found[1][0][0], found[2][0][0]
    for a, b in zip(one, two):
        assert a["reward/same_beginning"] < 0, "some of 32 responses begin alike"
        assert a["reward/same_beginning"] == b["reward/same_beginning"] and a["reward"] == pytest.approx(b["reward"])
    samples = rows(tmp_path / "1" / "samples.jsonl")
    assert samples and all(r["raw"] == pytest.approx(len(r["completion"]) / 10) for r in samples)


def test_another_number_of_processes_reads_the_same_prompts_and_gives_the_same_records(tiny, tmp_path):
    sets = [*SETS, f"model.name={tiny}", "model.dtype=float32", "sft.learning_rate=0", "feedback.revisions=true"]
    words = ["-m", "cai_nb", "run", "smoke", *[w for s in sets for w in ("--set", s)]]
    launch(1, *words, "--out", tmp_path / "one")
    launch(2, *words, "--out", tmp_path / "two")
    for file in ("prompts.jsonl", "1-revision/records.jsonl", "2-sft/helpful.jsonl", "3-feedback/pairs.jsonl"):
        assert rows(tmp_path / "one" / file) == rows(tmp_path / "two" / file), file
    for a, b in zip(rows(tmp_path / "one" / "3-feedback" / "records.jsonl"), rows(tmp_path / "two" / "3-feedback" / "records.jsonl")):
        assert (a["id"], a["chosen"], a["rejected"]) == (b["id"], b["chosen"], b["rejected"])
        assert a["label"] == pytest.approx(b["label"], abs=1e-4)


def test_a_plan_can_measure_this_machine_first(tiny, capsys):
    recipe = load_recipe("smoke", SETS, model=str(tiny))
    found = plan_.measure_machine(artifacts.load_model(recipe, str(tiny)), recipe, 4)
    assert min(found.sampling, found.training, found.prefill) > 0 and found.memory > 1
    half = plan(recipe, dataclasses.replace(found, **{k: getattr(found, k) / 2 for k in ("sampling", "training", "prefill")}))["seconds"]
    assert half == pytest.approx(2 * plan(recipe, found)["seconds"])
    assert main(["run", "smoke", "--model", str(tiny), "--dry-run", "--measure"]) == 0
    assert "measured just now" in capsys.readouterr().out


def test_what_a_call_costs_once_is_not_counted_as_sampling(tiny, monkeypatch):
    recipe, sample, clock, read = load_recipe("smoke", SETS, model=str(tiny)), LanguageModel.sample, time.monotonic, [0]

    def late(self, prompts, max_tokens=64, **settings):
        read[0] += 1000  # seconds, as if there were much to read
        return sample(self, prompts, max_tokens, **settings)

    monkeypatch.setattr(LanguageModel, "sample", late)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + read[0])
    found = plan_.measure_machine(artifacts.load_model(recipe, str(tiny)), recipe, 4)
    seconds = 2 * model_shape(str(tiny)).parameters / found.sampling  # a token
    assert read[0] and seconds * 4 * recipe.revision.batch_size < 500


def test_benign_prompts_that_resemble_harmful_ones_are_trained_on_like_the_others(half):
    run = run_.Run(half[1], half[0], note=quiet)
    train, benign = {p["id"]: p for p in artifacts.prompts_of(run, part="train")}, artifacts.prompts_of(run, "benign", "train")
    assert [p.get("over_refusal", False) for p in benign] == [False] * 3 + [True] * 2
    assert not {p["prompt"] for p in train.values()} & {p["prompt"] for p in artifacts.prompts_of(run, part="heldout")}
    answered = {row["id"].rpartition("-")[0] for row in Records(run.path("sft") / "helpful.jsonl")}
    assert answered == {p["id"] for p in benign}
    prints = {kind: run_.constitution_of(half[0], kind).fingerprint for kind in KINDS}
    for row in Records(run.path("feedback") / "records.jsonl"):
        assert row["constitution"] == prints[row["kind"]]


def test_revisions_are_compared_with_first_responses_once_and_in_either_order():
    records = list(fake_run.revisions(12))
    pairs = stages.revised_pairs(records)
    said = {r["id"]: (r["steps"][0]["text"], r["completion"][-1]["content"]) for r in records if not r["flags"]}
    assert 0 < len(pairs) <= len(said)
    assert all(sorted(p["responses"]) == sorted(said[p["id"].removesuffix("-revised")]) for p in pairs)
    assert {p["responses"][0] == said[p["id"].removesuffix("-revised")][0] for p in pairs} == {True, False}
    flagged = [{**r, "flags": ["copied"]} for r in records]
    same = [{**r, "completion": [{"role": "assistant", "content": r["steps"][0]["text"]}]} for r in records]
    assert stages.revised_pairs(flagged) == stages.revised_pairs(same) == []


def test_pairs_judged_in_advance_are_mixed_in(half):
    run = run_.Run(half[1], half[0], note=quiet)
    counts = run.done("preference")["counts"]
    assert half[0].preference.extra_comparisons == ("helpfulness",) and counts["labelled"] > 30
    assert counts["by_ai"] == len(Records(run.path("feedback") / "records.jsonl"))
    heldout = {j["id"] for j in labelled_pairs("helpfulness", "heldout")}
    assert heldout and not heldout & {r["id"] for r in labelled_comparisons("helpfulness")}


def test_the_bundled_critic_learnt_from_the_bundled_exemplars():
    from cai_nb.constitution import Constitution

    known = json.loads((artifacts.bundled_adapter("critic") / "metrics.json").read_text())["constitutions"]
    assert known == {name: artifacts.exemplars_fingerprint(Constitution.load(name)) for name in known}


@pytest.mark.parametrize("split", ["train", "judge"])
def test_the_bundled_judges_were_fitted_to_the_bundled_pairs(split):
    card, recipe = run_.read_json(artifacts.bundled_adapter("judges") / split / "training.json"), load_recipe("laptop", sets=["seed=3"])
    lm = of_depth(30, card["model"])
    pairs = judges.judge_training_pairs(recipe, split)  # in whatever order
    assert card == judges.judge_training_card(recipe, lm, split, pairs) and len(pairs) > 150
    other = [{**pairs[0], "better": pairs[0]["better"] + "!"}, *pairs[1:]]
    assert card != judges.judge_training_card(recipe, lm, split, other)
    section = {"train": "feedback", "judge": "evaluation"}[split]
    assert card != judges.judge_training_card(load_recipe("laptop", [f"{section}.probe_layers=[5]"]), lm, split, pairs)


def test_a_run_uses_the_judges_of_the_package_or_fits_its_own(tmp_path, monkeypatch):
    from cai_nb.judge import Judges, pair_features

    recipe, lm = load_recipe("laptop"), LanguageModel.load()
    run = run_.Run(tmp_path, recipe, note=quiet, cache={"initial, local": lm})
    monkeypatch.setattr(Judges, "fit", lambda lm, pairs, **settings: ("fitted", len(pairs)))
    bundled = judges.get_judges(run, "judge")
    for kind, judge in bundled.each.items():  # what they hold of a pair is what this model makes of its texts
        known = {p["id"]: p for p in judges.judge_training_pairs(recipe, "judge") if p["kind"] == kind}
        x = pair_features(lm, [known[n["id"]] for n in judge.names[:4]], judge.layers)
        ours = (x[:, 0] - x[:, 1]) / judge.std
        near, far = (abs(ours - judge.training_differences[rows]).mean() for rows in (slice(4), slice(4, 8)))
        assert near < 0.1 and far > 0.5  # theirs are of another CPU: its rounding is about 0.05; other pairs are far
    for change in ("feedback.probe_pairs=100", "feedback.revision_weight=1", "constitution.harmful_prompts={harmlessness: 1}"):
        other = run_.Run(tmp_path, load_recipe("laptop", sets=[change]), note=quiet, cache={"initial, local": lm})
        fitted = judges.get_judges(other, "train")
        assert fitted[0] == "fitted" and fitted[1] > 90


def test_the_accuracy_of_the_bundled_judges_is_known_and_of_others_measured(tmp_path, monkeypatch):
    from cai_nb.judge import Judge

    run = run_.Run(tmp_path, load_recipe("laptop"), note=quiet)
    found = judges.make_evaluation_judges(run)
    held = {question: judges.heldout_pairs(run.recipe, question) for question in found}
    known = {question: several["probe"].report["heldout"]["right"] for question, several in found.items()}
    probe = found["helpfulness"]["probe"]
    measured = judges.judge_accuracy(probe, held["helpfulness"][1:])  # other texts: measured now
    assert known["helpfulness"]["n"] == len(held["helpfulness"]) == measured["n"] + 1 > 90
    assert abs(measured["accuracy"] - known["helpfulness"]["accuracy"]) < 0.025
    monkeypatch.setattr(Judge, "score", lambda *args: pytest.fail("measured again"))
    for question, several in found.items():
        assert judges.judge_accuracy(several["probe"], held[question][::-1]) == known[question]
        assert judges.judge_accuracy(several["rules"], held[question]) != known[question]
    del probe.report["heldout"]  # as of a judge that this run has fitted
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        judges.judge_accuracy(probe, held["helpfulness"])


def test_ppo_that_was_interrupted_ends_with_the_same_weights(half, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    for name in ("whole", "stopped"):
        shutil.copytree(half[1], tmp_path / name)
    whole = stages.run_recipe(half[0], tmp_path / "whole", stages=["ppo"], note=quiet)
    with monkeypatch.context() as m:
        m.setattr(stages, "progress_callback", lambda rollouts: Stop())
        with pytest.raises(KeyboardInterrupt):
            stages.run_recipe(half[0], tmp_path / "stopped", stages=["ppo"], note=quiet)
    again = stages.run_recipe(half[0], tmp_path / "stopped", stages=["ppo"], note=quiet)
    weights = [(r.path("ppo") / "model" / "adapter_model.safetensors").read_bytes() for r in (whole, again)]
    assert weights[0] == weights[1] and again.done("ppo")["tries"] == 2
    logs = [[row["reward"] for row in Records(r.path("ppo") / "log.jsonl")] for r in (whole, again)]
    assert len(logs[0]) == 2 and logs[0] == logs[1]
    learnt_from = [list(Records(r.path("ppo") / "rollouts.jsonl")) for r in (whole, again)]
    assert learnt_from[0] == learnt_from[1] and len(learnt_from[0]) == whole.done("ppo")["counts"]["responses"]
    assert {"prompt", "response", "reward", "kl", "kind", "rollout", "boilerplate"} <= set(learnt_from[0][0])
    for row in Records(whole.path("ppo") / "log.jsonl"):  # half a point for what others of the rollout say as well
        mine = [r for r in learnt_from[0] if r["rollout"] == row["rollout"]]
        paid = sum(r["boilerplate"] for r in mine) / len(mine)
        assert row["reward/boilerplate_penalty"] == pytest.approx(-paid)
        assert row["reward"] == pytest.approx(sum(r["reward"] for r in mine) / len(mine) - paid / 2, abs=1e-5)
    assert not (whole.path("ppo") / "work").exists()
