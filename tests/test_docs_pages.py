"The pages for readers: links lead somewhere, counted numbers are those of the files, and what they name exists."

import ast
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import architecture  # noqa: E402
import pages  # noqa: E402

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
         ROOT / "benchmarks" / "README.md"]  # fmt: skip
OWN = ("instructor", "glossary", "further-reading", "architecture", "model-card", "data-card", "colab", "results",
       "research-log", "failures")  # fmt: skip
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "cai_nb" / "__init__.py").read_text(encoding="utf-8"))[1]


def text_of(path):
    return path.read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.S | re.M)


def anchors(path):
    "The anchors that a page's headings make, as GitHub and MyST write them."
    if path.suffix == ".ipynb":
        cells = json.loads(text_of(path))["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    else:
        text = re.sub(r"^```.*?^```", "", text_of(path), flags=re.S | re.M)
    heads = re.findall(r"^#+ (.+?)\s*$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_within_the_project_leads_somewhere(path):
    wrong = []
    for target in LINK.findall(without_code(text_of(path))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        place, _, anchor = unquote(target).partition("#")
        file = (path.parent / place).resolve() if place else path
        if not file.exists() or not file.is_relative_to(ROOT):
            wrong.append(target)
        elif anchor and anchor not in anchors(file):
            wrong.append(f"{target} (no such heading)")
    assert not wrong, wrong


def test_the_pages_are_there_and_each_has_one_title():
    for name in OWN:
        text = without_code(text_of(ROOT / "docs" / f"{name}.md"))
        assert len(re.findall(r"^# ", text, re.M)) == 1, name


def test_counted_tables_say_what_files_and_notebooks_hold():
    for page, own in pages.tables().items():
        assert pages.filled(page, own) == text_of(ROOT / "docs" / page), f"docs/{page} is out of step; type: python tools/pages.py"
    harmful = len(text_of(ROOT / "prompts" / "harmful.jsonl").splitlines())
    assert f"| `harmful` | {harmful} | 16 |" in text_of(ROOT / "docs" / "data-card.md")


def test_numbers_in_the_prose_are_those_of_the_tables():
    own = pages.tables()["data-card.md"]
    everything = own["sizes"].splitlines()[-1].split("|")
    exemplars, pairs = int(everything[3]), int(everything[5])
    assert f"{exemplars} exemplars and {pairs:,} labelled preference pairs" in text_of(ROOT / "CHANGELOG.md")
    guide = text_of(ROOT / "docs" / "instructor.md")
    milder = sum(1 for line in text_of(ROOT / "prompts" / "over_refusal.jsonl").splitlines() if line.strip())
    assert f"`over_refusal` has {milder} prompts" in guide
    named = re.search(r"twenty each in sixteen categories: (.+?)\. They", guide)[1]
    named = {c.strip().replace(" ", "-") for c in re.split(r", | and ", named)}
    assert named == {json.loads(line)["category"] for line in text_of(ROOT / "prompts" / "harmful.jsonl").splitlines() if line.strip()}


@pytest.mark.parametrize("words, expected", [
    ("20 minutes to read", 20), ("half an hour to read", 30), ("three quarters of an hour", 45), ("a quarter of an hour to read", 15),
    ("two to three minutes", 3), ("some ten seconds", 1 / 6), ("half a minute", 0.5), ("one to run", 1), ("seconds to run", 0),
    ("an hour", 60), ("nothing", None),
])  # fmt: skip
def test_times_are_read_as_they_are_written(words, expected):
    assert pages.minutes(words) == (expected if expected is None else pytest.approx(expected))


def test_a_route_adds_up():
    known = {"00": {"title": "A", "file": "a.ipynb", "read": 20, "run": 0.5, "exercises": [("easy", 5), ("hard", 30)]},
             "01": {"title": "B", "file": "b.ipynb", "read": None, "run": 1, "exercises": [("easy", None)]}}  # fmt: skip
    last = pages.route_table([("00", ("easy",)), ("01", ("easy",))], known).splitlines()[-1]
    assert last == "| **sum** | **20 min** and 1 not stated | **2 min** | **5 min** and 1 not stated |"


def test_routes_name_notebooks_and_difficulties_that_exist():
    known = pages.times()
    for route in pages.ROUTES.values():
        for number, wanted in route:
            assert number in known and set(wanted) <= {"easy", "medium", "hard"}
    assert known["04"]["read"] and known["04"]["run"]


def test_a_glossary_entry_has_two_sentences_and_a_notebook():
    entries = re.split(r"^## ", text_of(ROOT / "docs" / "glossary.md"), flags=re.M)[1:]
    names = [e.split("\n")[0] for e in entries]
    assert len(names) > 40 and len(set(names)) == len(names) and names == sorted(names, key=str.lower)
    for entry in entries:
        name, body = entry.split("\n", 1)
        said, link = re.fullmatch(r"(.+?) \[[^\]]+\]\((\.\./nbs/[^)]+\.ipynb)\)", body.strip(), re.S).groups()
        assert len(re.findall(r"[.!?](?= [A-Z*`]|$)", said)) == 2, name
        assert (ROOT / "docs" / link).resolve().is_file(), name


def test_a_source_has_an_address_and_a_place_in_the_notebooks():
    entries = re.findall(r"^- (.+)$", text_of(ROOT / "docs" / "further-reading.md"), re.M)
    assert len(entries) >= 25
    for entry in entries:
        for shown, target in re.findall(r"\[arXiv ([^\]]*)\]\(([^)]*)\)", entry):
            assert target == f"https://arxiv.org/abs/{shown}" and re.fullmatch(r"\d{4}\.\d{5}", shown), entry
        assert re.search(r"\]\(https?://", entry), entry
        assert re.search(r"\]\((\.\./nbs/|model-card|data-card)", entry) or "docstrings" in entry, entry
    ids = re.findall(r"abs/([\d.]+)\)", "\n".join(entries))
    assert len(ids) == len(set(ids))


def test_the_picture_is_what_its_script_draws_and_can_be_read_aloud():
    svg = ROOT / "docs" / "architecture.svg"
    assert text_of(svg) == architecture.draw()
    tree = ET.fromstring(text_of(svg))
    name = "{http://www.w3.org/2000/svg}"
    ids = tree.attrib["aria-labelledby"].split()
    assert tree.attrib["role"] == "img" and [tree.find(name + "title").attrib["id"], tree.find(name + "desc").attrib["id"]] == ids
    assert "prefers-color-scheme: dark" in text_of(svg) and not re.search(r"(href|src)=\"http", text_of(svg))
    boxes = [(x, y) for _, x, y, *_ in architecture.BOXES.values()]
    right, bottom = architecture.WIDTH - architecture.W, architecture.HEIGHT - architecture.H
    assert len(set(boxes)) == len(boxes) and all(0 <= x <= right and 0 <= y <= bottom for x, y in boxes)


def test_the_architecture_page_names_stages_and_needs_of_the_code():
    from cai_nb.run import STAGES

    page = text_of(ROOT / "docs" / "architecture.md")
    for n, stage in enumerate(STAGES, 1):
        assert f"| {n} `{stage.name}`, `cai-nb {stage.command}` |" in page
        if stage.needs:
            assert f"{stage.name} needs {' and '.join(stage.needs)}" in page


def test_measured_figures_of_the_model_card_are_those_of_the_kept_run():
    card, run = text_of(ROOT / "docs" / "model-card.md"), ROOT / "results" / "laptop"
    critic = json.loads(text_of(ROOT / "adapters" / "critic" / "metrics.json"))
    assert f"{critic['examples']} training exemplars" in card and f"{critic['steps']} steps" in card and f"{critic['tokens']:,} tokens" in card
    assert f"from {critic['curve'][0]['loss']:.2f} to {critic['curve'][-1]['loss']:.2f} nats" in card
    preference = json.loads(text_of(run / "4-preference.json"))
    assert f"{preference['agreement']:.2f} [{preference['low']:.2f}, {preference['high']:.2f}] of {preference['n']}" in card
    counts = json.loads(text_of(run / "facts.json"))["stages"]["1-revision"]["counts"]
    assert f"{counts['degenerate']} of {counts['prompts']} traces" in card
    rates = json.loads(text_of(ROOT / "benchmarks" / "results" / "win-rates.json"))
    trust = next(row for row in rates["trust"] if row["judge"] == "probe")
    assert f"{trust['accuracy on human preferences']:.2f} [{trust['low']:.2f}, {trust['high']:.2f}]" in card
    human = next(r for r in rates["rows"] if (r["judge"], r["pair"], r["run"]) == ("human", "rl-cai > sl-cai", "all"))
    assert f"{human['win']:.2f} [{human['low']:.2f}, {human['high']:.2f}]" in card
    both = next(row for row in rates["agreement"] if row["judges"] == "probe, human")
    assert f"{100 * both['same verdict']:.0f} % of comparisons, where {100 * both['by chance']:.0f} %" in card


def test_settings_that_the_pages_tell_to_type_are_known():
    from cai_nb.recipe import load_recipe

    for path in PAGES:
        for quoted, plain in re.findall(r"--set (?:'([^']+)'|([\w.]+=[\w.\-]+))", text_of(path)):
            load_recipe("laptop", sets=[quoted or plain])


def test_what_contributing_names_exists():
    text = text_of(ROOT / "CONTRIBUTING.md")
    defined = {node.name for p in [*(ROOT / "cai_nb").rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
               for node in ast.walk(ast.parse(text_of(p))) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    recipes = text[text.index("## Recipes for common changes"):text.index("## A new requirement")]
    tests = set(re.findall(r"`(test_\w+)`", recipes))
    assert len(tests) >= 10 and not tests - defined, tests - defined
    for name in ("comparison_record", "FeedbackSection", "ModelSection", "make_labeller", "asked", "Remote", "open_model", "load_for_sampling",
                 "wanted", "option", "split_of", "exercise", "work"):
        assert re.search(rf"`@?{name}[`(]|\.{name}`|import {name}\b|`{name}\.", recipes) and name in defined, name
    for place in re.findall(r"`((?:nbs|tests|tools|benchmarks|adapters|docs)/[\w./-]+)`", recipes):
        assert (ROOT / place).exists(), place


def test_citation_has_what_the_format_asks_for():
    cited = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert cited["version"] == VERSION and cited["license"] == "Apache-2.0"
    assert cited["authors"] == [{"name": "The cai_nb authors"}]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper) and paper["identifiers"][0]["value"] == "arXiv:2212.08073"
    assert len(paper["authors"]) == 51 and all(set(a) == {"given-names", "family-names"} for a in paper["authors"])


def test_the_changelog_has_this_version_and_known_headings():
    text = text_of(ROOT / "CHANGELOG.md")
    assert re.search(rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", text, re.M) and "## [Unreleased]" in text
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["bug", "question", "principle"])
def test_a_form_for_issues_has_the_keys_that_github_asks_for(name):
    form = yaml.safe_load(text_of(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml"))
    assert all(isinstance(form[key], str) and form[key] for key in ("name", "description")) and form["body"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and ids
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        what = field["attributes"]
        assert what["value"] if field["type"] == "markdown" else what["label"]
        if field["type"] in ("dropdown", "checkboxes"):
            assert len(what["options"]) == len({str(o) for o in what["options"]}) > 0
        assert set(field) <= {"type", "id", "attributes", "validations"}
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_issues_may_also_be_written_without_a_form():
    assert yaml.safe_load(text_of(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")) == {"blank_issues_enabled": True}


def test_binders_scripts_are_scripts():
    for name in ("postBuild", "start"):
        path = ROOT / "binder" / name
        assert text_of(path).startswith("#!/usr/bin/env bash\n")
        assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    start = subprocess.run(["bash", str(ROOT / "binder" / "start"), "printenv", "CAI_NB_SMOKE"], capture_output=True, text=True)
    assert start.stdout == "1\n"
    oldest = re.search(r'requires-python = ">=(3\.\d+)"', text_of(ROOT / "pyproject.toml"))[1]
    assert text_of(ROOT / "binder" / "runtime.txt").strip() == f"python-{oldest}"


def test_make_lists_the_slides():
    assert re.search(r"^slides: .*## ", text_of(ROOT / "Makefile"), re.M)


def test_every_row_on_failures_names_a_test_that_exists():
    rows = [line for line in text_of(ROOT / "docs" / "failures.md").splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    defined = {node.name for p in (ROOT / "tests").glob("*.py") for node in ast.walk(ast.parse(text_of(p))) if isinstance(node, ast.FunctionDef)}
    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and not set(named) - defined, row
