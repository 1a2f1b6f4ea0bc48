"""Every screen in a real browser: no error, no other host, nothing serious of axe-core's, nothing
wider than a phone."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.app.live import Live
from tests.console.browser import DESKTOP, PHONE, Watched, serious_issues
from tests.console.screens import SCREENS, path_of
from tests.console.seed import LONG, Seed

LOOKS: dict[str, dict[str, Any]] = {
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True},
    "desktop-light": {"viewport": DESKTOP, "color_scheme": "light"},
}
MAIN = ("overview", "new-outpaint", "running", "report", "history", "compare", "webhooks")
"""Screens that are looked at on a light desktop as well."""
CASES = [("phone-dark", name) for name in SCREENS] + [("desktop-light", name) for name in MAIN]
WIDER = "() => document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def eyes(browser: Browser, gateway: Live) -> Iterator[dict[str, Watched]]:
    url = gateway.settings.public_url
    watched = {name: Watched(browser, url, **options) for name, options in LOOKS.items()}
    yield watched
    for one in watched.values():
        one.context.close()


@pytest.mark.parametrize(("look", "name"), CASES, ids=lambda value: value)
def test_a_screen(eyes: dict[str, Watched], seed: Seed, axe: str, look: str, name: str) -> None:
    page = eyes[look].page()
    answer = page.goto(path_of(name, seed.ids))
    assert answer is not None
    assert answer.status == 200
    expect(page.locator("h1")).to_be_visible()
    assert serious_issues(page, axe) == []
    assert page.evaluate(WIDER) <= 0
    eyes[look].check()


def test_a_report_fits_on_a_phone(eyes: dict[str, Watched], seed: Seed) -> None:
    page = eyes["phone-dark"].page()
    page.goto(path_of("report", seed.ids))
    box = page.locator(".scroll:has(table.report)")
    assert box.evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0


def opened(watched: Watched, path: str) -> Page:
    page = watched.page()
    page.goto(path)
    return page


def test_a_worker_that_takes_nothing_says_why(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console")
    expect(page.get_by_text("lacks its gpu")).to_be_visible()


def test_a_page_that_meets_a_restart_goes_on(watched: Watched, seed: Seed) -> None:
    """What it asks for first, and what it shows anew, are asked for again."""
    page = watched.page()
    cut_off: list[str] = []

    def restart(route: Route) -> None:
        cut_off.append(route.request.url)
        route.abort("connectionrefused")

    page.route("**/curve?*", restart, times=2)
    page.route("**/state", restart, times=1)
    with page.expect_response("**/state"):
        page.goto(path_of("running", seed.ids))
        page.wait_for_selector("html[data-ready]")
    expect(page.locator("#chart canvas")).to_be_visible()
    assert len(cut_off) == 3
    watched.forgive("ERR_CONNECTION_REFUSED", "htmx:")


def test_history_filters_without_a_reload(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console/requests")
    rows = page.locator("#rows tbody tr")
    assert rows.count() >= 8  # other tests submit some
    with page.expect_response("**/console/requests?*standing=failed*"):
        page.select_option("select[name=standing]", "failed")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text(LONG)
    assert "standing=failed" in page.url
    page.select_option("select[name=standing]", "")
    expect(rows).not_to_have_count(1)
    page.fill("#search", "rbt10")
    expect(rows).to_have_count(1)
    page.reload()
    expect(rows).to_have_count(1)


def test_compare_from_the_history(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console/requests?standing=succeeded&purpose=train")
    button = page.locator("#compare-button")
    expect(button).to_be_disabled()
    for name in ("done", "other"):
        page.check(f"input[value='{seed.ids[name]}']")
    button.click()
    expect(page.locator("tr.differs")).to_have_count(2)  # trigger phrase and rank
    expect(page.locator(".u-legend .u-series")).to_have_count(3)
    expect(page.locator("#chart canvas")).to_be_visible()


def test_the_request_page(watched: Watched, seed: Seed) -> None:
    page = opened(watched, path_of("done", seed.ids))
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.locator("#previews figure")).to_have_count(3)
    page.click("#play-all")
    expect(page.locator("#play-all")).to_have_text("Pause")
    page.click("[data-curve=lr]")
    expect(page.locator("[data-curve=lr]")).to_have_attribute("aria-pressed", "true")
    page.check("#log-scale")
    with page.expect_response("**/curve?*first=101*"):
        page.click("[data-move=in]")
    page.fill("#log-search", "line 7:")
    expect(page.locator(".log-line")).to_have_count(1)
    expect(page.locator(".log-line mark")).to_have_text("line 7:")
    page.fill("#log-search", "")
    page.select_option("#log-level", "WARN,ERROR")
    expect(page.locator(".log-line")).to_have_count(1)
    expect(page.locator("#exact")).to_contain_text('"trigger_phrase": "rbt9"')


def test_a_failure_says_why(watched: Watched, seed: Seed) -> None:
    page = opened(watched, path_of("failed", seed.ids))
    expect(page.locator("#files .problem")).to_contain_text("No clip can be used")
    page.click("text=What became of each clip")
    expect(page.locator("table.report")).to_contain_text("It has 12 frames; 89 are needed.")


def test_a_prepared_clip_plays(watched: Watched, seed: Seed) -> None:
    page = opened(watched, path_of("report", seed.ids))
    page.click("button.play")
    expect(page.locator("button.play")).to_have_attribute("aria-pressed", "true")


def test_a_webhook_is_sent_again(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console/webhooks")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody")).not_to_contain_text("secret")
    page.click("tbody summary")
    expect(page.locator(".tries li")).to_have_count(2)
    with page.expect_response("**/redeliver") as answer:
        page.click("[data-redeliver]")
    assert answer.value.status == 200
    expect(page.locator("#say")).to_contain_text("sent again")


def test_the_theme_is_remembered(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console/usage")
    with page.expect_response("**/console/theme"):
        page.select_option("#theme", "dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_by_keyboard(watched: Watched, seed: Seed) -> None:
    page = opened(watched, "/console")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
