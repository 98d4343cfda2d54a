"""Keep what the README and the notebooks show of a run: results/NAME/ from runs/NAME/.

    python tools/keep_results.py runs/laptop

Small files only: the resolved recipe, the result, each stage's done.json and metrics, PPO's log, some traces, the report, and the
figures if they were drawn into the run folder.
"""

import json
import shutil
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TRACES = 24  # revision records kept, in the order of the run


def lines(path, most=None):
    "The first records of a JSON-lines file."
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:most]]


def main(run):
    out = ROOT / "results" / run.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    stages = {}
    for done in sorted(run.glob("[1-9]-*/done.json")):
        stages[done.parent.name] = json.loads(done.read_text(encoding="utf-8"))
        metrics = done.with_name("metrics.json")
        if metrics.exists() and done.parent.name != "6-evaluation":  # kept as evaluation.json
            shutil.copyfile(metrics, out / f"{done.parent.name}.json")
    made = recipe["made_with"]
    facts = {
        "command": made["command"], "machine": made["machine"], "packages": made["packages"], "seed": recipe["seed"],
        "minutes": sum(s["seconds"] for s in stages.values()) / 60,
        "memory_mib": max(s["memory_mib"] for s in stages.values()),
        "stages": {name: {k: s[k] for k in ("seconds", "memory_mib", "counts")} for name, s in stages.items()},
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.copyfile(run / "recipe.yaml", out / "recipe.yaml")
    shutil.copyfile(run / "6-evaluation" / "metrics.json", out / "evaluation.json")
    shutil.copyfile(run / "report.html", out / "report.html")
    if (run / "figures").is_dir():  # cai-nb figures RUN
        shutil.copytree(run / "figures", out / "figures")
    traces = [r for r in lines(run / "1-revision" / "records.jsonl") if not r["flags"]][:TRACES]
    (out / "traces.jsonl").write_text("".join(json.dumps(r) + "\n" for r in traces), encoding="utf-8")
    print("kept", out.relative_to(ROOT), f"{sum(p.stat().st_size for p in out.rglob('*')) / 2**20:.1f} MiB")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "recipe.yaml").exists():
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
