"""Activations recomputed in the backward pass instead of kept: every training has the same loss and weights."""

import pytest
import test_ppo
import torch
from tiny import tiny_folder

from cai_nb import ppo, preference, sft, training
from cai_nb.dialogue import assistant, user

WORDS = ("tea", "rain", "moss", "bread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def again(monkeypatch):
    "A function that trains as on a GPU with a large model, and one that counts how often a layer was recomputed"
    made, plain = [], torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        made.append(1)
        return plain(*args, **kwargs)

    def switch(module):
        import transformers.modeling_utils as mu

        monkeypatch.setattr(mu, "checkpoint", counted)
        usual = training.trainer_defaults
        monkeypatch.setattr(module, "trainer_defaults", lambda n=0: usual(n) | {"gradient_checkpointing": True})

    return switch, made


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_on_a_gpu_only_large_models_pay_for_it(monkeypatch):
    assert not training.trainer_defaults(7_000_000_000)["gradient_checkpointing"]  # on a CPU memory is not what is short
    monkeypatch.setattr(training, "best_device", lambda: "cuda")
    assert training.trainer_defaults(7_000_000_000)["gradient_checkpointing"] and not training.trainer_defaults(135_000_000)["gradient_checkpointing"]


@pytest.mark.parametrize("four_bit", [False, True])
def test_fine_tuning(folder, tmp_path, again, four_bit):
    examples = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"Yes, {w}!")]} for w in WORDS]
    settings = sft.SFTSettings(epochs=3, batch_size=4, learning_rate=1e-2, four_bit=four_bit)
    usual = sft.finetune(folder, examples, tmp_path / "usual", settings)
    switch, made = again
    switch(sft)
    other = sft.finetune(folder, examples, tmp_path / "again", settings)
    assert made
    assert [row["loss"] for row in other["curve"]] == pytest.approx([row["loss"] for row in usual["curve"]], rel=1e-5)
    a, b = (weights(tmp_path / name) for name in ("usual", "again"))
    assert all(torch.allclose(a[n], b[n], atol=1e-5) for n in a)


def test_preference_model(folder, tmp_path, again):
    rows = [{"id": f"{i}", "prompt": [user(f"q{i}")], "chosen": [assistant(f"kind {i}")], "rejected": [assistant(f"rude {i}")], "label": 0.9,
             "kind": "harmful", "method": "probe"} for i in range(12)]  # fmt: skip
    settings = preference.PreferenceSettings(learning_rate=1e-3, epochs=2, lora_rank=4, batch_size=4, probe=False)
    usual = preference.train_preference_model(folder, rows, tmp_path / "usual", settings)
    switch, made = again
    switch(preference)
    other = preference.train_preference_model(folder, rows, tmp_path / "again", settings)
    assert made and [r["loss"] for r in other["curve"]] == pytest.approx([r["loss"] for r in usual["curve"]], rel=1e-4)


def test_ppo_and_its_first_ratio(tmp_path, again):
    def learnt(name, **settings):
        run, ratios = test_ppo.trainer(tmp_path / name, peft_config=test_ppo.lora(), **settings), []

        def spy(logprobs, old_logprobs, *args):
            ratios.append(torch.equal(logprobs, old_logprobs))
            return loss(logprobs, old_logprobs, *args)

        loss, ppo.policy_loss = ppo.policy_loss, spy
        try:
            run.train()
        finally:
            ppo.policy_loss = loss
        return test_ppo.parameters(run), ratios

    usual, _ = learnt("usual")
    switch, made = again
    switch(training)
    other, ratios = learnt("again", gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert made and ratios[0] and ratios[4]
    assert test_ppo.farthest(usual, other) < 1e-5
