"""Each of the three trainings learns the same with the engine room and without it: shared prefixes, frozen layers, LoRA layers."""

from contextlib import nullcontext

import pytest
from test_ppo import farthest, parameters
from tiny import tiny_folder

from cai_nb import engine, ppo, preference, sft
from cai_nb.dialogue import assistant, user
from cai_nb.model import LanguageModel
from cai_nb.training import lora_config

ASKED = "Please be so kind and tell me: "


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "tiny")


@pytest.fixture
def twice(monkeypatch):
    "Do something with the engine room and with `CAI_NB_PLAIN=1`; the first reads common prefixes once, the second never"
    counted, two = [], engine.forward_in_two_parts

    def spy(trunk, first, rest, *args):
        counted.append(next(iter(first.values())).shape[1])
        return two(trunk, first, rest, *args)

    monkeypatch.setattr(engine, "forward_in_two_parts", spy)

    def both(learn):
        ours, seen = learn("fast"), list(counted)
        with monkeypatch.context() as patch:
            patch.setenv("CAI_NB_PLAIN", "1")
            plain = learn("plain")
        assert seen and min(seen) >= len(ASKED) and len(counted) == len(seen)
        return ours, plain

    return both


def float32(monkeypatch, module):
    "Let a training load its model in float32, where the two ways differ by rounding alone"
    name = "sequence_classifier" if module is preference else "load_pretrained"
    usual = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: usual(*args, **{**kwargs, "dtype": "float32"}))


def test_fine_tuning_learns_the_same(folder, tmp_path, twice, monkeypatch):
    float32(monkeypatch, sft)
    examples = [{"prompt": [user(f"{ASKED}{w}")], "completion": [assistant(f"Yes, {w}!")]} for w in ("tea", "rain", "moss", "bread", "snow")]
    settings = sft.SFTSettings(epochs=2, batch_size=5, learning_rate=1e-2)
    ours, plain = twice(lambda name: sft.finetune(folder, examples, tmp_path / name, settings)["curve"])
    assert [c["loss"] for c in ours] == pytest.approx([c["loss"] for c in plain], rel=1e-4)
    assert ours[0]["loss"] > 1.001 * ours[-1]["loss"]


def test_a_preference_model_learns_the_same(folder, tmp_path, twice, monkeypatch):
    float32(monkeypatch, preference)
    rows = [{"id": f"{i}", "prompt": [user(f"{ASKED}{i}")], "chosen": [assistant(f"kind {i}")], "rejected": [assistant(f"rude {i}")], "label": 0.9,
             "kind": "harmful", "method": "probe"} for i in range(12)]  # fmt: skip
    settings = preference.PreferenceSettings(learning_rate=1e-3, epochs=2, lora_rank=4, batch_size=4)
    ours, plain = twice(lambda name: preference.train_preference_model(folder, rows, tmp_path / name, settings)["curve"])
    assert [c["loss"] for c in ours] == pytest.approx([c["loss"] for c in plain], rel=1e-3)
    assert ours[-1]["loss"] < 0.4  # 0.325 is the least that labels of 0.9 allow, 0.69 what nothing learnt gives


def test_a_preference_model_computes_its_frozen_layers_once_for_a_row(folder, tmp_path, monkeypatch):
    "Probe, training of two epochs and examination: in the lowest layer each row is seen once, and the model is the same."
    float32(monkeypatch, preference)
    rows = [{"id": f"{i}", "prompt": [user(f"{ASKED}{'x' * i}")], "chosen": [assistant(f"kind {i}")], "rejected": [assistant(f"rude {i}!")], "label": 0.9,
             "kind": "harmful", "method": "probe"} for i in range(10)]  # fmt: skip
    settings = preference.PreferenceSettings(learning_rate=1e-3, epochs=2, lora_rank=4, batch_size=4)
    usual, asked = preference.sequence_classifier, [0, 0]

    def watched(*args, **kwargs):
        made = usual(*args, **kwargs)
        for k, layer in enumerate((0, 3)):
            made[0].model.layers[layer].register_forward_pre_hook(
                lambda m, args, k=k: asked.__setitem__(k, asked[k] + len(args[0]) * (len(args[0]) > 1)))
        return made

    monkeypatch.setattr(preference, "sequence_classifier", watched)
    ours = preference.train_preference_model(folder, rows, tmp_path / "kept", settings)
    below, highest = asked
    monkeypatch.setattr(preference, "cache_frozen_activations", lambda model, layers: nullcontext())
    plain = preference.train_preference_model(folder, rows, tmp_path / "anew", settings)
    assert below == 2 * len(rows) and highest > 3 * below and asked[0] - below == asked[1] - highest == highest
    assert [c["loss"] for c in ours["curve"]] == pytest.approx([c["loss"] for c in plain["curve"]], rel=1e-3)
    assert ours["score_mean"] == pytest.approx(plain["score_mean"], rel=1e-3)


@pytest.mark.parametrize("again", [False, True])
def test_ppo_learns_the_same(folder, tmp_path, twice, again):
    "With recomputed activations, too, where the layers below the adapter are kept in two parts and the rest in one"
    prompts = [{"prompt": [user(f"{ASKED}{w}")]} for w in ("tea", "rain", "moss", "bread", "snow", "bees")]

    def learn(name):
        ratios, loss = [], ppo.policy_loss

        def spy(logprobs, old_logprobs, *args):
            ratios.append((logprobs - old_logprobs).abs().max().item())
            return loss(logprobs, old_logprobs, *args)

        more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if again else {}
        args = ppo.PPOConfig(str(tmp_path / name), rollouts=2, per_device_train_batch_size=4, num_mini_batches=2, max_completion_length=6,
                             learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, **more)
        lm = LanguageModel.load(folder, dtype="float32")
        run = ppo.PPOTrainer(lm, lambda prompts, completions, **_: [len(c) for c in completions],
                             args, prompts, peft_config=lora_config(lm.model, 4, 0.5))
        before = parameters(run)
        ppo.policy_loss = spy
        try:
            run.train()
        finally:
            ppo.policy_loss = loss
        assert ratios[0] < (1e-5 if again else 1e-12) and farthest(before, parameters(run)) > 1e-3
        return parameters(run)

    ours, plain = twice(learn)
    assert farthest(ours, plain) < 1e-4
