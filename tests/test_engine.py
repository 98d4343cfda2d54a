"""What only makes things fast (appendices A1 and A2) gives what plain transformers gives, and leaves no trace when it is off."""

import copy
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, model_folder
from tiny import tiny_folder

from cai_nb import cpu, engine
from cai_nb import model as md
from cai_nb.dialogue import assistant, user
from cai_nb.loading import engine_room, load_pretrained
from cai_nb.model import LanguageModel

ASKED = [[user("Hi?")], [user("A longer question, with more words in it, so that it is padded differently?")], [user("Why?")]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def fast(folder):
    return LanguageModel.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def plain(folder):
    return LanguageModel.load(folder, dtype="float32", plain=True)


# ---- the switch


def test_plain_code_never_reaches_the_appendices(folder):
    "With `CAI_NB_PLAIN=1` neither of the two modules is even imported, by sampling, labels, scoring, features and a training."
    code = f"""
import sys
from cai_nb.dialogue import assistant, user
from cai_nb.model import LanguageModel, prefix_caching
from cai_nb.sft import SFTSettings, finetune
lm = LanguageModel.load({folder!r}, dtype="float32")
with prefix_caching(lm):
    lm.sample([[user("Hi?")]], max_tokens=4)
lm.option_logprobs([[user("A or B?")]]), lm.score([[user("Hi?")]], ["yes"]), lm.features([[user("Hi?"), assistant("yes")]], layers=(2,))
finetune({folder!r}, [{{"prompt": [user("Hi?")], "completion": [assistant("yes")]}}], {folder + "-out"!r}, SFTSettings(epochs=1))
assert not {{"cai_nb.engine", "cai_nb.cpu"}} & set(sys.modules), "reached"
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"CAI_NB_PLAIN": "1"}, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


def test_one_model_can_be_plain_beside_others(fast, plain, monkeypatch):
    assert engine_room("engine", fast.model) is engine and engine_room("cpu", fast.model) is cpu
    assert engine_room("engine", plain.model) is None and engine_room("cpu", plain.model) is None
    for value, there in (("0", True), ("1", False)):
        monkeypatch.setenv("CAI_NB_PLAIN", value)
        assert (engine_room("engine") is engine) == there


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-NeoX", "Mistral, window"])
def test_greedy_tokens_options_scores_and_features_are_the_same_either_way(tmp_path, name):
    where = model_folder(name, tmp_path / "model")
    one, other = (LanguageModel.load(where, dtype="float32", plain=p) for p in (False, True))
    assert [r.text for r in one.sample(ASKED, max_tokens=16, temperature=0)] == [r.text for r in other.sample(ASKED, max_tokens=16, temperature=0)]
    assert one.sample(ASKED, max_tokens=16, top_p=0.9) == other.sample(ASKED, max_tokens=16, top_p=0.9)
    texts = ["yes", "no, never", "It is so."]
    assert np.allclose(one.option_logprobs(ASKED), other.option_logprobs(ASKED), atol=1e-4)
    assert np.allclose([s.logprob for s in one.score(ASKED, texts)], [s.logprob for s in other.score(ASKED, texts)], atol=1e-3)
    talks = [[*p, assistant(t)] for p, t in zip(ASKED, texts)]
    assert np.allclose(one.features(talks, layers=(0, 2, 4)), other.features(talks, layers=(0, 2, 4)), atol=1e-4)


def test_what_the_engine_does_not_fit_is_left_to_transformers(tmp_path):
    fitting = {name: engine.fits(load_pretrained(model_folder(name, tmp_path / name))[0]) for name in ARCHITECTURES}
    assert {name for name, fits in fitting.items() if not fits} == {"Gemma 2", "Gemma 3", "Gemma 3, composite", "Mistral, window"}
    from transformers import FalconConfig, LlamaConfig, Qwen2Config

    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    odd = [FalconConfig(**small, alibi=True), LlamaConfig(**small, rope_parameters=rope),
           Qwen2Config(**small, use_sliding_window=True, sliding_window=8, max_window_layers=1)]  # fmt: skip
    assert not any(engine.fits(type("Model", (), {"config": config})) for config in odd)


# ---- decoding


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9), (0, 1.0)])
def test_rows_that_end_leave_the_batch_and_the_rest_get_what_generate_gives(fast, plain, temperature, top_p):
    "With many ends: twelve of the 259 tokens, so that rows leave at different steps."
    rows = fast.encode([[user("word " * k)] for k in range(1, 9)])
    stops, numbers = list(range(100, 112)), md.row_uniforms(0, range(8), 40)
    calls, forward = [], fast.model.forward
    fast.model.forward = lambda *a, **k: calls.append(len(k["input_ids"])) or forward(*a, **k)
    try:
        ours = md.generate_tokens(fast.model, rows, numbers, stops, 0, temperature, top_p)
    finally:
        del fast.model.forward
    assert ours == md.generate_tokens(plain.model, rows, numbers, stops, 0, temperature, top_p)
    assert [len(r) for r in ours] == [next((i + 1 for i, t in enumerate(r) if t in stops), 40) for r in ours]
    if temperature == 1:
        assert calls[0] == 8 and calls[-1] < 4 and len({len(r) for r in ours}) > 3 and len(calls) == max(map(len, ours))


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_top_p_cuts_after_the_temperature_as_transformers_does(fast, top_p):
    "The distribution of what is drawn is that of `generate` with the same settings."
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    theirs = LogitsProcessorList([TemperatureLogitsWarper(0.4), TopPLogitsWarper(top_p)])(None, scores.clone())[0].softmax(-1)
    before = TopPLogitsWarper(top_p)(None, scores.clone())[0]
    assert int((before > -torch.inf).sum()) > int((theirs > 0).sum())  # or else the order would not matter here
    u = torch.linspace(0, 1 - 1e-9, 20_001, dtype=torch.float64)
    ours = torch.bincount(md.sample_from_uniform(u, scores.repeat(len(u), 1), 0.4, top_p), minlength=50) / len(u)
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("lengths", [(9, 1, 5, 2, 30, 3, 7), (6, 5, 6, 5)])
def test_prompts_read_after_their_common_prefix_are_read_as_all_at_once(fast, alike, lengths):
    rows = [list(range(60, 80)) * alike + [40 + k] + [7 + k % 5] * n for k, n in enumerate(lengths)]
    ids, mask = md.pad_rows(rows, 0, left=True)
    whole = fast.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1]
    read, forward = [], fast.model.forward
    fast.model.forward = lambda *a, **k: read.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    try:
        logits, past, seen, positions = engine.prefill(fast.model, rows, 0)
    finally:
        del fast.model.forward
    assert ((1, 20) in read) == alike and len(read) == 1 + alike
    assert torch.allclose(whole, logits, atol=1e-4)
    assert seen.sum(-1).tolist() == list(map(len, rows)) and positions[:, 0].tolist() == [len(r) - 1 for r in rows]
    assert past.get_seq_length() == seen.shape[1]


@pytest.mark.parametrize("ids, n", [
    ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]], 2), ([[1, 2, 3, 4]] * 3, 3),  # one token is left to read
    ([[1, 2, 3, 4], [1, 2, 3, 5]], 0), ([[1, 2, 3], [1, 9, 3], [1, 2, 3]], 0), ([[1, 2]] * 3, 0)])
def test_how_far_rows_begin_alike(ids, n):
    assert engine.common_prefix_length(torch.tensor(ids), least=2, rows=3) == n


def test_options_after_shared_exemplars_are_what_each_prompt_alone_gives(fast, plain):
    shown = [m for k in range(12) for m in (user(f"Question {k}?"), assistant("Yes, it is so."))]
    asked = [[*shown[:20], user(f"{word} or not?")] for word in ("Salt", "Pepper and more of it", "No")]
    asked += [[*shown[4:], user("Other")], [user("Alone")], [*shown[4:], user("Other things")], asked[0]]
    prefixes = ["The answer is: ("] * 5 + ["Let me see. The answer is: (", "I say ("]
    groups = engine.group_by_prefix([fast.encode([d], p)[0] for d, p in zip(asked, prefixes)])
    assert sorted(map(len, groups)) == [1, 2, 4] and sorted(i for g in groups for i in g) == list(range(7))
    once = fast.option_logprobs(asked, prefix=prefixes, batch_size=4)
    one_by_one = [plain.option_logprobs([d], prefix=p)[0] for d, p in zip(asked, prefixes)]
    assert np.abs(once - one_by_one).max() < 1e-5


# ---- the prefix cache


@pytest.mark.parametrize("room", [1 << 30, 20_000, 0])
def test_what_continues_from_a_cache_is_what_is_read_as_a_whole(fast, room):
    "Whatever fits into the cache; also where an earlier response was cut, and where a prompt is new."
    keys = ["a", "b", "c"]
    first = fast.sample(ASKED, max_tokens=12, keys=keys)
    more = [[*p, assistant(r.text[: k + 3]), user(f"And {k}?")] for k, (p, r) in enumerate(zip(ASKED, first))]
    more[2] = [user("Something else altogether?")]
    alone = fast.sample(more, max_tokens=12, keys=keys, batch_size=2)
    reads = []
    with fast.model.register_forward_pre_hook(lambda m, a, k: reads.append(k["input_ids"].numel()), with_kwargs=True):
        fast.sample(more, max_tokens=12, keys=keys, batch_size=2)
        whole = sum(reads)
        with md.prefix_caching(fast):
            fast.model.prefix_cache.room = room
            fast.sample(ASKED, max_tokens=12, keys=keys, batch_size=2)
            assert len(fast.model.prefix_cache.rows) == {1 << 30: 3, 20_000: 1, 0: 0}[room]
            reads.clear()
            assert fast.sample(more, max_tokens=12, keys=keys, batch_size=2) == alone
    assert not hasattr(fast.model, "prefix_cache")
    assert sum(reads) < whole if room == 1 << 30 else sum(reads) <= whole


# ---- a shared prefix in the trunk


def test_a_common_prefix_is_read_once_and_gradients_flow_through_it(folder):
    "States, and the gradients of every weight"
    model = load_pretrained(folder, dtype="float32")[0]
    torch.manual_seed(0)
    ids = torch.cat([torch.arange(20, 44).expand(4, -1), torch.randint(3, 200, (4, 9))], 1)
    mask = torch.ones_like(ids)
    mask[1, -4:] = mask[3, -7:] = 0
    seen, found = [], []
    with model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2]))):
        for plain in (True, False):
            model.plain = plain
            states, lower = md.trunk_states(model, ids, mask), md.trunk_states(model, ids, mask, layers=(1, 4))
            model.zero_grad()
            (states * mask[..., None]).sin().sum().backward()
            found.append(([states, *lower], [p.grad.clone() for p in model.model.parameters()]))
    assert seen == [(4, 33)] * 2 + [(1, 24), (4, 9)] * 2
    (a, ga), (b, gb) = found
    there = mask.bool()
    assert all(torch.allclose(x[there], y[there], atol=1e-5) for x, y in zip(a, b))
    assert all(torch.allclose(x, y, atol=1e-4, rtol=1e-3) for x, y in zip(ga, gb)) and max(g.abs().max() for g in ga) > 1e-2


def test_rows_padded_on_the_left_with_positions_or_checkpointing_are_read_as_they_are(folder):
    model = load_pretrained(folder, dtype="float32")[0]
    ids, seen = torch.arange(20, 50).expand(4, -1), []
    left = torch.ones_like(ids)
    left[2, :3] = 0
    trunk = model.get_decoder()
    with torch.no_grad(), trunk.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2]))):
        assert torch.equal(md.trunk_states(model, ids, left), trunk(ids, left).last_hidden_state)
        md.trunk_states(model, ids, position_ids=torch.arange(30)[None])
        trunk.config._attn_implementation = "eager"
        md.trunk_states(model, ids)
        trunk.config._attn_implementation = "sdpa"
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        md.trunk_states(model, ids)
        model.gradient_checkpointing_disable()
        assert set(seen) == {(4, 30)}
        md.trunk_states(model, ids)
    assert seen[-2:] == [(1, 29), (4, 1)]


def test_loading_changes_no_forward(fast):
    "Patching is opt-in: nothing of a loaded model runs through us."
    assert not [name for name, m in fast.model.named_modules() if "forward" in vars(m)]


# ---- frozen layers


def test_frozen_layers_are_computed_once_for_a_row_as_long_as_there_is_room(folder):
    model = load_pretrained(folder, dtype="float32")[0]
    ids = torch.cat([torch.arange(20, 44).expand(4, -1), torch.randint(3, 200, (4, 6), generator=torch.Generator().manual_seed(0))], 1)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with torch.inference_mode():
        plain = md.trunk_states(model, ids, mask)
    for room, rows in ((1 << 20, 4), (2 * 30 * 32 * 4, 2), (0, 0)):
        asked = []
        with cpu.cache_frozen_activations(model, 2, room) as cache, model.model.layers[0].register_forward_pre_hook(lambda *_, asked=asked: asked.append(1)):
            with torch.inference_mode():
                md.trunk_states(model, ids, mask)
            assert len(cache.states) == rows and not any(x.is_inference() for x in cache.states.values())
            asked.clear()
            states = md.trunk_states(model, ids, mask)
            assert bool(asked) == (rows < 4) and torch.allclose(states[mask.bool()], plain[mask.bool()], atol=1e-5)
            if rows == 4:
                model.model.layers[3].zero_grad()
                states.sum().backward()
                assert model.model.layers[3].mlp.up_proj.weight.grad.abs().max() > 0 and model.model.layers[1].mlp.up_proj.weight.grad is None
    assert not hasattr(model, "frozen_cache") and len(model.model.layers) == 4


@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3, composite", "Mistral, window"])
def test_a_trunk_that_cannot_be_cut_is_not(tmp_path, name):
    model = load_pretrained(model_folder(name, tmp_path / "model"), dtype="float32")[0]
    with cpu.cache_frozen_activations(model, 2) as cache:
        assert cache is None


def test_a_trunk_that_does_something_to_embeddings_first_is_not_cut(folder, monkeypatch):
    from transformers import LlamaModel

    own = LlamaModel.forward

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return own(self, inputs_embeds=2 * embeds, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", functools.wraps(own)(forward))
    model = load_pretrained(folder, dtype="float32")[0]
    with cpu.cache_frozen_activations(model, 2) as cache:
        assert cache is None
        ids = torch.arange(20, 50)[None]
        assert torch.equal(md.trunk_states(model, ids), model.model(ids).last_hidden_state)


# ---- LoRA


def test_an_adapter_multiplied_in_the_weights_type_is_the_adapter(folder):
    from peft import get_peft_model

    from cai_nb.training import lora_config

    base = load_pretrained(folder, dtype="float32")[0]
    ours = get_peft_model(copy.deepcopy(base), lora_config(base, 4))
    base.plain = True
    theirs = get_peft_model(base, lora_config(base, 4))
    assert {type(m).__name__ for m in ours.modules()} - {type(m).__name__ for m in theirs.modules()} == {"LoraLinear"}
    for (n, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        if "lora" in n:
            with torch.no_grad():
                p.copy_(q.normal_(std=0.3))
    ids = torch.arange(20, 50)[None]
    outs = [m(ids).logits for m in (ours, theirs)]
    assert torch.allclose(*outs, atol=1e-4)
    for out in outs:
        out.sin().sum().backward()
    for (n, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-3, rtol=1e-3)), n
