"""Cost against work: time and memory of the record layer up to a million prompts, and of a stage at 1, 2, 4, 8 times the prompts.

    python benchmarks/scaling.py [--records 1000000] [--prompts 6] [--json OUT]

Each measurement is a process of its own. Records are written in blocks of 1,000 through `Records`, opened again, their ids
read, and every record passed through once, as a stage that resumes does; the stage is critique and revision, one round.
"""

import json
import subprocess
import sys

from bench import arguments, machine, show, write

RECORDS = """
import json, resource, sys, tempfile, time
from pathlib import Path
from cai_nb.records import Records
n = int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    path, start = Path(folder) / "records.jsonl", time.perf_counter()
    records = Records(path)
    for at in range(0, n, 1000):
        records.extend({"id": f"p{i}", "prompt": f"How would one do number {i}? " * 8, "kind": "harmful"} for i in range(at, min(at + 1000, n)))
    written, again = time.perf_counter(), Records(path)
    assert len(again.ids) == n and sum(1 for r in again) == n
    print(json.dumps({"records": n, "written, s": written - start, "read twice, s": time.perf_counter() - written,
                      "file, MiB": path.stat().st_size / 2**20, "peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
STAGE = """
import json, resource, sys, time
from cai_nb.constitution import Constitution
from cai_nb.model import LanguageModel
from cai_nb.prompts import load_prompts
from cai_nb.revision import RevisionConfig, revise
n, lm = int(sys.argv[1]), LanguageModel.load()
prompts = load_prompts("harmful")[:n]
start = time.perf_counter()
revise(lm, prompts, Constitution.load("harmlessness"), RevisionConfig(rounds=1, max_tokens=24, critique_tokens=24, batch_size=6))
print(json.dumps({"prompts": n, "seconds": time.perf_counter() - start,
                  "peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def run(code, n):
    out = subprocess.run([sys.executable, "-c", code, str(n)], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main():
    args = arguments(__doc__, records={"type": int, "default": 1_000_000}, prompts={"type": int, "default": 6})
    records = [run(RECORDS, n) for n in (args.records // 100, args.records // 10, args.records)]
    stage = [run(STAGE, args.prompts * k) for k in (1, 2, 4, 8)]
    print(machine())
    show(records)
    show(stage)
    write(args.json, records=records, stage=stage)


if __name__ == "__main__":
    main()
