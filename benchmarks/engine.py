"""What each trick of the engine room (appendices A1 and A2) is worth: a stage with it, and with that one thing switched off.

    python benchmarks/engine.py [--rows 32] [--repeats 3] [--only STAGE] [--json OUT]

The stages have the sizes of the laptop recipe, with few rows: revision (responses, critiques, revisions), features (labels by a
judge), options (multiple choice after four exemplars), fine-tuning, preference model, PPO. Each stage is a process of its own. There
every trick is switched off in turn, always between two runs with everything on; a ratio is the time without it over the mean
time of its two neighbours, and the table shows the median of the repeats, of wall time and of CPU time (all threads). The row
"all of it" is `CAI_NB_PLAIN=1`. `malloc` acts on a whole process, so it is switched off in a second process. The last column is
the stage's share of a whole laptop run, from results/laptop. About an hour on two cores with the default sizes.
"""

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import arguments, show, write

from cai_nb.loading import best_dtype

ROOT = Path(__file__).resolve().parent.parent
DECODING = ("preallocated cache", "rows leave early", "shared prefix", "all of it")
STAGES = {  # stage -> (its folder in a run, the tricks that serve it)
    "revision": ("1-revision", ("prefix cache", *DECODING)),
    "features": ("3-feedback", ("shared prefix", "all of it")),
    "options": ("3-feedback", ("shared prefix", "all of it")),
    "fine-tuning": ("2-sft", ("shared prefix", "LoRA layer", "all of it")),
    "preference model": ("4-preference", ("shared prefix", "LoRA layer", "frozen layers", "all of it")),
    "PPO": ("5-ppo", (*DECODING[:2], "shared prefix", "LoRA layer", "frozen layers", "all of it")),
    "PPO in float32": ("5-ppo", ("merged adapter",)),  # other weights are not merged
}


def switches(trick):
    "[(object, name, what takes its place)] that switch a trick off"
    from transformers.cache_utils import Cache, DynamicLayer

    from cai_nb import cpu, engine, revision

    def nothing(*args, **kwargs):
        return contextlib.nullcontext()

    return {
        "preallocated cache": [(engine, "empty_cache", lambda spare: Cache(layer_class_to_replicate=DynamicLayer))],
        "rows leave early": [(engine, "generate_tokens", functools.partial(engine.generate_tokens, leave=2.0))],
        "shared prefix": [(engine, "common_prefix_length", lambda *args, **kwargs: 0)],
        "prefix cache": [(revision, "prefix_caching", nothing)],
        "LoRA layer": [(cpu, "lora_layer", lambda: lambda *args, **kwargs: None)],  # None: PEFT's own layer
        "frozen layers": [(cpu, "cache_frozen_activations", nothing)],
        "merged adapter": [(cpu, "merged_adapter", nothing)],
        "all of it": [],
    }[trick]


@contextlib.contextmanager
def without(trick):
    "Inside, one trick is switched off"
    before = [(place, name, getattr(place, name)) for place, name, _ in switches(trick)]
    plain = os.environ.get("CAI_NB_PLAIN", "0")
    try:
        for place, name, other in switches(trick):
            setattr(place, name, other)
        if trick == "all of it":
            os.environ["CAI_NB_PLAIN"] = "1"
        yield
    finally:
        os.environ["CAI_NB_PLAIN"] = plain
        for place, name, value in before:
            setattr(place, name, value)


# ---- the stages, each a function without arguments that does the same every time


def pairs(n):
    from cai_nb.constitution import Constitution
    from cai_nb.pairs import labelled_pairs

    return labelled_pairs([Constitution.load("harmlessness")], "train", exemplars=False)[:n]


def comparisons(n):
    from cai_nb.dialogue import as_messages, assistant

    return [{"id": p["id"], "prompt": as_messages(p["prompt"]), "chosen": [assistant(p["better"])], "rejected": [assistant(p["worse"])],
             "label": 0.9, "kind": p["kind"]} for p in pairs(n)]  # fmt: skip


def revision(n):
    from cai_nb.artifacts import bundled_adapter
    from cai_nb.constitution import Constitution
    from cai_nb.model import LanguageModel
    from cai_nb.prompts import load_prompts
    from cai_nb.revision import RevisionConfig, revise

    policy, critic = LanguageModel.load(), LanguageModel.load(adapter=bundled_adapter("critic"))
    prompts, rules = load_prompts("harmful")[:n], Constitution.load("harmlessness")
    config = RevisionConfig(rounds=1, max_tokens=64, critique_tokens=56, batch_size=64)
    return lambda: revise(policy, prompts, rules, config, critic=critic)


def features(n):
    from cai_nb.judge import LAYERS
    from cai_nb.model import LanguageModel

    lm = LanguageModel.load()
    talks = [[*c["prompt"], *c[k]] for c in comparisons(n) for k in ("chosen", "rejected")]
    return lambda: lm.features(talks, layers=LAYERS, batch_size=64, question="Was that harmless?")


def options(n):
    from cai_nb.constitution import Constitution
    from cai_nb.dialogue import assistant
    from cai_nb.feedback import ANSWER, comparison_questions
    from cai_nb.pairs import as_pairs
    from cai_nb.model import LanguageModel

    lm, rules = LanguageModel.load(), Constitution.load("harmlessness")
    found = as_pairs(pairs(n // 2 + 2))
    asked = [q for order in comparison_questions(found, [rules.draw(p["id"], use="comparison") for p in found]) for q in order]
    shown = [m for q in asked[:4] for m in (*q, assistant(f"{ANSWER}A)"))]
    asked = [[*shown, *q] for q in asked[4:]]
    return lambda: lm.option_logprobs(asked, prefix=ANSWER)


def fine_tuning(n):
    from cai_nb.sft import SFTSettings, finetune

    examples = [{"prompt": c["prompt"], "completion": c["chosen"]} for c in comparisons(n)]
    settings = SFTSettings(epochs=1, learning_rate=6e-4, schedule="linear", max_length=256)
    return lambda: finetune("default", examples, tempfile.mkdtemp(), settings)


def preference_model(n):
    from cai_nb.preference import PreferenceSettings, train_preference_model

    rows, settings = comparisons(n), PreferenceSettings(epochs=1, learning_rate=1e-3, max_length=256)
    return lambda: train_preference_model("default", rows, tempfile.mkdtemp(), settings)


def ppo(n, dtype=None):
    from transformers import PrinterCallback

    from cai_nb.dialogue import user
    from cai_nb.model import LanguageModel
    from cai_nb.ppo import PPOConfig, PPOTrainer
    from cai_nb.prompts import load_prompts
    from cai_nb.training import lora_config

    prompts = [{"prompt": [user(p["prompt"])]} for p in load_prompts("harmful")[:n]]

    def work():
        lm = LanguageModel.load(dtype=dtype)
        args = PPOConfig(tempfile.mkdtemp(), rollouts=1, per_device_train_batch_size=8, gradient_accumulation_steps=max(1, n // 16), num_mini_batches=2,
                         num_ppo_epochs=1, max_completion_length=64, temperature=0.8, learning_rate=1e-3, save_strategy="no", sample_rollouts=0,
                         report_to=[], use_cpu=True, bf16=False, disable_tqdm=True)  # fmt: skip
        trainer = PPOTrainer(lm, lambda prompts, completions, **_: [float(len(c)) for c in completions], args, prompts, peft_config=lora_config(lm.model))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return work


WORK = {
    "revision": revision,
    "features": features,
    "options": options,
    "fine-tuning": fine_tuning,
    "preference model": preference_model,
    "PPO": ppo,
    "PPO in float32": functools.partial(ppo, dtype="float32"),
}


# ---- measuring


def timed(work):
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


def measure(stage, rows, repeats, malloc):
    "The last line of a stage's process: seconds with everything on, and ratios without each trick"
    from cai_nb import cpu

    if not malloc:
        cpu.tune_malloc = lambda: None
    work = WORK[stage](rows)
    work()  # warm up
    tricks = STAGES[stage][1] if malloc else ()
    ratios, seconds, before = {t: [] for t in tricks}, [], timed(work)
    for _ in range(repeats):
        for trick in tricks:
            with without(trick):
                off = timed(work)
            after = timed(work)
            ratios[trick].append([2 * o / (a + b) for o, a, b in zip(off, before, after)])
            seconds.append(after)
            before = after
        if not tricks:
            seconds.append(timed(work))
    print("RESULT " + json.dumps({"seconds": seconds, "ratios": ratios}))


def apart(stage, rows, repeats, malloc=True):
    command = [sys.executable, __file__, "--stage", stage, str(rows), str(repeats), str(int(malloc))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CAI_NB_QUIET": "1", "CAI_NB_PLAIN": "0"})
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        sys.exit(f"engine: {stage} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return json.loads(found[-1][7:])


def middle(values):
    return [round(statistics.median(column), 3) for column in zip(*values)]


def main():
    args = arguments(__doc__, rows={"type": int, "default": 32}, repeats={"type": int, "default": 3}, only={"choices": list(STAGES)})
    run = json.loads((ROOT / "results" / "laptop" / "facts.json").read_text())["stages"]
    total = sum(s["seconds"] for s in run.values())
    rows = []
    for stage, (folder, _) in STAGES.items():
        if args.only not in (None, stage):
            continue
        with_all = apart(stage, args.rows, args.repeats)
        ratios = {trick: middle(found) for trick, found in with_all["ratios"].items()}
        seconds, bare = middle(with_all["seconds"]), middle(apart(stage, args.rows, args.repeats, malloc=False)["seconds"])
        ratios["malloc"] = [round(b / s, 3) for b, s in zip(bare, seconds)]
        rows += [{"stage": stage, "trick": trick, "time without / with it": wall, "CPU time": used, "seconds with it": seconds[0],
                  "stage's share of a run": round(run[folder]["seconds"] / total, 3)} for trick, (wall, used) in ratios.items()]  # fmt: skip
        show(rows[-len(ratios):])
    dtype = str(best_dtype("cpu")).removeprefix("torch.")
    write(args.json, rows=rows, size=args.rows, repeats=args.repeats, dtype=dtype)


if __name__ == "__main__":
    if "--stage" in sys.argv:
        at = sys.argv.index("--stage")
        measure(sys.argv[at + 1], *map(int, sys.argv[at + 2:at + 5]))
    else:
        main()
