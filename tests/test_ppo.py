"""PPO against mathematics: closed forms, naive loops in float64, and runs that must not differ by a bit."""
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from cai_nb import backends, cpu, ppo
from cai_nb.chat_template import render
from cai_nb.dialogue import user
from cai_nb.loading import ModelError
from cai_nb.model import selective_logprobs
from cai_nb.ppo import PPOConfig, PPOError, PPOTrainer, RewardError
from cai_nb.ppo_math import optimal_policy
from cai_nb.training import lora_config

TEMPLATE = ("{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
WORDS = "red green blue one two three four five six seven".split()


def tokenizer(words=WORDS):
    marks = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(marks + list(words))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
                                   additional_special_tokens=["<user>", "<assistant>"], chat_template=TEMPLATE)


def language_model(tok, layers=2, hidden=16, seed=0, spread=1.0, **kwargs):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tok), hidden_size=hidden, intermediate_size=2*hidden, num_hidden_layers=layers,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, eos_token_id=1,
                         pad_token_id=0, bos_token_id=None, attention_dropout=0.1, **kwargs)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():  # a random model is nearly uniform; make it have opinions
        for p in model.parameters(): p.mul_(1.0 if p.dim() == 1 else spread*6)
    return model


PROMPTS = [{"prompt": [{"role": "user", "content": " ".join(WORDS[:n])}], "want": WORDS[n]} for n in (1, 2, 3, 5, 7, 8)]


def colours(prompts, completions, **columns):
    return [sum(w in ("red", "green", "blue") for w in c.split()) for c in completions]


def lora(**kwargs):
    from peft import LoraConfig
    return LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1, **kwargs)


def trainer(folder, model=None, reward=colours, data=PROMPTS, callbacks=None, peft_config=None, value_model=None, **settings):
    tok = tokenizer()
    defaults = dict(rollouts=2, per_device_train_batch_size=4, gradient_accumulation_steps=1, num_mini_batches=2,
                    num_ppo_epochs=2, max_completion_length=6, learning_rate=1e-3, save_strategy="no",
                    disable_tqdm=True, use_cpu=True, seed=3, sample_rollouts=0)
    return PPOTrainer(model or language_model(tok), reward, PPOConfig(str(folder), **(defaults | settings)), data,
                      processing_class=tok, peft_config=peft_config, callbacks=callbacks, value_model=value_model)


def classifier(tok, seed=7):
    "A reward model on a trunk of its own, with opinions"
    from transformers import LlamaForSequenceClassification
    config = language_model(tok).config
    config.num_labels = 1
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(6 if p.dim() > 1 else 1)
    return model


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("builtins.print", lambda *a, **k: None)


# ---- closed forms, through the trainer


def words_to_reward(tok):
    table = {w: (7*i % 11)/5 - 1 for i, w in enumerate(["", *WORDS])}
    return lambda text: sum(table.get(w, 0) for w in text.split(" "))


def closed_form_run(folder, tok_words, length, **settings):
    "Train a tiny policy on one prompt; log-probabilities of every completion before, wanted, after; V and β·log Z"
    tok = tokenizer(tok_words)
    reward = words_to_reward(tok)
    settings = dict(per_device_train_batch_size=256, num_mini_batches=1, num_ppo_epochs=4, max_completion_length=length,
                    kl_coef=0.5, normalize_scores=False, whiten_advantages=False, vf_coef=1.0, cliprange_value=None,
                    sampling_batch_size=256, max_grad_norm=10.0) | settings
    # The prompt's last token is repeated by no answer alone: "red" after "red" would look the same to one layer.
    config = PPOConfig(str(folder), save_strategy="no", disable_tqdm=True, use_cpu=True, sample_rollouts=0, **settings)
    run = PPOTrainer(language_model(tok, layers=1, hidden=32),
                     lambda prompts, completions: [reward(c) for c in completions],
                     config, [{"prompt": "blue red"}], processing_class=tok)
    ids, end, v = run.make_row([{"prompt": "blue red"}], 0).prompt_ids, tok.eos_token_id, len(tok)
    answers = [[a] for a in range(v)]
    for _ in range(length - 1):
        answers = [y + [b] for y in answers if y[-1] != end for b in range(v)] + [y for y in answers if y[-1] == end]

    @torch.no_grad()
    def logprobs(model):
        out = []
        for y in answers:
            logits = model(input_ids=torch.tensor([ids + y])).logits[0].log_softmax(-1)
            out.append(sum(logits[len(ids) + t - 1, token] for t, token in enumerate(y)))
        return torch.stack(out)

    before = logprobs(run.ref_model)
    scores = torch.tensor([reward(tok.decode(y, skip_special_tokens=True)) for y in answers])
    wanted, value = optimal_policy(before, scores, settings["kl_coef"])
    run.train()
    with torch.no_grad():
        critic = run.policy.value_head(run.policy.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
    return before, wanted, logprobs(run.policy), value.item(), critic.item()


def total_variation(a, b): return (a.exp() - b.exp()).abs().sum().item()/2


def test_one_token_policy_reaches_the_closed_form(tmp_path):
    before, wanted, after, value, critic = closed_form_run(tmp_path, WORDS, 1, rollouts=80, learning_rate=3e-3)
    assert total_variation(before, wanted) > 0.3
    assert total_variation(after, wanted) < 1e-3
    assert abs(critic - value) < 1e-3  # V = β·log Z


def test_two_token_policy_reaches_the_closed_form(tmp_path):
    before, wanted, after, value, critic = closed_form_run(tmp_path, WORDS[:3], 2, rollouts=100, learning_rate=5e-3)
    assert math.isclose(wanted.exp().sum().item(), 1, rel_tol=1e-5)  # every possible completion was counted, once
    assert total_variation(before, wanted) > 0.3
    assert total_variation(after, wanted) < 5e-3
    assert abs(critic - value) < 5e-3


# ---- arithmetic against naive loops


def ragged(seed=0, rows=5, width=7):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 1, 3, 6, 2])[:rows]
    mask = torch.arange(width) < lengths[:, None]
    draw = lambda: torch.randn(rows, width, generator=g, dtype=torch.float64).where(mask, torch.nan)  # noqa: E731
    return lengths.tolist(), mask, draw(), draw(), torch.randn(rows, generator=g, dtype=torch.float64)


def test_rewards_and_gae_equal_a_naive_loop_with_nan_in_the_padding():
    lengths, mask, kl, values, scores = ragged()
    rewards = ppo.token_rewards(scores, kl, mask, beta=0.3)
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for i, n in enumerate(lengths):
        r = [-0.3*kl[i, t].item() + (scores[i].item() if t == n - 1 else 0) for t in range(n)]
        v = [values[i, t].item() for t in range(n)] + [0.0]
        delta = [r[t] + 0.9*v[t + 1] - v[t] for t in range(n)]
        for t in range(n):  # the definition: a sum over the future, not a recursion
            want = sum((0.9*0.8)**k*delta[t + k] for k in range(n - t))
            assert math.isclose(advantages[i, t].item(), want, abs_tol=1e-12)
            assert math.isclose(returns[i, t].item(), want + v[t], abs_tol=1e-12)
        assert (advantages[i, n:] == 0).all() and (rewards[i, n:] == 0).all()


def test_the_score_lands_on_the_last_real_token_and_kl_is_paid():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = ppo.token_rewards(torch.tensor([5.0, 7.0]), torch.ones(2, 3), mask, beta=0.5)
    assert rewards.tolist() == [[-0.5, 4.5, 0.0], [-0.5, -0.5, 6.5]]


def test_whitening_is_over_all_rows():
    x, mask = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, 6) < 0.7
    whole = ppo.masked_whiten(x, mask)
    assert abs(whole[mask].mean()) < 1e-9 and abs(whole[mask].std(unbiased=False) - 1) < 1e-6


def test_loss_and_every_gradient_equal_a_naive_float64_loop(tmp_path):
    run = trainer(tmp_path, language_model(tokenizer()).double(), per_device_train_batch_size=6,
                  gradient_accumulation_steps=2, num_mini_batches=1, entropy_coef=0.01, temperature=0.8,
                  missing_eos_penalty=1.0, max_completion_length=12)
    rows = run.rows = run.rollout(0)
    assert len({len(r.completion_ids) for r in rows}) > 1  # ragged
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # move away from the sampling policy, far enough that some ratios and values are clipped
        for p in run.policy.parameters(): p.add_(0.1*torch.randn(p.shape, generator=g, dtype=p.dtype))
    run.sums = torch.zeros(5, dtype=torch.float64)
    minibatch = run.minibatches(rows, 0, 0)[0]
    tokens = sum(len(rows[i].completion_ids) for i in minibatch)
    run.policy.zero_grad()
    total = 0.0
    for b in run.micro_batches(minibatch):
        loss = run.compute_loss(run.model, ppo.collate([rows[i] for i in b]), num_items_in_batch=tokens)
        loss.backward()
        total += loss.item()
    ours = {n: p.grad.clone() for n, p in run.policy.named_parameters()}
    assert 0 < run.sums[2] < run.sums[4]  # some tokens were clipped, not all

    run.policy.zero_grad()
    naive = 0.0
    for r in rows:  # one row at a time, no padding, one token at a time, everything in float64
        ids, start = r.prompt_ids + r.completion_ids, len(r.prompt_ids)
        out = run.policy(input_ids=torch.tensor([ids]), output_hidden_states=True)
        for t in range(len(r.completion_ids)):
            at = start + t - 1
            logp = (out.logits[0, at]/0.8).log_softmax(-1)
            value = out.hidden_states[-1][0, at] @ run.policy.value_head.weight + run.policy.value_head.bias
            ratio = (logp[ids[at + 1]] - r.old_logprobs[t]).exp()
            a, old, want = r.advantages[t], r.old_values[t], r.returns[t]
            policy = max(-a*ratio, -a*ratio.clamp(0.8, 1.2))
            critic = 0.5*max((value - want)**2, (old + (value - old).clamp(-0.2, 0.2) - want)**2)
            naive = naive + (policy + 0.1*critic + 0.01*(logp.exp()*logp).sum())/tokens
    naive.backward()
    assert math.isclose(total, naive.item(), rel_tol=1e-10)
    for n, p in run.policy.named_parameters():
        assert torch.allclose(ours[n], p.grad, rtol=1e-8, atol=1e-12), n


def test_advantages_of_a_rollout_equal_a_naive_loop(tmp_path):
    def found(prompts, completions, want):
        return [float(w in c) for w, c in zip(want, completions, strict=True)]

    run = trainer(tmp_path, language_model(tokenizer()).double(), reward=found, missing_eos_penalty=1.0, lam=0.7,
                  gamma=0.9, kl_coef=0.3)
    with torch.no_grad(): run.policy.model.layers[0].mlp.up_proj.weight.add_(0.2)  # so that there is some KL
    rows = run.rollout(0)
    raw = np.array([r.raw for r in rows])
    assert 0 < raw.mean() < 1 and {r.finished for r in rows} == {True, False}
    scores, flat = (raw - raw.mean())/raw.std(ddof=1) - 1.0*np.array([not r.finished for r in rows]), []
    for r, score in zip(rows, scores, strict=True):
        n, v = len(r.completion_ids), [*r.old_values.tolist(), 0.0]
        kl = (r.old_logprobs - r.ref_logprobs).tolist()
        assert any(abs(k) > 1e-3 for k in kl)
        delta = [-0.3*kl[t] + score*(t == n - 1) + 0.9*v[t + 1] - v[t] for t in range(n)]
        naive = [sum((0.9*0.7)**k*delta[t + k] for k in range(n - t)) for t in range(n)]
        flat += [[naive[t], r.advantages[t].item(), r.returns[t].item(), v[t]] for t in range(n)]
    want, ours, returns, values = np.array(flat).T
    assert np.allclose(returns, want + values, atol=1e-6)  # taken before whitening
    assert np.allclose(ours, (want - want.mean())/want.std(), atol=1e-6)


# ---- what must not change anything


@pytest.mark.parametrize("adapter", [False, True])
def test_the_first_ratio_is_exactly_one(tmp_path, adapter):
    run = trainer(tmp_path, peft_config=lora() if adapter else None)
    seen = []

    def spy(logprobs, old_logprobs, *args):
        seen.append(torch.equal(logprobs, old_logprobs))
        return loss(logprobs, old_logprobs, *args)
    loss, ppo.policy_loss = ppo.policy_loss, spy
    try: run.train()
    finally: ppo.policy_loss = loss
    assert seen[0] and seen[4] and not all(seen)  # the first update of both rollouts; later ones have moved


def test_an_adapter_is_folded_while_the_policy_writes_and_the_weights_come_back_to_the_last_bit(tmp_path):
    run = trainer(tmp_path, peft_config=lora(), value_model=None)
    for n, p in run.model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=0.5)
    before, seen = parameters(run), []

    def spy(model, *args):
        seen.append(max((p - before["base_model.model." + n]).abs().max().item() for n, p in model.named_parameters() if n.endswith("base_layer.weight")))
        return sample(model, *args)
    sample, ppo.generate_tokens = ppo.generate_tokens, spy
    try: rows = run.rollout(0)
    finally: ppo.generate_tokens = sample
    assert seen and min(seen) > 0.1  # folded, every time
    assert farthest(parameters(run), before) == 0  # and put back
    for r in rows:  # the text is the policy's own: what it writes unfolded, from the same numbers
        u = np.random.default_rng((run.args.seed, ppo.ROLLOUT, 0, r.number)).random((1, run.args.max_completion_length))
        assert sample(run.policy.eval(), [r.prompt_ids], u, run.stops, 0, 1.0) == [r.completion_ids]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_folded_in_float32_alone_and_come_back_after_an_error_too(dtype):
    from peft import get_peft_model
    model = get_peft_model(language_model(tokenizer()).to(getattr(torch, dtype)), lora())
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=0.5)
    weight = next(p for n, p in model.named_parameters() if n.endswith("base_layer.weight"))
    before = weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), cpu.merged_adapter(model):
        assert torch.equal(weight, before) == (dtype == "bfloat16")
        raise KeyboardInterrupt
    assert torch.equal(weight, before) and not any(getattr(m, "merged", False) for m in model.modules())


@pytest.mark.parametrize("epochs", [1, 2])
def test_frozen_layers_are_computed_once_for_each_batch_and_nothing_changes(tmp_path, monkeypatch, epochs):
    def run(plain):
        monkeypatch.setenv("CAI_NB_PLAIN", "1" if plain else "0")
        model = language_model(tokenizer(), layers=3)
        one = trainer(tmp_path/str(plain), model=model, peft_config=lora_config(model, 4, 1/3), num_ppo_epochs=epochs)
        asked, layers = [0, 0], one.policy.base_model.layers
        for which in (0, 2):
            def count(m, args, k=which // 2): asked[k] += args[0].shape[1] > 1 and m.training
            layers[which].register_forward_pre_hook(count)
        one.model.eval()  # what is tried before the training is not counted
        one.train()
        return one, asked
    (ours, few), (theirs, every) = run(False), run(True)
    assert cpu.count_frozen_layers(ours.policy) == 2 and len(ours.policy.base_model.layers) == 3
    assert few[1] == every[0] == every[1] > 0
    assert few[0] == every[0]*(epochs - 1)//epochs  # what was measured is not computed again in the first epoch
    assert farthest(parameters(ours), parameters(theirs)) < 1e-5
    assert [r.completion_ids for r in ours.rows] == [r.completion_ids for r in theirs.rows]
    assert ours.frozen is None and not hasattr(ours.policy, "frozen_cache")


def test_no_layer_is_frozen_where_all_weights_learn(tmp_path):
    assert cpu.count_frozen_layers(trainer(tmp_path).policy) == 0
    assert cpu.count_frozen_layers(trainer(tmp_path, peft_config=lora()).policy) == 0  # an adapter in the lowest layer


def parameters(run): return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def farthest(a, b): return max((a[n] - b[n]).abs().max().item() for n in a)


def test_micro_batch_size_changes_nothing(tmp_path):
    runs = []
    for size in (8, 4, 1):
        run = trainer(tmp_path/str(size), language_model(tokenizer()), per_device_train_batch_size=size, rollouts=1,
                      gradient_accumulation_steps=8//size, num_mini_batches=1, learning_rate=1e-2, optim="sgd")
        start = parameters(run)
        run.train()
        runs.append(parameters(run))
    assert farthest(start, runs[0]) > 1e-3
    assert farthest(runs[0], runs[1]) < 1e-6 and farthest(runs[0], runs[2]) < 1e-6


@pytest.mark.parametrize("words", [(1, 2, 3, 5, 7, 8), (1, 50, 1, 25)])  # prompts of like length, and of very different ones
def test_neighbours_and_padding_change_nothing(tmp_path, words):
    data = [{"prompt": [{"role": "user", "content": " ".join(WORDS[k % len(WORDS)] for k in range(n))}], "want": "red"} for n in words]
    run = trainer(tmp_path, data=data, per_device_train_batch_size=4)
    rows = run.rollout(0)
    for r in rows:
        alone = replace(r)
        run.generate([alone], (ppo.ROLLOUT, 0))
        assert alone.completion_ids == r.completion_ids  # sampling: padded on the left among others, or alone
        run.compute_logprobs([alone])
        for k in ("old_logprobs", "ref_logprobs", "old_values", "entropy"):
            assert torch.allclose(getattr(alone, k), getattr(r, k), atol=1e-6), k


def test_padding_that_is_the_end_token_changes_nothing(tmp_path):
    runs = []
    for pad in ("<pad>", "<end>"):
        run = trainer(tmp_path/pad.strip("<>"), language_model(tokenizer()))
        run.processing_class.pad_token = pad
        run.train()
        assert all((r.completion_ids[-1] == 1) == r.finished for r in run.rows)
        assert all(1 not in r.completion_ids[:-1] for r in run.rows)  # cut at the first end token, which stays
        assert any(r.finished for r in run.rows) and any(1 in r.prompt_ids for r in run.rows)
        runs.append(parameters(run))
    assert farthest(*runs) == 0


def test_temperature_divides_logits_in_sampling_and_scoring_alike(tmp_path):
    run = trainer(tmp_path, temperature=0.5, per_device_train_batch_size=4000, num_mini_batches=1,
                  max_completion_length=1, data=PROMPTS[:1], sampling_batch_size=4000)
    rows = run.rollout(0)
    with torch.no_grad(): logits = run.policy(input_ids=torch.tensor([rows[0].prompt_ids])).logits[0, -1]
    p = (logits/0.5).softmax(-1)
    for r in rows[:50]:
        assert math.isclose(r.old_logprobs.item(), p[r.completion_ids[0]].log().item(), abs_tol=1e-4)
    share = torch.bincount(torch.tensor([r.completion_ids[0] for r in rows]), minlength=len(p))/len(rows)
    assert (share - p).abs().max() < 4*(0.25/len(rows))**0.5  # four standard errors at most
    assert (share - logits.softmax(-1)).abs().max() > 0.05  # and another temperature would show


def test_the_models_own_generation_settings_do_not_bend_the_sampler(tmp_path):
    plain, bent = language_model(tokenizer()), language_model(tokenizer())
    bent.generation_config.update(top_k=1, repetition_penalty=3.0, do_sample=True, min_new_tokens=5)
    a, b = (trainer(tmp_path, m).rollout(0) for m in (plain, bent))
    assert [r.completion_ids for r in a] == [r.completion_ids for r in b]
    assert bent.generation_config.top_k == 1  # and they are still there afterwards


def test_logits_are_never_kept():
    head, hidden = torch.nn.Linear(8, 500), torch.randn(600, 8, requires_grad=True)
    targets, largest = torch.randint(0, 500, (600,)), []

    def pack(t):
        largest.append(t.numel())
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        chunked, _ = selective_logprobs(head, hidden, targets, 0.7, chunk=64)
    assert max(largest) <= 600*8  # nothing of the size of N × V, nor of one chunk's logits
    chunked.sum().backward()
    ours, hidden.grad = hidden.grad, None
    naive = (head(hidden)/0.7).log_softmax(-1)[range(600), targets]
    naive.sum().backward()
    assert torch.allclose(chunked, naive, atol=1e-5) and torch.allclose(ours, hidden.grad, atol=1e-5)


# ---- steps, prompts, checkpoints


def test_optimiser_steps_are_epochs_times_minibatches_times_rollouts(tmp_path):
    run, steps = trainer(tmp_path, num_ppo_epochs=3, num_mini_batches=2, gradient_accumulation_steps=2, rollouts=2), []
    run.create_optimizer()
    run.optimizer.register_step_post_hook(lambda *a: steps.append(1))
    run.train()
    assert len(steps) == run.state.global_step == 3*2*2
    logs = [entry for entry in run.state.log_history if "rollout" in entry]
    assert [entry["rollout"] for entry in logs] == [1, 2] and [entry["step"] for entry in logs] == [6, 12]
    assert "value_loss" in (tmp_path/"ppo_log.csv").read_text().splitlines()[0]


def test_max_steps_are_rounded_up_to_whole_rollouts(tmp_path):
    run = trainer(tmp_path, rollouts=None, max_steps=5)
    run.train()
    assert run.state.global_step == 8


def test_max_grad_norm_is_applied(tmp_path):
    run = trainer(tmp_path, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=1e-3,
                  rollouts=1, num_ppo_epochs=1, num_mini_batches=1, weight_decay=0.0)
    start = parameters(run)
    run.train()
    moved = torch.stack([(p - start[n]).square().sum() for n, p in parameters(run).items()]).sum().sqrt().item()
    assert 0.9e-3 < moved < 1.1e-3


def test_prompts_come_in_an_order_of_their_epoch():
    stream = ppo.prompt_order(5, 0, 20, seed=1)
    assert [sorted(stream[i:i + 5]) for i in (0, 5, 10, 15)] == [list(range(5))]*4
    assert stream[:5] != stream[5:10]  # another epoch, another order
    assert ppo.prompt_order(5, 7, 6, seed=1) == stream[7:13]  # from the middle: no replay


class StopAfter(TrainerCallback):
    def __init__(self, step): self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("own_critic", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_resume_equals_an_uninterrupted_run(tmp_path, adapter, own_critic):
    # 6 prompts, 4 a rollout: rollout 2 crosses an epoch
    settings = dict(rollouts=4, kl_target=0.1, kl_horizon=20, kl_coef=0.1, save_strategy="steps", save_steps=100,
                    num_mini_batches=1, per_device_train_batch_size=4)

    def fresh(folder, **more):
        return trainer(tmp_path/folder, language_model(tokenizer()), peft_config=lora() if adapter else None,
                       value_model=classifier(tokenizer()) if own_critic else None, **settings, **more)
    whole = fresh("whole")
    whole.train()
    fresh("parts", callbacks=[StopAfter(4)]).train()
    torch.manual_seed(99)  # whatever happened in between
    rest = fresh("parts")
    rest.train(resume_from_checkpoint=True)
    assert whole.state.global_step == rest.state.global_step == 8
    a, b = parameters(whole), parameters(rest)
    assert all(torch.equal(a[n], b[n]) for n in a)
    a, b = whole.optimizer.state_dict()["state"], rest.optimizer.state_dict()["state"]
    assert all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])
    assert whole.ppo_state() == rest.ppo_state() and whole.kl_control.beta != 0.1

    def timeless(run):
        return [{k: v for k, v in e.items() if "second" not in k and "runtime" not in k and k != "total_flos"}
                for e in run.state.log_history if "rollout" in e]

    assert timeless(whole) == timeless(rest)
    assert len((tmp_path/"parts"/"ppo_log.csv").read_text().splitlines()) == 1 + 4


def test_saving_waits_for_the_end_of_a_rollout(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=3, rollouts=3)  # four steps a rollout
    run.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]


def test_a_resume_with_other_rollouts_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    with pytest.raises(PPOError, match="updates"):
        trainer(tmp_path, num_ppo_epochs=3, rollouts=4).train(resume_from_checkpoint=True)
    (tmp_path/"checkpoint-8"/"ppo_state.json").unlink()
    with pytest.raises(PPOError, match="ppo_state.json"): trainer(tmp_path).train(resume_from_checkpoint=True)


def test_the_saved_policy_is_a_plain_model_and_the_critic_lies_beside_it(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    from safetensors.torch import load_file
    assert not [k for k in load_file(tmp_path/"model.safetensors") if "value" in k]
    critic = load_file(tmp_path/"value_head.safetensors")
    assert torch.equal(critic["weight"], run.policy.value_head.weight) and critic["weight"].abs().sum() > 0
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad(): assert torch.equal(again(input_ids=ids).logits, run.policy(input_ids=ids).logits)


def rescue(folder):
    "What a run's folder holds after a resume: the policy's weights, the critic's, and PPO's state"
    from safetensors.torch import load_file
    return load_file(folder/"model.safetensors") | load_file(folder/"value_head.safetensors"), json.loads(
        (folder/"ppo_state.json").read_text())


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import test_ppo as t
from cai_nb.ppo import PPOTrainer
torch.set_num_threads(1)
folder, moment = sys.argv[2:4]
calls = []
def die(): os.kill(os.getpid(), signal.SIGKILL)
def reward(prompts, completions, want):
    calls.append(1)
    if moment == "rollout" and len(calls) == 3: die()
    return t.colours(prompts, completions)
class Killer(t.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if moment == "update" and state.global_step == 10: die()  # the second of the third rollout's four updates
if moment == "save":  # the weights are written, of the optimiser a half
    def half(self, folder):
        if self.state.global_step == 8:
            with open(folder + "/optimizer.pt", "wb") as f: f.write(b"PK")
            die()
        return whole(self, folder)
    whole, PPOTrainer._save_optimizer_and_scheduler = PPOTrainer._save_optimizer_and_scheduler, half
run = t.trainer(folder, t.language_model(t.tokenizer()), reward=reward, callbacks=[Killer()], rollouts=4, save_strategy="steps", save_steps=4,
                kl_target=0.1, kl_horizon=20)
run.train(resume_from_checkpoint=True)
run.save_model()
"""


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    (tmp_path/"script.py").write_text(KILLED)

    def start(name, moment):
        log = open(tmp_path/f"{name}-{moment}.txt", "w")
        command = [sys.executable, str(tmp_path/"script.py"), str(Path(__file__).parent), str(tmp_path/name), moment]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {
            "PYTHONPATH": str(Path(ppo.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    moments = ("rollout", "update", "save")
    processes = {m: start(m, m) for m in moments} | {"whole": start("whole", "never")}
    codes = {m: p.wait(240) for m, p in processes.items()}
    assert codes == {m: -signal.SIGKILL for m in moments} | {"whole": 0}, (tmp_path/"whole-never.txt").read_text()[-2000:]
    newest = {m: ppo.last_checkpoint(tmp_path/m) for m in moments}
    assert [Path(newest[m]).name for m in moments] == ["checkpoint-8", "checkpoint-8", "checkpoint-4"]
    assert (tmp_path/"save"/"checkpoint-8"/"optimizer.pt").exists()  # there, and passed over
    for m, p in {m: start(m, "never") for m in moments}.items(): assert p.wait(240) == 0, (tmp_path/f"{m}-never.txt").read_text()[-2000:]
    want, state = rescue(tmp_path/"whole")
    for m in moments:
        got, its = rescue(tmp_path/m)
        assert its == state and all(torch.equal(got[n], want[n]) for n in want), m
        curves = [(tmp_path/n/"ppo_log.csv").read_text().splitlines() for n in (m, "whole")]
        assert len(curves[0]) == len(curves[1]) == 1 + 4


# ---- two critics


def test_a_critic_of_its_own_starts_from_the_preference_model_and_shares_nothing(tmp_path):
    judge = classifier(tokenizer())
    kept = {n: p.detach().clone() for n, p in judge.named_parameters()}
    run = trainer(tmp_path, value_model=judge, normalize_scores=False, rollouts=1)
    rows = run.rollout(0)
    for r in rows:  # a value is what the preference model would say of the dialogue before that token
        ids = torch.tensor([(r.prompt_ids + r.completion_ids)[:-1]])
        with torch.no_grad(): states = judge.eval().model(input_ids=ids).last_hidden_state[0] @ judge.score.weight[0]
        assert torch.allclose(r.old_values, states[len(r.prompt_ids) - 1:], atol=1e-4)
    batch = ppo.collate(rows)
    logprobs, values, _ = run.forward_tokens(run.model, batch)
    owners = {n: p for n, p in run.model.named_parameters()}
    grads = dict(zip(owners, torch.autograd.grad(values.sum(), list(owners.values()), allow_unused=True)))
    assert {n for n, g in grads.items() if g is not None} == {n for n in owners if "value_head" in n}
    grads = dict(zip(owners, torch.autograd.grad(logprobs.sum(), list(owners.values()), allow_unused=True)))
    assert {n for n, g in grads.items() if g is not None} == {n for n in owners if "value_head" not in n}
    run.train()
    run.save_model()
    assert all(torch.equal(p, kept[n]) for n, p in judge.named_parameters())  # the reward itself does not move
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(language_model(tokenizer()).state_dict())
    from safetensors.torch import load_file
    assert not [k for k in load_file(tmp_path/"model.safetensors") if "value_head" in k]


def test_with_lora_the_critic_is_an_adapter_that_is_not_saved_with_the_policys(tmp_path):
    run = trainer(tmp_path, peft_config=lora(), value_model=classifier(tokenizer()), kl_coef=0.1)
    run.train()
    assert [e["kl"] for e in run.state.log_history if "rollout" in e][0] == 0
    trained = {n for n, p in run.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "value_head.head" in n for n in trained)
    critic = {n for n in trained if "value_head" in n}
    assert critic and all(".critic." in n for n in critic if "lora_" in n) and len(critic) < len(trained)
    run.save_model()
    from safetensors.torch import load_file
    saved = load_file(tmp_path/"adapter_model.safetensors")
    assert saved and not [k for k in saved if "value_head" in k or "critic" in k]
    assert len(load_file(tmp_path/"value_head.safetensors")) == len(critic)
    with pytest.raises(PPOError, match="another kind"):  # a resume with the other critic
        trainer(tmp_path, peft_config=lora()).restore(tmp_path)


def test_a_value_model_with_other_tokens_is_refused(tmp_path):
    with pytest.raises(PPOError, match="same tokenizer"): trainer(tmp_path, value_model=classifier(tokenizer(WORDS + ["more"])))
    with pytest.raises(PPOError, match="head named `score`"): trainer(tmp_path, value_model=language_model(tokenizer()))


# ---- bounds on the KL


def test_updates_end_when_one_has_gone_too_far(tmp_path):
    settings = dict(rollouts=1, num_ppo_epochs=5, num_mini_batches=1, per_device_train_batch_size=8, learning_rate=0.05,
                    lr_scheduler_type="constant", warmup_steps=0)
    free, held = (trainer(tmp_path/n, language_model(tokenizer()), update_kl_stop=bound, **settings)
                  for n, bound in (("free", None), ("held", 1e-4)))
    steps = []
    for run in (free, held):
        counted = []
        run.add_callback(type("Watch", (TrainerCallback,), {
            "on_step_end": lambda self, args, state, control, run=run, counted=counted, **kw: counted.append(parameters(run))})())
        run.train()
        steps.append(counted)
        assert run.state.global_step == 5
    logs = [[e for e in run.state.log_history if "rollout" in e][0] for run in (free, held)]
    assert [e["updates"] for e in logs] == [5, 2]  # the first moves nothing yet (ratio 1), the second sees how far it went
    assert farthest(steps[0][1], steps[1][1]) == 0 and farthest(steps[1][1], steps[1][4]) == 0 < farthest(steps[0][1], steps[0][4])


def test_training_ends_at_a_bound_on_the_kl(tmp_path):
    run = trainer(tmp_path, rollouts=6, learning_rate=0.05, kl_stop=0.5, kl_coef=0.0)
    with pytest.warns(UserWarning, match="kl_stop=0.5: training ends"): run.train()
    logs = [e for e in run.state.log_history if "rollout" in e]
    assert len(logs) < 6 and logs[-1]["kl"] > 0.5 and all(e["kl"] <= 0.5 for e in logs[:-1])


# ---- samplers


def test_continuous_batching_samples_from_the_same_distribution(tmp_path):
    settings = dict(sampler="continuous", per_device_train_batch_size=600, num_mini_batches=1, max_completion_length=1,
                    data=PROMPTS[:1])
    rows = trainer(tmp_path, **settings).rollout(0)
    again = trainer(tmp_path, **settings).rollout(0)
    assert [r.completion_ids for r in rows] == [r.completion_ids for r in again]
    run = trainer(tmp_path)
    with torch.no_grad(): p = run.policy(input_ids=torch.tensor([rows[0].prompt_ids])).logits[0, -1].softmax(-1)
    share = torch.bincount(torch.tensor([r.completion_ids[0] for r in rows]), minlength=len(p))/len(rows)
    assert (share - p).abs().max() < 4*(0.25/len(rows))**0.5


def test_continuous_batching_trains_on_prompts_of_any_length(tmp_path):
    run = trainer(tmp_path, sampler="continuous", rollouts=2)
    run.train()
    assert all(0 < len(r.completion_ids) <= 6 and 1 not in r.completion_ids[:-1] for r in run.rows)
    assert all((r.completion_ids[-1] == 1) == r.finished for r in run.rows)


def test_samplers_that_cannot_work_say_so(tmp_path, monkeypatch):
    with pytest.raises(PPOError, match="write 'generate'"): trainer(tmp_path, sampler="beam")
    from importlib.util import find_spec
    if find_spec("vllm") is None:
        with pytest.raises(ModelError, match="pip install vllm"): trainer(tmp_path, sampler="vllm").rollout(0)
    model = language_model(tokenizer())
    monkeypatch.setattr(type(model), "generate_batch", lambda self, **kw: {})
    with pytest.raises(ModelError, match="0 answers to 2 prompts"):
        ppo.sample_continuous(model, [[2], [3]], 0, 4, [1], 0)


def test_the_vllm_sampler_calls_trls_engine_as_it_wants_to_be_called(tmp_path, monkeypatch):
    import inspect
    from trl.generation import vllm_generation
    init, calls = inspect.signature(vllm_generation.VLLMGeneration.__init__), []

    class Recorder:  # vLLM itself needs a GPU; its adapter's signatures do not
        def __init__(self, *args, **kwargs): init.bind(self, *args, **kwargs)

        def sync_weights(self): calls.append("sync")

        def generate(self, *args, **kwargs):
            bound = inspect.signature(real).bind(self, *args, **kwargs).arguments
            calls.append("generate")
            return bound["prompts"], [[5, 1] for _ in bound["prompts"]], None, None
    real = vllm_generation.VLLMGeneration.generate
    monkeypatch.setattr(backends, "wanted", lambda name: None)
    monkeypatch.setattr(vllm_generation, "VLLMGeneration", Recorder)
    run = trainer(tmp_path, sampler="vllm", vllm_settings={"mode": "colocate", "gpu_memory_utilization": 0.2})
    assert [r.completion for r in run.rollout(0)] == ["red"]*8 and calls == ["sync", "generate"]


# ---- LoRA


def test_with_lora_kl_starts_at_zero_and_the_base_stays_untouched(tmp_path):
    base = language_model(tokenizer())
    kept = {n: p.detach().clone() for n, p in base.named_parameters()}
    run = trainer(tmp_path, base, peft_config=lora(), kl_coef=0.1)
    run.train()
    logs = [entry for entry in run.state.log_history if "rollout" in entry]
    assert logs[0]["kl"] == 0 and logs[1]["kl"] != 0
    now = {n.replace("base_layer.", ""): p for n, p in run.policy.named_parameters()}
    assert all(torch.equal(now[n], p) for n, p in kept.items())
    frozen = language_model(tokenizer()).eval()  # adapter off equals a frozen copy
    ppo.attach_value_head(frozen)
    batch = ppo.collate(run.rows)
    with torch.no_grad(): want = run.forward_tokens(frozen, batch)[0]
    got = torch.cat([r.ref_logprobs for r in run.rows])
    assert torch.allclose(got, want, atol=1e-6)
    trained = [n for n, p in run.model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or "value_head" in n for n in trained) and any("value_head" in n for n in trained)
    assert not [n for n in trained if "value_head" in n and "lora" in n]


def test_an_sl_adapter_is_merged_and_becomes_the_reference(tmp_path):
    from peft import get_peft_model
    torch.manual_seed(5)
    sl = get_peft_model(language_model(tokenizer()), lora())
    with torch.no_grad():
        for n, p in sl.named_parameters():
            if "lora_B" in n: p.normal_(std=0.3)
    sl.eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad(): want = sl(input_ids=ids).logits
    with pytest.raises(PPOError, match="peft_config"): trainer(tmp_path, sl)
    run = trainer(tmp_path, sl, peft_config=lora())
    with torch.no_grad(): assert torch.allclose(run.policy.eval()(input_ids=ids).logits, want, atol=1e-4)
    run.train()
    assert run.state.log_history[0]["kl"] == 0


def test_adapters_in_the_upper_layers_let_nothing_flow_below_them(tmp_path):
    targets = ["q_proj", "v_proj"]
    config = lora()
    config.target_modules, config.layers_to_transform, config.layers_pattern = targets, [1], "layers"
    run = trainer(tmp_path, peft_config=config)
    run.rows = run.rollout(0)
    seen = []
    run.policy.model.layers[0].register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    run.forward_tokens(run.model, ppo.collate(run.rows))
    assert seen == [False]


# ---- rewards


@pytest.mark.parametrize("bad, message", [
    (lambda prompts, completions: [0.0]*(len(completions) - 1), "returned 7 scores for 8 completions"),
    (lambda prompts, completions: [math.nan]*len(completions), "returned nan for completion 0"),
    (lambda prompts, completions: [math.inf]*len(completions), "returned inf"),
    (lambda prompts, completions: [None]*len(completions), "raised TypeError"),
    (lambda prompts, completions: 1/0, "raised ZeroDivisionError"),
    (lambda completions: [0.0]*len(completions), "raised TypeError"),
])
def test_a_bad_reward_is_a_named_error(tmp_path, bad, message):
    bad.__name__ = "my_reward"
    data = [{"prompt": p["prompt"]} for p in PROMPTS]
    with pytest.raises(RewardError, match="my_reward") as e: trainer(tmp_path, reward=bad, data=data).train()
    assert message in str(e.value)


def test_a_reward_that_breaks_later_leaves_the_last_checkpoint_intact(tmp_path):
    calls = []

    def breaks(prompts, completions, want):
        calls.append(1)
        return [math.nan if len(calls) == 3 else 1.0*len(c) for c in completions]
    settings = dict(save_strategy="steps", save_steps=4, rollouts=4)
    with pytest.raises(RewardError): trainer(tmp_path, reward=breaks, **settings).train()
    run = trainer(tmp_path, reward=breaks, **settings)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 16 and len(calls) == 3 + 2


def test_rewards_see_text_and_columns_and_are_weighted(tmp_path):
    seen = []

    def first(prompts, completions, want):
        seen.append((prompts, completions, want))
        return [1.0]*len(completions)

    class Scorer:  # our PreferenceModel has this shape
        def score(self, dialogues):
            assert all(d[-1]["role"] == "assistant" and d[0]["role"] == "user" for d in dialogues)
            return np.array([2.0]*len(dialogues))
    run = trainer(tmp_path, reward=[first, Scorer()], reward_weights=[1.0, -0.5])
    rows = run.rollout(0)
    prompts, completions, want = seen[0]
    assert all(isinstance(p, list) for p in prompts) and set(want) <= set(WORDS)
    assert all(isinstance(c, str) for c in completions)
    assert not any("<" in c for c in completions)  # no special tokens
    assert {r.raw for r in rows} == {0.0} and run.rollout_logs["reward/Scorer"] == 2.0
    with pytest.raises(RewardError, match="reward_weights"):
        trainer(tmp_path, reward=[first, first], reward_weights=[1.0])
    with pytest.raises(RewardError, match="score"): trainer(tmp_path, reward=3)


@pytest.mark.parametrize("whole", [False, True])
def test_rewards_see_the_whole_sentences_of_what_was_cut_off(tmp_path, whole):
    seen = []

    def spy(prompts, completions):
        seen.extend(completions)
        return [0.0]*len(completions)
    run = trainer(tmp_path, reward=spy, complete_sentences=whole)
    rows = [ppo.Row([], [user("q")], completion="Go home. Then", finished=f) for f in (True, False)]
    run.compute_rewards(rows)
    assert seen == ["Go home. Then", "Go home." if whole else "Go home. Then"]
    assert [r.completion for r in rows] == ["Go home. Then"]*2  # what is learnt from stays as it was sampled


def test_a_classification_model_reads_text_with_its_own_tokenizer(tmp_path):
    from transformers import LlamaForSequenceClassification
    other = tokenizer(WORDS[::-1])  # the same words under other ids
    config = language_model(other).config
    config.num_labels = 1
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for p in judge.parameters(): p.mul_(6)
    judge.save_pretrained(tmp_path/"rm")
    other.save_pretrained(tmp_path/"rm")
    run = trainer(tmp_path/"run", reward=str(tmp_path/"rm"))
    for r in run.rollout(0):
        text = render([*r.prompt, {"role": "assistant", "content": r.completion}], other)
        ids = torch.tensor([other(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad(): want = judge.eval()(input_ids=ids).logits.item()
        assert math.isclose(r.raw, want, abs_tol=1e-4)


def test_scores_are_normalised_under_the_starting_policy_and_a_missing_end_costs(tmp_path):
    run = trainer(tmp_path, missing_eos_penalty=3.0, score_clip=1.0)
    rows = run.rollout(0)
    raw = torch.tensor([r.raw for r in rows]).float()
    want = ((raw - raw.mean())/raw.std()).clamp(-1, 1) - 3*torch.tensor([not r.finished for r in rows])
    assert torch.allclose(run.normalised(rows), want, atol=1e-6)
    run.rollout(1)
    assert math.isclose(run.reward_mean, raw.mean().item(), rel_tol=1e-6)  # measured once, then kept
    same = lambda prompts, completions, want: [2.0]*len(completions)
    assert trainer(tmp_path, reward=same).rollout(0)  # no spread: no error


# ---- the rest of the trainer


def test_settings_and_data_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(PPOError, match="num_ppo_epochs"): trainer(tmp_path, num_ppo_epochs=0)
    with pytest.raises(PPOError, match="no prompt"): trainer(tmp_path, data=[{"text": "red"}])
    with pytest.raises(PPOError, match="16 bits"): trainer(tmp_path, language_model(tokenizer()).bfloat16())
    with pytest.raises(PPOError, match="none of the"): trainer(tmp_path, data=["red "*100])
    with pytest.warns(UserWarning, match="1 of 7 prompts"):
        run = trainer(tmp_path, data=[*PROMPTS, {"prompt": "red "*100}])
    assert run.skipped == 1 and len(run.prompts) == 6
    with pytest.raises(PPOError, match="eval_dataset"): run.evaluate()


def test_evaluation_reports_and_leaves_training_alone(tmp_path):
    plain = trainer(tmp_path/"a", language_model(tokenizer()))
    watched = trainer(tmp_path/"b", language_model(tokenizer()))
    watched.eval_dataset, watched.args.eval_strategy = PROMPTS[:3], "steps"
    watched.compute_metrics = lambda p: {"words": float(np.mean([len(c.split()) for c in p.predictions]))}
    first = watched.evaluate()
    plain.train()
    watched.args.eval_steps = 1
    watched.train()
    assert farthest(parameters(plain), parameters(watched)) == 0
    assert {"eval_reward", "eval_entropy", "eval_length", "eval_finished", "eval_words"} <= set(first)
    assert first["eval_kl"] == 0
    assert [e["step"] for e in watched.state.log_history if "eval_reward" in e] == [4, 8]


def test_samples_show_the_same_prompts_before_and_after(tmp_path):
    run = trainer(tmp_path, sample_rollouts=1, num_samples=2, learning_rate=0.05)
    run.train()
    lines = [json.loads(line) for line in (tmp_path/"samples.jsonl").read_text().splitlines()]
    assert [e["rollout"] for e in lines] == [0, 0, 1, 1, 2, 2]
    assert lines[0]["prompt"] == lines[2]["prompt"] == lines[4]["prompt"]
    assert lines[0]["completion"] != lines[4]["completion"]


def test_curves_are_drawn_while_training(tmp_path, monkeypatch):
    import IPython.display
    shown = []

    class Place:
        def update(self, fig): shown.append(fig)
    monkeypatch.setattr(IPython.display, "display", lambda fig, display_id: shown.append(fig) or Place())
    run = trainer(tmp_path, rollouts=3, callbacks=[ppo.LiveCurves()])
    run.train()
    assert len(shown) == 3
    lines = [ax.lines[0].get_ydata() for ax in shown[-1].axes]
    history = [e for e in run.state.log_history if "rollout" in e]
    assert [list(y) for y in lines] == [[e[k] for e in history] for k in ppo.CURVES]


def test_push_to_hub_sends_the_policy_and_its_critic(tmp_path, monkeypatch):
    from transformers import trainer as module
    sent = {}

    class Hub:  # stands where the network begins
        def upload_folder(self, repo_id, folder_path, **kwargs): sent[repo_id] = {p.name for p in Path(folder_path).iterdir()}
    monkeypatch.setattr(module.Trainer, "init_hf_repo", lambda self, token=None: setattr(self, "hub_model_id", "somebody/rl-cai"))
    monkeypatch.setattr(module, "hf_api", Hub)
    run = trainer(tmp_path, push_to_hub=True, hub_model_id="somebody/rl-cai")
    run.train()
    run.push_to_hub()
    assert {"model.safetensors", "value_head.safetensors", "ppo_state.json", "ppo_log.csv", "README.md"} <= sent["somebody/rl-cai"]


def test_value_head_learns_at_its_own_rate(tmp_path):
    run = trainer(tmp_path, learning_rate=1e-12, value_learning_rate=0.1, lr_scheduler_type="constant")
    start = parameters(run)
    run.train()
    end = parameters(run)
    assert (end["value_head.weight"] - start["value_head.weight"]).abs().max() > 0.05
    assert max((end[n] - start[n]).abs().max().item() for n in start if "value_head" not in n) < 1e-9


def test_adaptive_kl_moves_beta_towards_the_target():
    control = ppo.AdaptiveKL(0.1, target=2.0, horizon=100)
    assert math.isclose(control.update(10.0, 50), 0.1*(1 + 0.2*0.5))  # far above: up, by the clipped error
    assert control.update(0.0, 50) < 0.11
    assert ppo.AdaptiveKL(0.1).update(100.0, 50) == 0.1


# ---- two processes

SCRIPT = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
import test_ppo as t
torch.set_num_threads(1)
run = t.trainer(sys.argv[2], t.language_model(t.tokenizer()), per_device_train_batch_size=2, optim="sgd",
                learning_rate=1e-2, gradient_accumulation_steps=int(sys.argv[3]),
                ddp_backend="gloo" if "RANK" in os.environ else None, kl_target=0.1, kl_horizon=20, rollouts=2)
run.train()
run.save_model()
if run.is_world_process_zero():
    torch.save([e for e in run.state.log_history if "rollout" in e], sys.argv[2] + "/logs.pt")
run.accelerator.wait_for_everyone()
run.accelerator.end_training()  # a process that just ends may take gloo's threads down with a crash
"""


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path):
    (tmp_path/"script.py").write_text(SCRIPT)
    package = Path(ppo.__file__).parents[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package), "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    for name, start, accumulate in (("one", [sys.executable], 4), ("two", launch, 2)):
        command = [*start, str(tmp_path/"script.py"), str(Path(__file__).parent), str(tmp_path/name), str(accumulate)]
        with open(tmp_path/f"{name}.txt", "w") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out,
                                                                       start_new_session=True) as process:
            try: code = process.wait(240)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # the launcher and both processes that it started
                raise
        assert code == 0, (tmp_path/f"{name}.txt").read_text()[-3000:]
    from safetensors.torch import load_file
    one, two = (load_file(tmp_path/n/"model.safetensors") | load_file(tmp_path/n/"value_head.safetensors")
                for n in ("one", "two"))
    start = language_model(tokenizer()).state_dict()
    assert max((one[n] - start[n]).abs().max() for n in start) > 1e-3
    assert max((one[n] - two[n]).abs().max() for n in one) < 1e-6
    for a, b in zip(torch.load(tmp_path/"one"/"logs.pt"), torch.load(tmp_path/"two"/"logs.pt"), strict=True):
        for k in ("reward", "kl", "entropy", "length", "explained_variance", "policy_loss", "value_loss",
                  "clip_fraction", "beta", "loss", "grad_norm"):
            assert math.isclose(a[k], b[k], rel_tol=1e-4, abs_tol=1e-6), k
