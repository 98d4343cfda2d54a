"""The preference model: its loss, where its score is read, what is saved and loaded."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_folder
from torch.nn.functional import binary_cross_entropy_with_logits

from cai_nb.dialogue import CaiError, assistant, user
from cai_nb.ppo_math import RewardError
from cai_nb.ppo_model import ModelReward, ValueModel
from cai_nb.preference import (
    PreferenceModel, PreferenceSettings, SoftRewardTrainer, encode_dialogue, preference_metrics, sequence_classifier,
    soft_probe, split_by_prompt, train_preference_model,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def comparison(i, p=0.8, good="Yes. Gladly!", bad="no"):
    question = f"Question {i * i}: what about topic {'abcdefghijklm'[i % 13] * 3} number {i}?"
    return {"id": f"c{i}", "prompt": [user(question)],
            "chosen": [assistant(f"{good} {i}")], "rejected": [assistant(f"{bad} {i} {i}")], "label": p}


def make_trainer(folder, tmp_path, rows, cls=SoftRewardTrainer, **more):
    from datasets import Dataset
    from trl import RewardConfig
    from cai_nb.training import trainer_defaults
    model, tokenizer, _ = sequence_classifier(folder, dtype="float32")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    args = RewardConfig(output_dir=str(tmp_path), per_device_train_batch_size=len(rows), max_length=None,
                        **trainer_defaults(), **more)
    return cls(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def first_loss(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    return batch, loss, outputs.logits.squeeze(-1).chunk(2)


def test_soft_loss_is_binary_cross_entropy(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, [comparison(i, p) for i, p in enumerate((1.0, 0.9, 0.5, 0.3, 0.0))])
    batch, loss, (chosen, rejected) = first_loss(trainer)
    assert sorted(batch["label"].tolist()) == pytest.approx([0.0, 0.3, 0.5, 0.9, 1.0])
    expected = binary_cross_entropy_with_logits(chosen - rejected, batch["label"])
    assert abs(loss - expected) < 1e-6


def test_hard_labels_give_trls_own_loss(folder, tmp_path):
    from trl import RewardTrainer
    rows = [comparison(i, 1.0) for i in range(4)]
    _, soft, _ = first_loss(make_trainer(folder, tmp_path, rows))
    plain = [{k: v for k, v in r.items() if k != "label"} for r in rows]
    _, hard, _ = first_loss(make_trainer(folder, tmp_path, plain, cls=RewardTrainer))
    assert abs(soft - hard) < 1e-6


def test_label_a_half_pulls_the_scores_together(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, [comparison(0, 0.5)])
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    outputs.logits.retain_grad()
    loss.backward()
    d = (outputs.logits[0] - outputs.logits[1]).item()
    assert outputs.logits.grad[0].item() == pytest.approx(1 / (1 + np.exp(-d)) - 0.5, abs=1e-5)


def test_padding_and_neighbours_change_no_score(folder):
    model, tokenizer, _ = sequence_classifier(folder, dtype="float32")
    torch.nn.init.normal_(model.score.weight)
    scorer = PreferenceModel(model, tokenizer)
    dialogues = [[user("a"), assistant("b" * n)] for n in (1, 40, 7, 90)]
    together, alone = scorer.score(dialogues), [scorer.score([d])[0] for d in dialogues]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(scorer.score(dialogues, batch_size=2) - together).max() < 1e-5


def test_score_is_read_at_the_end_of_the_turn(folder):
    model, tokenizer, _ = sequence_classifier(folder, dtype="float32")
    ids = encode_dialogue([user("a"), assistant("b")], tokenizer)
    assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id


@pytest.mark.parametrize("rank", [4, 0])
def test_train_save_load(folder, tmp_path, rank):
    rows = [comparison(i, 0.9) for i in range(24)] + [comparison(99, 0.9, bad="long " * 100)]
    out = tmp_path / "pm"
    settings = PreferenceSettings(learning_rate=3e-3, epochs=8, lora_rank=rank, batch_size=4, probe=False)
    metrics = train_preference_model(folder, rows, out, settings)
    assert metrics["dropped"] == 1 and metrics["examples"] + metrics["n"] == 24
    assert metrics["agreement"] > 0.8 and metrics["curve"][-1]["loss"] < metrics["curve"][0]["loss"]
    scorer = PreferenceModel.load(out, dtype="float32")
    dialogues = [[*r["prompt"], *r[k]] for r in rows[:24] for k in ("chosen", "rejected")]
    scores = scorer.score(dialogues)
    assert abs(scores.mean()) < 5e-3 and abs(scores.std() - 1) < 1e-2  # measured in bfloat16, loaded in float32
    saved = [json.loads(line) for line in (out / "heldout.jsonl").read_text().splitlines()]
    held = [next(r for r in rows if r["id"] == s["id"]) for s in saved]
    p = scorer.prob([[*r["prompt"], *r["chosen"]] for r in held], [[*r["prompt"], *r["rejected"]] for r in held])
    # A bfloat16 trunk was trained, a float32 one is loaded.
    assert p == pytest.approx([s["p"] for s in saved], abs=0.03)


def test_an_exported_model_loads_with_plain_transformers(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [comparison(i, 0.9) for i in range(24)]
    settings = PreferenceSettings(learning_rate=3e-3, epochs=3, lora_rank=4, batch_size=4, probe=False)
    train_preference_model(folder, rows, tmp_path / "pm", settings)
    ours = PreferenceModel.load(tmp_path / "pm", dtype="float32")
    ours.export(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    talks = [[*r["prompt"], *r[k]] for r in rows[:4] for k in ("chosen", "rejected")]
    with torch.no_grad():
        scores = [plain(torch.tensor([encode_dialogue(t, tokenizer)])).logits.item() for t in talks]
    expected = ours.score(talks)
    assert np.ptp(expected) > 0.1 and scores - np.mean(scores) == pytest.approx(expected - expected.mean(), abs=1e-4)
    assert plain.config.preference["mean"] == list(ours.mean)


def test_a_causal_model_is_no_reward(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for use in (ModelReward, lambda path: ValueModel.start(path, 259)):
        with pytest.raises(RewardError, match=r"no weights for score\.weight.*AutoModelForSequenceClassification"):
            use(folder)
    with pytest.raises(RewardError, match="causal language model"):
        ModelReward(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    trained = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    trained.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    talk = [user("a"), assistant("b")]
    from_folder, from_model = ModelReward(str(tmp_path)), ModelReward(trained, AutoTokenizer.from_pretrained(folder))
    assert from_folder.score([talk]) == pytest.approx(from_model.score([talk]), abs=1e-5)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_preference_model_without_its_head_is_refused(folder, tmp_path, rank):
    from safetensors.torch import load_file, save_file

    settings = PreferenceSettings(epochs=1, lora_rank=rank, batch_size=4, probe=False)
    train_preference_model(folder, [comparison(i) for i in range(8)], tmp_path, settings)
    for file in tmp_path.glob("*.safetensors"):
        rest = {k: v for k, v in load_file(file).items() if not k.endswith("score.weight")}
        save_file(rest, file, metadata={"format": "pt"})
    with pytest.raises(CaiError, match="no score head"):
        PreferenceModel.load(tmp_path)


@pytest.mark.parametrize("same_run", [True, False])
def test_a_local_base_is_found_from_any_working_directory(tmp_path, monkeypatch, same_run):
    """A base in the run's own folder moves along with it; any other is found by its full path."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    base = (run if same_run else elsewhere) / "2-sft" / "model"
    run.mkdir()
    elsewhere.mkdir()
    tiny_folder(base)
    monkeypatch.chdir(base.parent.parent)
    settings = PreferenceSettings(epochs=1, lora_rank=4, batch_size=4, probe=False)
    out = run / "4-preference" / "model"
    train_preference_model("2-sft/model", [comparison(i) for i in range(8)], out, settings)
    monkeypatch.chdir("/")
    talk = [user("a"), assistant("b")]
    before = PreferenceModel.load(out, dtype="float32").logits([talk])
    run.rename(tmp_path / "moved")
    out = tmp_path / "moved" / "4-preference" / "model"
    assert PreferenceModel.load(out, dtype="float32").logits([talk]) == pytest.approx(before)

    about = json.loads((out / "preference.json").read_text())
    assert about["base"] == ("../../2-sft/model" if same_run else str(base))
    where = tmp_path / "moved" if same_run else elsewhere
    (out / "preference.json").write_text(json.dumps({**about, "base": "2-sft/model"}))  # as earlier versions wrote it
    monkeypatch.chdir(where)
    assert PreferenceModel.load(out, dtype="float32").logits([talk]) == pytest.approx(before)
    (out / "preference.json").write_text(json.dumps({**about, "base": "../../gone"}))
    with pytest.raises(CaiError, match="gone, which is not there"):
        PreferenceModel.load(out)


def two_kinds(n=16):
    "On harmful prompts the `Yes` is better, on harmless ones the `no`: one score cannot have it both ways"
    rows = [{**comparison(i, 0.9), "kind": "harmful"} for i in range(n)]
    other = [{**comparison(i, 0.9, good="no", bad="Yes. Gladly!"), "kind": "benign"} for i in range(100, 100 + n)]
    return rows + other


def test_a_score_for_each_kind_of_prompt(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows, out = two_kinds(), tmp_path / "pm"
    settings = PreferenceSettings(learning_rate=1e-3, epochs=1, lora_rank=4, batch_size=4)
    found = {h: train_preference_model(folder, rows, tmp_path / h, PreferenceSettings(**{**vars(settings), "heads": h}))
             for h in ("kind", "one")}
    assert found["kind"]["heads"] == ("harmful", "benign") and found["one"]["heads"] == ("all",)
    assert found["kind"]["agreement"] == 1
    # one score may agree as often, since the kind can be read off the prompt; but it learns that more slowly
    assert found["kind"]["cross_entropy"] + 0.03 < found["one"]["cross_entropy"]
    scorer = PreferenceModel.load(tmp_path / "kind", dtype="float32")
    kinds = [r["kind"] for r in rows]
    chosen, rejected = ([[*r["prompt"], *r[k]] for r in rows] for k in ("chosen", "rejected"))
    scores = np.stack([scorer.score(t, kinds) for t in (chosen, rejected)])
    for part in (scores[:, :16], scores[:, 16:]):  # each score has a zero and a spread of its own
        assert abs(part.mean()) < 0.05 and abs(part.std() - 1) < 0.05  # measured in bfloat16
    assert (scorer.prob(chosen, rejected, kinds) > 0.5).mean() > 0.9 > (scorer.prob(chosen, rejected, kinds[::-1]) > 0.5).mean()
    for bad in (None, kinds[:3]):
        with pytest.raises(CaiError, match="pass kinds"):
            scorer.score(chosen, bad)
    scorer.export(out)
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    assert plain.config.label2id == {"harmful": 0, "benign": 1}
    with torch.no_grad():
        both = plain(torch.tensor([encode_dialogue(chosen[0], tokenizer)])).logits[0].tolist()
    offset = scorer.mean / scorer.std
    assert both - offset == pytest.approx([scorer.score(chosen[:1], [k])[0] for k in ("harmful", "benign")], abs=1e-3)


def test_one_kind_of_prompt_needs_no_kinds(folder, tmp_path):
    metrics = train_preference_model(folder, two_kinds()[:17], tmp_path, PreferenceSettings(lora_rank=4, epochs=1))
    assert metrics["heads"] == ("all",)  # a single harmless prompt is too few for a score of its own
    assert len(PreferenceModel.load(tmp_path).score([[user("a"), assistant("b")]])) == 1


def test_probe_is_the_best_linear_head(folder, tmp_path):
    rows = [comparison(i, 0.9) for i in range(40)]
    still = PreferenceSettings(learning_rate=1e-9, epochs=1, lora_rank=4, batch_size=8)
    probed = train_preference_model(folder, rows, tmp_path / "a", still)
    unprobed = PreferenceSettings(learning_rate=1e-9, epochs=1, lora_rank=4, probe=False)
    blank = train_preference_model(folder, rows, tmp_path / "b", unprobed)
    assert blank["cross_entropy"] == pytest.approx(np.log(2), abs=1e-4)
    assert probed["agreement"] == 1 and probed["cross_entropy"] < 0.45 < blank["cross_entropy"]


def test_probe_against_binary_cross_entropy_by_torch():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(300, 4)) * [1, 5, 0.1, 1]
    p = 1 / (1 + np.exp(-(d @ [0.5, 0.1, 3, 0]) + rng.normal(size=300)))
    w = torch.tensor(soft_probe(d, p, np.arange(300), strengths=(1e6,)), requires_grad=True)
    binary_cross_entropy_with_logits(torch.tensor(d) @ w, torch.tensor(p)).backward()
    assert w.grad.abs().max() < 1e-3


def test_training_repeats_itself(folder, tmp_path):
    rows = [comparison(i, 0.7) for i in range(12)]
    settings = PreferenceSettings(learning_rate=1e-3, epochs=1, lora_rank=4, batch_size=4)
    a, b = (train_preference_model(folder, rows, tmp_path / name, settings) for name in "ab")
    assert a["cross_entropy"] == b["cross_entropy"]


def test_a_prompt_is_on_one_side_only():
    rows = [comparison(i // 3) for i in range(60)]
    train, held = split_by_prompt(rows, 0.3)
    assert sorted(train + held) == list(range(60)) and held
    assert not {rows[i]["prompt"][0]["content"] for i in train} & {rows[i]["prompt"][0]["content"] for i in held}


def test_metrics_on_numbers_done_by_hand():
    m = preference_metrics([0.8, 0.4], [1.0, 0.5])
    assert m["agreement"] == pytest.approx(0.75)
    assert m["brier"] == pytest.approx((0.04 + 0.01) / 2)
    assert m["cross_entropy"] == pytest.approx(-(np.log(0.8) + 0.5 * np.log(0.4) + 0.5 * np.log(0.6)) / 2)
    assert m["least_cross_entropy"] == pytest.approx(np.log(2) / 2)
    assert m["calibration_error"] == pytest.approx((0.2 + 0.1) / 2)
    p = np.random.default_rng(0).random(4000)
    assert preference_metrics(p, p)["calibration_error"] < 1e-9
    assert preference_metrics(p, p)["cross_entropy"] == pytest.approx(preference_metrics(p, p)["least_cross_entropy"])


@pytest.mark.parametrize("call, words", [
    (lambda f, t: train_preference_model(f, [], t), "none of 0 comparisons"),
    (lambda f, t: train_preference_model(f, [comparison(0, 1.2)], t), "must be a probability"),
    (lambda f, t: train_preference_model(f, [comparison(0)], t, PreferenceSettings(label="both")), "'soft' or 'hard'"),
    (lambda f, t: train_preference_model(f, [comparison(0)], t, PreferenceSettings(heads="two")), "'kind' or 'one'"),
    (lambda f, t: PreferenceModel.load(t), "no preference.json"),
    (lambda f, t: preference_metrics([0.5], [0.5, 1]), "as many labels"),
    (lambda f, t: preference_metrics([float("nan")], [1]), "NaN"),
    (lambda f, t: split_by_prompt([comparison(0)], 1.0), "share between 0 and 1"),
])
def test_errors_say_what_to_do(folder, tmp_path, call, words):
    with pytest.raises(CaiError, match=words):
        call(folder, tmp_path)
