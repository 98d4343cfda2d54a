"""Kill a run at random moments, as often as asked and in every stage, and see that it ends as if nothing had happened.

    python tools/kill.py [--kills 30] [--recipe smoke] [--model default] [--set KEY=VALUE …] [--json FILE]

One run goes through undisturbed. Then, once for each kill: the folder as it stood before a stage, the stage begun,
SIGKILL at a random moment of it (at most its undisturbed time), the same command again. Records, labels and weights of
the stage must be those of the undisturbed run; only what tells the time may differ.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cai_nb.run import STAGES, digests, read_json

TIMES = ("done.json", "started.json", "log.jsonl", "metrics.json", "training_args.bin", "README.md")  # tell times and paths


def command(stage, args, out):
    sets = [w for s in args.set for w in ("--set", s)]
    return [sys.executable, "-m", "cai_nb", stage, args.recipe, "--model", args.model, "--out", str(out), *sets]


def begin(words, log):
    env = os.environ | {"CAI_NB_QUIET": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)


def finished(folder):
    "What a stage has made, apart from what tells the time; PEFT writes the names of layers as a set, in any order"
    made = {f: d for f, d in digests(folder).items() if Path(f).name not in TIMES}
    for f in made:
        if Path(f).name == "adapter_config.json":
            config = read_json(folder / f) or {}
            made[f] = json.dumps({k: sorted(v, key=str) if isinstance(v, list) else v for k, v in config.items()}, sort_keys=True)
    return made


def losses(folder):
    "The curve of a training, without its times"
    rows = [json.loads(line) for line in open(folder / "log.jsonl")] if (folder / "log.jsonl").exists() else []
    return [{k: v for k, v in r.items() if "second" not in k} for r in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--model", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as place, open(Path(place) / "log.txt", "w") as log:
        whole = Path(place) / "whole"
        subprocess.run(command("run", args, whole), check=True, stdout=log, stderr=log, env=os.environ | {"CAI_NB_QUIET": "1"})
        folders = [whole / f"{i}-{s.name}" for i, s in enumerate(STAGES, 1)]
        for k in range(args.kills):
            at = k % len(STAGES)
            stage, folder, out = STAGES[at], folders[at], Path(place) / "killed"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(whole, out)
            for later in folders[at:]:
                shutil.rmtree(out / later.name)
            if at == 0:
                shutil.rmtree(out)
            wait = rng.random() * read_json(folder / "done.json")["seconds"]
            process = begin(command(stage.command, args, out), log)
            while process.poll() is None and not (out / folder.name / "started.json").exists():
                time.sleep(0.01)
            time.sleep(wait)
            hit = process.poll() is None and not (out / folder.name / "done.json").exists()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            again = begin(command(stage.command, args, out), log).wait()
            same = again == 0 and finished(out / folder.name) == finished(folder) and losses(out / folder.name) == losses(folder)
            rows.append({"stage": stage.name, "seconds": round(wait, 1), "hit": hit, "again": again, "same": same})
            print(f"{k + 1:3} {stage.name:12} killed after {wait:5.1f} s{'' if hit else ' (it had ended)'}: "
                  f"{'the same' if same else 'DIFFERENT'}", flush=True)
            if not same:
                a, b = finished(folder), finished(out / folder.name)
                print("    ", [f for f in a | b if a.get(f) != b.get(f)], losses(folder) == losses(out / folder.name))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    hit = [r for r in rows if r["hit"]]
    print(f"{len(hit)} of {len(rows)} kills hit; {sum(r['same'] for r in rows)} of {len(rows)} runs ended as the undisturbed one")
    return 0 if all(r["same"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
