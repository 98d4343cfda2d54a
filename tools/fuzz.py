"""Malformed constitutions and recipes by the thousand: each is read, or refused by name, and none ends in a traceback.

    python tools/fuzz.py [--n 100000] [--seed 0]

Files that are right are damaged: characters and lines taken out, doubled, exchanged or replaced by what breaks parsers,
values by others of any type. An error that is not the package's own is printed with what caused it, and the exit is 1.
tests/test_tools.py does the same with fewer.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import yaml

from cai_nb.constitution import Constitution
from cai_nb.dialogue import CaiError, data_path, progress
from cai_nb.recipe import load_recipe

PIECES = ["\0", "\t", "\x1b[31m", "\ud800", "\u202e", "￾", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "!!python/object:os.system ",
          "!!binary ", "|", ">", "'", '"', "#", "%", "@", "`", "? ", "<<: ", "---\n", "...\n", "\r", "\n", "  ", "~", "null", "nan",
          ".inf", "-.inf", "1e999", "9" * 400, "-1", "0", "0x1f", "1_0", "2024-01-01", "12:30:45", "yes", "true", "<script>", "x" * 5000,
          "<|im_end|>", "[[[[[[[[[[", "{a: " * 50, "é", "𝕏", "é"]


def damage(text, rng):
    "A text with one to four wounds"
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 3, 20, 200))
        kind, lines = rng.random(), text.split("\n")
        if kind < 0.5:
            text = text[:at] + rng.choice(PIECES) + text[at + size:]
        elif kind < 0.6:
            text = text[:at]
        elif kind < 0.7:
            i = rng.randrange(len(lines))
            text = "\n".join(lines[:i] + [" " * rng.randint(0, 5) + lines[i].strip()] + lines[i + 1:])
        elif kind < 0.8:
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
        elif kind < 0.9:
            i = rng.randrange(len(lines))
            text = "\n".join(lines[:i] + lines[i:i + 1] * 2 + lines[i + 1:])
        else:
            i = rng.randrange(len(lines))
            key = lines[i].split(":")[0]
            text = "\n".join(lines[:i] + [f"{key}: {rng.choice(PIECES)}"] + lines[i + 1:])
    return text


def small(text):
    "The same constitution with two principles and an exemplar and a pair of each, so that reading it takes a millisecond"
    whole = yaml.safe_load(text)
    for p in whole["principles"]:
        for key in ("exemplars", "pairs"):
            if key in p:
                p[key] = p[key][:1]
    return yaml.safe_dump(whole | {"principles": whole["principles"][:2]}, allow_unicode=True, sort_keys=False)


def fuzz(n, seed=0, note=print):
    "Counter of what became of n files, and the tracebacks that should not have been"
    rng, fates, wrong = random.Random(seed), Counter(), []
    texts = {kind: [p.read_text(encoding="utf-8") for p in sorted(data_path(kind).glob("*.yaml"))] for kind in ("constitutions", "recipes")}
    sources = {"constitutions": [small(t) for t in texts["constitutions"]], "recipes": texts["recipes"]}
    readers = {"constitutions": Constitution.load, "recipes": load_recipe}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "damaged.yaml"
        for _ in progress(range(n), total=n, desc="files", unit="file"):
            kind = rng.choice(("constitutions", "recipes", "recipes"))
            text = damage(rng.choice(sources[kind]), rng)
            data = text.encode("utf-8", "surrogatepass")
            if rng.random() < 0.05:
                data = bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.01 else b for b in data)
            path.write_bytes(data)
            try:
                readers[kind](path)
                fates[kind, "read"] += 1
            except CaiError as e:
                fates[kind, "refused"] += 1
                if not str(e).strip() or len(str(e)) > 2000 or "\x1b" in str(e):
                    wrong.append((kind, data, f"a message of {len(str(e))} characters: {str(e)[:200]!r}"))
            except Exception:
                fates[kind, "traceback"] += 1
                wrong.append((kind, data, traceback.format_exc()))
    return fates, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.time()
    fates, wrong = fuzz(args.n, args.seed)
    for (kind, fate), count in sorted(fates.items()):
        print(f"{kind:14} {fate:10} {count}")
    print(f"{time.time() - start:.0f} s")
    for kind, data, why in wrong[:5]:
        print(f"\n{kind}: {data[:300]!r}\n{why}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
