"""Two processes do what one does: work is scattered, trainings are collective calls, a run resumes with fewer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import SETS
from tiny import tiny_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def command(n, *words):
    "What starts a program in n processes"
    start = [sys.executable]
    if n > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return [*start, *map(str, words)]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CAI_NB_QUIET": "1",
                         "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def start(n, *words, code=0):
    done = subprocess.run(command(n, *words), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == code or (code and done.returncode), (done.stdout + done.stderr)[-3000:]
    return done


METHODS = """
import pickle, sys
from cai_nb.dialogue import assistant, user
from cai_nb.distributed import lead, processes, share
from cai_nb.model import LanguageModel, ModelError

def main():
    lm = share(LanguageModel.load, sys.argv[1], dtype="float32")
    asked = [[user("Hello " * k)] for k in (3, 1, 7, 2, 5)]
    one = asked[:1]
    found = {
        "sampled": [c.text for c in lm.sample(asked, 8, seed=3)],
        "keyed": [c.text for c in lm.sample(asked[::-1], 8, 1.0, seed=3, keys=list("edcba"), prefix="So")],
        "single": [c.text for c in lm.sample(one, 8)],
        "none": (lm.sample([]), lm.option_logprobs([]).shape, lm.score([], [])),
        "chosen": lm.option_logprobs(asked, ("A", "B", "C"), prefix=["(", "So (", "(", "A: (", "("]),
        "scored": [(s.logprob, s.tokens) for s in lm.score(asked, ["Yes.", "No", "Well then", "", "A"])],
        "states": lm.features([[*a, assistant("Yes.")] for a in asked], layers=(1, 4)),
        "ids": lm.encode(one), "id": lm.id,
    }
    try: lm.sample([*asked, [user("x" * 2000)]], 8)
    except ModelError as e: found["refused"] = str(e)
    found["after"] = [c.text for c in lm.sample(asked, 8, seed=3)]
    other = share(LanguageModel.load, sys.argv[1], dtype="float32")
    del other
    lm.sample(one * 2, 1)
    found["kept"] = len(processes().models)
    pickle.dump((processes().size, found), open(sys.argv[2], "wb"))
    return 0

sys.exit(lead(main))
"""


def test_rows_are_scattered_and_gathered_in_order(folder, tmp_path):
    import pickle

    (tmp_path / "methods.py").write_text(METHODS)
    found = {}
    for n in (1, 2, 3):
        start(n, tmp_path / "methods.py", folder, tmp_path / f"{n}.pickle")
        size, found[n] = pickle.loads((tmp_path / f"{n}.pickle").read_bytes())
        assert size == n
    for n in (2, 3):
        assert found[n].pop("kept") == 1
        for key, value in found[1].items():
            if key == "scored":
                assert [t for _, t in value] == [t for _, t in found[n][key]]
                value, found[n][key] = [s for s, _ in value], [s for s, _ in found[n][key]]
            if key in ("scored", "chosen", "states"):
                np.testing.assert_allclose(value, found[n][key], atol=1e-4)
            elif key != "kept":
                assert value == found[n][key], key
    assert "exceeds the context" in found[2]["refused"] and found[2]["after"] == found[2]["sampled"]


TRAIN = """
import json, sys
from pathlib import Path
from cai_nb.dialogue import assistant, user
from cai_nb.distributed import lead, together
from cai_nb.preference import PreferenceSettings, train_preference_model
from cai_nb.sft import SFTSettings, finetune
from test_preference import comparison

def main():
    out = Path(sys.argv[2])
    words = ("tea", "rain", "moss", "bread", "a kettle of soup", "x", "yes and no", "trains")
    examples = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"Yes, {w}!")], "learn_end": w != "x"} for w in words]
    more = dict(epochs=4, batch_size=8, learning_rate=1e-3, max_length=512, lora_rank=0)  # all weights, in float32
    sft = together(finetune, sys.argv[1], examples, out/"sft", SFTSettings(**more, schedule="constant"))[0]
    pairs = [comparison(i, p) for i, p in enumerate((0.9, 0.8, 0.1, 0.6, 1.0, 0.5, 0.3, 0.7, 0.2, 0.9))]
    pm = together(train_preference_model, sys.argv[1], pairs, out/"pm", PreferenceSettings(**more, heldout=0.2))[0]
    (out/"curves.json").write_text(json.dumps({"sft": sft["curve"], "pm": pm["curve"], "examples": [sft["examples"], pm["examples"]],
                                               "cross_entropy": pm["cross_entropy"]}))
    return 0

sys.exit(lead(main))
"""


def test_training_in_two_processes_has_the_loss_of_one(folder, tmp_path):
    "Batches of all examples, so that the order in which they are drawn decides nothing"
    (tmp_path / "train.py").write_text(TRAIN)
    curves = {}
    for n in (1, 2):
        start(n, tmp_path / "train.py", folder, tmp_path / str(n))
        curves[n] = json.loads((tmp_path / str(n) / "curves.json").read_text())
    assert curves[1]["examples"] == curves[2]["examples"] == [8, 8]
    for what in ("sft", "pm"):
        one, two = (np.array([c["loss"] for c in curves[n][what]]) for n in (1, 2))
        assert len(one) == 4 and abs(one[-1] - one[0]) > 1e-4
        np.testing.assert_allclose(one, two, rtol=1e-4)
        a, b = (load_file(tmp_path / str(n) / what / "model.safetensors") for n in (1, 2))
        before = load_file(Path(folder) / "model.safetensors")
        assert a.keys() == b.keys() and max((a[k] - before[k]).abs().max() for k in before.keys() & a.keys()) > 1e-3
        assert max((a[k] - b[k]).abs().max() for k in a) < 2e-4
    assert curves[1]["cross_entropy"] == pytest.approx(curves[2]["cross_entropy"], abs=0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "(model, what two processes learn that hold all weights each); its answers end soon, at another length in each process"
    model, out = tiny_folder(tmp_path_factory.mktemp("ends-soon")), tmp_path_factory.mktemp("whole")
    settings = json.loads((Path(model) / "generation_config.json").read_text())
    (Path(model) / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, *range(3, 90)]}))
    start(2, ROOT / "tests" / "divided.py", model, out)
    return model, out


@pytest.mark.parametrize("how", ["fsdp", "zero3"])
def test_divided_weights_learn_what_whole_ones_do(whole, tmp_path, how, monkeypatch):
    "The bundled configurations of accelerate, on two CPU processes (see divided.py): the same losses, answers and weights"
    if how == "zero3":
        pytest.importorskip("deepspeed", exc_type=ImportError)
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    model, undivided = whole
    words = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", ROOT / "recipes" / "accelerate" / f"{how}.yaml",
             "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]  # fmt: skip
    start(1, *words, ROOT / "tests" / "divided.py", model, tmp_path)
    ours, theirs = (json.loads((folder / "found.json").read_text()) for folder in (tmp_path, undivided))
    assert all(o["divided 4"] and o["divided 0"] for o in ours) and not theirs[0]["divided 0"]
    assert ours[0]["lengths 4"] != ours[1]["lengths 4"], "one process has to write for longer than the other"
    for key, rows in ours[0].items():
        if not key.startswith(("sft", "pm", "ppo")):
            continue
        assert len(rows) == len(theirs[0][key])
        for row, other in zip(rows, theirs[0][key]):
            for name in {"loss", "reward", "kl", "policy_loss", "value_loss", "length"} & row.keys():
                assert row[name] == pytest.approx(other[name], abs=1e-5), (key, name)
    compared = 0
    for path in tmp_path.glob("*/model.safetensors"), tmp_path.glob("*/adapter_model.safetensors"), tmp_path.glob("*/model/*.safetensors"):
        for ended in path:
            a, b = load_file(ended), load_file(undivided / ended.relative_to(tmp_path))
            assert len(a) > 1 and b.keys() - {"lm_head.weight"} <= a.keys(), ended
            assert max((a[k] - b[k]).abs().max() for k in a.keys() & b.keys()) < 1e-4, ended
            compared += 1
    assert compared == (8 if how == "fsdp" else 6)


FAILS = """
import sys
from cai_nb.dialogue import CaiError
from cai_nb.distributed import lead, processes, together

def work(joint):
    import torch.distributed as d
    if processes().index == 1: raise CaiError("the second process stumbled")
    if joint: d.barrier()
    return 1

def main():
    try: together(work, sys.argv[1] == "joint", joint=sys.argv[1] == "joint")
    except CaiError as e: print("caught:", e, flush=True)
    return 3

sys.exit(lead(main))
"""


@pytest.mark.parametrize("how", ["apart", "joint"])
def test_an_error_in_one_process_ends_no_run_in_silence(tmp_path, how):
    (tmp_path / "fails.py").write_text(FAILS)
    began = time.time()
    done = start(2, tmp_path / "fails.py", how, code=1)
    said = done.stdout + done.stderr
    assert time.time() - began < 100  # not the patience of a barrier
    assert ("caught: the second process stumbled" in said) if how == "apart" else ("stumbled" in said)


def run_words(folder, out, *more):
    sets = [*SETS, f"model.name={folder}", "model.dtype=float32", "ppo.lora_rank=0", *more]
    return ["-m", "cai_nb", "run", "smoke", "--out", out, *[w for s in sets for w in ("--set", s)]]


def workers(out):
    "Process ids of those that work in a run folder, the launcher left out"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words and b"torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_run_in_two_processes_goes_on_in_one(folder, tmp_path):
    "The same answers and labels; killed in the middle of PPO, one process ends the run"
    sets = ["revision.temperature=0", "revision.critic_temperature=0", "ppo.num_rollouts=6", "ppo.save_every=1"]
    start(1, *run_words(folder, tmp_path / "one", *sets))
    two = tmp_path / "two"
    with open(tmp_path / "said.txt", "w") as said:
        launched = subprocess.Popen(command(2, *run_words(folder, two, *sets)), env=environment(), stdout=said, stderr=said,
                                    start_new_session=True)
        while launched.poll() is None and not list(two.glob("5-ppo/work/checkpoint-*")):
            time.sleep(0.05)
        for pid in workers(two):  # each in a session of its own, so that the launcher's group does not hold them
            os.kill(pid, signal.SIGKILL)
        launched.wait(60)
    assert not (two / "5-ppo" / "done.json").exists(), (tmp_path / "said.txt").read_text()[-3000:]
    start(1, *run_words(folder, two, *sets))

    def records(run, name):
        return [json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()]

    assert records("one", "1-revision/records.jsonl") == records("two", "1-revision/records.jsonl")
    for a, b in zip(records("one", "2-sft/helpful.jsonl"), records("two", "2-sft/helpful.jsonl"), strict=True):
        assert a == b
    for name in ("3-feedback/records.jsonl", "6-evaluation/records.jsonl"):
        assert [r["id"] for r in records("one", name)] == [r["id"] for r in records("two", name)]
    logs = [r["rollout"] for r in records("two", "5-ppo/log.jsonl")]
    assert logs == [1, 2, 3, 4, 5, 6]
    weights = load_file(two / "5-ppo" / "model" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_batch_that_does_not_divide_is_named(folder, tmp_path):
    done = start(2, *run_words(folder, tmp_path / "run", "ppo.rollout_batch_size=2", "ppo.minibatches=2", "sft.batch_size=3"), code=1)
    assert "make it a multiple of 2" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["one-gpu", "fsdp", "zero3"])
def test_accelerate_reads_the_bundled_configurations(name):
    "All keys known, and the launcher's own parser takes them with the command that is in the file"
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.num_processes == {"one-gpu": 1, "fsdp": 8, "zero3": 16}[name] and not config.use_cpu
    args = launch_command_parser().parse_args(["--config_file", str(path), "-m", "cai_nb", "run", "gpu-7b", "--out", "x"])
    args, *_ = _validate_launch_command(args)
    assert args.module and args.training_script == "cai_nb" and args.training_script_args == ["run", "gpu-7b", "--out", "x"]
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp", name == "zero3")


def test_a_large_batch_is_cut_for_the_device_and_divided_among_processes(monkeypatch):
    from cai_nb import distributed, stages
    from cai_nb.recipe import load_recipe

    for n in (1, 2, 8):
        monkeypatch.setenv("WORLD_SIZE", str(n))
        monkeypatch.setattr(distributed, "processes", lambda n=n: type("P", (), {"size": n}))
        for batch, micro_batch_size in ((1024, 16), (24, 16), (8, 0)):
            sets = [f"sft.batch_size={batch}", f"sft.micro_batch_size={micro_batch_size}"]
            cut = stages.batch_settings(load_recipe("laptop", sets).sft)
            assert cut["batch_size"] * cut["accumulation"] == batch and cut["batch_size"] // n <= (micro_batch_size or batch)
    assert load_recipe("laptop", ["sft.micro_batch_size=2"]).fingerprint == load_recipe("laptop").fingerprint
