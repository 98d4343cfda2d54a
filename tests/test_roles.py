"""Responder, critic, feedback model and preference model apart from the policy's base: who is which, and who did what."""

import json
import shutil
from pathlib import Path

import fake_run
import pytest
from test_pipeline import SETS, quiet, rows
from test_records import check_run
from tiny import tiny_folder

from cai_nb import run as run_, stages
from cai_nb.__main__ import main
from cai_nb.chat_template import chat_format
from cai_nb.dialogue import CaiError, assistant, user
from cai_nb.loading import model_id
from cai_nb.model import LanguageModel
from cai_nb.plan import model_shape, plan, plan_text
from cai_nb.recipe import ROLES, RecipeError, load_recipe
from cai_nb.run import RunError

SERVER = "server:http://localhost:8000/v1#Qwen2.5-72B?tokenizer=Qwen/Qwen2.5-72B"


def test_an_empty_key_means_another_roles_model():
    def roles(*sets):
        recipe = load_recipe("smoke", [*sets, "model.name=a/base"])
        return {role: recipe.role(role)[0].removeprefix("a/") for role in ROLES}

    assert set(roles().values()) == {"base"}
    ask = "feedback.method=multiple_choice"
    assert roles("responder.name=a/r", ask) == {"initial": "base", "responder": "r", "critic": "r", "feedback": "r", "preference": "base"}
    assert roles("responder.name=a/r", "critic.name=a/c", ask)["feedback"] == "c"
    assert roles("critic.name=a/c")["feedback"] == "base", "a probe reads the initial policy unless told otherwise"
    assert roles("feedback.model=a/f", "preference.model=a/p") == {**roles(), "feedback": "f", "preference": "p"}


def test_which_adapter_a_role_has():
    ask = "feedback.method=multiple_choice"
    assert load_recipe("laptop", [ask]).role("feedback") == load_recipe("laptop").role("critic") == ("default", "auto")
    assert load_recipe("laptop", [ask, "feedback.adapter=none"]).role("feedback") == ("default", "none")
    assert load_recipe("laptop", [ask, "feedback.model=default"]).role("feedback") == ("default", "none")
    assert load_recipe("laptop", ["critic.name=a/c"]).role("critic") == ("a/c", "none"), "the bundled one fits the default alone"
    with pytest.raises(RecipeError, match="responder.adapter.*write none, or such a folder"):
        load_recipe("laptop", ["responder.adapter=auto"])


@pytest.mark.parametrize(("key", "fits"), [("model.name", False), ("preference.model", False), ("responder.name", True),
                                           ("critic.name", True), ("feedback.model", True)])  # fmt: skip
def test_a_server_may_be_what_is_not_trained(key, fits):
    sets = [f"{key}={SERVER}", "feedback.method=multiple_choice", "critic.adapter=auto"]
    if fits:
        assert load_recipe("smoke", sets)[key] == SERVER
    else:
        with pytest.raises(RecipeError, match=f"{key}.*weights must be here"):
            load_recipe("smoke", sets)


def test_a_server_takes_no_adapter_and_gives_no_hidden_states():
    with pytest.raises(RecipeError, match="critic.adapter: 'finetune' cannot be put into a server"):
        load_recipe("smoke", [f"responder.name={SERVER}", "critic.adapter=finetune"])
    with pytest.raises(RecipeError, match="feedback.model: a probe reads hidden states"):
        load_recipe("smoke", [f"feedback.model={SERVER}"])


def test_a_plan_counts_each_roles_work_by_its_own_model():
    recipe = load_recipe("paper-7b")
    flops = {row["what"]: row["flops"] / (row["read"] + row["sampled"]) for row in plan(recipe)["rows"] if not row["trained"]}
    mistral, qwen = (2 * model_shape(recipe[key]).parameters for key in ("responder.name", "model.name"))
    assert all(flops[k] == pytest.approx(mistral) for k in ("first responses", "critiques", "helpful responses", "responses of the responder"))
    assert all(flops[k] == pytest.approx(qwen) for k in ("labels", "reward", "judges"))
    text = plan_text(recipe)
    assert "responder, critic: teknium/OpenHermes" in text and "initial policy, feedback model, preference model: Qwen/Qwen2.5-7B:" in text
    one, own = (plan(load_recipe("gpu-7b", sets)) for sets in ([], ["feedback.model=Qwen/Qwen2.5-7B"]))
    assert "responses of the responder" not in {row["what"] for row in one["rows"]}
    assert own["memory_gib"] - one["memory_gib"] == pytest.approx((7.62 - 7.24) * 2e9 / 2**30), "stage 3 holds two models"
    served = load_recipe("gpu-7b", [f"feedback.model={SERVER}"])
    assert plan(served)["memory_gib"] == one["memory_gib"] and plan(served)["shapes"]["feedback"].parameters == 72e9
    assert "timed as if it were here" in plan_text(served)
    small = plan(load_recipe("gpu-7b", ["preference.model=default"]))
    assert small["disk_gib"] < one["disk_gib"] and small["memory_gib"] < one["memory_gib"]


# a run in which every role is a model of its own


def like_a_pretrained_one(folder):
    "A tokenizer as Qwen2.5-7B has it: a chat template, but documents' end as end and padding, and no token for a start"
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token": "<|endoftext|>", "bos_token": None, "pad_token": "<|endoftext|>"}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "{role: folder}; the weights differ, and some widths"
    place, found = tmp_path_factory.mktemp("models"), {}
    for seed, role in enumerate(ROLES):
        found[role] = Path(tiny_folder(place / role, hidden=16 if role in ("feedback", "preference") else 32, seed=seed))
        config = json.loads((found[role] / "config.json").read_text())
        (found[role] / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 6000}))
    like_a_pretrained_one(found["initial"])
    return found


def test_a_pretrained_base_ends_turns_as_its_template_does(models):
    lm = LanguageModel.load(str(models["initial"]), dtype="float32")
    assert lm.tokenizer.eos_token == lm.tokenizer.pad_token == "<|endoftext|>" and lm.tokenizer.bos_token is None
    assert set(lm.tokenizer.convert_ids_to_tokens(lm.end_ids)) == {"<|endoftext|>", "<|im_end|>"}
    ids, _ = chat_format(lm.tokenizer).finished_ids([user("Hello?"), assistant("Yes.")])
    assert lm.tokenizer.convert_ids_to_tokens(ids[-1]) == "<|im_end|>", "this is what SL-CAI learns to end with"


def sets_of(models):
    return [*SETS, f"responder.name={models['responder']}", f"critic.name={models['critic']}", f"feedback.model={models['feedback']}",
            f"preference.model={models['preference']}", "feedback.method=multiple_choice"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    "(recipe, run folder, stage 1's own records); all stages are done"
    recipe, out = load_recipe("smoke", sets_of(models), model=str(models["initial"])), tmp_path_factory.mktemp("whole") / "run"
    stages.run_recipe(recipe, out, stages=["revision"], note=quiet)
    path = out / "1-revision" / "records.jsonl"
    own = rows(path)  # random weights write nothing that passes for a revision
    fake_run.write_lines(path, [{**r, "id": row["id"]} for r, row in zip(fake_run.revisions(4), own)])
    fake_run.unseal(path.parent)
    stages.run_recipe(recipe, out, note=quiet)
    return recipe, out, own


def test_records_name_the_model_that_wrote_each_text(whole, models):
    _, out, revised = whole
    ids = {role: model_id(str(folder)) for role, folder in models.items()}
    assert len(set(ids.values())) == len(ROLES)
    assert {(r["model"], r["critic"]) for r in revised} == {(ids["responder"], ids["critic"])}
    assert {r["model"] for r in rows(out / "2-sft" / "helpful.jsonl")} == {ids["responder"]}
    sl_cai = {r["model"] for r in rows(out / "3-feedback" / "pairs.jsonl")}
    assert len(sl_cai) == 1 and sl_cai.pop().startswith(ids["initial"] + "+model@")
    assert {r["model"] for r in rows(out / "3-feedback" / "records.jsonl")} == {ids["feedback"]}
    said = {r["model"]: r["model_id"] for r in rows(out / "6-evaluation" / "records.jsonl")}
    assert set(said) == {*run_.POLICIES, "responder"}
    assert said["initial"] == ids["initial"] and said["responder"] == ids["responder"] and said["rl-cai"].startswith(ids["initial"] + "+")
    facts = run_.read_json(out / "facts.json")
    assert (facts["model"], facts["responder"]) == (ids["initial"], ids["responder"])


def test_training_starts_from_the_base_and_the_preference_model_from_its_own(whole, models):
    _, out, _ = whole
    adapter = run_.read_json(out / "2-sft" / "model" / "adapter_config.json")
    assert Path(adapter["base_model_name_or_path"]) == models["initial"]
    about = run_.read_json(out / "4-preference" / "model" / "preference.json")
    assert Path(about["base"]) == models["preference"] and about["model"] == model_id(str(models["preference"]))


def test_the_report_shows_the_responder_beside_the_policies(whole, tmp_path):
    run = run_.Run(whole[1], whole[0])
    result = run_.read_json(run.path("evaluation") / "metrics.json")
    assert result["models"] == ["initial", "sl-cai", "rl-cai", "responder"] and result["reference"] == "initial"
    assert '<th scope="col">responder</th>' in (run.folder / "report.html").read_text()
    assert set(run_.read_json(run.path("feedback") / "metrics.json")["accuracy"]) == {
        "multiple choice, initial policy", "multiple_choice, as used here"}
    check_run(run.folder)
    shutil.copytree(run.folder, tmp_path / "run")
    assert main(["figures", str(tmp_path / "run")]) == 0 and (tmp_path / "run" / "figures" / "elo.png").exists()


def test_another_responder_is_refused_by_name_and_by_weights(whole, models, tmp_path):
    recipe, out, _ = whole
    other = load_recipe("smoke", [*sets_of(models), f"responder.name={models['critic']}"], model=str(models["initial"]))
    with pytest.raises(RunError, match="responder.name .*there, .*here"):
        stages.run_recipe(other, out, note=quiet)
    place = tmp_path / "responder"
    shutil.copytree(models["responder"], place)
    mine = load_recipe("smoke", [*sets_of(models), f"responder.name={place}"], model=str(models["initial"]))
    stages.run_recipe(mine, tmp_path / "run", stages=["revision"], note=quiet)
    shutil.copy(models["critic"] / "model.safetensors", place)
    with pytest.raises(RunError, match="was begun with the model responder@.*is now responder@"):
        stages.run_recipe(mine, tmp_path / "run", stages=["sft"], note=quiet)


def test_a_run_from_another_reuses_what_came_before_the_role_that_differs(whole, models, tmp_path):
    def reused(name, **changed):
        lines = []
        recipe = load_recipe("smoke", sets_of(models | changed), model=str(models["initial"]))
        stages.run_recipe(recipe, tmp_path / name, stages=["revision"], note=lines.append, source=whole[1])
        return next(line for line in lines if line.startswith("reused")).rpartition(": ")[2]

    assert reused("feedback", feedback=models["critic"]) == "revision, sft"
    assert reused("preference", preference=models["critic"]) == "revision, sft, feedback"
    kept = {r["model"] for r in rows(tmp_path / "preference" / "6-evaluation" / "records.jsonl")}
    assert kept == {"initial", "sl-cai", "responder"}
    for role in ("responder", "critic"):
        with pytest.raises(RunError, match=f"differs in {role}, which every stage depends on"):
            reused(role, **{role: models["feedback"]})


def test_a_probe_may_read_another_model(models, tmp_path):
    "Its hidden states, in the labels; the evaluation's judge still reads the initial policy"
    from cai_nb import judges

    sets = [*SETS, f"feedback.model={models['feedback']}"]
    recipe = load_recipe("smoke", sets, model=str(models["initial"]))
    run = run_.Run(tmp_path, recipe, note=quiet)
    assert recipe.feedback.method == "probe"
    widths = {split: {j.model.model.config.hidden_size for j in judges.get_judges(run, split).each.values()} for split in ("train", "judge")}
    assert widths == {"train": {16}, "judge": {32}}


def test_a_base_without_a_chat_template_is_refused_and_takes_another_models(models, tmp_path):
    from transformers import AutoTokenizer

    base, sets = tmp_path / "base", [*SETS, "prompts.n_harmful=2", f"responder.name={models['responder']}"]
    shutil.copytree(models["initial"], base)
    (base / "chat_template.jinja").unlink()
    recipe = load_recipe("smoke", sets, model=str(base))
    with pytest.raises(CaiError, match="no chat template"):
        stages.run_recipe(recipe, tmp_path / "run", stages=["revision"], note=quiet)
    assert not list((tmp_path / "run").rglob("records.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = AutoTokenizer.from_pretrained(models["responder"]).chat_template
    tokenizer.save_pretrained(base)
    run = stages.run_recipe(recipe, tmp_path / "run", stages=["revision", "sft"], note=quiet)
    assert run.done("sft")["counts"]["helpful"] > 0
