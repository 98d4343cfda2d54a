"No record lost, none written by half, and every record of a run is what its type says."

import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai_nb.prompts import load_prompts
from cai_nb.records import (
    TYPES,
    RecordError,
    Records,
    check_record,
    iter_jsonl,
    prompt_group,
    read_json,
    read_jsonl,
    upgrade,
    whole_folder,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- types

FILES = {"prompts.jsonl": "prompt", "1-revision/records.jsonl": "revision", "2-sft/helpful.jsonl": "example",
         "3-feedback/pairs.jsonl": "pair", "3-feedback/records.jsonl": "comparison", "5-ppo/rollouts.jsonl": "rollout",
         "6-evaluation/records.jsonl": "response"}  # fmt: skip


def check_run(folder):
    "Every record of a run folder is what its type says (test_pipeline.py calls this with a run of a tiny model)."
    for file, kind in FILES.items():
        records = list(iter_jsonl(folder / file))
        assert records, file
        for record in records:
            check_record(kind, record)


@pytest.mark.parametrize("run", ["laptop", "laptop-1", "laptop-2", "laptop-before"])
def test_the_traces_that_are_kept_are_revisions(run):
    traces = read_jsonl(ROOT / "results" / run / "traces.jsonl")
    assert len(traces) >= 20 and all(check_record("revision", r) is r for r in traces)


@pytest.mark.parametrize("name", ["harmful", "benign", "over_refusal"])
def test_bundled_prompts_are_prompts(name):
    assert all(check_record("prompt", r) for r in load_prompts(name))


PROMPT = {"id": "a", "kind": "benign", "category": "", "prompt": "Hi"}
MESSAGES = [{"role": "user", "content": "Hi"}]
PAIR = {**PROMPT, "prompt": MESSAGES, "responses": ["x", "y"]}
COMPARISON = {**PROMPT, "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "label": 0.9, "method": "probe",
              "principles": []}  # fmt: skip
RESPONSE = {**PROMPT, "prompt": MESSAGES, "model_id": "m", "sample": 0, "max_tokens": 8, "temperature": 1.0, "seed": 0,
            "tokens": 3, "finished": True, "cut": ""}  # fmt: skip
ROLLOUT = {"id": "1-0", "prompt_id": "a", "kind": "benign", "rollout": 1, "prompt": MESSAGES, "finished": True, "reward": 0.5,
           "kl": 0.0}  # fmt: skip


@pytest.mark.parametrize("kind, record, says", [
    ("prompt", {**PROMPT, "kind": "harmless"}, 'prompt "a": kind: .*harmful'),
    ("prompt", {**PROMPT, "promt": "Hi"}, 'promt: unknown key; did you mean "prompt"'),
    ("prompt", {k: v for k, v in PROMPT.items() if k != "prompt"}, "prompt: Field required"),
    ("prompt", {**PROMPT, "prompt": MESSAGES}, "prompt: .*string"), ("pair", {**PAIR, "prompt": "Hi"}, "prompt: .*list"),
    ("pair", {**PAIR, "finished": [True, False]}, "finished: unknown key"), ("pair", {**PAIR, "better": 2}, "better: "),
    ("pair", {**PAIR, "prompt": [{"role": "human", "content": "Hi"}]}, "prompt.0.role: .*'user'"),
    ("comparison", {**COMPARISON, "label": "soft"}, "label: .*number"), ("prompt", [], "the record: .*dict")])
def test_a_record_that_is_not_of_its_type_is_named_with_its_key(kind, record, says):
    with pytest.raises(RecordError, match=says):
        check_record(kind, record)


def test_a_comparison_may_say_more_and_the_others_may_not():
    assert check_record("comparison", {**COMPARISON, "logprobs": {"first": [-1.0, -2.0]}})
    for kind, record in (("prompt", PROMPT), ("pair", PAIR)):
        assert check_record(kind, record) is record
        with pytest.raises(RecordError, match="unknown key"):
            check_record(kind, {**record, "logprobs": []})


def test_a_key_has_one_type_in_all_records_that_have_it():
    "But for one: `prompt` is text in `Prompt`, which people write. (A judge may label without a constitution.)"
    found = {}
    for kind, of in TYPES.items():
        for key, type_ in get_type_hints(of).items():
            found.setdefault(key, {}).setdefault(type_, []).append(kind)
    several = {key: list(kinds.values()) for key, kinds in found.items() if len(kinds) > 1}
    assert several.keys() == {"prompt", "constitution"}, several
    assert several["prompt"] == [["prompt"], ["revision", "example", "pair", "comparison", "rollout", "response"]]


def test_old_names_are_translated_when_records_are_read(tmp_path):
    rows = [{"id": "a", "kind": "redteam", "category": "", "prompt": "Hi"}, {**PAIR, "kind": "helpful", "finished": [True, True]},
            {**PROMPT, "kind": "overrefusal"}, {**COMPARISON, "method": "judge"},
            {**RESPONSE, "completion": "Hm.", "model": "start"}, {**ROLLOUT, "completion": "Hm."},
            {**PROMPT, "prompt": MESSAGES, "completion": MESSAGES, "finished": False}]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = list(Records(tmp_path / "r.jsonl"))
    for kind, record in zip(("prompt", "pair", "prompt", "comparison", "response", "rollout", "example"), read):
        check_record(kind, record)
    assert [prompt_group(r) for r in read] == ["harmful", "benign", "over_refusal", *["benign"] * 4]
    assert read[3]["method"] == "probe" and read[4]["model"] == "initial" and read[4]["response"] == read[5]["response"] == "Hm."
    assert read[6]["learn_end"] is False and "finished" not in read[6]
    assert all(upgrade(r) is r for r in read)


# ---------------------------------------------------------------- files written whole or not at all


def test_what_cannot_be_written_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"accuracy": 0.69, "where": path})
    for call in (lambda: write_text(path, "half \ud83d"), lambda: write_json(path, {"text": "\ud83d"})):
        with pytest.raises(UnicodeEncodeError):
            call()
        assert read_json(path) == {"accuracy": 0.69, "where": str(path)}


SHORT = """
import resource, signal, sys
from cai_nb.records import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text(sys.argv[1], "x" * 5000)
"""


def test_no_room_on_the_disk_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "log.txt"
    write_text(path, "before")
    done = subprocess.run([sys.executable, "-c", SHORT, path], capture_output=True, text=True)
    assert "File too large" in done.stderr and path.read_text() == "before"


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "3", '{"a": 1'])
def test_json_that_is_missing_broken_or_no_object_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") is None


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path):
    folder = tmp_path / "deep" / "adapter"
    for text in ("first", "second"):
        with pytest.raises(KeyboardInterrupt), whole_folder(folder) as part:
            (part / "half").write_text(text)
            raise KeyboardInterrupt
        with whole_folder(folder) as part:
            (part / "weights").write_text(text)
        assert [p.name for p in folder.iterdir()] == ["weights"] and (folder / "weights").read_text() == text
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


# ---------------------------------------------------------------- files of records

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
              st.text(st.characters(), max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=4), max_size=4))
def test_what_is_written_is_read_lone_surrogates_and_all(tmp_path, rows):
    path = tmp_path / "r.jsonl"
    path.unlink(missing_ok=True)
    Records(path).extend(rows)
    assert list(Records(path)) == rows
    if rows:
        assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == len(rows)


def test_records_are_counted_and_known_by_id(tmp_path):
    path = tmp_path / "deep" / "er" / "r.jsonl"
    records = Records(path)
    assert len(records) == 0 and records.ids == set() and list(records) == [] and not path.exists()
    records.append({"id": "a"})
    records.extend({"id": i} for i in "bc")
    records.extend([])
    assert len(records) == 3 and records.ids == {"a", "b", "c"} and len(Records(path)) == 3
    assert [r["id"] for r in records] == [r["id"] for r in records] == ["a", "b", "c"]


def test_numbers_of_numpy_and_torch_become_json(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.append({"a": np.float32(0.5), "b": np.arange(2), "c": Path("x"), "d": np.bool_(True)})
    assert list(records) == [{"a": 0.5, "b": [0, 1], "c": "x", "d": True}]


@pytest.mark.parametrize("record, says", [
    ({"id": "x", "a": float("nan")}, 'record "x" .*None for a number'), ({"a": float("inf")}, "cannot be written"),
    ({"a": {1}}, "holds a set"), ({"a": b"x"}, "holds a bytes"), ([1], "a record is a dict, not list"),
    ("x", "not str"), ({(1, 2): 3}, "cannot be written")])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path, record, says):
    records = Records(tmp_path / "r.jsonl")
    with pytest.raises(RecordError, match=says):
        records.extend([{"id": "good"}, record])
    assert list(records) == []


def test_a_file_cut_off_anywhere_loses_at_most_its_last_record(tmp_path):
    rows = [{"id": str(i), "text": "é\n\ud800" * i} for i in range(5)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    ends = [i + 1 for i, b in enumerate(whole) if b == 10]
    path = tmp_path / "r.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end - 1 <= cut for end in ends)  # a record that only lacks its newline is complete
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            records = Records(path)
        assert list(records) == rows[:complete], cut
        assert len(caught) == (cut not in {0, *ends, *(e - 1 for e in ends)})
        assert all("cut off" in str(w.message) and str(path) in str(w.message) for w in caught)
        records.append({"id": "new"})
        assert [r["id"] for r in Records(path)][-1] == "new" and len(Records(path)) == complete + 1


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"3", b'"text"', b"{" * 100_000, "{\"a\": \"é".encode()[:-1], b" "])
def test_other_rubbish_at_the_end_is_taken_away(tmp_path, tail):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + tail)
    with pytest.warns(UserWarning, match="cut off"):
        assert list(Records(path)) == [{"id": "a"}]


@pytest.mark.parametrize("middle", [b'{"id": "b"', b"\0\0", b'{"id": "b"}{"id": "c"}'])
def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path, middle):
    path = tmp_path / "r.jsonl"
    content = b'{"id": "a"}\n' + middle + b'\n{"id": "d"}\n'
    path.write_bytes(content)
    records = Records(path)
    for use in (lambda: list(records), lambda: records.ids, lambda: len(records), lambda: read_jsonl(path)):
        with pytest.raises(RecordError, match=r"r.jsonl, line 2: broken JSON.*delete it"):
            use()
    assert path.read_bytes() == content  # nothing is repaired by guessing
    assert next(iter_jsonl(path)) == {"id": "a"}


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(RecordError, match="cannot be read, No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(RecordError, match="cannot be opened, Is a directory"):
        Records(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written, .*what was there is kept"):
        Records(tmp_path / "file" / "r.jsonl").append({"id": "a"})


LIMITED = """
import resource, signal, sys
from cai_nb.records import RecordError, Records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
records = Records(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for i in range(100):
        records.extend([{"id": f"{i}-{k}", "text": "x" * 20} for k in range(7)])
except RecordError as error:
    print(error)
"""


def test_no_room_on_the_disk_leaves_whole_records(tmp_path):
    "A file-size limit makes the kernel take only a part of a write, as a full disk does."
    path = tmp_path / "r.jsonl"
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True)
    assert "cannot be written" in done.stdout and "Make room" in done.stdout, done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing to repair
        ids = [r["id"] for r in Records(path)]
    assert ids and len(ids) % 7 == 0 and path.stat().st_size <= 1000  # batches are in as a whole or not at all


KILLED = """
import sys
from cai_nb.records import Records
records = Records(sys.argv[1])
for i in range(10**6):
    records.extend([{"id": f"{i}-{k}", "text": "x" * 5000} for k in range(20)])
    print(i, flush=True)
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "r.jsonl"
    run = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if line.strip() == "20":
            break
    time.sleep(random.random() / 100)
    run.send_signal(signal.SIGKILL)
    reported = 20 + len(run.stdout.read().split())
    run.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = Records(path)
    ids = [r["id"] for r in records]
    assert ids[: 20 * (reported + 1)] == [f"{i}-{k}" for i in range(reported + 1) for k in range(20)]
    records.append({"id": "new"})
    assert Records(path).ids == {*ids, "new"}


def test_reading_never_holds_the_whole_file(tmp_path):
    path = tmp_path / "r.jsonl"
    Records(path).extend({"id": i, "text": "x" * 10_000} for i in range(1000))
    tracemalloc.start()
    records = Records(path)
    assert sum(1 for _ in records) == len(records) == 1000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 10
    tracemalloc.stop()


def test_datasets_reads_the_file_as_it_is(tmp_path):
    import datasets
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": "Hé"}], "label": 0.5 * i} for i in range(3)]
    Records(tmp_path / "r.jsonl").extend(rows)
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "r.jsonl"), split="train",
                                   cache_dir=str(tmp_path / "c"))
    assert loaded.to_list() == rows
