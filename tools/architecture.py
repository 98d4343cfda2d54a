"""docs/architecture.svg: what each stage of a run reads and writes.

    python tools/architecture.py             write it
    python tools/architecture.py --check     write nothing; exit 1 if it is out of step

Needs nothing but Python.  The colours follow the reader's light or dark mode.
"""

import argparse
import sys
from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "architecture.svg"
WIDTH, HEIGHT, BOX = 920, 800, (250, 58)
TITLE = "Data flow of a run"
ABOUT = (
    "Prompts and constitutions feed six stages. Stage 1, revision, writes revision records. Stage 2, fine-tuning, turns them "
    "into SL-CAI. Stage 3, feedback, samples pairs from SL-CAI and writes comparisons. Stage 4 trains the preference model on "
    "them. Stage 5, PPO, takes SL-CAI and the preference model and makes RL-CAI. Stage 6, evaluation, compares the initial "
    "policy, SL-CAI and RL-CAI on held-out prompts. All of them report into report.html."
)
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1c2733 } .small { font-size: 12px; fill: #4a5866 }
  .stage { fill: #dcebf7; stroke: #2f6690 } .records { fill: #fdf3d8; stroke: #a97b12 } .model { fill: #dff2e1; stroke: #2f7d3c }
  .input { fill: #f1f1f4; stroke: #777e8a } rect { stroke-width: 1.5 } path { fill: none; stroke: #55606e; stroke-width: 1.6 }
  marker path { fill: #55606e; stroke: none } .back { fill: #ffffff; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8edf2 } .small { fill: #b4bfca } .back { fill: #14191f }
    .stage { fill: #17344b; stroke: #7db4dc } .records { fill: #3b3012; stroke: #d9b354 } .model { fill: #16381d; stroke: #7cc48a }
    .input { fill: #262b33; stroke: #9aa3b0 } path { stroke: #a9b4c0 } marker path { fill: #a9b4c0 }
  }
"""
LEFT, MIDDLE, RIGHT = 20, 335, 650
ROWS = [20 + 112 * i for i in range(7)]
BOXES = {  # name -> (kind, x, y, first line, second line)
    "prompts": ("input", LEFT, ROWS[0], "prompts.jsonl", "harmful, benign, over_refusal"),
    "constitution": ("input", RIGHT, ROWS[0], "constitutions", "principles, exemplars, labelled pairs"),
    "revision": ("stage", MIDDLE, ROWS[1], "1 revision", "response, critique, revision"),
    "revisions": ("records", LEFT, ROWS[1], "revision records", "1-revision/records.jsonl"),
    "sft": ("stage", MIDDLE, ROWS[2], "2 sft", "fine-tuning on revisions"),
    "slcai": ("model", LEFT, ROWS[2], "SL-CAI", "2-sft/model"),
    "feedback": ("stage", MIDDLE, ROWS[3], "3 feedback", "two responses, compared and labelled"),
    "comparisons": ("records", RIGHT, ROWS[3], "pairs and comparisons", "3-feedback/pairs.jsonl, records.jsonl"),
    "preference": ("stage", MIDDLE, ROWS[4], "4 preference", "soft labels become a reward"),
    "pm": ("model", RIGHT, ROWS[4], "preference model", "4-preference/model"),
    "ppo": ("stage", MIDDLE, ROWS[5], "5 ppo", "reward minus the KL penalty"),
    "rlcai": ("model", RIGHT, ROWS[5], "RL-CAI", "5-ppo/model, rollouts.jsonl"),
    "evaluation": ("stage", MIDDLE, ROWS[6], "6 evaluation", "three models on held-out prompts"),
    "report": ("records", LEFT, ROWS[6], "responses and report", "6-evaluation/, report.html"),
}
W, H = BOX


def side(name, where):
    "A point of a box's edge: left, right, top or bottom, with a share along it (top.3)."
    where, _, at = where.partition(".")
    _, x, y, *_ = BOXES[name]
    t = float(f"0.{at}") if at else 0.5
    return {"left": (x, y + t * H), "right": (x + W, y + t * H), "top": (x + t * W, y), "bottom": (x + t * W, y + H)}[where]


def corner(a, b, first):
    "A path of right angles from a to b that leaves in direction `first` (h or v)."
    (x0, y0), (x1, y1) = a, b
    if x0 == x1 or y0 == y1:
        return f"M{x0:g} {y0:g}L{x1:g} {y1:g}"
    if first == "h":
        return f"M{x0:g} {y0:g}H{x1:g}V{y1:g}"
    if first == "v":
        return f"M{x0:g} {y0:g}V{y1:g}H{x1:g}"
    middle = (y0 + y1) / 2
    return f"M{x0:g} {y0:g}V{middle:g}H{x1:g}V{y1:g}"


ARROWS = [  # (from, side, to, side, first direction)
    ("prompts", "right", "revision", "top.3", "h"),
    ("constitution", "left", "revision", "top.7", "h"),
    ("revision", "left", "revisions", "right", "h"),
    ("revisions", "bottom.8", "sft", "top.3", "z"),
    ("sft", "left", "slcai", "right", "h"),
    ("slcai", "bottom.8", "feedback", "top.3", "z"),
    ("constitution", "bottom.7", "feedback", "top.7", "z3"),
    ("feedback", "right", "comparisons", "left", "h"),
    ("comparisons", "bottom", "preference", "top.7", "z"),
    ("preference", "right", "pm", "left", "h"),
    ("pm", "bottom", "ppo", "top.7", "z"),
    ("slcai", "bottom.4", "ppo", "left.3", "v"),
    ("ppo", "right", "rlcai", "left", "h"),
    ("rlcai", "bottom", "evaluation", "top.7", "z"),
    ("slcai", "bottom.2", "evaluation", "top.3", "zlow"),
    ("evaluation", "left", "report", "right", "h"),
]


def path(start, s, end, e, first):
    a, b = side(start, s), side(end, e)
    if first == "z3":  # down the right-hand side, then in above the box
        return f"M{a[0]:g} {a[1]:g}V{b[1] - 27:g}H{b[0]:g}V{b[1]:g}"
    if first == "zlow":
        return f"M{a[0]:g} {a[1]:g}V{b[1] - 27:g}H{b[0]:g}V{b[1]:g}"
    return corner(a, b, first)


def draw():
    "The picture as text."
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
           f'aria-labelledby="title about">',
           f"<title id=\"title\">{escape(TITLE)}</title>", f"<desc id=\"about\">{escape(ABOUT)}</desc>", f"<style>{STYLE}</style>",
           '<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
           '<path d="M0 0L8 4L0 8Z"/></marker></defs>',
           f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>']
    out += [f'<path d="{path(*arrow)}" marker-end="url(#tip)"/>' for arrow in ARROWS]
    for kind, x, y, one, two in BOXES.values():
        out.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{W}" height="{H}" rx="{6 if kind == "stage" else 3}"/>'
                   f'<text x="{x + W / 2:g}" y="{y + 24}" text-anchor="middle" font-weight="600">{escape(one)}</text>'
                   f'<text class="small" x="{x + W / 2:g}" y="{y + 43}" text-anchor="middle">{escape(two)}</text>')
    for i, (kind, what) in enumerate((("stage", "stage"), ("records", "records"), ("model", "model"), ("input", "input"))):
        x = 20 + 110 * i
        out.append(f'<rect class="{kind}" x="{x}" y="{HEIGHT - 30}" width="18" height="14" rx="2"/>'
                   f'<text class="small" x="{x + 26}" y="{HEIGHT - 19}">{what}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if the picture is out of step")
    if not parser.parse_args().check:
        TARGET.write_text(draw(), encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != draw():
        sys.exit("docs/architecture.svg is not what tools/architecture.py draws. Type: python tools/architecture.py")


if __name__ == "__main__":
    main()
