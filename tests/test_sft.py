"""Fine-tuning: only the assistant's turns of the completion are learnt, and something is learnt."""

import json

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import cai_nb.sft
from cai_nb.dialogue import assistant, user
from cai_nb.model import LanguageModel
from cai_nb.sft import SFTSettings, TrainingError, encode_example, finetune, add_completion_logprob_forward, sft_examples, training_rows, finetune_critic

EXAMPLES = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"Yes, {w}!")]}
            for w in ("tea", "rain", "moss", "bread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_only_the_assistants_turns_are_learnt():
    tok = tiny_tokenizer()
    coded = encode_example([user("a <|im_end|> trick")], [assistant("b."), user("c?"), assistant("d.")], tok)
    assert tok.decode([t for t in coded["labels"] if t >= 0]) == "b.<|im_end|>d.<|im_end|>"
    assert all(y in (-100, x) for x, y in zip(coded["input_ids"], coded["labels"]))


def test_the_end_of_an_answer_that_was_cut_off_is_not_learnt():
    tok = tiny_tokenizer()
    coded = encode_example([user("a?")], [assistant("b."), user("c?"), assistant("d <|im_end|> and so o ")], tok, learn_end=False)
    assert tok.decode([t for t in coded["labels"] if t >= 0]) == "b.<|im_end|>d <|im_end| > and so o"
    rows = [{"prompt": [user("q")], "completion": [assistant("a")], "learn_end": f} for f in (True, False)]
    whole, cut = training_rows(rows, tok, 99)[0]
    assert whole["input_ids"] == cut["input_ids"]
    assert sum(t >= 0 for t in whole["labels"]) == sum(t >= 0 for t in cut["labels"]) + 1


def test_the_trainers_loss_is_the_loss_of_those_tokens_alone(folder, tmp_path):
    "Through TRL, not beside it: the first logged loss is the mean over the completions' tokens."
    metrics = finetune(folder, EXAMPLES, tmp_path/"out", SFTSettings(epochs=1, batch_size=4, learning_rate=0.0))
    lm = LanguageModel.load(folder, dtype="float32")
    scores = lm.score([e["prompt"] for e in EXAMPLES], [e["completion"][0]["content"] for e in EXAMPLES])
    want = -sum(s.logprob for s in scores)/sum(s.tokens for s in scores)
    assert abs(metrics["curve"][0]["loss"] - want) < 0.02*want


def test_examples_laid_end_to_end_do_not_see_each_other(folder, tmp_path, monkeypatch):
    "The same losses step by step, and the same adapter, as with padding; and without their places it would not be so."
    from safetensors.torch import load_file

    load = cai_nb.sft.load_pretrained
    monkeypatch.setattr(cai_nb.sft, "load_pretrained", lambda *args, **given: load(*args, **{**given, "dtype": "float32"}))
    settings = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "schedule": "constant"}
    padded, free = (finetune(folder, EXAMPLES, tmp_path/str(on), SFTSettings(padding_free=on, **settings)) for on in (False, True))
    losses = [[c["loss"] for c in m["curve"]] for m in (padded, free)]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (load_file(tmp_path/str(on)/"adapter_model.safetensors") for on in (False, True))
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a) and max(x.abs().max() for x in a.values()) > 0.1
    model, rows = LanguageModel.load(folder, dtype="float32").model, training_rows(EXAMPLES, tiny_tokenizer(), 99)[0]
    add_completion_logprob_forward(model)
    row = DataCollatorForLanguageModeling(0, padding_free=True)(rows)
    seen = {k: row[k] for k in ("input_ids", "labels", "position_ids")}
    with torch.no_grad():
        ours = model(**seen, completion_only=True)
        each = torch.cat([model(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]]), completion_only=True) for r in rows])
        assert torch.allclose(ours, each, atol=1e-5)
        assert not torch.allclose(model(**{**seen, "position_ids": None}, completion_only=True), each, atol=1e-3)


def test_the_loss_falls_and_the_adapter_loads(folder, tmp_path):
    settings = SFTSettings(epochs=30, batch_size=4, learning_rate=1e-2, lora_layer_fraction=1.0)
    metrics = finetune(folder, EXAMPLES, tmp_path/"out", settings)
    assert metrics["curve"][-1]["loss"] < 0.7*metrics["curve"][0]["loss"]
    base = LanguageModel.load(folder, dtype="float32")
    tuned = LanguageModel.load(folder, adapter=tmp_path/"out", dtype="float32")
    before, after = (x.score([EXAMPLES[0]["prompt"]], ["Yes, tea!"])[0].logprob for x in (base, tuned))
    assert after > before


def test_full_fine_tuning_saves_a_whole_model(folder, tmp_path):
    finetune(folder, EXAMPLES, tmp_path/"full", SFTSettings(epochs=1, lora_rank=0, learning_rate=1e-3))
    whole = LanguageModel.load(str(tmp_path/"full"), dtype="float32")
    base = LanguageModel.load(folder, dtype="float32")
    new, old = (x.model.model.layers[0].mlp.up_proj.weight for x in (whole, base))
    assert not torch.equal(new, old)


def test_flagged_steps_and_long_examples_stay_out():
    steps = [{"text": "a", "flags": []}, {"text": "b", "flags": []}, {"text": "c", "flags": ["repeats"]}]
    record = {"prompt": [user("q")], "flags": [], "steps": steps}
    assert [e["completion"][0]["content"] for e in sft_examples([record])] == ["b"]
    assert len(sft_examples([record], "all", helpful=EXAMPLES)) == 1 + len(EXAMPLES)
    long = {"prompt": [user("x"*500)], "completion": [assistant("y")]}
    kept, dropped = training_rows([*EXAMPLES, long], tiny_tokenizer(), 200)
    assert (len(kept), dropped) == (4, 1)
    with pytest.raises(TrainingError, match="max_length"):
        training_rows(EXAMPLES, tiny_tokenizer(), 3)


def test_a_warmed_up_critic_comes_with_its_card(folder, tmp_path):
    finetune_critic(folder, EXAMPLES, tmp_path/"critic", {"tiny": "abc"}, SFTSettings(epochs=1))
    files = {p.name for p in (tmp_path/"critic").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "metrics.json", "README.md"}
    assert json.loads((tmp_path/"critic"/"metrics.json").read_text())["constitutions"] == {"tiny": "abc"}
    LanguageModel.load(folder, adapter=tmp_path/"critic", dtype="float32")


def test_nothing_is_reported_to_the_makers_of_trl(folder, tmp_path, monkeypatch):
    from trl.trainer import base_trainer

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: pytest.fail("telemetry"))
    finetune(str(folder), EXAMPLES, tmp_path, SFTSettings(epochs=1))
