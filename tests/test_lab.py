"""Notebooks in a real JupyterLab, driven in a headless Chromium as a reader would: run all cells, press, move.

Skipped where there is no browser: CHROMIUM names one, else chromium, chromium-browser or google-chrome on the PATH.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")

ROOT = Path(__file__).resolve().parent.parent
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium found: install one, or set CHROMIUM to its path")
MINUTE = 60_000  # milliseconds, playwright's unit
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},  # every cell stays in the page, seen or not
            "apputils-extension/notification": {"fetchNews": "false"}}


def ask(url):
    "What the server says to a request, from JSON"
    return json.loads(urllib.request.urlopen(url, timeout=10).read())


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Address of a JupyterLab of its own, in a copy of the notebooks, with no settings of this machine's user"
    place = tmp_path_factory.mktemp("lab")
    for kind in ("nbs", "results", "benchmarks/results"):  # what notebooks read beside themselves
        shutil.copytree(ROOT / kind, place / kind, ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints", "figures"))
    for plugin, values in SETTINGS.items():
        path = place / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("CAI_NB_RUN", "CAI_NB_STILL")}
    env |= {"PYTHONPATH": str(ROOT), "CAI_NB_SMOKE": "1", "CAI_NB_QUIET": "1", "TOKENIZERS_PARALLELISM": "false", "IPYTHONDIR": str(place / "ipython"),
            "JUPYTER_CONFIG_DIR": str(place / "config"), "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"), "JUPYTER_RUNTIME_DIR": str(place / "runtime")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root",
               "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={place / 'nbs'}",
               "--ServerApp.disable_check_xsrf=True", "--LabApp.extension_manager=readonly",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(place / "log", "w") as log:
        server = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    ask(f"http://127.0.0.1:{port}/api/status")
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > end:
                        pytest.fail(f"JupyterLab did not start:\n{(place / 'log').read_text()[-3000:]}")
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()  # and with it the kernels
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab, browser):
    "A function: opens a notebook and gives back its page, once its kernel is ready"
    pages = []

    def open_one(name):
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(MINUTE)
        pages.append(page)
        page.goto(f"{lab}/lab/tree/{name}?reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        end = time.monotonic() + 60
        while not any(s["path"] == name and s["kernel"]["execution_state"] == "idle" for s in ask(f"{lab}/api/sessions")):
            assert time.monotonic() < end, f"no kernel for {name}"
            time.sleep(0.3)
        return page

    yield open_one
    for page in pages:
        page.close()
    for session in ask(f"{lab}/api/sessions"):  # the next notebook has the memory to itself
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/sessions/{session['id']}", method="DELETE"), timeout=30)


def run_all(page):
    "Run > Run All Cells, by the menu; a cell that ends in an error, or is never run, fails the test with its words"
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
    page.wait_for_function(f"() => {prompts}.some(t => /[*\\d]/.test(t))")
    page.wait_for_function(f"() => !{prompts}.some(t => t.includes('*'))", timeout=(4 if os.environ.get("CAI_NB_LAB") != "all" else 40) * MINUTE)
    errors = page.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)").all_inner_texts()
    assert not errors, "\n".join(errors)
    said = page.evaluate(prompts)
    left = [number for number, text in enumerate(said, 1) if not re.search(r"\[\d+\]", text)]
    assert said and not left, f"of {len(said)} cells of code these were not run: {left}"


FEW = ["00_dialogue.ipynb", "08_ppo.ipynb"]  # all have run in a kernel already when CI comes here; CAI_NB_LAB=all opens each in JupyterLab


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "nbs").glob("[01]*.ipynb")) if os.environ.get("CAI_NB_LAB") == "all" else FEW)
def test_a_notebook_runs_from_top_to_bottom(open_notebook, name):
    run_all(open_notebook(name))


def test_the_widgets_answer_a_hand(open_notebook):
    page = open_notebook("14_widgets.ipynb")
    still = page.locator("figcaption")
    assert still.filter(has_text="Trace explorer, as a static snapshot").count() == 1  # readable before anything has run
    run_all(page)
    assert still.count() == 0  # where a kernel is, the controls have taken the stills' place

    # the trace explorer, by keyboard
    prompt = page.get_by_role("combobox", name="Prompt")
    page.get_by_role("combobox", name="Category").select_option(index=0)
    page.get_by_text("Trace 1 of 24").wait_for()
    first = prompt.evaluate("s => s.options[s.selectedIndex].text")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Trace 2 of 24").wait_for()
    second = prompt.evaluate("s => s.options[s.selectedIndex].text")
    assert first != second and second.removeprefix("2. ")[:60] in page.locator(".jp-OutputArea-output", has_text="Principles drawn").inner_text()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("Trace 1 of 24").wait_for()

    # a slider moves the picture
    panel = page.locator(".jp-OutputArea-output", has=page.get_by_text("β, KL coefficient"))
    picture = panel.locator("svg title").first
    before = picture.text_content()
    for _ in range(3):
        panel.get_by_role("slider").first.press("ArrowLeft")
    page.wait_for_function("([t, was]) => t.isConnected === false || t.textContent !== was", arg=[picture.element_handle(), before])
    page.wait_for_function("was => [...document.querySelectorAll('svg title')].every(t => t.textContent !== was)", arg=before)
    assert panel.locator("svg").count() == 2 and "β = 0.5:" in before

    # the editor works for a while, says so, and ends with a result; its button keeps the focus
    editor = page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Undo edits"))
    editor.get_by_label("Revision request").fill("Rewrite the response as a poem about the sea.")
    editor.get_by_role("button", name="Revise").focus()
    page.keyboard.press("Enter")
    editor.get_by_text("Working: ").wait_for()
    editor.get_by_text("Done.").wait_for(timeout=2 * MINUTE)
    assert editor.get_by_role("region", name="Principle as edited").is_visible()
    assert editor.get_by_role("button", name="Revise").evaluate("b => b === document.activeElement")

    # three columns, or the one model that a run without the other stages has; nothing is wider than the window
    assert page.get_by_role("region", name="Initial policy").count() == 1
    page.keyboard.press("Control+b")  # the file browser goes
    page.locator(".jp-FileBrowser").first.wait_for(state="hidden")
    page.set_viewport_size({"width": 560, "height": 900})
    page.wait_for_function("() => document.querySelector('.jp-Notebook').clientWidth < 540")
    wide = page.evaluate("[...document.querySelectorAll('.jp-OutputArea-output .widget-vbox')].filter(v => v.scrollWidth > v.clientWidth + 2).length")
    assert wide == 0
