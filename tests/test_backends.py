"""Every backend has the same three methods with the same results; a server's failures end in one line or not at all."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_folder

from cai_nb.backends import ServerModel, open_model, option_row, token_row
from cai_nb.dialogue import user
from cai_nb.model import LanguageModel, ModelError

SIGNATURES = json.loads((Path(__file__).parent / "vllm.json").read_text())
ASKED = [[user("Hi?")], [user("A longer question, with more words in it?")], [user("Why?")]]
KEY = "sk-secret-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return LanguageModel.load(folder, dtype="float32", device="cpu")


# vLLM: an engine that is held to the real signatures and computes with the transformers model


def bind(what, args, kwargs):
    "Fail as the real function would if a call does not fit it"
    takes = SIGNATURES[what[0]][what[1]]
    assert len(args) <= len(takes["positional"]), what
    named = dict(zip(takes["positional"], args)) | kwargs
    for key in kwargs:
        assert key in takes["positional"] + takes["keyword"] or takes["any"] and key in SIGNATURES["EngineArgs"]["fields"], key
    assert set(takes["needed"]) <= set(named), what
    return named


def record(name):
    "A class with the fields of the real one, and no other"
    fields = SIGNATURES[name].get("fields") or SIGNATURES[name]["attributes"]

    def init(self, **given):
        assert set(given) <= set(fields), (name, set(given) - set(fields))
        self.__dict__.update(given)

    return type(name, (), {"__init__": init, "__slots__": ("__dict__",)})


SamplingParams, CompletionOutput, RequestOutput, Logprob = map(
    record, ("SamplingParams", "CompletionOutput", "RequestOutput", "Logprob"))


class Engine:
    "vllm.LLM, as far as its signatures go, with the arithmetic of transformers"

    def __init__(self, *args, **kwargs):
        self.given = bind(("LLM", "__init__"), args, kwargs)
        self.lm = LanguageModel.load(self.given["model"], dtype="float32", device="cpu")
        self.model_config = types.SimpleNamespace(max_model_len=self.lm.context)

    def get_tokenizer(self):
        return self.lm.tokenizer

    def generate(self, *args, **kwargs):
        given, out = bind(("LLM", "generate"), args, kwargs), []
        for prompt, p in zip(given["prompts"], given["sampling_params"]):
            ids = prompt["prompt_token_ids"]
            with torch.no_grad():
                logp = self.lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            said, first, prompt_logprobs = [], None, None
            if getattr(p, "logprob_token_ids", None):
                first = [{t: Logprob(logprob=logp[-1, t].item()) for t in p.logprob_token_ids}]
            if getattr(p, "prompt_logprobs", None) is not None:
                prompt_logprobs = [None] + [{t: Logprob(logprob=logp[i, t].item())} for i, t in enumerate(ids[1:])]
            reason = "length"
            stream = torch.Generator().manual_seed(getattr(p, "seed", 0))
            while len(said) < p.max_tokens:
                with torch.no_grad():
                    logits = self.lm.model(torch.tensor([ids + said])).logits[0, -1]
                drawn = (logits / (p.temperature or 1)).softmax(-1).multinomial(1, generator=stream)
                said.append((drawn if p.temperature else logits.argmax()).item())
                if said[-1] in self.lm.end_ids:
                    reason = "stop"
                    break
            text = self.lm.tokenizer.decode(said, skip_special_tokens=True)
            done = CompletionOutput(text=text, token_ids=said, finish_reason=reason, logprobs=first)
            out.append(RequestOutput(outputs=[done], prompt_logprobs=prompt_logprobs))
        return out


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine, SamplingParams=SamplingParams))


def same_methods(other, model):
    "The three methods, compared with transformers"
    assert other.sample(ASKED, 8, temperature=0) == model.sample(ASKED, 8, temperature=0)
    mine = other.option_logprobs(ASKED, ("A", "B"), prefix=["The answer is: (", "(", "So ("])
    np.testing.assert_allclose(mine, model.option_logprobs(ASKED, ("A", "B"), prefix=["The answer is: (", "(", "So ("]), atol=2e-5)
    scores = other.score(ASKED, ["Yes.", "No, by no means.", "Because"])
    for s, t in zip(scores, model.score(ASKED, ["Yes.", "No, by no means.", "Because"])):
        assert s.tokens == t.tokens
        assert s.logprob == pytest.approx(t.logprob, abs=1e-4)


def test_vllm_gives_the_same_results_through_its_real_signatures(vllm, model, folder):
    lm = open_model(folder, engine="vllm")
    assert lm.engine.given["enable_prefix_caching"] and lm.engine.given["trust_remote_code"] is False
    same_methods(lm, model)
    assert lm.id == model.id  # records do not tell which backend held the same weights
    keys = ["a", "b", "c"]  # a row's text belongs to its key, not to its place
    together = lm.sample(ASKED, 12, keys=keys)
    assert together == lm.sample(ASKED[::-1], 12, keys=keys[::-1])[::-1] == [lm.sample([a], 12, keys=[k])[0] for a, k in zip(ASKED, keys)]
    assert together != lm.sample(ASKED, 12, keys=keys, seed=1)
    assert lm.sample([], 4) == [] and lm.option_logprobs([]).shape == (0, 2) and lm.score([], []) == []
    with pytest.raises(ModelError, match="exceeds the context"):
        lm.sample([[user("x" * 2000)]])
    with pytest.raises(ModelError, match="hidden states"):
        lm.features([])


def test_vllm_serves_the_merged_adapter(vllm, folder, tmp_path, monkeypatch):
    from peft import get_peft_model

    from cai_nb.loading import load_pretrained
    from cai_nb.training import lora_config

    monkeypatch.setenv("CAI_NB_CACHE", str(tmp_path / "cache"))
    base, _, _ = load_pretrained(folder, dtype="float32", device="cpu")
    tuned = get_peft_model(base, lora_config(base, 4))
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    lm = open_model(folder, adapter=tmp_path / "adapter", engine="vllm")
    here = LanguageModel.load(folder, adapter=tmp_path / "adapter", dtype="bfloat16", device="cpu")
    assert lm.id == here.id and "adapter@" in lm.id
    plain = open_model(folder, engine="vllm")
    assert not np.allclose(lm.option_logprobs(ASKED), plain.option_logprobs(ASKED), atol=1e-3)
    again = open_model(folder, adapter=tmp_path / "adapter", engine="vllm")  # from the cache
    np.testing.assert_array_equal(again.option_logprobs(ASKED), lm.option_logprobs(ASKED))
    changed = tmp_path / "changed"  # the same base but for its last layer: what was merged with the other must not serve it
    shutil.copytree(folder, changed / Path(folder).name)
    weights = next((changed / Path(folder).name).glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\x00\x00\x00\x40"
    weights.write_bytes(data)
    assert open_model(str(changed / Path(folder).name), adapter=tmp_path / "adapter", engine="vllm").id != lm.id
    assert len([p for p in (tmp_path / "cache" / "merged").iterdir() if p.is_dir()]) == 2


def test_without_vllm_the_extra_is_named(folder):
    if "vllm" in sys.modules:
        pytest.skip("vLLM is here")
    with pytest.raises(ModelError, match=r"cai_nb\[vllm\]"):
        open_model(folder, engine="vllm")


# a server: the protocol with log-probabilities, from the tiny model


class Server:
    "An OpenAI-compatible server of a model, with a queue of moods for the next requests"

    def __init__(self, lm, logprobs=True):
        outer = self
        self.lm, self.logprobs, self.moods, self.seen, self.most, self.now = lm, logprobs, [], [], 0, 0
        self.strict = False  # True: only the protocol's own fields are known
        self.gate, self.lock = threading.Lock(), threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            log_message = lambda *a: None  # noqa: E731

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    outer.seen.append((self.path, self.headers.get("Authorization"), body))
                    mood = outer.moods.pop(0) if outer.moods else "well"
                try:
                    self.answer(body, mood)
                finally:
                    with outer.lock:
                        outer.now -= 1

            def answer(self, body, mood):
                if mood == "drop":
                    self.close_connection = True
                    return self.connection.close()
                if mood == "hang":
                    time.sleep(1.5)
                status = int(mood) if mood.isdigit() else 200
                if status != 200:
                    said = {"error": {"message": f"no: Bearer {KEY} and more", "type": "t", "code": None}}
                elif outer.strict and "stop_token_ids" in body:
                    status, said = 422, {"error": {"message": "Unexpected keys in the request: {'stop_token_ids'}"}}
                elif "logprobs" in body and not outer.logprobs:
                    status, said = 422, {"error": {"message": "Unsupported fields: logprobs"}}
                else:
                    with outer.gate:
                        said = outer.completion(self.path, body)
                raw = json.dumps(said).encode()
                raw = {"garbage": b"<html>down for maintenance</html>", "list": b"[1, 2]", "empty": b'{"choices": []}'}.get(mood, raw)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2] if mood == "half" else raw)
                if mood == "half":
                    self.close_connection = True
                    self.connection.close()

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def completion(self, path, body):
        lm, chat = self.lm, "chat" in path
        if chat:
            ids = lm.encode([body["messages"]])[0]
        else:
            ids = body["prompt"] if isinstance(body["prompt"], list) else lm.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        said = []
        while len(said) < body["max_tokens"] and not (said and said[-1] in lm.end_ids):
            with torch.no_grad():
                said.append(lm.model(torch.tensor([ids + said])).logits[0, -1].argmax().item())
        text = lm.tokenizer.decode(said, skip_special_tokens=True)
        choice = {"index": 0, "finish_reason": "stop" if said[-1] in lm.end_ids else "length"}
        best = logp[-1].topk(20)
        top = [(lm.tokenizer.decode([t]), p) for t, p in zip(best.indices.tolist(), best.values.tolist())]
        if chat:
            choice |= {"message": {"role": "assistant", "content": text}}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "bytes": None,
                                                   "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in top]}]}
        else:
            choice |= {"text": text, "logprobs": None}
            if "logprobs" in body:
                spread = {t: p for t, p in top} if body["logprobs"] > 1 else {}
                choice["logprobs"] = {"tokens": [], "text_offset": [], "top_logprobs": [spread], "token_logprobs": [0.0]}
                if body.get("echo"):
                    given = [None] + [logp[i, t].item() for i, t in enumerate(ids[1:])]
                    choice["logprobs"]["token_logprobs"] = given + [0.0]
        return {"id": "1", "object": "chat.completion" if chat else "text_completion", "created": 0, "model": "tiny", "choices": [choice],
                "usage": {"prompt_tokens": len(ids), "completion_tokens": len(said), "total_tokens": 0}}


@pytest.fixture
def server(model, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("CAI_NB_API_KEY", KEY)
    found = Server(model)
    yield found
    found.http.shutdown()


@pytest.fixture
def near(monkeypatch):
    "No waiting between tries"
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(openai._base_client.BaseClient, "_calculate_retry_timeout", lambda *a, **k: 0.01)
    monkeypatch.setattr(ServerModel, "_wait", lambda *a: None)


def test_a_server_gives_the_same_results(server, model, folder):
    lm = open_model(f"server:{server.url}#tiny?tokenizer={folder}")
    assert [c.text for c in lm.sample(ASKED, 8, temperature=0)] == [c.text for c in model.sample(ASKED, 8, temperature=0)]
    options = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # so many that some are among the likeliest twenty and some are not
    mine, right = lm.option_logprobs(ASKED, options, prefix="The answer is: ("), model.option_logprobs(ASKED, options, prefix="The answer is: (")
    for got, true, dialogue in zip(mine, right, ASKED):
        every = model.model(torch.tensor(model.encode([dialogue], "The answer is: ("))).logits[0, -1].log_softmax(-1)
        bound = every.topk(20).values[-1].item()
        np.testing.assert_allclose(got, np.maximum(true, bound), atol=1e-4)
    assert (mine > right + 0.01).any() and np.isclose(mine, right, atol=1e-4).any()
    for s, t in zip(lm.score(ASKED, ["Yes.", "No.", "So"]), model.score(ASKED, ["Yes.", "No.", "So"])):
        assert (s.tokens, s.logprob) == (t.tokens, pytest.approx(t.logprob, abs=1e-4))
    assert all(body["model"] == "tiny" for _, _, body in server.seen)


def test_chat_messages_go_to_a_server_whose_tokenizer_is_not_known(server, model):
    lm = open_model(f"server:{server.url}#tiny")
    assert [c.text for c in lm.sample(ASKED, 8, temperature=0)] == [c.text for c in model.sample(ASKED, 8, temperature=0)]
    assert server.seen[0][0].endswith("/chat/completions") and server.seen[0][2]["messages"] in ASKED
    assert lm.option_logprobs(ASKED).shape == (3, 2) and lm.fits(ASKED) == [True] * 3
    for ask in (lambda: lm.sample(ASKED, prefix="Well"), lambda: lm.score(ASKED, ["a"] * 3)):
        with pytest.raises(ModelError, match="tokenizer"):
            ask()


def test_requests_under_way_are_bounded_and_answers_keep_their_order(server, folder, model):
    lm = ServerModel(server.url, "tiny", folder, concurrency=3)
    asked = [[user(f"Question {i}?")] for i in range(24)]
    said = lm.sample(asked, 4, temperature=0)
    assert server.most <= 3
    assert [c.text for c in said] == [c.text for c in model.sample(asked, 4, temperature=0)]


@pytest.mark.parametrize("mood", ["429", "500", "503", "drop", "half", "garbage", "list", "empty"])
def test_a_bad_minute_is_outlived(server, near, mood):
    "Each failure twice, then an answer"
    server.moods = [mood, mood]
    assert ServerModel(server.url, "tiny", concurrency=1).sample(ASKED[:1], 4)[0].tokens > 0
    assert len(server.seen) == 3


def test_a_server_that_hangs_is_asked_again(server, near):
    server.moods = ["hang"]
    assert ServerModel(server.url, "tiny", concurrency=1, timeout=0.5).sample(ASKED[:1], 4)


@pytest.mark.parametrize("moods, says", [
    (["401"], "refuses the key"), (["404"], "status 404"), (["500"] * 9, "status 500"), (["429"] * 9, "status 429"),
    (["drop"] * 9, "cannot be reached"), (["garbage"] * 9, "not in the OpenAI protocol"), (["hang"] * 9, "did not answer in time"),
])
def test_what_stays_wrong_is_one_line_without_the_key(server, near, moods, says):
    server.moods = list(moods)
    lm = ServerModel(server.url, "tiny", concurrency=1, retries=2, timeout=0.5)
    with pytest.raises(ModelError, match=says) as e:
        lm.sample(ASKED, 4)
    assert KEY not in str(e.value) and "\n" not in str(e.value)
    assert KEY not in lm.id and KEY not in repr(lm)


def test_a_server_without_logprobs_is_named(model, monkeypatch, folder, near):
    monkeypatch.setenv("CAI_NB_API_KEY", KEY)
    server = Server(model, logprobs=False)
    lm = ServerModel(server.url, "tiny", folder)
    assert lm.sample(ASKED, 4)
    for ask in (lambda: lm.option_logprobs(ASKED), lambda: lm.score(ASKED, ["a"] * 3), lambda: ServerModel(server.url, "tiny").option_logprobs(ASKED)):
        with pytest.raises(ModelError, match="no log-probabilities"):
            ask()
    server.http.shutdown()


def test_the_stages_take_any_backend(server, vllm, model, folder, tmp_path):
    "Responses, critiques and revisions, labels in three ways, evaluation: greedy, so that all backends give the same"
    from cai_nb import feedback as fb
    from cai_nb.constitution import Constitution
    from cai_nb.responses import sample_responses
    from cai_nb.revision import RevisionConfig, revise

    rules = Constitution.load("harmlessness")
    prompts = [{"id": f"p{i}", "prompt": f"How? {i}", "kind": "harmful", "category": ""} for i in range(2)]
    pairs = [{"id": p["id"], "prompt": p["prompt"], "responses": ["Yes.", "No, never."], "kind": "harmful"} for p in prompts]
    config = RevisionConfig(rounds=1, max_tokens=5, critique_tokens=5, temperature=0, critic_temperature=0)

    def everything(lm):
        revised = revise(lm, prompts, rules, config)
        labels = fb.contrastive_log_likelihood(lm, pairs, rules)
        said = sample_responses({"m": lm}, prompts, max_tokens=5, temperature=0)["m"]
        return [s["text"] for r in revised for s in r["steps"]], [r["p_first"] for r in labels], [r["response"] for r in said]

    here = everything(model)
    for lm in (open_model(folder, engine="vllm"), ServerModel(server.url, "tiny", folder)):
        texts, p, said = everything(lm)
        assert (texts, said) == (here[0], here[2]) and p == pytest.approx(here[1], abs=1e-3)
        assert [r["id"] for r in fb.multiple_choice(lm, pairs, rules)] == ["p0", "p1"]
    exact = open_model(folder, engine="vllm")
    assert [r["p_first"] for r in fb.multiple_choice(exact, pairs, rules)] == pytest.approx(
        [r["p_first"] for r in fb.multiple_choice(model, pairs, rules)], abs=1e-4)


def test_a_run_with_an_engine_that_samples_and_a_server_that_judges(server, folder, tmp_path, monkeypatch):
    "The policy's answers, fine-tuned or not, from the engine, critiques, revisions and labels from the server, training here"
    from fake_run import revisions, unseal, write_lines
    from test_pipeline import SETS, quiet
    from trl import RewardTrainer, SFTTrainer  # noqa: F401  (they look for an installed vllm while they load)

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine, SamplingParams=SamplingParams))
    from cai_nb import artifacts, run as run_, stages
    from cai_nb.records import Records
    from cai_nb.recipe import load_recipe

    sets = [*SETS, "model.engine=vllm", "feedback.method=multiple_choice", f"critic.name=server:{server.url}#tiny?tokenizer={folder}"]
    recipe, out = load_recipe("smoke", sets, model=str(folder)), tmp_path / "run"
    run = stages.run_recipe(recipe, out, stages=["revision"], note=quiet)
    records = run.path("revision") / "records.jsonl"
    asked = [json.dumps(body) for _, _, body in server.seen]
    assert any("Critique request" in a for a in asked) and any("Revision request" in a for a in asked)
    write_lines(records, [{**r, "id": row["id"]} for r, row in zip(revisions(4), Records(records))])
    unseal(records.parent)
    run = stages.run_recipe(recipe, out, stages=["sft", "feedback"], note=quiet)
    labels = list(Records(run.path("feedback") / "records.jsonl"))
    assert labels and all("tiny@127.0.0.1" in json.dumps(r) for r in labels)
    assert artifacts.get_model(run, "sl-cai").id == artifacts.load_model(recipe, *run_.checkpoint_paths(run, "sl-cai")).id
    assert KEY not in "".join(p.read_text(errors="ignore") for p in out.rglob("*") if p.suffix in (".json", ".jsonl", ".html", ".yaml"))


def test_an_interrupt_ends_what_has_not_begun(server):
    "Ctrl-C reaches the main thread alone; the others must not go on through a thousand requests"
    code = f"""if True:
        from cai_nb.backends import ServerModel
        ServerModel({server.url!r}, "tiny", concurrency=2).sample([[dict(role="user", content="Hi?")]]*100000, 40)"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as asking:
        while not server.seen and asking.poll() is None:
            time.sleep(0.05)
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and 0 < len(server.seen) < 5000


def test_a_key_is_not_cut_in_half(server):
    lm = ServerModel(server.url, "tiny")
    assert KEY[:8] not in lm._safe("x" * (300 - len(KEY) // 2) + KEY)


def test_a_minute_of_refusals_is_within_patience(monkeypatch):
    "The client's own waits, without jitter, add up to more than a minute"
    openai = pytest.importorskip("openai")
    first, most = openai._constants.INITIAL_RETRY_DELAY, openai._constants.MAX_RETRY_DELAY
    retries = ServerModel("http://127.0.0.1:1/v1", "m").retries
    assert 0.75 * sum(min(first * 2**k, most) for k in range(retries)) > 60
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for k in range(retries):
        ServerModel("http://127.0.0.1:1/v1", "m")._wait(k)
    assert sum(waited) > 60


@pytest.mark.parametrize("name", ["server:localhost#m", "server:http://h/v1", "server:ftp://h#m", "server:http://u:p@h/v1#m",
                                  "server:http://h/v1?key=1#m", "server:#"])
def test_a_servers_name_is_checked(name):
    with pytest.raises(ModelError):
        open_model(name)
    with pytest.raises(ModelError, match="adapter"):
        open_model("server:http://h/v1#m", adapter="x")
    with pytest.raises(ModelError, match="engine"):
        open_model("default", engine="vlm")


def test_an_option_that_was_not_seen_gets_a_bound():
    assert option_row([{" A": -1.0, "A": -2.0, "x": -0.9}], ("A", "B"))[0] == pytest.approx(np.logaddexp(-1, -2))
    assert token_row({" A": -1.0, "A": -2.0, "x": -0.9}, ("A",)) == [-2.0]  # with a tokenizer a token is a token
    for row in (token_row, lambda step, options: option_row([step], options)):
        a, unseen = row({"A": -0.5, "x": -1.0, "y": -3.0}, ("A", "B"))
        assert a == -0.5 and unseen == pytest.approx(np.log(1 - np.exp([-0.5, -1.0, -3.0]).sum()) if np.exp([-0.5, -1.0, -3.0]).sum() < 1 else np.log(1e-9))
    assert option_row([{"x": -0.1, "y": -4.0}], ("A", "B")) == [-4.0] * 2


def test_a_real_server_on_loopback(tmp_path, folder):
    "`transformers serve` with the tiny model: sampling works, multiple choice is refused by name, a dead server too"
    for module in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(module)
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = open(tmp_path / "log", "w")
    process = subprocess.Popen([str(Path(sys.executable).parent / "transformers"), "serve", folder, "--host", "127.0.0.1", "--port", str(port),
                                "--device", "cpu"], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.5)
        lm = ServerModel(f"http://127.0.0.1:{port}/v1", folder, folder, retries=1, concurrency=2)
        here = LanguageModel.load(folder, dtype="float32", device="cpu")
        said = lm.sample(ASKED, 6, temperature=0)
        assert [c.text for c in said] == [c.text for c in here.sample(ASKED, 6, temperature=0)]
        with pytest.raises(ModelError, match="no log-probabilities"):
            lm.option_logprobs(ASKED)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
    with pytest.raises(ModelError, match="cannot be reached"):
        lm.sample(ASKED, 6)
