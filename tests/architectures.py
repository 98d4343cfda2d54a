"""Tiny models of twelve architectures, built from their configurations, and what every stage makes of each.

`check(name, stage, folder, out)` runs one stage at tiny size next to plain transformers. It gives "same numbers" where they
agree, "refused: " and the sentence of the `CaiError` where the stage refuses, and raises an `AssertionError` where they differ.
`rows()` does so for all of them: the second table of `docs/conformance.md`.
"""

import contextlib
import functools
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from tiny import tiny_tokenizer

from cai_nb.dialogue import CaiError, assistant, user

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "final_logit_softcapping": 2.0}

# name -> (class of the configuration, what it needs beside SIZE); soft caps and scales strong enough to be missed
ARCHITECTURES = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {"head_dim": 16}),
    "Gemma 2": ("Gemma2Config", GEMMA),
    "Gemma 3": ("Gemma3TextConfig", GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "Gemma 3, composite": ("Gemma3Config", GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "Granite": ("GraniteConfig", {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5}),
    "Cohere": ("CohereConfig", {"logit_scale": 3.0}),
    "Phi-3": ("Phi3Config", {}),
    "Mistral, window": ("MistralConfig", {"sliding_window": 16}),
    "GPT-NeoX": ("GPTNeoXConfig", {}),
    "OLMo 2": ("Olmo2Config", {}),
}

PROMPTS = [[user("Hi?")], [user("A longer question, with more words in it, so that it is padded differently?")], [user("Why?")]]
COMPLETIONS = ["yes", "no, never", "It is so, and it has been so for as long as anybody here can remember."]


def model_folder(name, folder, seed=0):
    "Save a random model of that architecture and a tokenizer into `folder`; gives back its path as text"
    import transformers

    kind, more = ARCHITECTURES[name]
    tokenizer = tiny_tokenizer()
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = SIZE | ids | {"vocab_size": len(tokenizer)} | more
    if kind == "Gemma3Config":
        vision = transformers.SiglipVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
        config = transformers.Gemma3Config(text_config=settings, vision_config=vision, mm_tokens_per_image=4, image_token_index=257,
                                           boi_token_index=256, eoi_token_index=255, **ids)
    else:
        config = getattr(transformers, kind)(**settings)
    config.initializer_range = config.get_text_config().initializer_range = 0.2  # so that a random model has opinions
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(Path(folder))


def plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def close(ours, theirs, atol=2e-4):
    ours, theirs = (np.asarray(x, dtype=float) for x in (ours, theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert np.allclose(ours, theirs, atol=atol, rtol=1e-4), np.abs(ours - theirs).max()


@torch.no_grad()
def logprobs_of(model, ids, start, temperature=1.0):
    "Log-probabilities of `ids[start:]` by one forward pass of the whole model"
    logp = (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)
    return [logp[k - 1, ids[k]].item() for k in range(start, len(ids))]


def check_sample(folder, out):
    "Greedy tokens are those of `generate`, one prompt at a time, without padding."
    from cai_nb.model import LanguageModel

    lm, theirs = LanguageModel.load(folder, dtype="float32"), plain(folder)
    said = lm.sample(PROMPTS, max_tokens=24, temperature=0)
    for ids, ours in zip(lm.encode(PROMPTS), said):
        new = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=lm.end_ids, pad_token_id=0)[0, len(ids):]
        assert lm.tokenizer.decode(new, skip_special_tokens=True).strip() == ours.text
        assert len(new) == ours.tokens


def check_option_logprobs(folder, out):
    from cai_nb.model import LanguageModel

    lm, theirs = LanguageModel.load(folder, dtype="float32"), plain(folder)
    ids = lm.option_ids(("A", "B"), "(")
    for ours, row in zip(lm.option_logprobs(PROMPTS, prefix="("), lm.encode(PROMPTS, "(")):
        with torch.no_grad():
            close(ours, theirs(torch.tensor([row])).logits[0, -1].log_softmax(-1)[ids])


def check_score(folder, out):
    from cai_nb.model import LanguageModel

    lm, theirs = LanguageModel.load(folder, dtype="float32"), plain(folder)
    for score, prompt, text in zip(lm.score(PROMPTS, COMPLETIONS), PROMPTS, COMPLETIONS):
        (ids,), (start,) = lm._with_completion([prompt], [text])
        close(score.logprob, sum(logprobs_of(theirs, ids, start)), atol=1e-3)


def check_features(folder, out):
    from cai_nb.model import LanguageModel

    lm, theirs = LanguageModel.load(folder, dtype="float32"), plain(folder)
    found = lm.features([[*p, assistant(t)] for p, t in zip(PROMPTS, COMPLETIONS)], layers=(2, 4))
    for ours, prompt, text in zip(found, PROMPTS, COMPLETIONS):
        (ids,), (start,) = lm._with_completion([prompt], [text])
        with torch.no_grad():
            states = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        close(ours, torch.cat([x for k in (2, 4) for x in (states[k][0, -1], states[k][0, start:].mean(0))]))


def linear_maps(model):
    "{layer: names of its linear maps} of the layers of a language model's decoder, whatever they are called"
    return [{n for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)} for layer in model.get_decoder().layers]


def check_lora(folder, out):
    "Every linear map of the upper half of the decoder's layers gets an adapter, and nothing else does."
    from peft import get_peft_model

    from cai_nb.loading import load_pretrained
    from cai_nb.training import lora_config

    model = load_pretrained(folder, dtype="float32")[0]
    want = linear_maps(model)
    decoder = get_peft_model(model, lora_config(model, 4, 0.5)).get_base_model().get_decoder()
    for k, layer in enumerate(decoder.layers):
        adapted = {n for n, m in layer.named_modules() if hasattr(m, "lora_A")}
        assert adapted == (want[k] if k >= 2 else set()), (k, adapted)
    assert sum(hasattr(m, "lora_A") for m in model.modules()) == len(want[2]) + len(want[3])


def check_sft(folder, out):
    "The loss of one batch, and of the gradient's direction, as the model's own forward gives them; then a short training."
    from datasets import Dataset
    from trl import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from cai_nb import sft

    model, tokenizer, _ = sft.load_pretrained(folder, dtype="float32")
    examples = [{"prompt": p, "completion": [assistant(t)]} for p, t in zip(PROMPTS, COMPLETIONS)]
    rows, _ = sft.training_rows(examples, tokenizer, 512)
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(rows)
    args = SFTConfig(str(out), use_cpu=True, bf16=False, report_to=[], dataset_kwargs={"skip_prepare_dataset": True})
    trainer = sft.CompletionTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    ours = trainer.compute_loss(trainer.model, dict(batch))
    theirs = plain(folder)
    total, count = 0.0, 0
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        logp = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
        learnt = [k for k in range(1, len(ids)) if labels[k] >= 0]
        total, count = total - sum(logp[k - 1, ids[k]] for k in learnt), count + len(learnt)
    close(ours.item(), (total / count).item())
    ours.backward()
    (total / count).backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    mine = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == mine.keys()
    for n in grads:
        close(mine[n], grads[n], atol=1e-3)
    metrics = sft.finetune(folder, examples, out / "sft", sft.SFTSettings(epochs=2, learning_rate=1e-2))
    assert metrics["curve"][-1]["loss"] < metrics["curve"][0]["loss"]


def check_preference(folder, out):
    "It is trained, and its scores are those that plain transformers gives for the model that it exports."
    from transformers import AutoModelForSequenceClassification

    from cai_nb.preference import PreferenceModel, PreferenceSettings, encode_dialogue, train_preference_model

    rows = [{"id": f"{i}", "prompt": [user(f"Question {i * i} about {'abcdef'[i % 6] * 3}?")], "chosen": [assistant(f"Yes. Gladly! {i}")],
             "rejected": [assistant(f"no {i}")], "label": 0.9, "kind": "harmful"} for i in range(12)]  # fmt: skip
    settings = PreferenceSettings(learning_rate=1e-3, epochs=2, lora_rank=4, batch_size=4)
    metrics = train_preference_model(folder, rows, out / "pm", settings)
    assert metrics["curve"][-1]["loss"] < 0.7
    ours = PreferenceModel.load(out / "pm", dtype="float32")
    ours.export(out / "plain")
    theirs = AutoModelForSequenceClassification.from_pretrained(out / "plain", dtype=torch.float32).eval()
    talks = [[*r["prompt"], *r[k]] for r in rows[:4] for k in ("chosen", "rejected")]
    scores = ours.score(talks)
    with torch.no_grad():
        want = np.array([theirs(torch.tensor([encode_dialogue(t, ours.tokenizer)])).logits.item() for t in talks])
    assert np.ptp(scores) > 0.05
    close(scores - scores.mean(), want - want.mean(), atol=1e-3)


def check_ppo(folder, out):
    "Log-probabilities of policy and reference as one forward pass of the whole model gives them, before and after updates."
    from cai_nb.model import LanguageModel
    from cai_nb.ppo import PPOConfig, PPOTrainer
    from cai_nb.training import lora_config

    lm, theirs = LanguageModel.load(folder, dtype="float32"), plain(folder)
    args = PPOConfig(str(out / "ppo"), rollouts=2, per_device_train_batch_size=4, num_mini_batches=1, max_completion_length=6, temperature=0.7,
                     learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, sample_rollouts=0)
    trainer = PPOTrainer(lm, lambda prompts, completions: [sum(map(ord, c)) % 7.0 for c in completions], args,
                         [{"prompt": p} for p in PROMPTS], peft_config=lora_config(lm.model, 4, 0.5))
    start = [p.detach().clone() for p in trainer.policy.parameters() if p.requires_grad]
    trainer.train()
    assert any(not torch.equal(p, q) for p, q in zip(start, (p for p in trainer.policy.parameters() if p.requires_grad)))
    tuned = trainer.model.eval()
    for row in trainer.rows:
        ids, n = row.prompt_ids + row.completion_ids, len(row.prompt_ids)
        close(row.ref_logprobs, logprobs_of(theirs, ids, n, 0.7))
        batch = {"input_ids": torch.tensor([ids]), "completion_mask": torch.arange(len(ids))[None] >= n}
        with torch.no_grad():
            close(trainer.forward_tokens(tuned, batch)[0], logprobs_of(tuned, ids, n, 0.7))


STAGES = {"sample": check_sample, "option_logprobs": check_option_logprobs, "score": check_score, "features": check_features, "LoRA": check_lora,
          "fine-tuning": check_sft, "preference model": check_preference, "PPO": check_ppo}  # fmt: skip


def check(name, stage, folder, out):
    "`same numbers`, or `refused: ` and the sentence with which the stage refuses"
    quiet = {k: os.environ.get(k) for k in ("CAI_NB_QUIET",)}
    os.environ["CAI_NB_QUIET"] = "1"
    Path(out).mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            STAGES[stage](folder, Path(out))
    except CaiError as e:
        return f"refused: {e}"
    finally:
        for k, v in quiet.items():
            os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)
    return "same numbers"


@functools.cache
def outcome(name, stage):
    "What `check` says, once a process"
    with tempfile.TemporaryDirectory() as place:
        return check(name, stage, model_folder(name, Path(place) / "model"), Path(place) / "out")


def rows():
    "[{architecture, stage: outcome}]"
    return [{"architecture": name} | {stage: outcome(name, stage) for stage in STAGES} for name in ARCHITECTURES]
