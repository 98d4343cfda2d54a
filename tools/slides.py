"""Slides from the notebooks: a reveal.js deck in one HTML file, without a network and without slide metadata in the notebooks.

    python tools/slides.py                       the four decks of the course and an index, into _slides/
    python tools/slides.py --out DIR 04_revision  a deck of this notebook (or of several, each a deck)

What becomes a slide is decided by rule:

- a notebook's first cell is a title slide, each ## (and ###) heading begins a new slide, and a full slide runs over;
- of a paragraph the slide has the first sentence, the speaker's notes (key s) have all of it; lists and tables stay;
- of an exported cell the slide has each public function's signature and the first line of its docstring;
- other code is shown without its checks if it has at most CODE lines, its printed output up to OUTPUT lines; code that draws is not;
- a figure has a slide of its own; "What to remember" comes whole; exercises and "Next" are left out.

A deck holds everything that it needs, reveal.js included (out of the package sphinx-revealjs, which carries its files; Sphinx
is not used). Formulas are drawn with matplotlib's mathtext.
"""

import argparse
import ast
import html
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import mistune
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
DECKS = {  # file -> (title, notebooks by their beginning)
    "supervised": ("From a written rule to SL-CAI", ("00_", "01_", "02_", "03_", "04_", "05_")),
    "feedback": ("AI feedback and the preference model", ("05a_", "06_", "06a_", "07_")),
    "ppo": ("PPO: the arithmetic and the trainer", ("08_", "08a_", "08b_")),
    "outcome": ("Is it better? Evaluation, runs, figures, scale", ("09_", "09a_", "10b_", "11_", "12_")),
}
CODE, OUTPUT, WIDE = 8, 9, 96  # lines of code, lines of output, characters a line
ROOM = 16.8  # lines of text that a slide holds below its heading
LEFT_OUT = re.compile(r"exercises?$|^next$", re.I)
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)(?:\s*:\s*|\s+|$)(.*)$")


@dataclass
class Slide:
    heading: str
    blocks: list = field(default_factory=list)  # of (HTML, height in lines)
    notes: list = field(default_factory=list)  # Markdown
    kind: str = ""

    @property
    def height(self):
        return sum(h for _, h in self.blocks)


def joined(text):
    return "".join(text) if isinstance(text, list) else text


# --- text


@cache
def formula(tex):
    "A formula as inline SVG in the text's colour; the source stays readable for screen readers. Code, if mathtext cannot."
    from matplotlib.path import Path as Curve
    from matplotlib.textpath import TextPath

    source = re.sub(r"\\text\{", r"\\mathrm{", re.sub(r"\s+", " ", tex.strip()))
    try:
        curve = TextPath((0, 0), f"${source}$", size=20)
    except ValueError:
        return f"<code>{html.escape(tex.strip())}</code>"
    letters, n = {Curve.MOVETO: ("M", 1), Curve.LINETO: ("L", 1), Curve.CURVE3: ("Q", 2), Curve.CURVE4: ("C", 3), Curve.CLOSEPOLY: ("Z", 0)}, 0
    parts = []
    while n < len(curve.codes):
        letter, points = letters[curve.codes[n]]
        parts.append(letter + " ".join(f"{x:.1f} {-y:.1f}" for x, y in curve.vertices[n:n + points]))
        n += max(points, 1)
    box = curve.get_extents()
    x, y, w, h = box.x0 - 1, -box.y1 - 1, box.width + 2, box.height + 2
    return (f'<svg class="tex" role="img" aria-label="{html.escape(tex.strip())}" viewBox="{x:.1f} {y:.1f} {w:.1f} {h:.1f}" '
            f'style="width:{w / 20:.2f}em;height:{h / 20:.2f}em;vertical-align:{(box.y0 - 1) / 20:.2f}em"><path d="{"".join(parts)}"/></svg>')


@cache
def reader():
    md = mistune.create_markdown(escape=False, plugins=["table", "math", "strikethrough"])
    md.renderer.register("inline_math", lambda renderer, text: formula(text))
    md.renderer.register("block_math", lambda renderer, text: f'<p class="display">{formula(text)}</p>')
    return md


def render(markdown):
    "Markdown as HTML; links within the project become plain text, as a deck may lie anywhere."
    markdown = re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\((?!https?:)[^)]*\)", r"\1", markdown)
    return reader()(markdown)


def sentences(text):
    "A paragraph cut where a sentence ends; no cut within a formula, code or a link."
    kept = []
    hidden = re.sub(r"\$[^$]+\$|`[^`]+`|\]\([^)]*\)", lambda m: kept.append(m[0]) or f"\0{len(kept) - 1}\0", text)
    parts = re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"*)])|(?<=[.!?]\*\*))\s+(?=[A-Z*\"\[(\0])", hidden)
    return [re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], part) for part in parts]


def shortened(text, most=230):
    "The first sentence, and the second if both are short; whole emphasis only."
    parts = sentences(" ".join(text.split()))
    n = 1
    aim = most * (0.6 if len(parts[0]) > 60 else 1.2)
    while n < len(parts) and (sum(map(len, parts[:n + 1])) < aim or " ".join(parts[:n]).count("*") % 2):
        n += 1
    return " ".join(parts[:n])


def blocks_of(markdown):
    "[(kind, source)] of a Markdown text: heading, list, table, fence, math, html or text."
    out, lines = [], markdown.split("\n")
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue
        if m := re.match(r"\s*(```+|~~~+)", line):
            own = [line]
            while lines:
                own.append(lines.pop(0))
                if own[-1].strip() == m[1]:
                    break
            out.append(("fence", "\n".join(own)))
        elif line.strip() == "$$" or line.startswith("$$"):
            own = [line]
            while lines and not (own[-1].rstrip().endswith("$$") and len("".join(own).strip()) > 2):
                own.append(lines.pop(0))
            out.append(("math", "\n".join(own)))
        elif re.match(r"#{1,4} ", line):
            out.append(("heading", line))
        else:
            own = [line]
            while lines and lines[0].strip() and not re.match(r"\s*(```|#{1,4} )|\$\$", lines[0]):
                own.append(lines.pop(0))
            first = own[0].lstrip()
            kind = ("list" if re.match(r"[-*] |\d+[.)] ", first) else "table" if first.startswith("|") else "quote" if first.startswith(">")
                    else "html" if re.match(r"</?[a-z!]", first) else "text")
            out.append((kind, "\n".join(own)))
    return out


def high(text, wide=94):
    "Lines that a text takes."
    plain = re.sub(r"\]\([^)]*\)|[*`\[]", "", text)
    return max(1, -(-len(plain) // wide))


def items_of(source):
    "The items of a list, continuation lines joined."
    items = []
    for line in source.split("\n"):
        if re.match(r"([-*]|\d+[.)]) ", line) or not items:
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return items


# --- code


def directives(source):
    found, lines = {}, source.split("\n")
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = m[2].strip()
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def parsed(source):
    try:
        return ast.parse("\n".join(line for line in source.split("\n") if not re.match(r"\s*[!%]", line))).body
    except SyntaxError:
        return None


def only_checks(body):
    "Whether a cell holds nothing but imports, assertions and fastcore's tests."
    def checks(node):
        call = node.value if isinstance(node, ast.Expr) else None
        name = getattr(getattr(call, "func", None), "id", "")
        return isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert)) or name.startswith("test_")
    return all(map(checks, body))


def without_checks(source, body):
    "A cell's lines without its assertions and tests at the top level; nothing but imports goes too."
    if body is None:
        return source
    lines = source.split("\n")
    for node in body:
        if only_checks([node]) and not isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1:node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if line is not None)).strip("\n")


def said_of(node):
    "(signature, first line of the docstring) of a public function or class."
    doc = (ast.get_docstring(node) or "").strip().split("\n")[0]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(b) for b in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}", doc
    args = node.args
    names = [a.arg for a in args.posonlyargs + args.args]
    given = dict(zip(names[len(names) - len(args.defaults):], args.defaults))
    shown = [n + (f"={ast.unparse(given[n])}" if n in given else "") for n in names]
    shown += [f"*{args.vararg.arg}"] if args.vararg else ["*"] if args.kwonlyargs else []
    shown += [a.arg + (f"={ast.unparse(d)}" if d is not None else "") for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    shown += [f"**{args.kwarg.arg}"] if args.kwarg else []
    line = f"{node.name}({', '.join(shown)})"
    if len(line) > 84:
        line = f"{node.name}({', '.join(shown[:3])}, …)" if len(shown) > 3 else line[:83] + "…"
    return line, doc


def exported(body):
    "[(signature, doc)] of what a cell exports by name."
    return [said_of(node) for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and ast.get_docstring(node)]


def painted(source):
    return highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))


def as_text(text):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").split("\r")[-1].rstrip() for line in text.strip("\n").split("\n")]
    cut = [line if len(line) <= WIDE else line[:WIDE - 1] + "…" for line in lines[:OUTPUT]]
    return cut + (["…"] if len(lines) > OUTPUT else [])


def safe(markup):
    "HTML of a saved output without scripts, styles, event handlers and anything that is loaded."
    markup = re.sub(r"<(script|style|iframe|object)\b.*?</\1\s*>", "", markup, flags=re.S | re.I)
    markup = re.sub(r"</?(script|style|iframe|object|embed|link|meta|base)\b[^>]*>?", "", markup, flags=re.I)
    tag = r"<[a-z](?:\"[^\"]*\"|'[^']*'|[^'\">])*>|<[a-z][^>]*>"  # within a tag only: text that speaks of onclick= stays whole
    return re.sub(tag, lambda m: re.sub(r"[\s/](on\w+|src|srcset|href)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", "", m[0], flags=re.I), markup, flags=re.I)


# --- a notebook


class Deck:
    "Slides of one notebook after the other."

    def __init__(self):
        self.slides = []

    def begin(self, heading, kind=""):
        self.slides.append(Slide(heading, kind=kind))

    def add(self, markup, height):
        now = self.slides[-1]
        if now.blocks and (now.height + height > ROOM or now.kind in ("figure", "title")):
            self.begin(now.heading)
        self.slides[-1].blocks.append((markup, height))

    def figure(self, markup, words):
        # text after a figure explains it, and text that begins in lower case continues a sentence
        words = "" if self.after_figure or not re.match(r"[A-Z*`$(\[]", words) else words
        now = self.slides[-1]
        if now.blocks and now.kind != "title" and words and now.blocks[-1][0] == render(shortened(words)):
            now.blocks.pop()  # these words are the figure's caption
        if now.blocks or now.kind == "title":
            self.begin(now.heading)
        self.slides[-1].kind = "figure"
        caption = f"<figcaption>{render(shortened(words, 200))}</figcaption>" if words else ""
        alt = html.escape(" ".join(words.split())[:300] or f"Figure: {now.heading}")
        picture = markup.replace('alt=""', f'alt="{alt}"', 1)
        self.slides[-1].blocks.append((f"<figure>{picture}{caption}</figure>", ROOM))
        self.words, self.drawn = "", True

    def markdown(self, source):
        for kind, text in blocks_of(source):
            if kind == "heading":
                level, words = text.split(" ", 1)
                self.skip = bool(LEFT_OUT.search(words.strip())) if len(level) <= 2 else self.skip
                if not self.skip:
                    self.begin(words.strip())
                    self.whole = "remember" in words.lower()
                continue
            if self.skip:
                continue
            if kind == "text":
                short = text if self.whole else shortened(text)
                self.add(render(short), high(short) + 0.45)
                self.words = text
                self.slides[-1].notes.append(text)
            elif kind == "list":
                for item in items_of(text):
                    mark, words = re.match(r"(\S+ )(.*)", item, re.S).groups()
                    short = words if self.whole else shortened(words)
                    self.add(render("- " + short if mark[0] in "-*" else mark + short), high(short, 90) + 0.2)
                self.slides[-1].notes.append(text)
            elif kind == "table":
                rows = text.split("\n")
                fit = rows[:2 + 10]
                self.add(render("\n".join(fit)) + ("<p>…</p>" if len(rows) > len(fit) else ""),
                         sum(max(high(c, 30) for c in r.split("|")) * 0.85 + 0.45 for r in fit if "---" not in r) + 0.5)
            elif kind == "math":
                self.add(render(text), 3)
            elif kind == "fence":
                lines = text.split("\n")
                if len(lines) - 2 <= CODE + 4:
                    self.add(render(text), 0.82 * (len(lines) - 2) + 1)
            elif kind == "quote":
                self.add(render(text), high(text) + 0.7)

    def code(self, cell):
        said, source = directives(joined(cell["source"]))
        self.drawn = False
        if self.skip or "hide" in said or "default_exp" in said or said.get("include") == "false":
            return
        body = parsed(source)
        if "export" in said or "exports" in said:
            for line, doc in exported(body or []):
                self.add(f'<div class="def"><code>{painted(line)}</code><p>{render(doc) if doc else ""}</p></div>', high(doc) + 1.25)
            return
        if body is not None and only_checks(body) and not cell.get("outputs"):
            return
        kinds = {kind for o in cell.get("outputs", []) for kind in o.get("data", {})}
        shown = said.get("echo") != "false" and not only_checks(body or []) and not kinds & {"image/png", "image/svg+xml", "text/html", "text/markdown"}
        source = without_checks(source, body)
        lines = source.split("\n")
        small = shown and source.strip() and len(lines) <= CODE and max(map(len, lines)) <= 118
        outputs = [] if said.get("output") == "false" else [o for o in cell.get("outputs", []) if o["output_type"] != "error"]
        text, rich = [], []
        for o in outputs:
            data = {k: joined(v) for k, v in o.get("data", {}).items() if isinstance(v, (str, list))}
            if o["output_type"] == "stream":
                text += as_text(joined(o["text"])) if o["name"] == "stdout" else []
            elif "image/png" in data or "image/svg+xml" in data or "application/vnd.jupyter.widget-view+json" in o.get("data", {}):
                rich.append(data)
            elif "text/markdown" in data or "text/html" in data:
                rich.append(data)
            elif "text/plain" in data and shown:
                text += as_text(data["text/plain"])
        text = text[:OUTPUT] + (["…"] if len(text) > OUTPUT else []) if text else []
        if small or text:
            cut = f'<p class="cut">({len(lines)} lines of code, in the notebook)</p>' if shown else ""
            code = f'<pre class="code">{painted(source)}</pre>' if small else cut
            out = f'<pre class="out">{html.escape(chr(10).join(text))}</pre>' if text else ""
            self.add(code + out, 0.82 * ((len(lines) if small else 1) + len(text)) + 1.2)
        for data in rich:
            if "image/png" in data:
                picture = "".join(data["image/png"].split())
                self.figure(f'<img alt="" src="data:image/png;base64,{picture}">', self.words)
            elif "image/svg+xml" in data:
                self.figure(safe(data["image/svg+xml"][data["image/svg+xml"].find("<svg"):]), self.words)
            elif "text/markdown" in data and len(data["text/markdown"]) < 1500:
                self.markdown(data["text/markdown"])
            elif "text/html" in data and len(re.sub("<[^>]+>", "", data["text/html"])) < 900:
                table = safe(data["text/html"])
                rows = table.count("<tr")
                plain = len(re.sub("<[^>]+>", " ", table))
                self.add(f'<div class="html">{table}</div>', max(1.25 * rows + 0.5, plain / 75 + 2))

    def notebook(self, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = joined(cells[0]["source"]).split("\n")
        self.skip, self.whole, self.words = False, False, ""
        self.drawn, self.after_figure = False, False  # the last code cell drew; and so did the one before the text at hand
        self.begin(first[0].lstrip("# "), "title")
        subtitle = next((line.lstrip("> ") for line in first[1:] if line.startswith(">")), "")
        self.slides[-1].blocks.append((f'<p class="subtitle">{render(subtitle)}</p><p class="source">nbs/{path.name}</p>', 3))
        rest = "\n".join(line for line in first[1:] if not line.startswith(">"))
        self.markdown(rest)
        for cell in cells[1:]:
            if cell["cell_type"] == "markdown":
                self.after_figure = self.drawn and not joined(cell["source"]).startswith("#")
                self.markdown(joined(cell["source"]))
            elif cell["cell_type"] == "code":
                self.code(cell)
        self.tidy()

    def tidy(self):
        "Nothing empty, and what is left over at the end of a section goes onto the slide before it if that has room."
        kept = []
        for s in self.slides:
            last = kept[-1] if kept else None
            if last and s.heading == last.heading and not s.kind and not last.kind and last.height + s.height <= ROOM + 1.2:
                last.blocks += s.blocks
                last.notes += s.notes
            elif s.blocks:
                kept.append(s)
        self.slides = kept


# --- a page

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-src 'self'"  # frames: the speaker's view
STYLE, SCRIPT = ((ROOT / "tools" / name).read_text(encoding="utf-8") for name in ("slides.css", "slides.js"))


@cache
def reveal(*names):
    "Files of reveal.js, joined, without the fonts that a theme loads: a deck uses those of the machine."
    try:
        folder = Path(distribution("sphinx-revealjs").locate_file("sphinx_revealjs/_static/revealjs"))
    except PackageNotFoundError:
        sys.exit("slides need reveal.js, out of the package sphinx-revealjs: `make slides` installs it, or pip install -c constraints.txt sphinx-revealjs.")
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
    return re.sub(r"@import url\([^)]*\);|//# sourceMappingURL=\S*", "", text).replace("</script", "<\\/script")


def page(title, body, style, *scripts):
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{html.escape(title)}</title>\n<style>{style}</style></head>\n'
            f'<body>\n{body}\n{"".join(f"<script>{script}</script>" for script in scripts)}\n</body></html>\n')


def as_html(title, slides):
    "The page of a deck."
    first = Slide(title, [('<p class="subtitle">cai_nb: Constitutional AI, in notebooks</p>', 2)], kind="title")
    out, last = [], None
    for s in [first, *slides]:
        again = ' <small aria-hidden="true">…</small>' if s.heading == last else ""
        last = s.heading
        heading = re.sub(r"^<p>|</p>\s*$", "", render(s.heading).strip())
        notes = f'<aside class="notes">{render((chr(10) * 2).join(s.notes))}</aside>' if s.notes else ""
        out.append(f'<section class="{s.kind}"><div class="slide"><h2>{heading}{again}</h2>'
                   f'<div class="body">{"".join(markup for markup, _ in s.blocks)}</div></div>{notes}</section>')
    body = "\n".join(['<div class="reveal"><main class="slides">', *out, "</main></div>"])
    style = reveal("dist/reset.css", "dist/reveal.css", "dist/theme/white.css") + STYLE
    return page(title, body, f"/* reveal.js:\n{reveal('LICENSE')}*/\n{style}", reveal("dist/reveal.js"), reveal("plugin/notes/notes.js"), SCRIPT)


def make(names, out):
    "Write a deck for each of `names`, a key of DECKS or the beginning of a notebook's name; {file: number of slides}."
    out.mkdir(parents=True, exist_ok=True)
    books, made = sorted((ROOT / "nbs").glob("[0-9A]*.ipynb")), {}
    for name in names:
        title, begins = DECKS.get(name, (None, (name,)))
        chosen = [path for begin in begins for path in books if path.name.startswith(begin)]
        if not chosen:
            sys.exit(f"no notebook in nbs/ begins with {name}, and no deck is called so; decks: {', '.join(DECKS)}.")
        deck = Deck()
        for path in chosen:
            deck.notebook(path)
        title = title or deck.slides[0].heading
        target = out / f"{name if name in DECKS else chosen[0].stem}.html"
        target.write_text(as_html(title, deck.slides), encoding="utf-8")
        made[target.name] = title, len(deck.slides) + 1
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"a deck ({', '.join(DECKS)}) or a notebook's name; default: all decks")
    parser.add_argument("--out", default=ROOT / "_slides", type=Path, help="folder (default: _slides)")
    args = parser.parse_args()
    made = make(args.names or DECKS, args.out)
    if not args.names:
        rows = "".join(f'<li><a href="{file}">{html.escape(title)}</a>, {n} slides</li>' for file, (title, n) in made.items())
        keys = ("The arrow keys turn the page, <kbd>s</kbd> opens the speaker's view with the notes, <kbd>f</kbd> fills the screen, <kbd>o</kbd> shows all "
                "slides, <kbd>?</kbd> lists the other keys. To print, add <code>?view=print</code> to a deck's address.")
        style = STYLE + "body { margin: 2em; background: var(--paper); color: var(--ink); font: 20px/1.5 var(--r-main-font) } a { color: var(--mark) }"
        body = f'<main><h1>cai_nb: slides</h1><ul>{rows}</ul><p>{keys}</p></main>'
        (args.out / "index.html").write_text(page("cai_nb: slides", body, style), encoding="utf-8")
    for file, (_, n) in made.items():
        print(f"{args.out / file}: {n} slides")


if __name__ == "__main__":
    main()
