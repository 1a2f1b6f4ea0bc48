"""A real Chromium, and what every page must hold: no error, no request to another host."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

CANDIDATES = ("chromium", "chromium-browser", "google-chrome")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 860}
LIMIT_MS = 60_000
"""Pages answer in milliseconds; the machine that runs this may be busy."""


def chromium() -> str:
    """The path of a Chromium. Without one: a failure in CI, else a skip."""
    found = next((path for name in CANDIDATES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium (see .ci/run)")
        pytest.skip("no Chromium on PATH")
    return found


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    expect.set_options(timeout=LIMIT_MS / 2)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A context whose pages are watched. `check` says what went wrong, and forgets it."""

    def __init__(self, browser: Browser, base_url: str, **options: Any) -> None:
        options.setdefault("viewport", DESKTOP)
        self.context: BrowserContext = browser.new_context(base_url=base_url, **options)
        self.context.set_default_timeout(LIMIT_MS)
        self.host = urlsplit(base_url).netloc
        self.problems: list[str] = []
        self.context.on("request", lambda request: self._asked(request.url))
        self.context.on("console", self._said)
        self.context.on("weberror", lambda error: self.problems.append(f"error: {error.error}"))

    def page(self) -> Page:
        """The same one each time: a new one costs a process."""
        return self.context.pages[0] if self.context.pages else self.context.new_page()

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self.host:
            self.problems.append(f"asked another host: {url}")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def check(self) -> None:
        problems, self.problems = self.problems, []
        assert problems == [], "\n".join(problems)

    def forgive(self, *texts: str) -> None:
        """Pass over what is meant to go wrong, such as a refused login."""
        self.problems = [one for one in self.problems if not any(text in one for text in texts)]


AXE_RULES = """
async (options) => {
  const found = await axe.run(document, options);
  return found.violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) =>
      `${html.slice(0, 200)} ${failureSummary.slice(0, 300)}`).join(' | ')}`);
}
"""


def serious_issues(page: Page, axe: str) -> list[str]:
    """What axe-core finds serious or critical. ``axe``: its source, which no CSP holds up here."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": axe})
    answer = session.send(
        "Runtime.evaluate",
        {
            "expression": f"({AXE_RULES.strip()})({{resultTypes: ['violations']}})",
            "awaitPromise": True,
            "returnByValue": True,
        },
    )
    session.detach()
    assert "exceptionDetails" not in answer, answer
    found: list[str] = answer["result"]["value"]
    return found


def axe_source(folder: Path) -> str:
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()
