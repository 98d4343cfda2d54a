"""One description of a chat template serves every path, over the kinds of templates that public models have.

Each check compares a path with texts written by hand (`templates.py`) and with plain transformers.  The same checks
make the first table of docs/conformance.md.
"""

import atexit
import functools
import json
import math
import re
import sys
import tempfile
import types
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from templates import CASES, COMPLETION, PATHS, PROMPT, Case, folder_of, model_of, tokenizer_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_nb.chat_template import chat_format, render, stop_token_ids
from cai_nb.dialogue import CaiError, DialogueError, assistant, system, user
from cai_nb.model import LanguageModel, load_pretrained
from cai_nb.ppo import PPOConfig, PPOTrainer
from cai_nb.ppo_model import ModelReward
from cai_nb.preference import PreferenceModel, encode_dialogue, preference_rows, sequence_classifier
from cai_nb.sft import SFTSettings, encode_example, finetune, training_rows

ROOT = Path(__file__).resolve().parent.parent
AGAIN = [*PROMPT, *COMPLETION[:2]]
SAID = (COMPLETION[0]["content"], COMPLETION[2]["content"])
_kept = tempfile.TemporaryDirectory()
atexit.register(_kept.cleanup)


@functools.cache
def folder(name, **settings):
    place = "-".join([re.sub(r"\W+", "-", name), *map(str, settings.values())])
    return folder_of(CASES[name], Path(_kept.name) / place, **settings)


@functools.cache
def loaded(name):
    return LanguageModel.load(folder(name), dtype="float32", device="cpu")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def runs(row, tokenizer):
    "[(where it begins, text)] of each stretch of tokens that is learnt"
    out, before = [], -100
    for i, label in enumerate(row["labels"]):
        assert label in (-100, row["input_ids"][i])
        if label != -100 and before == -100:
            out.append((i, []))
        if label != -100:
            out[-1][1].append(label)
        before = label
    return [(start, tokenizer.decode(ids)) for start, ids in out]


def plain_logprob(model, head, tail):
    "Sum of log-probabilities of `tail` after `head`, by one plain forward pass"
    with torch.no_grad():
        logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logp[len(head) + i - 1, t].item() for i, t in enumerate(tail))


def nothing(prompts, completions, **columns):
    "A reward"
    return [0.0] * len(completions)


# ---------------------------------------------------------------- the paths


def check_sampling(case):
    "The prompt is the template's own, and generation stops at its end of turn: ours and that of plain `generate`"
    lm = loaded(case.name)
    assert lm.encode([PROMPT]) == [ids_of(lm.tokenizer, case.asked)]
    if case.again:
        assert lm.encode([AGAIN]) == [ids_of(lm.tokenizer, case.again)]
    if case.system:
        assert lm.encode([[system("Be kind."), *PROMPT]]) == [ids_of(lm.tokenizer, case.system)]
    for end in {case.eos, *case.stops}:
        ready = LanguageModel.load(folder(case.name, end=end), dtype="float32", device="cpu")
        (said,) = ready.sample([PROMPT], max_tokens=8, temperature=0)
        assert (said.text, said.tokens, said.finished) == ("", 1, True)
        ids = torch.tensor(ready.encode([PROMPT]))
        assert ready.model.generate(ids, max_new_tokens=8, do_sample=False).shape[1] == ids.shape[1] + 1


def check_scoring(case):
    "The log-probability of exactly the completion and its end, after exactly the prompt that was sampled from"
    lm = loaded(case.name)
    for found, head, tail in zip(lm.score([PROMPT, AGAIN], SAID), (case.asked, case.again), case.said):
        head, tail = ids_of(lm.tokenizer, head), ids_of(lm.tokenizer, tail)
        assert found.tokens == len(tail)
        assert math.isclose(found.logprob, plain_logprob(lm.model, head, tail), abs_tol=1e-4)


def check_features(case):
    "The state at the end of turn and the mean over completion and end"
    lm = loaded(case.name)
    got = lm.features([[*AGAIN, assistant(SAID[1])]], layers=(1, 2))[0].reshape(2, 2, -1)  # layer, last or mean, H
    head, tail = ids_of(lm.tokenizer, case.again), ids_of(lm.tokenizer, case.said[1])
    with torch.no_grad():
        states = lm.model(torch.tensor([head + tail]), output_hidden_states=True).hidden_states
    for mine, layer in zip(got, (1, 2)):
        answer = states[layer][0, len(head):].numpy()
        np.testing.assert_allclose(mine, [answer[-1], answer.mean(0)], atol=1e-4)


def check_sft(case):
    "Each turn of the assistant is learnt, end included, after the prompt that it will be sampled from; no user's is"
    tokenizer = tokenizer_of(case)
    rows, dropped = training_rows([{"prompt": PROMPT, "completion": COMPLETION}], tokenizer, 512)
    learnt = [(row["input_ids"][:start], text) for row in rows for start, text in runs(row, tokenizer)]
    assert learnt == [(ids_of(tokenizer, a), s) for a, s in zip((case.asked, case.again), case.said)] and not dropped
    together = encode_example(PROMPT, COMPLETION, tokenizer)
    assert [text for _, text in runs(together, tokenizer)] == list(case.learnt or case.said)
    cut = encode_example(PROMPT, COMPLETION[:1], tokenizer, learn_end=False)
    assert [text.strip() for _, text in runs(cut, tokenizer)] == [SAID[0]]


def check_preference(case):
    "Training and scoring read the same tokens, and the score is read at the last of them, the end of turn"
    model, tokenizer, _ = sequence_classifier(folder(case.name), dtype="float32", device="cpu")
    torch.nn.init.normal_(model.score.weight)
    row = ids_of(tokenizer, case.again + case.said[1])
    record = {"prompt": AGAIN, "chosen": COMPLETION[2:], "rejected": COMPLETION[:1], "label": 0.9}
    (trained,), _, _ = preference_rows([record], tokenizer, 512)
    assert trained["chosen_ids"] == row == encode_dialogue([*AGAIN, *COMPLETION[2:]], tokenizer)
    with torch.no_grad():
        states = model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
        want = model.score(states[-1]).item()
    assert math.isclose(PreferenceModel(model, tokenizer).logits([[*AGAIN, *COMPLETION[2:]]])[0], want, abs_tol=1e-4)


def check_ppo(case):
    "A rollout's prompt and completion are the tokens that `score` reads, with the same log-probability"
    end = case.stops[0] if case.stops else case.eos
    tokenizer = tokenizer_of(case)
    settings = PPOConfig(tempfile.mkdtemp(dir=_kept.name), per_device_train_batch_size=16, max_completion_length=24,
                         use_cpu=True, report_to=[], disable_tqdm=True, sample_rollouts=0, seed=1)
    asked = [text for text in (case.asked, case.again) if text]
    data = [{"prompt": PROMPT}, {"prompt": AGAIN}][: len(asked)]
    run = PPOTrainer(model_of(tokenizer, end=end, sure=False), nothing, settings, train_dataset=data,
                     processing_class=tokenizer)
    stops = tokenizer.convert_tokens_to_ids([case.eos, *case.stops])
    for row in run.rollout(0):
        *said, last = row.completion_ids
        assert row.prompt_ids in [ids_of(tokenizer, text) for text in asked]
        assert row.finished == (last in stops) and not set(said) & set(stops) and end not in row.completion
    rows = [replace(run.make_row(data, i), completion_ids=ids_of(tokenizer, case.said[i])) for i in range(len(data))]
    run.compute_logprobs(rows)
    if "scoring" not in case.refused:
        lm = LanguageModel(run.policy, tokenizer, "policy")
        for row, score in zip(rows, lm.score([r.prompt for r in rows], SAID), strict=True):
            assert score.tokens == len(row.completion_ids)
            assert math.isclose(score.logprob, row.old_logprobs.sum().item(), abs_tol=1e-3)


def check_escaping(case):
    "Special tokens and role headers in messages are broken up alike on every path; ordinary text stays"
    lm = loaded(case.name)
    marks = [case.eos, *case.marks, *case.headers]
    written = " ".join(["see", *marks, "and\n### Title of it"])
    broken = " ".join(["see", *(m[:-1] + " " + m[-1] for m in marks), "and\n### Title of it"])
    if case.name == "content rewritten":
        broken = broken.upper()
    head = case.asked.replace("Hi there", broken).replace("HI THERE", broken)
    tail = case.said[0].replace("Hello.", broken)
    assert lm.encode([[user(written)]]) == [ids_of(lm.tokenizer, head)]
    dialogue, head, tail = [user(written), assistant(written)], ids_of(lm.tokenizer, head), ids_of(lm.tokenizer, tail)
    (score,) = lm.score([dialogue[:1]], [written])
    assert score.tokens == len(tail)
    assert math.isclose(score.logprob, plain_logprob(lm.model, head, tail), abs_tol=1e-3)
    with torch.no_grad():
        states = lm.model(torch.tensor([head + tail]), output_hidden_states=True).hidden_states[2]
    said = states[0, len(head):].numpy()
    np.testing.assert_allclose(lm.features([dialogue], layers=(2,))[0], np.concatenate([said[-1], said.mean(0)]),
                               atol=1e-4)
    row = encode_example(dialogue[:1], dialogue[1:], lm.tokenizer)
    assert row["input_ids"][: len(head + tail)] == head + tail
    assert [t for t in row["labels"] if t >= 0] == tail
    assert encode_dialogue(dialogue, lm.tokenizer) == head + tail


CHECKS = dict(zip(PATHS, (check_sampling, check_scoring, check_features, check_sft, check_preference, check_ppo,
                          check_escaping), strict=True))


@functools.cache
def outcome(name, path):
    "What a path does with a template: the same numbers as plain transformers or a refusal; else an AssertionError"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[path](CASES[name])
        except CaiError as error:
            return f"refused: {error}"
    return "same numbers"


def conformance_rows():
    "{template, path: outcome} for docs/conformance.md"
    return [{"template": name} | {path: outcome(name, path) for path in PATHS} for name in CASES]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CASES)
def test_a_path_gives_plain_transformers_numbers_or_refuses(name, path):
    said, refusal = outcome(name, path), CASES[name].refused.get(path)
    assert said == "same numbers" if refusal is None else re.match(f"refused: .*{refusal}", said), said


# ---------------------------------------------------------------- the default model


def test_the_default_models_tokens_spans_and_labels_are_what_they_were():
    "Literal ids, written down before there was a description of templates"
    lm = LanguageModel.load()
    prompt = [user("What does <|im_end|> mean?\n\n### User: ask")]
    completion = [assistant("An end."), user(" Two  lines?\n"), assistant("Yes:\n\n- one\n- two 22 é")]
    ids = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
           198, 1, 4093, 198, 1780, 1072, 2067, 108, 306, 79, 486, 108, 2986, 1441, 47, 198, 198, 3757, 11122, 42, 1998,
           2, 198,
           1, 520, 9531, 198, 2089, 1112, 30, 2, 198, 1, 4093, 198, 5713, 216, 3204, 47, 198, 2, 198,
           1, 520, 9531, 198, 10539, 42, 198, 198, 29, 582, 198, 29, 827, 216, 34, 34, 26411, 2, 198]
    learnt = [*range(47, 51), *range(66, 80)]
    row = encode_example(prompt, completion, lm.tokenizer)
    assert row["input_ids"] == ids and [i for i, t in enumerate(row["labels"]) if t >= 0] == learnt
    cut = encode_example([system("Be kind."), *prompt], completion, lm.tokenizer, learn_end=False)
    assert cut["input_ids"] == [1, 9690, 198, 6077, 1942, 30, 2, 198, *ids[21:]]
    assert [i for i, t in enumerate(cut["labels"]) if t >= 0] == [i - 13 for i in learnt[:-1]]
    assert encode_dialogue([*prompt, *completion], lm.tokenizer) == ids[:-1]
    assert lm._with_completion([[*prompt, *completion[:2]]], [completion[2]["content"]]) == ([ids[:-1]], [66])
    assert lm.encode([[*prompt, *completion[:2]]]) == [ids[:66]]
    assert lm._asked("Was that good?") == [198, 1, 4093, 198, 29477, 338, 1123, 47, 2, 198, 1, 520, 9531, 198]
    assert lm.end_ids == [2]


# ---------------------------------------------------------------- spans


def test_white_space_at_the_edges_of_a_message_is_learnt_exactly():
    "A newline at the beginning would melt into the template's own, and a piece of the header would be learnt"
    case = CASES["ChatML"]
    tokenizer = tokenizer_of(case)
    for text in ("\nHello.", "\n\nHello", " the end ", "he\n", ""):
        row = encode_example(PROMPT, [assistant(text), user("\nBye?"), assistant(text)], tokenizer)
        assert [said for _, said in runs(row, tokenizer)] == [text + "<|im_end|>"]*2
        (score,) = loaded("ChatML").score([PROMPT], [text])
        assert score.tokens == len(ids_of(tokenizer, text)) + 1
        asked = ids_of(tokenizer, case.asked)
        assert encode_dialogue([*PROMPT, assistant(text)], tokenizer)[: len(asked)] == asked


def test_a_thought_that_the_template_cuts_is_refused_where_it_would_be_learnt():
    tokenizer = tokenizer_of(CASES["think block cut from earlier turns"])
    thought = assistant("<think>\nHm.\n</think>\n\nHello.")
    row = encode_example([*PROMPT, thought, user("Bye?")], COMPLETION[2:], tokenizer)  # only read
    assert [text for _, text in runs(row, tokenizer)] == ["the end.<|im_end|>"]
    with pytest.raises(DialogueError, match=r'rewrites message 1 \("<think>.*take out'):
        encode_example(PROMPT, [thought, *COMPLETION[1:]], tokenizer)


def test_a_prefix_begins_as_the_template_begins_a_content():
    lm = loaded("Mistral")
    want = ids_of(lm.tokenizer, "<s>[INST] Hi there [/INST] The answer is: (")
    assert lm.encode([PROMPT], "The answer is: (") == [want]


@pytest.mark.parametrize("name", ["ChatML", "think block with a switch", "Mistral", "no end of turn"])
def test_a_question_after_the_answer_is_read_where_the_reply_would_begin(name):
    lm = loaded(name)
    dialogue = [*PROMPT, *COMPLETION[:1]]
    try:
        got = lm.features([dialogue], layers=(2,), question="Bye?")[0].reshape(3, -1)
    except CaiError as error:
        assert name in ("think block with a switch", "no end of turn") and "leave `question` empty" in str(error)
        return
    ids = lm.encode([AGAIN])
    with torch.no_grad():
        states = lm.model(torch.tensor(ids), output_hidden_states=True).hidden_states[2][0]
    np.testing.assert_allclose(got[2], states[-1], atol=1e-4)


# ---------------------------------------------------------------- the description itself


def test_a_description_is_found_once_for_a_tokenizer_and_a_template():
    tokenizer = tokenizer_of(CASES["ChatML"])
    first = chat_format(tokenizer)
    assert chat_format(tokenizer) is first and first.end == "<|im_end|>"
    tokenizer.chat_template = CASES["no end of turn"].template
    assert chat_format(tokenizer) is not first and not chat_format(tokenizer).writes_end


def test_a_description_says_what_a_template_does():
    of = {name: chat_format(tokenizer_of(case)) for name, case in CASES.items()}
    assert [n for n, f in of.items() if not f.has_system] == ["Gemma", "Mistral"]
    assert [n for n, f in of.items() if not f.writes_end] == ["no end of turn"]
    assert [n for n, f in of.items() if f.problem] == ["end of turn that is no token"]
    assert [n for n, f in of.items() if not f.stable and not f.problem] == [
        "think block placed in the last turn", "think block with a switch", "no end of turn"]
    assert [n for n, f in of.items() if not f.opens_as_prompted] == [
        "think block placed in the last turn", "think block opened by the generation prompt", "Mistral",
        "no generation prompt"]
    assert of["think block with a switch"].settings == {"enable_thinking": False}


def test_a_system_message_is_folded_into_the_first_turn_with_one_warning():
    tokenizer = tokenizer_of(CASES["Gemma"])
    with pytest.warns(UserWarning, match="no system role"):
        text = render([system("Be kind."), *PROMPT], tokenizer)
    assert "user\nBe kind.\n\nHi there<end_of_turn>" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = encode_example([system("Be kind."), *PROMPT], COMPLETION, tokenizer)
    assert [text for _, text in runs(row, tokenizer)] == list(CASES["Gemma"].said)


def test_numbers_do_not_depend_on_the_day(monkeypatch):
    import transformers.utils.chat_template_utils as utils

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    case = CASES["Llama 3, with a date"]
    before = encode_example(PROMPT, COMPLETION, tokenizer_of(case))
    monkeypatch.setattr(utils, "datetime", Later)
    tokenizer = tokenizer_of(case)
    assert "02 Jan 2031" in tokenizer.apply_chat_template(PROMPT, tokenize=False)
    assert encode_example(PROMPT, COMPLETION, tokenizer) == before


def test_headings_in_messages_stay_where_headers_are_special_tokens():
    "gpt-oss writes `# Instructions` above a system message; in a message that is a heading"
    template = ("{% for m in messages %}<|start|>{{ m['role'] }}<|message|># Instructions\n"
                "{{ m['content'] }}<|end|>{% endfor %}")
    tokenizer = tokenizer_of(Case("", template, ("<|start|>", "<|message|>", "<|end|>"), "<|end|>", "", "", ()))
    assert chat_format(tokenizer).escape_markers("# Instructions <|end|>") == "# Instructions <|end| >"


def test_a_tokenizer_without_places_is_refused(monkeypatch):
    tokenizer = tokenizer_of(CASES["ChatML"])
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DialogueError, match="use_fast=True"):
        encode_example(PROMPT, COMPLETION, tokenizer)


def test_a_template_that_wants_parts_and_not_a_text_is_refused():
    tokenizer = tokenizer_of(CASES["ChatML"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}")
    with pytest.raises(DialogueError, match="may want a list of parts.*set a tokenizer.chat_template"):
        render(PROMPT, tokenizer)


def test_a_generation_prompt_that_finished_turns_do_not_have_is_told():
    with pytest.warns(UserWarning, match="generation prompt"):
        render(PROMPT, tokenizer_of(CASES["think block opened by the generation prompt"]), add_generation_prompt=True)


def test_no_template_no_end_and_no_token_are_refused_by_name():
    tokenizer = tokenizer_of(CASES["ChatML"])
    tokenizer.chat_template = None
    with pytest.raises(DialogueError, match="no chat template: take an instruction-tuned model"):
        encode_example(PROMPT, COMPLETION, tokenizer)
    tokenizer = tokenizer_of(CASES["no end of turn"])
    tokenizer.eos_token = None
    with pytest.raises(DialogueError, match="set tokenizer.eos_token"):
        encode_example(PROMPT, COMPLETION, tokenizer)


TRL = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TRL, ids=lambda p: p.stem)
def test_public_templates_that_trl_ships_are_described_or_refused(path):
    "Each response is learnt after the prompt that is sampled from, up to a token that stops generation, and alone"
    template = path.read_text(encoding="utf-8")
    marks = re.findall(r"<[|｜][\w▁/:]+[|｜]>|<(?:start|end)_of_turn>|<\|?turn\|?>", template)
    eos = "<|im_end|>" if "<|im_end|>" in marks else "<eos>"
    tokenizer = tokenizer_of(Case(path.stem, template, tuple(dict.fromkeys(["<bos>", *marks])), eos, "", "", ()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            form = chat_format(tokenizer)
        except DialogueError as error:
            assert re.match("idefics3|smolvlm|llava", path.stem) and "set a" in str(error), error  # want lists of parts
            return
        rows, _ = training_rows([{"prompt": PROMPT, "completion": COMPLETION}], tokenizer, 9999)
        asked = form.prompt_ids([PROMPT, AGAIN])
    learnt = [(row["input_ids"][:start], text) for row in rows for start, text in runs(row, tokenizer)]
    assert [prompt for prompt, _ in learnt] == asked
    assert [text.strip() for _, text in learnt] == [said + form.end.strip() for said in SAID]
    assert form.end_id in stop_token_ids(tokenizer) and form.end_id in tokenizer.all_special_ids


# ---------------------------------------------------------------- what is saved, and what goes elsewhere

BASE = "ChatML on a base tokenizer"


def stops_of(place):
    ids = json.loads((Path(place) / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = tokenizer_of(CASES[BASE])
    return {tokenizer.convert_ids_to_tokens(i) for i in (ids if isinstance(ids, list) else [ids])}


def test_a_base_model_that_learnt_chatml_ends_its_turn_in_plain_transformers(tmp_path):
    "Fault 2 from end to end: what SFT taught as the end stops the saved model's own `generate`"
    examples = [{"prompt": [user(q)], "completion": [assistant("he")]} for q in ("a", "b", "c", "d")]
    settings = SFTSettings(epochs=20, lora_rank=0, learning_rate=1e-2, batch_size=4)
    finetune(folder(BASE), examples, tmp_path / "out", settings)
    assert stops_of(tmp_path / "out") == {"<|im_end|>", "<|endoftext|>"}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokenizer_of(CASES[BASE])
    ids = torch.tensor([ids_of(tokenizer, CASES[BASE].asked.replace("Hi there", "a"))])
    said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:]
    assert tokenizer.decode(said) == "he<|im_end|>"


def test_models_that_ppo_and_vllm_save_stop_at_the_templates_end(tmp_path):
    case = CASES[BASE]
    settings = PPOConfig(str(tmp_path / "ppo"), per_device_train_batch_size=4, max_completion_length=4, use_cpu=True,
                         report_to=[], disable_tqdm=True, rollouts=1, num_ppo_epochs=1, sample_rollouts=0,
                         save_strategy="no")
    tokenizer = tokenizer_of(case)
    run = PPOTrainer(model_of(tokenizer), nothing, settings, train_dataset=[{"prompt": PROMPT}],
                     processing_class=tokenizer)
    run.train()
    run.save_model(str(tmp_path / "ppo" / "model"))
    assert stops_of(tmp_path / "ppo" / "model") == {"<|im_end|>", "<|endoftext|>"}
    model, _, _ = load_pretrained(folder(BASE), dtype="float32", device="cpu")  # as VLLMModel does
    model.save_pretrained(tmp_path / "merged")
    assert stops_of(tmp_path / "merged") == {"<|im_end|>", "<|endoftext|>"}


def test_vllm_is_told_the_stops(monkeypatch):
    from test_backends import Engine, SamplingParams

    from cai_nb.backends import open_model

    told = []

    class Params(SamplingParams):
        def __init__(self, **given):
            super().__init__(**given)
            told.append(given.get("stop_token_ids"))

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine, SamplingParams=Params))
    lm = open_model(folder(BASE), engine="vllm")
    lm.sample([PROMPT], 4)
    tokenizer = tokenizer_of(CASES[BASE])
    stops = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert [set(ids) for ids in told] == [stops]


def test_a_server_is_told_the_end_that_its_tokenizer_does_not_name(monkeypatch):
    pytest.importorskip("openai")
    from test_backends import Server

    from cai_nb.backends import open_model

    for name, stop in ((BASE, ["<|im_end|>"]), ("ChatML", None)):
        server = Server(loaded(name))
        lm = open_model(f"server:{server.url}#m?tokenizer={folder(name)}")
        lm.sample([PROMPT], 4)
        body = server.seen[0][2]
        assert body.get("stop") == stop and ("stop_token_ids" in body) == (stop is not None)
        server.strict = True  # a server that knows the protocol's own fields alone
        assert lm.sample([PROMPT], 4)[0].tokens > 0 and (stop is None or server.seen[-1][2].get("stop") == stop)
        server.http.shutdown()


def test_an_exported_preference_model_scores_alike_as_a_reward(tmp_path):
    model, tokenizer, _ = sequence_classifier(folder("ChatML"), dtype="float32", device="cpu")
    torch.nn.init.normal_(model.score.weight)
    scorer, dialogue = PreferenceModel(model, tokenizer, std=2.0), [*PROMPT, *COMPLETION[:1]]
    scorer.export(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.preference
    assert ModelReward(str(tmp_path)).score([dialogue])[0] == pytest.approx(scorer.score([dialogue])[0], abs=1e-4)


# ---------------------------------------------------------------- the page


def test_the_conformance_page_is_what_these_checks_say():
    sys.path.insert(0, str(ROOT / "tools"))
    import conformance

    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert conformance.table_of("templates", conformance_rows()) in page, "make it anew: python tools/conformance.py"
