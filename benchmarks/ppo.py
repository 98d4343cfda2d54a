"""PPO side by side with the trainer that TRL removed: time an episode and peak memory, ours over the peer's.

    python benchmarks/ppo.py [--json OUT] [--rollouts 2] [--only lora|full|lengths]

The peer is `trl.experimental.ppo` of TRL 1.12.0, the last release that had it: its wheel is fetched from PyPI and goes first on
the path of a subprocess. Each row is two fresh processes, one after the other: the same model (the default one, in float32), the
same prompts, reward model, number of answers a rollout, longest answer, passes, LoRA layers and optimiser steps. The peer counts its
minibatches wrongly (TRL issue 5645), so both take one minibatch a pass; and in the last batch of its data it steps after every
micro-batch, so both get more prompts than they will use. Its critic is a model of its own, as it has to be there;
ours is a head on the policy's trunk, and in one row a model of its own too. Time is that of `train()`, without loading; memory is the
process's peak, everything in it. Then cost against response length and batch size, ours alone. About 15 minutes on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bench import arguments, show, write

PEER = "1.12.0"
SETTINGS = {"batch": 16, "micro": 8, "length": 48, "epochs": 2, "rollouts": 2, "lora": True, "own_critic": False}
DTYPE = {"cpu": "float32"}.get(os.environ.get("CAI_NB_BENCH_DEVICE", "cpu"), "bfloat16")


def questions(n):
    "Conversational prompts of the project's own, of several lengths"
    from cai_nb.prompts import load_prompts

    texts = [p["prompt"] for kind in ("benign", "harmful") for p in load_prompts(kind)]
    return [{"prompt": [{"role": "user", "content": texts[i % len(texts)]}]} for i in range(n)]


def reward_model():
    "A scorer with random opinions on the default model's trunk: (model, tokenizer)"
    import torch

    from cai_nb.preference import sequence_classifier

    model, tokenizer, _ = sequence_classifier(dtype=DTYPE)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    return model, tokenizer


def adapter(model):
    from cai_nb.training import lora_config

    return lora_config(model, 16, 0.5)


def finish(seconds, episodes, **more):
    "The last line of a subprocess: what it measured"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({"seconds": seconds, "episodes": episodes, "gib": peak, **more}))


def ours(s):
    "A run of our trainer"
    import time

    import torch
    from transformers import PrinterCallback

    from cai_nb.loading import load_pretrained
    from cai_nb.ppo import PPOConfig, PPOTrainer
    from cai_nb.ppo_model import ModelReward

    torch.manual_seed(0)
    model, tokenizer, _ = load_pretrained("default", dtype=DTYPE)
    judge, _ = reward_model()
    args = PPOConfig(
        tempfile.mkdtemp(), rollouts=s["rollouts"], per_device_train_batch_size=s["micro"],
        gradient_accumulation_steps=s["batch"] // s["micro"], num_ppo_epochs=s["epochs"], max_completion_length=s["length"],
        temperature=0.7, save_strategy="no", sample_rollouts=0, disable_tqdm=True, report_to=[], use_cpu=DTYPE == "float32",
        learning_rate=1e-4 if s["lora"] else 3e-6,
    )  # fmt: skip
    trainer = PPOTrainer(
        model, ModelReward(judge, tokenizer), args, questions(s["batch"] * (s["rollouts"] + 1)), processing_class=tokenizer,
        peft_config=adapter(model) if s["lora"] else None,
        value_model=judge if s["own_critic"] else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    logs = [e for e in trainer.state.log_history if "rollout" in e]
    known = ("seconds_writing", "seconds_judging", "seconds_measuring", "seconds_learning")
    spent = {k: sum(e[k] for e in logs) for k in known}
    whole = sum(e["seconds"] for e in logs)
    finish(seconds, s["batch"] * s["rollouts"], steps=trainer.state.global_step, tokens=sum(e["tokens"] for e in logs),
           rest=1 - sum(spent.values()) / whole, **spent)  # fmt: skip


def peer(s):
    "A run of TRL's"
    import time

    import torch
    from datasets import Dataset
    from trl import __version__
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from cai_nb.chat_template import render
    from cai_nb.loading import load_pretrained

    assert __version__ == PEER, __version__
    torch.manual_seed(0)
    model, tokenizer, _ = load_pretrained("default", dtype=DTYPE)
    tokenizer.padding_side = "left"
    judge, _ = reward_model()
    value, _ = reward_model()
    asked = [render(q["prompt"], tokenizer, add_generation_prompt=True) for q in questions(s["batch"] * (s["rollouts"] + 1))]
    data = Dataset.from_list([{"input_ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in asked])
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), total_episodes=s["batch"] * s["rollouts"], per_device_train_batch_size=s["micro"],
        gradient_accumulation_steps=s["batch"] // s["micro"], num_ppo_epochs=s["epochs"], num_mini_batches=1,
        response_length=s["length"], stop_token="eos", temperature=0.7, local_rollout_forward_batch_size=s["batch"],
        num_sample_generations=0, save_strategy="no", report_to=[], bf16=False, gradient_checkpointing=False, missing_eos_penalty=None,
        use_cpu=DTYPE == "float32", learning_rate=1e-4 if s["lora"] else 3e-6, disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        args, tokenizer, model, None, judge, data, value, eval_dataset=data,
        peft_config=adapter(model) if s["lora"] else None,
    )  # fmt: skip
    steps = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *a: steps.append(1))
    start = time.perf_counter()
    trainer.train()
    finish(time.perf_counter() - start, s["batch"] * s["rollouts"], steps=len(steps))


def wheel():
    "The folder with TRL 1.12.0, fetched once"
    folder = Path(os.environ.get("CAI_NB_CACHE", Path.home() / ".cache" / "cai_nb")) / f"trl-{PEER}"
    if not (folder / "trl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", f"trl=={PEER}"]
        subprocess.run([*command, "-d", str(folder)], check=True)
        with zipfile.ZipFile(next(folder.glob("trl-*.whl"))) as z:
            z.extractall(folder)
    return folder


def apart(who, **settings):
    "What a fresh process of `who` measures"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*([str(wheel())] if who == "peer" else []), os.environ.get("PYTHONPATH", "")]),
           "TRL_EXPERIMENTAL_SILENCE": "1", "CAI_NB_QUIET": "1"}  # fmt: skip
    command = [sys.executable, __file__, "--side", who, json.dumps({**SETTINGS, **settings})]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        sys.exit(f"ppo: {who} with {settings} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return json.loads(found[-1][7:])


def compare(name, rollouts, theirs=None, **settings):
    "A row, and what the peer measured"
    a, b = apart("ours", rollouts=rollouts, **settings), theirs or apart("peer", rollouts=rollouts, **{**settings, "own_critic": True})
    each = [x["seconds"] / x["episodes"] for x in (a, b)]
    if a["steps"] != b["steps"]:
        sys.exit(f"ppo: {a['steps']} optimiser steps here, {b['steps']} there: not the same work")
    row = {"name": name, "time_ratio": each[0] / each[1], "memory_ratio": a["gib"] / b["gib"], "seconds an episode": each[0],
           "peer's": each[1], "GiB": a["gib"], "peer's GiB": b["gib"], "steps": a["steps"], "peer's steps": b["steps"],
           "neither sampling nor passes": a["rest"]}  # fmt: skip
    show([row])
    return row, b


def main():
    args = arguments(__doc__, rollouts={"type": int, "default": 2}, only={"choices": ("lora", "full", "lengths")})
    rows, lengths = [], []
    if args.only in (None, "lora"):
        row, theirs = compare("LoRA, value head", args.rollouts, lora=True)
        rows += [row, compare("LoRA, critic of its own", args.rollouts, theirs, lora=True, own_critic=True)[0]]
    if args.only in (None, "full"):
        rows.append(compare("full fine-tuning, value head", args.rollouts, lora=False)[0])
    if args.only in (None, "lengths"):
        for batch, length in ((16, 16), (16, 32), (16, 64), (16, 96), (8, 32), (24, 32), (32, 32)):
            a = apart("ours", rollouts=1, batch=batch, length=length)
            lengths.append({"batch": batch, "length": length, "tokens": a["tokens"], "seconds": a["seconds"], "GiB": a["gib"]})
        show(lengths)
    print()
    show(rows)
    write(args.json, rows=rows, cost=lengths, settings=SETTINGS, peer=f"trl {PEER}, trl.experimental.ppo")


if __name__ == "__main__":
    if "--side" in sys.argv:
        {"ours": ours, "peer": peer}[sys.argv[-2]](json.loads(sys.argv[-1]))
    else:
        main()
