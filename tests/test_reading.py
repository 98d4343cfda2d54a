"""Reading: prompts from anywhere, sheets that hide the models, two runs compared."""

import csv
import json

import pytest
from fake_run import make_run
from tiny import tiny_folder

from cai_nb.dialogue import CaiError
from cai_nb.reading import blind, compare_runs, comparison_text, model_loaders, read_prompts, unblind, write_samples


def responses(path, models=("initial", "rl-cai", "sl-cai"), n=12, text="{m} says {i}"):
    rows = [{"prompt": f"Question {i}?", "model": m, "response": text.format(m=f"<{'abc'[k]}>", i=i), "seed": 0}
            for i in range(n) for k, m in enumerate(models)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_prompts_come_from_sets_text_and_json(tmp_path):
    assert {(p["kind"], p["over_refusal"]) for p in read_prompts("over_refusal")} == {("benign", True)}
    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    assert [p["prompt"] for p in read_prompts(tmp_path / "a.txt")] == ["one", "two"]
    talk = [{"role": "user", "content": "hi"}]
    lines = ["one", {"id": "x", "kind": "harmful", "prompt": talk}]
    (tmp_path / "b.jsonl").write_text("\n" + "".join(json.dumps(line) + "\n" for line in lines))
    rows = read_prompts(tmp_path / "b.jsonl")
    assert rows[0]["prompt"] == "one" and rows[1] == {"id": "x", "kind": "harmful", "category": "", "prompt": talk}
    assert len({p["id"] for p in rows}) == 2


@pytest.mark.parametrize("text, words", [
    ("", "no prompt"), ('{"text": "a"}\n', "line 1"), ('{"prompt": ""}\n', "line 1"), ('\n{"prompt": ""}\n', "line 2")])
def test_prompts_that_are_none(tmp_path, text, words):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(CaiError, match=words):
        read_prompts(tmp_path / "a.jsonl")


def test_samples_are_one_line_a_prompt_and_model_and_repeat_themselves(tmp_path):
    model = tiny_folder(tmp_path / "tiny")
    for name in ("a", "b"):
        n = write_samples([str(model)], read_prompts("benign")[:3], tmp_path / name, max_tokens=4, samples=2, seed=5)
        assert n == 6
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    for r in rows:
        assert {"model", "response"} <= set(r) and r["seed"] == 5 and isinstance(r["prompt"], str)
    assert len({(r["prompt"], r["sample"]) for r in rows}) == 6


def test_a_run_stands_for_its_policies(tmp_path):
    run = make_run(tmp_path / "one", stages=3)
    assert list(model_loaders([str(run)])) == ["initial", "sl-cai"]
    assert list(model_loaders([f"{run}:sl-cai"])) == ["sl-cai"]
    other = make_run(tmp_path / "two", stages=6)
    several = model_loaders([f"{run}:sl-cai", f"{other}:rl-cai", "default"])
    assert list(several) == ["one:sl-cai", "two:rl-cai", "default"]
    with pytest.raises(CaiError, match="no rl-cai yet"):
        model_loaders([f"{run}:rl-cai"])


def test_a_sheet_hides_the_models_and_its_key_brings_them_back(tmp_path):
    sheet, key, marks = blind(responses(tmp_path / "a.jsonl", text="response {i}"), seed=2)
    page, keys = sheet.read_text(), json.loads(key.read_text())
    assert not any(m in page.split("<body>")[1] for m in ("initial", "sl-cai", "rl-cai"))
    places = {m: {r["letter"] for r in keys if r["model"] == m} for m in ("initial", "sl-cai", "rl-cai")}
    assert all(letters == {"A", "B", "C"} for letters in places.values())  # no letter gives a model away
    assert [r["number"] for r in keys if r["letter"] == "A"] == list(range(1, 13))
    rows = {(r["number"], r["model"]): r["letter"] for r in keys}
    with open(marks, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["number", "best"])
        for n in range(1, 13):  # eight for rl-cai, two ties of it and sl-cai, two without a mark
            tie = rows[n, "rl-cai"] + rows[n, "sl-cai"].lower()
            out.writerow([n, rows[n, "rl-cai"] if n < 9 else tie if n < 11 else ""])
    found = {(r["a"], r["b"]): r for r in unblind(key, marks)}
    assert found["sl-cai", "rl-cai"]["win"].mean == pytest.approx(0.1) and found["sl-cai", "rl-cai"]["prompts"] == 10
    assert found["rl-cai", "initial"]["win"].mean == 1 and found["sl-cai", "initial"]["prompts"] == 2
    again = blind(tmp_path / "a.jsonl", seed=2)
    assert again[0].read_text() == page and "," in marks.read_text().splitlines()[1][1:]  # marks are not overwritten
    assert marks.read_text().count("\n") == 13 and rows[1, "rl-cai"] in marks.read_text()


def test_a_sheet_shows_hostile_text_as_text(tmp_path):
    nasty = "<script>alert(1)</script>\x1b[2J\ud800 <|im_start|>{m}{i}"
    sheet, _, _ = blind(responses(tmp_path / "a.jsonl", n=2, text=nasty))
    page = sheet.read_text(encoding="utf-8")
    assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("line, words", [("1,Z", "letters"), ("99,A", "no such prompt"), ("1,", "no marks yet")])
def test_marks_that_mean_nothing(tmp_path, line, words):
    _, key, marks = blind(responses(tmp_path / "a.jsonl"))
    marks.write_text("number,best\n" + line + "\n")
    with pytest.raises(CaiError, match=words):
        unblind(key, marks)


def test_responses_without_a_model_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(CaiError, match="line 1: no model"):
        blind(tmp_path / "a.jsonl")


def test_two_runs_are_compared_prompt_by_prompt(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", sets=["ppo.kl_coef=0.2"])
    path = b / "6-evaluation" / "records.jsonl"
    rows = [{**json.loads(line), "sample": 0} for line in path.read_text().splitlines()]
    for r in rows:
        if r["model"] == "rl-cai":
            r["response"] += " and more words than before"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    other = a / "6-evaluation" / "records.jsonl"
    rows = [{**json.loads(line), "sample": 0} for line in other.read_text().splitlines()]
    other.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = compare_runs(a, b)
    assert found["recipe"] == [{"key": "ppo.kl_coef", "a": 0.05, "b": 0.2}]
    length = [r for r in found["responses"] if r["measure"] == "length"]
    assert length and all(r["b − a"].mean == r["b − a"].low == 5 for r in length)
    assert all(r["b − a"].mean == 0 for r in compare_runs(a, b, "initial")["responses"])
    text = comparison_text(a, b)
    assert "ppo.kl_coef" in text and "length" in text and "no difference" not in text
    assert "no difference that could change a result" in comparison_text(a, a)
    with pytest.raises(CaiError, match="no run with an evaluation"):
        compare_runs(a, tmp_path)
