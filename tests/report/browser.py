"""A headless Chromium that opens a page from disk and says what became of it."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SECONDS = 60


@dataclass(frozen=True)
class Opened:
    """dom: the document after its scripts ran, as HTML; console: what they wrote to the console, errors included"""

    dom: str
    console: list[str]


@dataclass(frozen=True)
class Browser:
    """path: of the program"""

    path: str

    def open(self, page: Path, script: str = "", *, width: int = 1200, dark: bool = False) -> Opened:
        """The page in a window of ``width`` pixels.

        script: runs after the page's own scripts; what it assigns to ``result`` is in the DOM, as <pre id="result">
        """
        text = page.read_text(encoding="utf-8")
        if script:
            show = "const p = document.createElement('pre'); p.id = 'result'; p.textContent = result;"
            show += "document.body.append(p);"
            text += f"<script>{{ let result = ''; {script}; {show} }}</script>"
        copy = page.with_name("opened.html")
        copy.write_text(text, encoding="utf-8")
        ended = self._run(copy, "--dump-dom", width=width, dark=dark)
        return Opened(ended.stdout, re.findall(r':CONSOLE[:\d()]*\] "(.*?)", source', ended.stderr, re.DOTALL))

    def result(self, page: Path, script: str, *, width: int = 1200, dark: bool = False) -> str:
        """What ``script`` assigned to ``result``, as text."""
        dom = self.open(page, script, width=width, dark=dark).dom
        return re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)[1]

    def _run(self, page: Path, what: str, *, width: int, dark: bool) -> subprocess.CompletedProcess:
        options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},900"]
        options += ["--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else []
        command = [self.path, *options, what, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)


def find_browser() -> Browser:
    """Skips the test where there is no browser; in continuous integration, where CI is set, that is a failure."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is on PATH")
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH")
    return Browser(path)
