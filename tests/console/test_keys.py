"""Keys made and revoked on the page, by whoever holds a key of `REELSMITH_API_KEYS`."""

import re
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.app.live import live
from tests.console.browser import Watched

pytestmark = pytest.mark.timeout(120)

OPERATOR = "operators-key-of-the-settings"


def test_a_key_is_made_shown_once_and_revoked(browser: Browser, tmp_path: Path) -> None:
    with live(tmp_path, api_keys=OPERATOR) as gateway:
        url = gateway.settings.public_url
        watched = Watched(browser, url)
        page = watched.page()
        page.goto(f"{url}/console/usage")
        page.get_by_label("API key").fill(OPERATOR)
        page.get_by_role("button", name="Log in").click()
        page.goto(f"{url}/console/usage")
        page.get_by_label("Name of a new key").fill("team <b>red</b>")
        page.get_by_role("button", name="Make a key").click()
        made = page.locator("#made-key")
        expect(made).to_have_text(re.compile(r"^rs-"))
        key = made.inner_text()

        def status() -> int:
            headers = {"Authorization": f"Key {key}"}
            return httpx.get(f"{url}/requests", headers=headers).status_code

        assert status() == 200
        line = page.get_by_role("row").filter(has_text="team <b>red</b>")
        expect(line).to_be_visible()
        page.reload()
        assert key not in page.content()
        page.on("dialog", lambda dialog: dialog.accept())
        line.get_by_role("button", name="Revoke").click()
        expect(line).to_contain_text("Revoked")
        refused_by = time.monotonic() + 30
        while status() != 401:  # a gateway remembers keys for two seconds
            assert time.monotonic() < refused_by
            time.sleep(0.2)
        watched.check()
        watched.context.close()
