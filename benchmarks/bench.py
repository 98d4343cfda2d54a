"What the scripts of this folder share: a table on the screen, JSON on request, the machine they ran on."

import argparse
import json
import os
import platform
from pathlib import Path


def arguments(doc, positional=(), **options):
    "Parsed arguments: `--json OUT` and the given ones, each as keyword arguments of `add_argument`; a name in `positional` goes without dashes"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, settings in options.items():
        parser.add_argument(name if name in positional else f"--{name.replace('_', '-')}", **settings)
    parser.add_argument("--json", metavar="OUT", help="write the rows to this file too")
    return parser.parse_args()


def machine():
    "One line about the machine"
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


def show(rows):
    "Rows of equal keys as a table"
    if not rows:
        return
    keys = list(dict.fromkeys(k for row in rows for k in row))
    text = [[f"{row.get(k, ''):.3f}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(keys, *text)]
    for line in [keys, ["-" * w for w in widths], *text]:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip())


def write(path, **found):
    "The JSON file, if one was asked for"
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({**found, "machine": machine()}, indent=1), encoding="utf-8")
        print("wrote", path)
