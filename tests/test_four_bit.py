"""Adapters trained on weights in 4 bits (QLoRA): what is rounded, that all three trainings learn so, and what comes out fits full weights."""

import sys

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from tiny import tiny_folder

from cai_nb.dialogue import assistant, user
from cai_nb.loading import ModelError, load_pretrained
from cai_nb.model import LanguageModel
from cai_nb.ppo import PPOConfig, PPOTrainer
from cai_nb.preference import PreferenceModel, PreferenceSettings, train_preference_model
from cai_nb.plan import plan, plan_text
from cai_nb.recipe import RecipeError, load_recipe
from cai_nb.sft import SFTSettings, finetune
from cai_nb.training import in_four_bits, linear_names, lora_config

WORDS = ("tea", "rain", "moss", "bread")
EXAMPLES = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"Yes, {w}!")]} for w in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"), hidden=64)


def prepacked_weights(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


def test_the_layers_maps_are_packed_to_an_eighth_and_say_nearly_the_same(folder):
    model, tokenizer, _ = load_pretrained(folder, dtype="float32")
    ids = torch.tensor([tokenizer("a few words about moss")["input_ids"]])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        full = model(ids).logits
        few = in_four_bits(model)(ids).logits
    found = prepacked_weights(model)
    assert {n.rsplit(".", 1)[-1] for n in found} == set(linear_names(model)) and len(found) == 7 * model.config.num_hidden_layers
    for name, m in found.items():
        was = before[name + ".weight"]
        assert m.weight.dtype == torch.uint8 and m.weight.numel() * 2 == was.numel()  # two weights a byte
        back = dequantize_4bit(m.weight.data, m.weight.quant_state)
        assert 0.05 < (back - was).norm() / was.norm() < 0.12  # sixteen values for a normal distribution
    others = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") not in found}
    assert others and all(torch.equal(p, before[n]) for n, p in others.items())
    assert 0.05 < ((few - full).norm() / full.norm()).item() < 0.6  # four layers of it, on random weights


def test_fine_tuning_learns_and_its_adapter_fits_the_full_weights(folder, tmp_path):
    settings = SFTSettings(epochs=30, batch_size=4, learning_rate=1e-2, lora_layer_fraction=1.0, four_bit=True)
    metrics = finetune(folder, EXAMPLES, tmp_path / "out", settings)
    assert metrics["curve"][-1]["loss"] < 0.7 * metrics["curve"][0]["loss"]
    base = LanguageModel.load(folder, dtype="float32")
    tuned = LanguageModel.load(folder, adapter=tmp_path / "out", dtype="float32")
    assert not prepacked_weights(tuned.model)
    before, after = (x.score([EXAMPLES[0]["prompt"]], ["Yes, tea!"])[0].logprob for x in (base, tuned))
    assert after > before + 1


def test_a_preference_model_learns(folder, tmp_path):
    rows = [{"id": f"{i}", "prompt": [user(f"q{i}")], "chosen": [assistant(f"kind {i}")], "rejected": [assistant(f"rude {i}")], "label": 0.9,
             "kind": "harmful", "method": "probe"} for i in range(24)]  # fmt: skip
    settings = PreferenceSettings(learning_rate=3e-3, epochs=8, lora_rank=4, batch_size=4, probe=False, four_bit=True)
    metrics = train_preference_model(folder, rows, tmp_path / "pm", settings)
    assert metrics["agreement"] > 0.8
    scorer = PreferenceModel.load(tmp_path / "pm", dtype="float32")
    good, bad = (scorer.score([[*r["prompt"], *r[k]] for r in rows]) for k in ("chosen", "rejected"))
    assert (good > bad).mean() > 0.8


def test_ppo_trains_the_adapter_and_leaves_the_packed_weights_alone(folder, tmp_path):
    lm = LanguageModel.load(folder, dtype="float32")
    in_four_bits(lm.model)
    before = {n: m.weight.detach().clone() for n, m in prepacked_weights(lm.model).items()}
    args = PPOConfig(str(tmp_path), rollouts=2, per_device_train_batch_size=4, num_mini_batches=1, num_ppo_epochs=2, max_completion_length=6,
                     learning_rate=1e-2, save_strategy="no", disable_tqdm=True, use_cpu=True, sample_rollouts=0)  # fmt: skip
    trainer = PPOTrainer(lm, lambda prompts, completions: [float(c.count("e")) - len(c) / 9 for c in completions], args,
                         [{"prompt": e["prompt"]} for e in EXAMPLES], peft_config=lora_config(lm.model, 4, 1.0))  # fmt: skip
    trainer.train()
    after = {n.replace(".base_layer", ""): m.weight for n, m in prepacked_weights(trainer.policy).items()}
    assert len(after) == len(before) and all(torch.equal(after[n], w) for n, w in before.items())
    moved = [p.abs().max().item() for n, p in trainer.policy.named_parameters() if "lora_B" in n]
    assert moved and max(moved) > 1e-3


def test_its_recipe_is_planned_for_24_gigabytes():
    recipe = load_recipe("qlora-7b")
    full = load_recipe("qlora-7b", ["model.four_bit=false"])
    assert recipe.model.four_bit and plan(recipe)["memory_gib"] < 24e9 / 2**30
    assert plan(full)["memory_gib"] - plan(recipe)["memory_gib"] == pytest.approx(1.4 * 7.24e9 / 2**30)
    assert "policy in 4 bits" in plan_text(recipe) and "policy in 4 bits" not in plan_text(full)


def test_what_it_needs_is_said(folder, monkeypatch):
    with pytest.raises(RecipeError, match="model.four_bit.*ppo.lora_rank"):
        load_recipe("smoke", ["model.four_bit=true", "ppo.lora_rank=0"])
    assert load_recipe("smoke", ["model.four_bit=true"]).model.four_bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"cai_nb\[qlora\]"):
        in_four_bits(load_pretrained(folder)[0])
