"The docs site, as a visitor meets it: every page and name is there, nothing is broken, and nothing comes from another host."

import functools
import http.server
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import docs  # noqa: E402

SAMPLE = ["index.html", "00_dialogue.html", "08_ppo.html", "api/ppo_math.html", "CONTRIBUTING.html"]  # for the slow checks
PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of a site built from this tree. A fault that Sphinx sees, a link to nowhere for instance, fails here."
    return docs.build(tmp_path_factory.mktemp("site") / "_docs")


@pytest.fixture(scope="module")
def pages(site):
    "address -> parsed HTML of every page."
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for path in sorted(site.rglob("*.html")) if "files" not in path.relative_to(site).parts}  # fmt: skip


def ours(pages):
    "The pages that are not listings of source."
    return [name for name in pages if not name.startswith("_modules/")]


# ---------------------------------------------------------------- without a browser

def test_every_page_is_there_in_reading_order(pages):
    names = [f"{path.stem}.html" for path in docs.notebooks()] + [f"{path.stem}.html" for path in docs.markdown_pages()]
    assert len(docs.notebooks()) >= 26 and "CONTRIBUTING.html" in names
    names += ["api/index.html", *(f"api/{module}.html" for module in docs.public_names())]
    assert not [name for name in names if name not in pages]
    sidebar = pages["index.html"].select(".sidebar-tree a.reference.internal")
    assert [a["href"] for a in sidebar if not a["href"].startswith("api/")] == [n for n in names if not n.startswith("api/")]
    captions = [c.get_text() for c in pages["index.html"].select(".sidebar-tree .caption-text")]
    assert captions == [*docs.GROUPS, docs.PROJECT, "Reference"]


def test_no_link_is_broken(site, pages):
    ids = {name: {tag["id"] for tag in page.select("[id]")} | {tag["name"] for tag in page.select("a[name]")}
           for name, page in pages.items()}  # fmt: skip
    broken, links = [], 0
    for name, page in pages.items():
        for tag in page.select("[href], [src]"):
            url = urlsplit(urljoin(f"http://site/{name}", tag.get("href") or tag["src"]))
            if url.netloc != "site" or tag.get("href") == "#":
                continue
            links += 1
            place = unquote(url.path).lstrip("/") or "index.html"
            file = site / place / "index.html" if (site / place).is_dir() else site / place
            if not file.is_file() or (url.fragment and place in ids and unquote(url.fragment) not in ids[place]):
                broken.append(f"{name}: {url.path}#{url.fragment}")
    assert links > 2000
    assert not broken, "\n".join(sorted(set(broken))[:20])


def test_nothing_is_loaded_from_another_host(site, pages):
    loaded = [f"{name}: {url}" for name, page in pages.items()
              for tag in page.select("script[src], link[href], img[src], iframe[src], source[src], video[src], object[data]")
              if re.match(r"(https?:)?//", url := tag.get("src") or tag.get("href") or tag.get("data"))]  # fmt: skip
    styles = [(str(path), path.read_text(encoding="utf-8")) for path in site.rglob("*.css")]
    styles += [(name, style.get_text()) for name, page in pages.items() for style in page.select("style")]
    loaded += [f"{name}: {url}" for name, text in styles
               for url in re.findall(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")]+)", text)]  # fmt: skip
    assert styles and not loaded, "\n".join(loaded)


def test_every_public_name_is_in_the_reference_with_its_source(pages):
    names = docs.public_names()
    missing = []
    for module, kinds in names.items():
        for name, kind in kinds.items():
            full = f"cai_nb.{module}.{name}"
            entry = pages[f"api/{module}.html"].find(id=full)
            if entry is None or (kind == "function" and not entry.select("a[href*='_modules/']")):
                missing.append(full)
    assert sum(map(len, names.values())) > 400
    assert not missing, "\n".join(missing)
    gae = pages["api/ppo_math.html"].find(id="cai_nb.ppo_math.gae").parent.get_text()
    assert "gamma: float = 1.0" in gae and "discount of later rewards" in gae and "Generalised advantage estimation" in gae


def test_directives_are_carried_out_and_exported_code_is_shown(pages):
    text = {name: pages[name].select_one("article").get_text() for name in ours(pages) if pages[name].select_one("article")}
    assert not [name for name, said in text.items() if re.search(r"^#\s*\| *(hide|export|default_exp|echo)", said, re.M)]
    assert "def optimal_policy(" in text["08_ppo.html"] and 'plt.rcParams.update({"figure.figsize": (6, 2.8)' not in text["08_ppo.html"]
    assert "def trace(record)" not in text["index.html"] and "First response" in text["index.html"]


def cell(source, *outputs):
    return {"cell_type": "code", "id": "c0ffee00", "source": source, "outputs": list(outputs), "metadata": {}, "execution_count": 1}


def test_a_stage_shows_and_hides_as_nbdev_does(tmp_path):
    import json

    widget = {"output_type": "display_data", "metadata": {}, "data": {docs.WIDGET: {}, "text/plain": "VBox()", "image/png": "AAAA"}}
    bare = {"output_type": "display_data", "metadata": {}, "data": {docs.WIDGET: {}, "text/plain": "VBox()"}}
    noise = {"output_type": "stream", "name": "stderr", "text": "a warning"}
    told = {"output_type": "stream", "name": "stdout", "text": "10%\r100%\n"}
    notebook = {"metadata": {}, "cells": [
        {"cell_type": "markdown", "source": "# T\n\n[a](01_b.ipynb#x) [b](../LICENSE) `[c](d.ipynb)` [e](https://e.org)"},
        cell("#| hide\nsecret"), cell("#| echo: false\nquiet", told), cell("#| output: false\nloud", told), cell("widget", widget, bare, noise)]}  # fmt: skip
    for folder in ("nbs", "docs", "cai_nb"):
        (tmp_path / folder).mkdir()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "nbs" / "00_a.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "nbs" / "01_b.ipynb").write_text('{"cells": [], "metadata": {}}')
    stage = docs.Stage(tmp_path / "out", tmp_path)
    text, quiet, loud, shown = json.loads(stage.notebook(tmp_path / "nbs" / "00_a.ipynb"))["cells"]
    assert text["source"] == "# T\n\n[a](page:01_b.html#x) [b](page:files/LICENSE) `[c](d.ipynb)` [e](https://e.org)"
    assert (tmp_path / "out" / "_files" / "files" / "LICENSE").exists()
    assert quiet["metadata"]["tags"] == ["remove-input"] and quiet["outputs"][0]["text"] == "100%\n"
    assert loud["source"] == "loud" and loud["outputs"] == []
    assert [output["data"] for output in shown["outputs"]] == [{"image/png": "AAAA"}]
    pictures = '![p](../LICENSE) <img src="../LICENSE"> [![p](../LICENSE)](01_b.ipynb) [folder](../docs)'
    assert stage.links(pictures, tmp_path / "nbs") == (
        '![p](_files/files/LICENSE) <img src="files/LICENSE"> [![p](_files/files/LICENSE)](page:01_b.html) [folder](page:files/docs/)')
    with pytest.raises(SystemExit, match="gone.ipynb, which does not exist"):
        stage.links("[x](gone.ipynb)", tmp_path / "nbs")


@pytest.mark.parametrize("tex, expected", [
    (r"\log Z", '<mspace width="0.167em"/>'), (r"\log(x)", "<mi>log</mi><mo"), ("=-p", '<mo form="prefix" lspace="0" rspace="0">'),
    ("a-p", "<mo>&#x02212;</mo>"), (r"r/\beta", '<mo lspace="0" rspace="0">')])  # fmt: skip
def test_formulas_are_spaced_as_tex_spaces_them(tex, expected):
    assert expected in docs.mathml(tex)


# ---------------------------------------------------------------- in a browser

@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium here: install one (Debian: apt install chromium), or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"] if hasattr(os, "geteuid") and not os.geteuid() else [])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, address):
    "A tab that keeps what went wrong in `tab.wrong`, requests to other hosts among it."
    context = browser.new_context(base_url=address, viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda m: m.type == "error" and page.wrong.append(f"{page.url}: {m.text}"))
    page.on("pageerror", lambda e: page.wrong.append(f"{page.url}: {e}"))
    page.on("requestfailed", lambda r: "ERR_ABORTED" in (r.failure or "") or page.wrong.append(f"{page.url}: {r.url} failed"))
    page.on("response", lambda r: r.status >= 400 and page.wrong.append(f"{page.url}: {r.url} {r.status}"))
    page.on("request", lambda r: r.url.startswith((address, "data:")) or page.wrong.append(f"{page.url}: asks for {r.url}"))
    yield page
    context.close()


def test_every_page_opens_whole_and_fits_a_phone(tab, pages):
    "No error, no failed or foreign request, every picture drawn, every formula typeset, nothing wider than the screen."
    tab.set_viewport_size(PHONE)
    pictures = formulas = 0
    for name in ours(pages):
        tab.goto(name, wait_until="load")
        seen = tab.evaluate("""() => ({
            wide: document.documentElement.scrollWidth,
            blank: [...document.querySelectorAll('article img')].filter(i => !i.naturalWidth).length,
            pictures: document.querySelectorAll('article img').length,
            formulas: [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)})""")
        assert seen["wide"] <= PHONE["width"], f"{name} is {seen['wide']} pixels wide"
        assert not seen["blank"], f"{name}: {seen['blank']} pictures do not show"
        assert all(height > 5 for height in seen["formulas"]), name
        pictures, formulas = pictures + seen["pictures"], formulas + len(seen["formulas"])
    assert not tab.wrong, "\n".join(tab.wrong)
    assert pictures > 30 and formulas > 50


def test_formulas_are_typeset_in_their_own_font(tab):
    tab.goto("08_ppo.html")
    tab.evaluate("document.fonts.ready")
    assert tab.locator("math").count() > 40 and tab.locator("merror").count() == 0
    assert "$" not in re.sub(r"\$[\d{(]", "", tab.locator("article").evaluate(
        "a => { a = a.cloneNode(true); a.querySelectorAll('pre, code').forEach(e => e.remove()); return a.textContent }"))  # fmt: skip
    assert tab.evaluate("[...document.fonts].filter(f => f.family.includes('STIX') && f.status == 'loaded').length") == 1
    tall = tab.evaluate("Math.max(...[...document.querySelectorAll('div.math')].map(m => m.getBoundingClientRect().height))")
    assert tall > 30  # a fraction stands on two lines


def test_search_finds_the_trainer(tab):
    tab.goto("index.html")
    tab.fill(".sidebar-search", "PPOTrainer")
    tab.press(".sidebar-search", "Enter")
    tab.wait_for_selector("#search-results li a")
    tab.wait_for_function("/finished|found/i.test(document.querySelector('#search-results .search-summary').textContent)")
    found = tab.locator("#search-results li a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert any("api/ppo.html" in link for link in found) and any("08b_ppo_trainer.html" in link for link in found)
    tab.locator("#search-results li a[href*='api/ppo.html']").first.click()
    tab.wait_for_selector("[id='cai_nb.ppo.PPOTrainer']")
    assert not tab.wrong, "\n".join(tab.wrong)


def test_dark_mode_is_a_click_away_and_kept(tab):
    tab.emulate_media(color_scheme="light")
    tab.goto("08_ppo.html")
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(3):  # as the system has it, light, dark
        if tab.evaluate("document.body.dataset.theme") != "dark":
            tab.locator(".theme-toggle:visible").first.click()
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)[:3]))
    tab.goto("00_dialogue.html")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_previous_and_next_follow_the_reading_order(tab):
    order = ["index.html", *(f"{path.stem}.html" for path in docs.notebooks())]
    tab.goto("08_ppo.html")
    here = order.index("08_ppo.html")
    for button, place in ((".next-page", here + 1), (".prev-page", here), (".prev-page", here - 1)):
        tab.click(button)
        tab.wait_for_url(f"**/{order[place]}")


def test_code_can_be_copied(tab, browser):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto("08_ppo.html")
    tab.wait_for_selector("button.copybtn", state="attached")
    assert tab.locator("button.copybtn").count() >= tab.locator(".cell_input pre").count() > 20
    cell = tab.locator(".cell_input", has_text="def optimal_policy(")
    cell.hover()
    cell.locator("button.copybtn").click()
    assert tab.evaluate("navigator.clipboard.readText()").startswith("def optimal_policy(")


def test_details_open(tab):
    tab.goto("13_exercises.html")
    first = tab.locator("article details").first
    closed = first.bounding_box()["height"]
    first.locator("summary").click()
    assert first.bounding_box()["height"] > closed + 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(tab, pages, scheme):
    from axe_playwright_python.sync_playwright import Axe

    tab.emulate_media(color_scheme=scheme)
    names = SAMPLE + [f"{path.stem}.html" for path in docs.markdown_pages()][:1]
    wrong = []
    for name in dict.fromkeys(names):
        tab.goto(name, wait_until="load")
        found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
        wrong += [f"{name} ({scheme}): {v['id']}: {v['help']}: {node['html'][:160]}" for v in found
                  if v["impact"] in ("serious", "critical") for node in v["nodes"][:5]]  # fmt: skip
    assert not wrong, "\n".join(wrong)
