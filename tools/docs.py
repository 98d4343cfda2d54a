"""The docs site in _docs/: notebooks, docs/*.md and the reference of the package, as static pages.

    python tools/docs.py [FOLDER]      write the site to FOLDER (default _docs)

Sphinx with myst-nb and the theme Furo, because its pages read best: a quiet column of text, dark mode and search that work
from any static server, autodoc with links from text to reference to source.  smalldocs, which takes nbdev's settings as they
are, loads its formulas from another host.  nbdev-proc-nbs is not used: it hides exported code and shows a signature instead,
and these notebooks are written to be read with their code.

What happens: every notebook is copied to a working folder with its directives carried out (`stage_notebook`), one page is
written for each module (`stage_reference`), and Sphinx makes HTML of it, executing nothing; the saved outputs are shown.
Nothing that a page loads comes from another host.  Formulas are MathML, which browsers typeset themselves, in the font STIX
Two Math: the packages of MathJax and KaTeX on PyPI are old or incomplete, and no script has to run this way.
"""

import ast
import io
import json
import posixpath
import re
import shutil
import sys
import tempfile
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tools")) if path not in sys.path]

from readme import LINK, joined, split_directives  # noqa: E402

# The sidebar: the number that a notebook's name begins with says which group it is in.
GROUPS = {"Groundwork": range(0, 4), "Supervised stage": range(4, 6), "RL stage": range(6, 9), "Outcome": range(9, 10),
          "Running it": range(10, 13), "Exercises": (13, 14), "Command and appendices": (15, "A")}  # fmt: skip
PROJECT = "Course and project"  # docs/*.md, and these two
TOP = ("CONTRIBUTING.md", "CHANGELOG.md")
WIDGET = "application/vnd.jupyter.widget-view+json"


# ---------------------------------------------------------------- what there is

def notebooks(root=ROOT):
    "Notebooks in reading order, without the index."
    return [path for path in sorted((root / "nbs").glob("[0-9A]*.ipynb"))]


def group_of(path):
    "The number that a notebook's name begins with; the appendices (A1, A2) have a letter."
    number = re.match(r"\d+|A", path.stem)[0]
    return number if number == "A" else int(number)


def markdown_pages(root=ROOT):
    "The Markdown pages of the site: docs/*.md, then those at the top that exist."
    return [*sorted((root / "docs").glob("*.md")), *(root / name for name in TOP if (root / name).exists())]


def title_of(path):
    "The text of a page's first heading."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(joined(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1].strip() if found else path.stem


def public_names(root=ROOT):
    "module -> {name: 'function', 'class' or 'data'}, as each module's __all__ lists them."
    found = {}
    package = root / "cai_nb"
    for path in sorted([*package.glob("*.py"), *package.glob("course/*.py")]):
        if path.stem in ("__init__", "_modidx"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = {node.name: "class" if isinstance(node, ast.ClassDef) else "function" for node in tree.body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}  # fmt: skip
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                if names := ast.literal_eval(node.value):
                    found[".".join(path.relative_to(package).with_suffix("").parts)] = {name: kinds.get(name, "data") for name in names}
    return found


def source_of(module):
    "The file of a module, from the root."
    return f"cai_nb/{module.replace('.', '/')}.py"


def module_of(path):
    "The module that a notebook's cells are exported to, or None."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if found := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", joined(cell["source"]), re.M):
            return found[1]


# ---------------------------------------------------------------- from the repository to the working folder

class Stage:
    "Writes the pages that Sphinx reads into `folder`; files that pages link to, to files/."

    def __init__(self, folder, root=ROOT):
        self.folder, self.root, self.names = Path(folder), root, public_names(root)
        self.modules = {path.name: module_of(path) for path in notebooks(root)}
        self.pages = {"README.md": "index", "nbs/index.ipynb": "index"}
        self.pages |= {path.relative_to(root).as_posix(): path.stem for path in [*notebooks(root), *markdown_pages(root)]}
        self.pages |= {source_of(module): f"api/{module}" for module in self.names}
        self.symbols = set()  # in formulas
        self.taught = {}  # full name -> label of the cell that exports it

    def run(self):
        for path in notebooks(self.root):
            self.write(f"{path.stem}.ipynb", self.notebook(path))
        for path in markdown_pages(self.root):
            self.write(f"{path.stem}.md", self.links(path.read_text(encoding="utf-8"), path.parent))
        self.write("index.ipynb", self.notebook(self.root / "nbs" / "index.ipynb", self.contents()))
        self.reference()
        return self

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def contents(self):
        "The sidebar: one hidden table of contents a group."
        def tree(caption, entries):
            return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```"

        trees = []
        for caption, numbers in GROUPS.items():
            found = [path for path in notebooks(self.root) if group_of(path) in numbers]
            trees.append(tree(caption, [f"{path.stem.split('_')[0]} {title_of(path)} <{path.stem}>" for path in found]))
        trees.append(tree(PROJECT, [path.stem for path in markdown_pages(self.root)]))
        return "\n\n".join([*trees, tree("Reference", ["api/index"])])

    def links(self, text, folder):
        "Links of a page in `folder`, turned to the page of the site, or to a copy of the file, that they mean."
        def turn(m):
            if m["code"] or re.match(r"[a-z][a-z0-9+.-]*:|#", m["target"], re.I):
                return m[0] if m["code"] else LINK.sub(turn, m["before"]) + m["target"]
            path, mark, anchor = m["target"].partition("#")
            place = posixpath.normpath(posixpath.join(folder.relative_to(self.root).as_posix(), path))
            if place in self.pages:
                target = f"{self.pages[place]}.html{mark}{anchor}"
            else:
                target = self.copy(place)
            if m["before"].startswith("!["):  # Sphinx takes pictures along itself
                target = f"_files/{target}"
            elif not m["before"].startswith("<"):  # HTML is left alone by Sphinx, and needs no scheme
                target = f"page:{target}"
            return LINK.sub(turn, m["before"]) + target

        return LINK.sub(turn, text)

    def copy(self, place):
        "Copies a file that a page links to (of a folder: a page that lists it); returns its address."
        source, target = self.root / place, self.folder / "_files" / "files" / place
        if not source.exists() or not source.resolve().is_relative_to(self.root):
            raise SystemExit(f"A page links to {place}, which does not exist.")
        if source.is_dir():
            names = sorted(p.name + "/" * p.is_dir() for p in source.iterdir() if p.name[0] not in "._")
            target.mkdir(parents=True, exist_ok=True)
            items = "".join(f"<li>{name}</li>" for name in names)
            (target / "index.html").write_text(
                f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
                f"<title>{place}</title><h1>{place}/</h1><p>In the repository:</p><ul>{items}</ul></html>")  # fmt: skip
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return f"files/{place}" + "/" * source.is_dir()

    def notebook(self, path, end=""):
        "A notebook's JSON with its directives carried out; exported cells say so and can be linked to."
        source, module = json.loads(path.read_text(encoding="utf-8")), self.modules.get(path.name)
        cells = []
        for cell in source["cells"]:
            text = joined(cell["source"])
            if cell["cell_type"] != "code":
                cells.append(markdown(self.links(text, path.parent)))
                continue
            directives, code = split_directives(text)
            said = {key: value.lower() for key, value in directives.items()}
            if "default_exp" in said:
                cells.append(markdown(self.head(path, module)))
            if {"hide", "default_exp"} & set(said) or said.get("include") == "false":
                continue
            if {"export", "exports"} & set(said):
                cells += self.label(module, cell["id"], code)
            quiet = "hide_output" in said or said.get("output") == "false"
            tags = ["remove-input"] if "hide_input" in said or said.get("echo") == "false" else []
            outputs = [] if quiet else [o for o in map(static, cell.get("outputs", [])) if o]
            if code or outputs:
                cells.append({"cell_type": "code", "id": cell["id"], "metadata": {"tags": tags}, "source": code,
                              "outputs": outputs, "execution_count": None})  # fmt: skip
        if end:
            cells.append(markdown(end))
        for number, cell in enumerate(cells):
            cell.setdefault("id", f"m{number}")
        return json.dumps({"cells": cells, "metadata": source["metadata"], "nbformat": 4, "nbformat_minor": 5})

    def head(self, path, module):
        "The line under a notebook's title: where its code goes, and the notebook itself."
        place = self.copy(f"nbs/{path.name}")
        reference = f"[`cai_nb.{module}`](page:api/{module}.html)" if module in self.names else f"`cai_nb.{module}`"
        return f":::{{container}} exported\nModule {reference} · [notebook {path.name}](page:{place})\n:::"

    def label(self, module, cell_id, code):
        "A line above an exported cell, with links to the reference of what it defines."
        found = []
        for node in ast.parse(code).body:
            targets = [node.name] if hasattr(node, "name") else [getattr(t, "id", "") for t in getattr(node, "targets", [])]
            found += [f"cai_nb.{module}.{name}" for name in targets if name in self.names.get(module, ())]
        if not found:
            return []
        self.taught |= dict.fromkeys(found, f"cell-{cell_id}")
        names = ", ".join(f"{{py:obj}}`{name.rpartition('.')[2]} <{name}>`" for name in found)
        return [markdown(f"(cell-{cell_id})=\n:::{{container}} exported\nIn the package: {names}\n:::")]

    def reference(self):
        "A page for each module, and one that lists them all."
        lines = ["# Reference", "", "Every public name of `cai_nb`, module by module. A module is exported from the notebook "
                 "of the same place in the course; each entry links to its source and to the cell that explains it.", ""]  # fmt: skip
        order = [module for path in notebooks(self.root) if (module := module_of(path)) in self.names]
        order += sorted(set(self.names) - set(order))
        home = {module: path for path in notebooks(self.root) if (module := module_of(path))}
        for module in order:
            names = self.names[module]
            about = (ast.get_docstring(ast.parse((self.root / source_of(module)).read_text(encoding="utf-8"))) or "").strip()
            title = f"cai_nb.{module}".replace("_", "\\_")
            page = [title, "=" * len(title), "", rst(about), ""]
            if module in home:
                page += [f"Explained in :doc:`{home[module].stem.split('_')[0]} {title_of(home[module])} </{home[module].stem}>`.", ""]
            page += [f".. module:: cai_nb.{module}", ""]
            for name, kind in names.items():
                page += [f".. auto{kind}:: cai_nb.{module}.{name}", *["   :members:"] * (kind == "class"),
                         *["   :no-value:"] * (kind == "data"), ""]  # fmt: skip
            self.write(f"api/{module}.rst", "\n".join(page))
            listed = ", ".join(f"{{py:obj}}`{name} <cai_nb.{module}.{name}>`" for name in names)
            lines += [f"## [{title}]({module}.rst)", "", about, "", listed, ""]
        lines += ["```{toctree}", ":hidden:", "", *(f"cai_nb.{module} <{module}>" for module in order), "```"]
        self.write("api/index.md", "\n".join(lines))


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def static(output):
    "A saved output as a page can show it: of a widget its picture, if there is one; no warnings, no progress bars."
    if output["output_type"] == "error":
        raise SystemExit(f"A notebook has a cell that failed ({output['ename']}). Run it again, then save it.")
    if output["output_type"] == "stream":
        lines = [line.split("\r")[-1] for line in joined(output["text"]).replace("\r\n", "\n").split("\n")]
        return {**output, "text": "\n".join(lines)} if output["name"] == "stdout" else None
    data = {kind: value for kind, value in output["data"].items() if kind != WIDGET}
    if WIDGET in output["data"] and set(data) <= {"text/plain"}:
        return None
    if set(data) > {"text/plain"}:
        data.pop("text/plain", None)
    return {**output, "data": data, "metadata": {}, **({"execution_count": None} if "execution_count" in output else {})}


# ---------------------------------------------------------------- the reference: comments of parameters, words in backticks

def rst(text):
    "A docstring, which is plain text with `code` in backticks, as reStructuredText."
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(f"``{part.strip('`')}``\\ " if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))


def comment_on(module, name):
    "The comment behind (or, failing that, above) the assignment of a module's constant."
    source = (ROOT / source_of(module)).read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            tokens = tokenize.generate_tokens(io.StringIO("\n".join(source.split("\n")[node.lineno - 1:node.lineno]) + "\n").readline)
            try:
                found = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
            except tokenize.TokenError:  # a bracket stays open on this line
                found = []
            above = source.split("\n")[node.lineno - 2]
            return found[0] if found else above.lstrip("# ") if above.startswith("# ") and not above.startswith("# %%") else ""
    return ""


def together(obj, about, comment):
    "The parameters on the line that ends in `comment`: of several, docments gives it to the last, but it means them all."
    import inspect

    line = next((line for line in inspect.getsource(obj).split("\n") if line.endswith(comment.split("\n")[0])), "").partition("#")[0]
    return [name for name in about if name not in ("self", "return") and re.search(rf"[(\s*]{name}\s*[:=,)]", line)]


def docstring(app, what, name, obj, options, lines):
    "What autodoc shows: the docstring, each parameter's comment, and where the notebook explains it."
    from fastcore.docments import docments

    if what == "data":
        module, _, own = name.rpartition(".")
        lines[:] = [rst(comment_on(module.removeprefix("cai_nb."), own))]
        value = repr(obj)
        if len(value) <= 200:
            lines += ["", f"Value: ``{value}``" if "`" not in value else ""]
    else:
        lines[:], after = rst("\n".join(lines)).split("\n") + [""], []
        try:
            about = docments(obj, full=True)
        except (TypeError, OSError, ValueError, SyntaxError):
            about = {}
        for key, item in about.items():
            if item["docment"]:
                said, names = rst(" ".join(item["docment"].split())), together(obj, about, item["docment"])
                if key == "return":
                    lines.append(f":returns: {said}")
                elif len(names) > 1:
                    after += ["", f"{', '.join(f'**{name}**' for name in names)}: {said}", ""]
                else:
                    lines.append(f":param {key}: {said}")
        lines += after
    if label := app.config.stage.taught.get(name):
        lines += ["", f":ref:`Explained in its notebook <{label}>`"]


def signature(app, what, name, obj, options, shown, returns):
    "Dataclasses that inherit a hundred settings show their own alone."
    import dataclasses

    if what == "class" and dataclasses.is_dataclass(obj) and len(dataclasses.fields(obj)) > 40:
        own = obj.__dict__.get("__annotations__", {})
        return f"({', '.join(f'{f.name}={f.default!r}' for f in dataclasses.fields(obj) if f.name in own)}, **others)", returns


def link_code(app, doctree):
    "`PPOTrainer` in the text of a page becomes a link to its reference."
    from docutils import nodes
    from sphinx import addnodes

    page = app.env.docname
    own = app.config.stage.modules.get(f"{page}.ipynb")
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        homes = [module for module, names in app.config.stage.names.items() if name in names and len(name) > 3]
        inside = literal
        while inside is not None and not isinstance(inside, (nodes.reference, addnodes.pending_xref, nodes.title, nodes.field_name)):
            inside = inside.parent
        if homes and inside is None:
            home = own if own in homes else homes[0]
            literal.replace_self(addnodes.pending_xref("", literal.deepcopy(), refdomain="py", reftype="obj", refexplicit=True,
                                                       reftarget=f"cai_nb.{home}.{name}", refdoc=page))  # fmt: skip


# ---------------------------------------------------------------- formulas

def mathml(tex, block=False):
    "A formula as MathML, with the spaces that TeX would put: none behind a sign, a thin one behind log."
    from latex2mathml.converter import convert

    text = convert(tex, display="block" if block else "inline")
    text = re.sub(r"(<(?:mrow|math)[^>]*>|<mo[^>]*>(?:[=,(\[∼]|&#x(?:0003D|0002C|00028|0005B|0223C);)</mo>(?:<mspace[^>]*/>)?)<mo>(&#x02212;|−)</mo>",
                  r'\1<mo form="prefix" lspace="0" rspace="0">\2</mo>', text)  # fmt: skip
    text = re.sub(r"<mo>(/|&#x0002F;)</mo>", r'<mo lspace="0" rspace="0">\1</mo>', text)
    return re.sub(r"(<mi>(?:log|ln|exp|max|min)</mi>)(?=<m(?:i|n|sub|sup|subsup|frac)[ >])", r'\1<mspace width="0.167em"/>', text)


def show_math(writer, node):
    from docutils import nodes
    from html import unescape

    block = isinstance(node, nodes.math_block)
    text = mathml(node.astext(), block)
    writer.config.stage.symbols.update(unescape(re.sub(r"<[^>]*>", "", text)))
    writer.body.append(f'<div class="math">{text}</div>\n' if block else text)
    raise nodes.SkipNode


def math_font(target, symbols):
    "STIX Two Math (SIL Open Font License, as stated inside), out of the package ziamath, with the signs that are used."
    import logging
    from importlib.util import find_spec

    from fontTools import subset
    from fontTools.ttLib import TTFont

    logging.getLogger("fontTools").setLevel(logging.WARNING)
    font = TTFont(Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    options = subset.Options(flavor="woff", name_IDs=["*"], layout_features=["*"])
    cut = subset.Subsetter(options)
    italic = [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]  # what browsers take for a single letter
    cut.populate(unicodes=[*map(ord, symbols), *italic])
    cut.subset(font)
    subset.save_font(font, target, options)


# ---------------------------------------------------------------- Sphinx

def settings(stage):
    return {
        "project": "cai_nb",
        "html_title": "cai_nb",
        "html_favicon": str(ROOT / "tools" / "docs" / "favicon.svg"),
        "language": "en",
        "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "docs"],
        "stage": stage,
        "html_theme": "furo",
        "html_theme_options": {"navigation_with_keys": True},
        "html_static_path": [str(ROOT / "tools" / "docs")],
        "html_css_files": ["site.css"],
        "html_js_files": ["site.js"],
        "html_extra_path": [str(stage.folder / "_files")],
        "html_show_sourcelink": False,
        "html_copy_source": False,
        "html_show_copyright": False,
        "exclude_patterns": ["_files"],
        "pygments_style": "a11y-light",
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_render_markdown_format": "gfm",
        "viewcode_follow_imported_members": False,
        "myst_enable_extensions": ["dollarmath", "colon_fence", "deflist"],
        "myst_heading_anchors": 4,
        "myst_update_mathjax": False,
        "myst_url_schemes": {"http": None, "https": None, "mailto": None, "page": {"url": "{{path}}#{{fragment}}"}},
        "html_math_renderer": "mathml",
        "suppress_warnings": ["myst.header", "misc.highlighting_failure"],
        "autodoc_inherit_docstrings": False,
        "autodoc_member_order": "bysource",
        "autodoc_typehints_format": "short",
        "python_maximum_signature_line_length": 70,
        "add_module_names": False,
        "toc_object_entries_show_parents": "hide",
        "copybutton_selector": "div.highlight pre",
    }


def polish(app, page, template, context, doctree):
    "What a screen reader stumbles over: headings of the sidebar without a level, lists of parameters that are no lists."
    context["furo_navigation_tree"] = context["furo_navigation_tree"].replace('role="heading"', 'role="heading" aria-level="2"')

    def lines(m):
        return f'<span class="params">{m[1].replace("<dd>", "<span>").replace("</dd>", "</span>")}</span>'

    context["body"] = re.sub(r'(href="[^"#]+)#"', r'\1"', context.get("body") or "")
    context["body"] = re.sub(r'<dl>\n((?:<dd><em class="sig-param">.*?</dd>\n)+)</dl>', lines, context["body"])


def setup(app):
    "What this module adds to Sphinx, as an extension of it."
    app.add_config_value("stage", None, "")
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", link_code)
    app.connect("html-page-context", polish, priority=900)  # after Furo
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))


def build(out, root=ROOT, status=None, warning=sys.stderr):
    "Writes the site into `out`, which is replaced. Warnings of Sphinx, a broken link for instance, end in SystemExit."
    from sphinx.application import Sphinx

    out = Path(out)
    with tempfile.TemporaryDirectory() as tmp:
        stage = Stage(Path(tmp, "pages"), root).run()
        app = Sphinx(stage.folder, None, Path(tmp, "site"), Path(tmp, "trees"), "html", confoverrides=settings(stage),
                     status=status, warning=warning, freshenv=True)  # fmt: skip
        app.config.pygments_dark_style = "a11y-dark"  # a setting of Furo's, which is known only from here on
        app.build()
        if app.statuscode or app._warncount:
            raise SystemExit(f"The site has {app._warncount} faults, named above.")
        math_font(Path(tmp, "site", "_static", "math.woff"), stage.symbols)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(tmp, "site"), out, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv"))
    return out


if __name__ == "__main__":
    out = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs")
    print(f"The site is in {out}: open {out / 'index.html'}, or type make docs-serve.")
