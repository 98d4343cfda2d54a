"""Seconds until the command helps and the package is there, each the median of several fresh processes.

    python benchmarks/startup.py [--times 7] [--json OUT]
"""

import statistics
import subprocess
import sys
import time

from bench import arguments, machine, show, write


def main():
    args = arguments(__doc__, times={"type": int, "default": 7})
    rows = []
    for what, words, goal in (("cai-nb --help", ["-m", "cai_nb", "--help"], 0.5), ("import cai_nb", ["-c", "import cai_nb"], 1.0),
                              ("python, nothing else", ["-c", ""], None)):
        spent = []
        for _ in range(args.times):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            spent.append(time.perf_counter() - start)
        rows.append({"what": what, "seconds": statistics.median(spent), "slowest": max(spent), "goal": goal or ""})
    print(machine())
    show(rows)
    write(args.json, rows=rows)


if __name__ == "__main__":
    main()
