"""README.md from nbs/index.ipynb, as nbdev-readme makes it, but without Quarto.

    python tools/readme.py             write README.md and its pictures (nbs/images/index-*)
    python tools/readme.py --check     write nothing; say what is out of step, exit 1

Markdown cells are taken as they are, code cells in a fence with their saved outputs below; nbdev's directives hide,
echo, output, eval and include mean what they mean there.  Links of the notebook are turned to start from the README.
If nbs/nbdev.yml says where the repository is (repo-url), badges for Binder and Colab stand below the title.
"""

import argparse
import base64
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py. Change the notebook, then run: make prepare -->\n"
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)(?:\s*:\s*|\s+|$)(.*)$")
LINK = re.compile(
    r"(?P<code>^[ ]*(?P<fence>```+|~~~+).*?^[ ]*(?P=fence)[ ]*$|(?P<ticks>`+)[^`].*?(?P=ticks))"  # no links inside code
    r"|(?P<before>!?\[(?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*\]\(|<(?:img|a)\s[^>]*?(?:src|href)=\")"
    r"(?P<target>[^)\s\"]+)",
    re.M | re.S,
)


def joined(text):
    "A notebook's text field, a string or a list of lines, as a string."
    return "".join(text) if isinstance(text, list) else text


def split_directives(source):
    "({'echo': 'false', …}, the source without its directive lines)."
    lines, found = source.split("\n"), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = m[2].strip()
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def from_root(target, folder="nbs"):
    "A link as the notebook in `folder` writes it, as the README at the top has to write it."
    if re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target, re.I):
        return target
    path, mark, rest = target.partition("#")
    return posixpath.normpath(posixpath.join(folder, path)) + mark + rest


def turn_links(markdown, seen):
    "`markdown` with its links made to start from the top folder; their targets are added to the set `seen`."

    def turn(m):
        if m["code"]:
            return m[0]
        target = from_root(m["target"])
        seen.add(target)
        return LINK.sub(turn, m["before"]) + target  # the text of a link may hold a picture

    return LINK.sub(turn, markdown)


def fenced(text, language=""):
    "A fence around `text`, longer than any in it."
    ticks = "`" * max([3] + [len(run) + 1 for run in re.findall(r"`{3,}", text)])
    return f"{ticks}{language}\n{text}\n{ticks}"


def as_text(text):
    "Plain output in a fence: no colours, and of a line written over itself only what stood there last."
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").split("\r")[-1].rstrip() for line in text.split("\n")]
    text = "\n".join(lines).strip("\n")
    return fenced(text, "text") if text else ""


def as_html(text):
    "HTML output as a block that Markdown leaves alone: no style or script elements, no blank lines."
    text = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.S | re.I)
    return "\n".join(line.rstrip() for line in text.split("\n") if line.strip())


def show_output(output, name, pictures, links):
    "One saved output as Markdown; a picture goes into `pictures` (path -> bytes), targets of links into `links`."
    if output["output_type"] == "error":
        raise SystemExit(f"nbs/index.ipynb has a cell that failed ({output['ename']}). Run it again, then save it.")
    if output["output_type"] == "stream":  # progress bars and warnings go to stderr
        return as_text(joined(output["text"])) if output["name"] == "stdout" else ""
    data = {kind: joined(value) for kind, value in output.get("data", {}).items() if kind.startswith(("text", "image"))}
    for kind, ending in PICTURES.items():
        if kind in data:
            path = f"nbs/images/{name}.{ending}"
            pictures[path] = data[kind].encode() if ending == "svg" else base64.b64decode(data[kind])
            return f"![]({path})"
    if "text/markdown" in data:
        return turn_links(data["text/markdown"].strip("\n"), links)
    if "text/html" in data:
        return as_html(data["text/html"])
    return as_text(data.get("text/plain", ""))


def render(notebook):
    "(README's text, {path: bytes} of its pictures, set of link targets) of a notebook's JSON."
    blocks, pictures, links = [], {}, set()
    for cell in notebook["cells"]:
        directives, source = split_directives(joined(cell["source"]))
        said = {key: value.lower() for key, value in directives.items()}
        if "hide" in said or "default_exp" in said or said.get("include") == "false":
            continue
        if cell["cell_type"] == "markdown":
            blocks.append(turn_links(source, links))
        elif cell["cell_type"] == "code":
            if source and said.get("echo") != "false":
                blocks.append(fenced(source, "python"))
            if said.get("output") != "false":
                for n, output in enumerate(cell.get("outputs", [])):
                    blocks.append(show_output(output, f"index-{cell['id']}-{n}", pictures, links))
    return NOTE + "\n" + "\n\n".join(block for block in blocks if block.strip()) + "\n", pictures, links


def badges(url, branch="main", start="nbs/00_dialogue.ipynb"):
    "Badges that open the notebooks on Binder and on Colab, as Markdown; nothing if the repository is not known to be on GitHub."
    m = re.match(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?$", url)
    if not m:
        return ""
    binder = f"https://mybinder.org/v2/gh/{m[1]}/{branch}?urlpath=lab/tree/{start}"
    colab = f"https://colab.research.google.com/github/{m[1]}/blob/{branch}/{start}"
    return (f"[![Open on Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})")


def repository(root):
    "(address, branch) that nbs/nbdev.yml names; empty where it names none."
    path = root / "nbs" / "nbdev.yml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = [re.search(rf"^\s*{key}:[ \t]*[\"']?([^\s\"']*)", text, re.M) for key in ("repo-url", "repo-branch")]
    return tuple(m[1] if m else "" for m in found)


def with_badges(text, made):
    "README's text with badges below title and subtitle."
    if not made:
        return text
    head = re.match(r"(<!--.*?-->\n+)?# [^\n]*\n+(> [^\n]*\n+)?", text, re.S)
    return text[:head.end()] + made + "\n\n" + text[head.end():] if head else text


def build(root=ROOT):
    "(files that README consists of: path -> bytes, paths of old pictures that nothing shows, links that lead nowhere)."
    if not (root / "nbs" / "index.ipynb").is_file():
        sys.exit("There is no nbs/index.ipynb to make README.md of.")
    notebook = json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    text, pictures, links = render(notebook)
    url, branch = repository(root)
    text = with_badges(text, badges(url, branch or "main"))
    files = {"README.md": text.encode(), **pictures}
    old = {str(path.relative_to(root).as_posix()) for path in (root / "nbs" / "images").glob("index-*")} - set(files)
    local = {link.partition("#")[0] for link in links if not re.match(r"[a-z][a-z0-9+.-]*:|[#/]", link, re.I)}
    return files, sorted(old), sorted(link for link in local if not (root / link).exists() and link not in files)


def differences(root=ROOT):
    "What is out of step, a sentence each; empty if nothing is."
    files, old, broken = build(root)
    found = [f"{path} is not what nbs/index.ipynb makes of it" for path, data in files.items()
             if not (root / path).is_file() or (root / path).read_bytes() != data]
    found += [f"{path} is a picture that nbs/index.ipynb no longer has" for path in old]
    return found + [f"nbs/index.ipynb links to {link}, which does not exist" for link in broken]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if something is out of step")
    if parser.parse_args().check:
        if found := differences():
            sys.exit("\n".join(found))
        return
    files, old, broken = build()
    for path, data in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / path).is_file() or (ROOT / path).read_bytes() != data:
            (ROOT / path).write_bytes(data)
            print("wrote", path)
    for path in old:
        (ROOT / path).unlink()
        print("removed", path)
    if broken:
        sys.exit("\n".join(f"nbs/index.ipynb links to {link}, which does not exist" for link in broken))


if __name__ == "__main__":
    main()
