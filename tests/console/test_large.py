"""A training with 200,000 recorded steps and 50,000 log lines: what is sent and drawn stays small.

How long it takes is measured by ``python -m benchmarks.console``; here is why it is quick.
"""

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import insert

from app.console.shown import number
from app.db.models import Event, LogLine
from tests.app.live import Live
from tests.console.browser import Watched
from tests.console.seed import Seed, line_rows, put, step_rows

NUM_STEPS = 200_000
NUM_LINES = 50_000
MAX_ROWS = 80
"""Lines that are elements at a time, whatever the log's length."""
MAX_BYTES = 300_000
"""Of the page, and of its curve."""


@pytest.fixture(scope="module")
def large(gateway: Live, seed: Seed) -> str:
    """The id of a training that runs."""
    return make_large(seed, NUM_STEPS, NUM_LINES)


def make_large(seed: Seed, num_steps: int, num_lines: int) -> str:
    id = seed.request("large", state="running", stage="train", started_at=1.0)
    with seed.database.write() as session:
        session.execute(insert(Event), step_rows(id, range(1, num_steps + 1), num_steps))
        session.execute(insert(LogLine), line_rows(id, range(num_lines)))
    return id


def more(seed: Seed, id: str, first: int, count: int) -> None:
    """Steps and lines as a worker writes them."""
    with seed.database.write() as session:
        session.execute(insert(Event), step_rows(id, range(first, first + count), NUM_STEPS))
        session.execute(insert(LogLine), line_rows(id, range(first, first + count)))
    put(seed.database, id, progress={"stage": "train", "step": first + count - 1, "of": first * 2})


def test_it_follows_a_large_training(
    watched: Watched, gateway: Live, seed: Seed, large: str
) -> None:
    page = watched.page()
    with page.expect_response("**/curve*") as curve:
        html = page.goto(f"/console/requests/{large}")
    assert html is not None
    assert len(html.body()) < MAX_BYTES
    assert len(curve.value.body()) < MAX_BYTES
    expect(page.locator("#chart canvas")).to_be_visible()
    more(seed, large, NUM_STEPS + 1, 200)
    expect(page.locator("#now-step")).to_have_text(number(NUM_STEPS + 200))
    expect(page.locator("#log")).to_contain_text(f"line {NUM_STEPS + 200}:")
    expect(page.locator("#log-count")).to_have_text(f"{NUM_LINES + 200:,} lines")
    assert page.locator(".log-line").count() < MAX_ROWS
    scroll_back(page)
    page.fill("#log-search", "line 31337:")
    expect(page.locator(".log-line")).to_have_count(1)


def scroll_back(page: Page) -> None:
    """Older lines are fetched as they come into view, and following pauses."""
    page.evaluate("() => document.querySelector('#log').scrollTo(0, 0)")
    expect(page.locator("#log-follow")).not_to_be_checked()
    expect(page.locator(".log-space")).to_have_attribute("style", "height: 50000px;")
    assert page.locator(".log-line").count() < MAX_ROWS
