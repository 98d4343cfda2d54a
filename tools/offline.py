"""A bundle, made and installed with the network closed: python tools/offline.py DIR [--keep]

Makes DIR (some minutes and a gigabyte), then installs it as an offline classroom would: every address of a server leads
nowhere, the cache is empty, pip has no settings. The installed cai-nb must answer a question.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cai_nb.course.offline import bundle

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers


def closed(home):
    "An environment in which nothing outside this machine can be reached by those who ask politely"
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TEMP", "TMP")}
    proxies = {k: NOWHERE for k in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    return kept | proxies | {"HOME": str(home), "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": NOWHERE, "CAI_NB_CACHE": str(home / "cache"),
                             "HF_HOME": str(home / "hub"), "CAI_NB_QUIET": "1"}


def install(out, **more):
    "Run the bundle's own script with the network closed, and with `more` in its environment; its text"
    home = Path(out, "home")
    home.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, str(Path(out, "install.py"))], env=closed(home) | more, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the bundle did not install:\n{done.stdout}{done.stderr}")
    return done.stdout


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    out = Path(sys.argv[1]).resolve()
    start = time.time()
    bundle(out)
    print(f"made in {time.time() - start:.0f} s")
    start = time.time()
    print(install(out))
    print(f"installed in {time.time() - start:.0f} s, with the network closed")
    ask = [str(out / ".venv" / "bin" / "cai-nb"), "chat", "default", "--prompt", "Why is the sky blue?", "--max-tokens", "24"]
    print(subprocess.run(ask, env=closed(out / "home"), capture_output=True, text=True, check=True).stdout)
    if "--keep" not in sys.argv:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
