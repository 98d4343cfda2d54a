"A message is content and never markup: not for a template, not for the paper's form, not for a browser or a terminal."

import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from cai_nb.chat_template import chat_format, render
from cai_nb.dialogue import (
    CaiError,
    DialogueError,
    Html,
    as_messages,
    assistant,
    check_dialogue,
    data_files,
    data_path,
    dialogue_html,
    diff_html,
    from_paper,
    nearest,
    progress,
    smoke,
    system,
    table_html,
    to_paper,
    user,
    visible,
    word_diff,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TALK = [system("Be kind."), user("Hi"), assistant("Hello"), user("Bye")]

# ---------------------------------------------------------------- dialogues


@pytest.mark.parametrize("messages, says", [
    ("Hi", r"list of messages, not str"),
    (None, r"not NoneType"),
    ([], r"no turn.*add user"),
    ([system("Be kind.")], r"no turn"),
    (["Hi"], r"message 0 is of type str.*user\("),
    ([{"role": "user"}], r'message 0 has no "content"'),
    ([{"content": "Hi"}], r'message 0 has no "role"'),
    ([user("Hi"), {"role": "human", "content": "Hi"}], r'message 1 has the unknown role "human": write "user"'),
    ([{"role": "asistant", "content": "Hi"}], r'did you mean "assistant"'),
    ([{"role": ["user"], "content": "Hi"}], r"unknown role"),
    ([user("Hi"), assistant(None)], r"message 1 \(assistant\).*NoneType; text is expected"),
    ([user(" \n ")], r"message 0 \(user\) is empty"),
    ([user("Hi"), system("Be kind.")], r"message 1: a system message can only come first"),
    ([user("Hi"), user("Hi?")], r"messages 0 and 1 are both from user"),
    ([assistant("Hi")], r"message 0: the assistant speaks before any user"),
    ([system("Be kind."), assistant("Hi")], r"message 1: the assistant speaks before any user"),
])
def test_a_malformed_dialogue_is_refused_by_position_with_what_to_write(messages, says):
    with pytest.raises(DialogueError, match=says) as error:
        check_dialogue(messages)
    assert "\n" not in str(error.value)  # the command line prints one line


def test_a_dialogue_passes_as_it_is_and_a_model_may_say_nothing():
    assert check_dialogue(TALK) is TALK
    assert as_messages("Hi") == [user("Hi")] and as_messages(TALK) == TALK
    check_dialogue([user("Hi"), assistant("")])


# ---------------------------------------------------------------- the paper's form

turn_text = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n"), max_size=40).map(
    lambda t: t.strip()).filter(bool)


@given(st.lists(turn_text, min_size=1, max_size=5), st.sampled_from(["", "Be kind."]))
def test_paper_form_and_back(texts, instruction):
    messages = [system(instruction)] * bool(instruction)
    messages += [(user, assistant)[i % 2](text) for i, text in enumerate(texts)]
    assert from_paper(to_paper(messages)) == messages
    begun = messages[: len(messages) - len(texts) + 1]
    assert from_paper(to_paper(begun, add_generation_prompt=True))[-1]["role"] == "user"


pieces = st.lists(
    st.sampled_from(["Human:", "Assistant:", "\n\n", "\n", " ", "\r\n\r\n", "text", ":", "Human"]), max_size=12)


@given(pieces.map("".join).filter(str.strip), pieces.map("".join), pieces.map("".join).filter(str.strip))
def test_no_content_opens_a_turn_in_the_paper_form(first, answer, instruction):
    messages = [system(instruction), user(first), assistant(answer or "x"), user("end")]
    assert [m["role"] for m in from_paper(to_paper(messages))] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("text, says", [
    (None, "not NoneType"), ("", "no turn"), ("Hello", "no turn"), ("\nHuman: Hi\nAssistant: Hello", None),
    ("\n\nAssistant: Hi", "before any user"), ("\n\nHuman: a\n\nHuman: b", "both from user"),
    ("\n\nHuman:\n\nAssistant: b", "empty")])
def test_what_is_no_dialogue_in_the_paper_form_is_refused(text, says):
    if says is None:
        assert len(from_paper(text)) == 1  # one newline makes no turn
    else:
        with pytest.raises(DialogueError, match=says):
            from_paper(text)


def test_open_ends_and_windows_lines():
    assert from_paper("\r\n\r\nHuman: Hi\r\n\r\nAssistant:") == [user("Hi")]
    assert from_paper("Human: Hi\n\nAssistant: Hello\n\nHuman") == [user("Hi"), assistant("Hello")]


@pytest.mark.skipif(not (SHARED / "hh-harmless-pairs.dev.jsonl.gz").exists(), reason="evaluation data are not here")
def test_nearly_all_of_a_real_data_set_is_read():
    bad = n = 0
    for line in gzip.open(SHARED / "hh-harmless-pairs.dev.jsonl.gz"):
        for text in (json.loads(line)[key] for key in ("chosen", "rejected")):
            n += 1
            try:
                written = re.sub(r"\s", "", to_paper(from_paper(text)))
                whole = re.sub(r"\n\n(Human|Assistant):?\s*\Z", "", text)  # an open or cut-off turn is dropped
                assert written == re.sub(r"\s", "", whole)
            except DialogueError:
                bad += 1
    assert n > 2000 and bad <= 5


# ---------------------------------------------------------------- rendering

CHATML = "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
INST = ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}"
        "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
        "{% endfor %}")
PLAIN = "{% for m in messages %}### {{ m['role'] | title }}: {{ m['content'] }}\n{% endfor %}"


def tokenizer(template):
    made = tiny_tokenizer()
    made.chat_template = template
    return made


TOKENIZERS = {name: tokenizer(t) for name, t in (("chatml", CHATML), ("inst", INST), ("plain", PLAIN))}
nasty = st.lists(st.sampled_from([
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "start|>", "|>", "<|", "[INST]", "[/INST]",
    "[", "]", "### ", "###", "User:", "Assistant:", "user\n", "\n", " ", "a", "\u200b",
]), min_size=1, max_size=12).map("".join)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), nasty.filter(str.strip), nasty)
def test_no_content_becomes_a_special_token_or_a_role_header(name, first, answer):
    tok = TOKENIZERS[name]
    special = set(tok.all_special_ids)

    def marks(messages):
        text = render(messages, tok)
        ids = tok(text, add_special_tokens=False)["input_ids"]
        return [i for i in ids if i in special], {m: text.count(m) for m in chat_format(tok).markers}

    assert marks([user(first), assistant(answer), user("x")]) == marks([user("y"), assistant("z"), user("x")])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ordinary_text_is_rendered_as_it_is(name):
    text = "2 < 3 | [a list] # heading\n### Title\n**User** said: <b>no</b> [INST ### Users"
    assert text in render([user(text)], TOKENIZERS[name])


def test_the_markers_of_a_new_template_are_looked_up_again():
    tok = tokenizer(CHATML)
    assert "[INST]" in render([user("[INST]")], tok)
    tok.chat_template = INST
    assert render([user("[INST]")], tok).count("[INST]") == 1


def test_templates_that_are_missing_or_refuse_say_what_to_do():
    with pytest.raises(DialogueError, match="no chat template: take an instruction-tuned model"):
        render([user("Hi")], tokenizer(None))
    once = tokenizer("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML)
    with pytest.raises(DialogueError, match=r"refuses the dialogue \(one turn only\): .*tokenizer.chat_template"):
        render(TALK, once)
    with pytest.raises(DialogueError, match="both from user"):
        render([user("Hi"), user("Hi")], TOKENIZERS["chatml"])


# ---------------------------------------------------------------- differences and display

some_text = st.text(st.sampled_from("ab c.,\n-'é<>&\u200b"), max_size=60)


@settings(deadline=None)
@given(some_text, some_text)
def test_a_difference_holds_both_texts_to_the_last_space(before, after):
    found = word_diff(before, after)
    assert "".join(t for kind, t in found if kind != "ins") == before
    assert "".join(t for kind, t in found if kind != "del") == after
    assert all(t for _, t in found)
    if before == after:
        assert {kind for kind, _ in found} <= {"same"}


def test_a_difference_keeps_what_stayed_and_joins_lone_words():
    assert word_diff("We like red wine a lot", "We like dry cider a lot") == \
        [("same", "We like"), ("del", " red wine"), ("ins", " dry cider"), ("same", " a lot")]
    assert word_diff("one then two", "three then four") == [("del", "one then two"), ("ins", "three then four")]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, *(key for key, _ in attrs)))


def tags(text):
    parser = Tags()
    parser.feed(text)
    return {tag for seen in parser.seen for tag in seen}


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_that_was_written_becomes_markup(a, b):
    allowed = {"div", "del", "ins", "style", "table", "thead", "tbody", "tr", "th", "td"}
    for shown in (diff_html(a, b), dialogue_html([user(a), {"role": b, "content": a}], title=b), table_html([{a: b}])):
        assert isinstance(shown, Html) and tags(shown) <= allowed
        shown.encode("utf-8")  # a report can be saved whatever is in it


def test_known_attacks_are_shown_as_text():
    for attack in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</div><iframe src=//x>"):
        for shown in (diff_html(attack, attack + "!"), diff_html("safe", attack), dialogue_html([user(attack)], attack),
                      table_html([{"a": attack}])):
            assert tags(shown) <= {"div", "del", "ins", "style", "table", "thead", "tbody", "tr", "th", "td"}
    assert table_html([{"a": Html("<b>x</b>")}]).count("<b>") == 1  # what is Html already stays Html


def test_a_terminal_gets_no_escape_sequence():
    assert visible("\x1b[2J\x07ok\n\tend\r\n") == "�[2J�ok\n\tend\n"
    assert visible("\u202eabc\ud800") == "�abc�"
    with pytest.raises(DialogueError) as error:
        check_dialogue([{"role": "\x1b[2J", "content": ""}])
    assert "\x1b" not in str(error.value)


# ---------------------------------------------------------------- odds and ends


def test_nearest_names_come_first():
    assert nearest("Helpfullness", ["harmlessness", "helpfulness"]).startswith('did you mean "helpfulness"?')
    assert nearest("qqq", []) == "There are none."


@pytest.mark.parametrize("value, expected", [(None, False), ("", False), ("0", False), ("false", False), ("1", True)])
def test_smoke_size_is_asked_for_by_the_environment(monkeypatch, value, expected):
    monkeypatch.delenv("CAI_NB_SMOKE", raising=False)
    if value is not None:
        monkeypatch.setenv("CAI_NB_SMOKE", value)
    assert smoke() is expected


def test_progress_can_be_silenced(monkeypatch, capsys):
    monkeypatch.setenv("CAI_NB_QUIET", "1")
    assert list(progress([1, 2], desc="counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("CAI_NB_QUIET")
    list(progress([1, 2], desc="counting", unit="row"))
    assert "counting" in capsys.readouterr().err


def test_data_are_found_by_name_with_or_without_suffix():
    assert data_path("prompts", "harmful") == data_path("prompts", "harmful.jsonl")
    assert data_path("prompts") == data_path("prompts", "harmful").parent
    assert {"harmlessness", "anti-overreaction", "helpfulness"} <= set(data_files("constitutions"))
    with pytest.raises(CaiError, match='did you mean "constitutions"'):
        data_path("constitution", "harmlessness")
    for outside in ("../setup.py", "/etc/passwd", "redtaem"):
        with pytest.raises(CaiError, match="Known: .*harmful"):
            data_path("prompts", outside)


def test_the_first_modules_load_nothing_heavy():
    heavy = ("torch", "transformers", "sklearn", "scipy", "numpy", "datasets")
    code = ("import sys, cai_nb.dialogue, cai_nb.chat_template, cai_nb.constitution, cai_nb.prompts\n"
            f"print([m for m in {heavy} if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
