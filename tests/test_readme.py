"README says what the code and the saved measurements say, is short, and its Python example runs."

import ast
import json
import re
from pathlib import Path

import cai_nb

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
LOG = (ROOT / "docs" / "research-log.md").read_text(encoding="utf-8")


def saved(*parts):
    return json.loads(ROOT.joinpath(*parts).read_text(encoding="utf-8"))


def interval(row, mean="win"):
    return f"{row[mean]:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def example():
    "The code of the section \"In Python\"."
    section = README[README.index("## In Python"):]
    return re.search(r"```python\n(.+?)\n```", section, re.S)[1]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_example_is_ten_lines_of_the_top_level_api():
    tree = ast.parse(example())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == ["import cai_nb"]
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if ast.unparse(node.value) == "cai_nb"}
    assert {"LanguageModel", "Constitution", "revise", "finetune", "train_preference_model"} <= used
    assert used <= set(cai_nb.__all__)
    assert len(tree.body) - len(imports) == 10


def test_the_example_runs(tmp_path, monkeypatch):
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example().replace("limit=8", "limit=3"), "README.md", "exec"), names)
    assert len(names["revisions"]) == 3 and all(len(r["steps"]) == 3 for r in names["revisions"])
    assert {label["method"] for label in names["labels"]} == {"multiple_choice"}
    assert (tmp_path / "runs" / "api" / "preference" / "preference.json").is_file()


def test_who_taught_the_labels_is_counted_from_the_constitutions():
    several = [cai_nb.Constitution.load(name) for name in ("harmlessness", "anti-overreaction", "helpfulness")]
    pairs, exemplars, train_pairs, train_exemplars = (
        f"{sum(len(getattr(c, items)(split)) for c in several):,}"
        for items, split in (("pairs", None), ("exemplars", None), ("pairs", "train"), ("exemplars", "train"))
    )
    for page in (README, CARD):
        assert f"{pairs} labelled preference pairs and {exemplars} exemplars" in page
        assert re.search(rf"{train_pairs}( pairs)? and {train_exemplars}\b", page)
        assert "nobody labels" not in page.lower()


def test_the_blind_reading_is_quoted_as_it_was_saved():
    blind = saved("benchmarks", "results", "blind-reading.json")
    laptop = saved("results", "laptop", "evaluation.json")["measures"]["boilerplate"]["rl-cai"]["mean"]
    for page in (README, (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), CARD):
        for row in blind["rows"]:
            assert interval(row) in page
        assert f"{blind['plain_questions']['win']:.2f}" in page
        assert f"{blind['repeated_run']['mean']:.2f}" in page and f"{laptop:.2f}" in page
        assert "nearly as helpful" not in page.lower()
    (helpful,) = (row for row in blind["rows"] if row["question"] == "helpfulness")
    assert interval(helpful) in LOG and helpful["high"] < 0.5


def test_what_is_said_of_the_critic_is_what_was_measured():
    found = saved("benchmarks", "results", "critic-principles.json")
    critique, revision = (r for r in found["rows"] if "identical" not in r)
    own = found["guesses"][0]
    assert interval(critique, "similarity") in CARD
    for page in (README, CARD):
        assert interval(revision, "similarity") in page
        assert interval(own, "accuracy") in page and f"{own['chance']:.2f}" in page
    assert found["seeds"] == [0] and critique["prompts"] == 48


def test_what_is_said_of_the_principle_judge_is_what_was_measured():
    rows = {row["what"]: row for row in saved("benchmarks", "results", "principle-judge.json")["rows"] if row["split"] == "judge"}
    for what in ("each principle left out of training", "checks left out of training"):
        assert interval(rows[what], "steered") in README and interval(rows[what], "steered") in CARD
    assert interval(rows["in training"], "steered") in CARD and interval(rows["all wordings new, all checks known"], "steered") in CARD


def test_refusal_rates_in_the_prose_are_those_of_the_runs():
    runs = [saved("results", name, "evaluation.json")["kinds"] for name in ("laptop", "laptop-1", "laptop-2")]

    def rates(kind):
        return [f"{100 * kinds[kind]['shares']['refusal']['rl-cai']['mean']:.0f} %" for kinds in runs]

    assert ", ".join(rates("benign")) in README
    first, second, third = rates("benign")
    assert f"refuses {first} of plain benign prompts in this run, {second} and {third} with the two other seeds" in CARD
    first, second, third = rates("over_refusal")
    assert f"{first}, {second} and {third} of over-refusal prompts" in CARD


def test_numbers_of_the_research_log_are_the_saved_ones():
    rows = saved("benchmarks", "results", "outcomes-price.json")["rows"]
    for penalty in (0.0, 0.5):
        rates = [r["boilerplate, rl-cai"][:4] for r in rows if r["ppo.boilerplate_penalty"] == penalty]
        assert len(rates) == 3 and f"{rates[0]}, {rates[1]} and {rates[2]}" in LOG
    cosines = saved("benchmarks", "results", "refusal-direction.json")["rows"]
    by_opening = {r["opening"]: r for r in cosines if r["run"] == "laptop"}
    refusal = by_opening["I'm sorry, but I can't"]
    for value in (refusal["harmful, benign"], refusal["harmful, other harmful"], by_opening["The"]["harmful, benign"]):
        assert f"{value:.2f}" in LOG


def test_no_page_for_readers_has_history_or_coined_words():
    words = r"in a hundred\b|of 100\b|start model|judged pair|\bmend(s|ed)?\b|made again|people's judge"
    pages = [ROOT / "README.md", *(p for p in (ROOT / "docs").glob("*.md") if p.name != "research-log.md")]
    for path in pages:
        assert not re.search(words, path.read_text(encoding="utf-8")), path.name
