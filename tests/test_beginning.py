"""Each of the three trainings reads what its rows begin with once, and learns what it learnt before."""

import pytest
from test_ppo import farthest, parameters
import torch
from tiny import tiny_folder

import cai_nb.model as md
from cai_nb import ppo, preference, sft
from cai_nb.dialogue import assistant, user

ASKED = "Please be so kind and tell me: "


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "tiny")


@pytest.fixture
def twice(monkeypatch):
    "Do something as it is done, and with every beginning read as often as it stands there; counts readings in two parts"
    counted = []
    two = md.forward_with_shared_prefix

    def spy(trunk, once, rest):
        counted.append(next(iter(once.values())).shape[1])
        return two(trunk, once, rest)

    monkeypatch.setattr(md, "forward_with_shared_prefix", spy)

    def both(learn):
        ours, seen = learn("once"), list(counted)
        with monkeypatch.context() as patch:
            patch.setattr(md, "common_prefix_length", lambda *args: 0)
            plain = learn("always")
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


def test_a_preference_model_asks_its_still_layers_once_for_a_row(folder, tmp_path, monkeypatch):
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
    monkeypatch.setattr(preference, "cache_frozen_activations", lambda trunk, still: md.cache_frozen_activations(trunk, 0))
    plain = preference.train_preference_model(folder, rows, tmp_path / "anew", settings)
    assert below == 2 * len(rows) and highest > 3 * below and asked[0] - below == asked[1] - highest == highest
    assert [c["loss"] for c in ours["curve"]] == pytest.approx([c["loss"] for c in plain["curve"]], rel=1e-3)
    assert ours["score_mean"] == pytest.approx(plain["score_mean"], rel=1e-3)


def test_rows_are_kept_as_long_as_there_is_room(folder):
    trunk = md.LanguageModel.load(folder, dtype="float32").model.base_model
    ids = torch.cat([torch.arange(20, 44).expand(4, -1), torch.randint(3, 200, (4, 6), generator=torch.Generator().manual_seed(0))], 1)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    forward = trunk.forward
    with torch.inference_mode():
        plain = trunk(**given).last_hidden_state
    for room, rows in ((1 << 20, 4), (2 * 30 * 32 * 4, 2), (0, 0)):
        with md.cache_frozen_activations(trunk, 2, room) as kept:
            with torch.inference_mode():
                trunk(**given)
            assert len(kept) == rows and not any(x.is_inference() for x in kept.values())
            states = trunk(**given).last_hidden_state
            assert torch.allclose(states[mask.bool()], plain[mask.bool()], atol=1e-5)
            if rows == 4:
                trunk.layers[3].zero_grad()
                states.sum().backward()
                assert trunk.layers[3].mlp.up_proj.weight.grad.abs().max() > 0 and trunk.layers[1].mlp.up_proj.weight.grad is None
    assert trunk.forward == forward and len(trunk.layers) == 4


@pytest.mark.parametrize("again", [False, True])
def test_ppo_learns_the_same(folder, tmp_path, twice, again):
    "With activations made again, too, where the layers below the adapter are kept in two parts and the rest is asked in one"
    prompts = [{"prompt": [user(f"{ASKED}{w}")]} for w in ("tea", "rain", "moss", "bread", "snow", "bees")]

    def learn(name):
        ratios, loss = [], ppo.policy_loss

        def spy(logprobs, old_logprobs, *args):
            ratios.append((logprobs - old_logprobs).abs().max().item())
            return loss(logprobs, old_logprobs, *args)

        more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if again else {}
        args = ppo.PPOConfig(str(tmp_path / name), rollouts=2, per_device_train_batch_size=4, num_mini_batches=2, max_completion_length=6,
                             learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, **more)
        lm = md.LanguageModel.load(folder, dtype="float32")
        run = ppo.PPOTrainer(lm, lambda prompts, completions, **_: [len(c) for c in completions],
                             args, prompts, peft_config=md.lora_config(lm.model, 4, 0.5))
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


def test_trunks_with_a_mask_elsewhere_are_called_as_they_want_it():
    "GPT-2's second parameter is the cache, and windows, ALiBi and stretched places are left alone"
    from transformers import FalconConfig, GPT2Config, GPT2Model, LlamaConfig, MistralConfig

    torch.manual_seed(0)
    trunk = GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    ids = torch.cat([torch.arange(3, 27).expand(4, -1), torch.randint(3, 64, (4, 6))], 1)
    plain, once = trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state, []
    md.share_prefix_forward(trunk)
    trunk.h[0].register_forward_pre_hook(lambda module, args: once.append(tuple(args[0].shape[:2])))
    assert torch.allclose(trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state, plain, atol=1e-5)
    assert once == [(1, 24), (4, 6)]
    trunk.config._attn_implementation = "eager"  # it would add the mask of the second part as numbers
    assert torch.allclose(trunk(input_ids=ids, use_cache=False).last_hidden_state, plain, atol=1e-5)

    class Model:
        def __init__(self, config):
            self.config = config

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
    assert md.is_full_attention(Model(LlamaConfig(**small)))
    odd = (MistralConfig(**small, sliding_window=16), FalconConfig(**small, alibi=True), LlamaConfig(**small, rope_parameters=rope))
    assert not any(md.is_full_attention(Model(config)) for config in odd)


def test_packed_weights_let_gradients_through():
    linear = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    x = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    with md.prepacked_weights(linear):
        linear(x).float().sum().backward()
    assert x.grad is not None and linear.weight.grad is not None
