"Decks build from the notebooks, load nothing from elsewhere, and nothing on a slide is cut off."

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import slides  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WALK = """<script>
addEventListener('load', () => setTimeout(() => {
const shown = [];
do {
  const s = Reveal.getCurrentSlide(), b = s.querySelector('.body');
  shown.push([Reveal.getSlidePastCount() + 1, s.dataset.fit, s.scrollHeight - Reveal.getConfig().height,
    b.scrollHeight - b.clientHeight, b.scrollWidth - b.clientWidth,
    [...s.querySelectorAll('img')].filter(i => !i.complete || !i.naturalWidth).length].join(','));
  Reveal.next();
} while (shown.length < Reveal.getSlidePastCount() + 1);
const said = Reveal.getSlides().map(s => Reveal.getSlideNotes(s)).filter(Boolean).length;
const deck = [Reveal.isReady(), Reveal.hasPlugin('notes'), Reveal.getTotalSlides(), said].join(',');
document.documentElement.setAttribute('data-report', [deck, ...shown].join(' '));
}, 500));
</script>"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    "{name: text of the deck} of the course."
    out = tmp_path_factory.mktemp("slides")
    made = slides.make(slides.DECKS, out)
    assert set(made) == {f"{name}.html" for name in slides.DECKS}
    return {path.stem: path.read_text(encoding="utf-8") for path in out.glob("*.html")}


def book(*cells):
    "A deck of a small notebook."
    import json
    import tempfile

    rows = [{"cell_type": kind, "source": source, "outputs": list(outputs)} for kind, source, *outputs in cells]
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "00_toy.ipynb")
        path.write_text(json.dumps({"cells": rows}))
        deck = slides.Deck()
        deck.notebook(path)
    return deck.slides


TITLE = ("markdown", "# Toy\n\n> One line")


def shown(found):
    return " ".join(markup for s in found for markup, _ in s.blocks)


def test_headings_begin_slides_and_exercises_stay_in_the_notebook():
    first = "A sentence of some length that says one thing about the idea. And a second one that only the notes have, since the two are too long for it."
    found = book(TITLE, ("markdown", "## First\n\n" + first),
                 ("markdown", "## What to remember\n\n- One. Two. Three.\n\n## Exercises\n\n1. Secret task."))
    assert [s.heading for s in found] == ["Toy", "First", "What to remember"]
    assert "second one" not in shown(found) and "second one" in found[1].notes[0]
    assert "One. Two. Three." in shown(found) and "Secret" not in shown(found)


def test_exported_functions_come_as_signature_and_docstring():
    code = '#| export\ndef double(x,  # a number\n           times=2):\n    "Twice `x`"\n    return x * times\n\ndef _own(): "hidden"'
    text = shown(book(TITLE, ("markdown", "## S\n\nText."), ("code", code)))
    plain = re.sub("<[^>]+>", "", text)
    assert "double(x, times=2)" in plain and "Twice x" in plain and "return" not in plain and "_own" not in plain


def test_long_code_is_left_out_and_checks_too():
    long = "\n".join(f"a{i} = {i}" for i in range(slides.CODE + 1))
    out = {"output_type": "stream", "name": "stdout", "text": "told"}
    plain = re.sub("<[^>]+>", "", shown(book(TITLE, ("markdown", "## S\n\nText."), ("code", long, out), ("code", "x = 1\nassert x == 1\nx"),
                                             ("code", "import os\nassert os.sep"))))
    assert f"({slides.CODE + 1} lines of code, in the notebook)" in plain and "told" in plain and "a0" not in plain
    assert "x = 1" in plain and "assert" not in plain and "import os" not in plain


def test_a_figure_has_a_slide_of_its_own():
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}}
    text = "## S\n\nText that says what the figure below shows, at some length."
    found = book(TITLE, ("markdown", text), ("code", "plot()", picture), ("markdown", "After it."))
    assert [s.kind for s in found] == ["title", "figure", ""] and "figcaption" in found[1].blocks[0][0] and "plot()" not in shown(found)


def test_words_between_two_figures_are_no_caption_of_the_second():
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA"}}
    found = book(TITLE, ("markdown", "## S\n\nThe first."), ("code", "plot()", picture), ("markdown", "About the first again."), ("code", "plot()", picture))
    captions = [re.findall("<figcaption>(.*?)</figcaption>", markup, re.S) for s in found if s.kind == "figure" for markup, _ in s.blocks]
    assert [len(c) for c in captions] == [1, 0] and "The first" in captions[0][0] and "About the first" in shown(found)


def test_what_a_cell_put_out_cannot_run_or_load_anything():
    bad = '<table onclick="x()"><tr><td><img src="https://a.example/x.png"><script>alert(1)</script><a href="javascript:x">t</a></td></tr></table>'
    text = shown(book(TITLE, ("markdown", "## S\n\nText."), ("code", "t", {"output_type": "display_data", "data": {"text/html": bad}})))
    assert "<td>" in text and not re.search(r"script|onclick|example|javascript", text)
    harmless = "<td>a &lt;img src=x onerror=alert(1)&gt;</td>"
    assert slides.safe(harmless) == harmless and "onerror" not in slides.safe("<img title='>' onerror=x()><img/onerror=x()>")


@pytest.mark.parametrize("text, first", [
    ("*Other layers.* Last token and mean together are better than either of the two alone, in all that was tried. " + "More " * 40, "*Other layers.*"),
    ("It costs $a. B$ and no more than that, which is much less than anybody had thought before. " + "More " * 40 + ".", "It costs $a. B$"),
])  # fmt: skip
def test_a_cut_leaves_emphasis_and_formulas_whole(text, first):
    short = slides.shortened(text)
    assert short.startswith(first) and short.count("*") % 2 == 0 and short.count("$") % 2 == 0


def test_formulas_are_drawn():
    assert slides.formula(r"\frac{a}{b}").startswith("<svg") and 'aria-label="\\frac{a}{b}"' in slides.formula(r"\frac{a}{b}")
    assert slides.formula(r"\nonsense{").startswith("<code>")


def test_every_formula_of_the_decks_is_drawn(decks):
    plain = {name: re.findall(r"<code>(\\(?!n|x|d)[^<]*)</code>", text) for name, text in decks.items()}
    assert not any(plain.values()), plain
    assert decks["ppo"].count('class="tex"') > 20


def test_each_deck_has_its_notebooks_sections_and_what_to_remember(decks):
    for name, (_, begins) in slides.DECKS.items():
        for begin in begins:
            (path,) = (ROOT / "nbs").glob(f"{begin}*.ipynb")
            assert f"nbs/{path.name}" in decks[name]
        assert "What to remember" in decks[name] and "Exercises" not in re.findall(r"<h2>(.*?)</h2>", decks[name])


def test_no_deck_loads_anything(decks):
    for name, text in decks.items():
        for holder in ("section", "style"):
            own = "".join(re.findall(rf"<{holder}\b.*?</{holder}>", text, re.S))
            own = re.sub(r"<a [^>]*href=\"https?://[^\"]*\"", "<a ", own)
            assert own and not re.search(r"(?:src|href|data|action|poster)\s*=\s*[\"']?\s*(?:https?:)?//", own), name
            assert not re.search(r"@import|url\(\s*[\"']?(?!data:|[\"']?#)", own), name
        assert not re.search(r"<script[^>]+src|<link", text), name
        assert text.index("default-src 'none'") < text.index("<style"), "the policy holds for what stands after it"


def test_reveal_js_comes_whole_and_with_its_licence(decks):
    for text in decks.values():
        assert "reveal.js contributors" in text and "Permission is hereby granted" in text
        assert text.count("</script>") == 3, "a </script within reveal.js would end it early"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("name", slides.DECKS)
def test_reveal_walks_through_a_deck_and_nothing_overflows_a_slide(decks, name, tmp_path):
    (tmp_path / "deck.html").write_text(decks[name] + WALK, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,720", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "deck.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'data-report="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    (ready, plugin, total, said), *rows = [row.split(",") for row in found[1].split()]
    sections = re.findall("<section.*?</section>", decks[name], re.S)
    assert (ready, plugin) == ("true", "true")
    assert int(total) == len(sections) and int(said) == sum('<aside class="notes">' in s for s in sections) > len(sections) / 3
    assert [int(row[0]) for row in rows] == list(range(1, len(sections) + 1)), "next goes to each slide once"
    wrong = [row for row in rows if float(row[1]) < 0.7 or any(float(n) > 1 for n in row[2:5]) or int(row[5])]
    assert not wrong, f"slide, size of text, pixels that the slide is too high, its body too high, too wide, pictures that are none: {wrong}"
