"""How a request's page does with 200,000 recorded steps and 50,000 log lines, in a real Chromium.

    python -m benchmarks.console [--out FILE]

First paint and long tasks as the browser itself tells them (paint and longtask entries), while
steps and lines come in as a worker writes them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.storage import make_storage
from tests.app.live import live
from tests.console.browser import Watched, chromium, launched
from tests.console.seed import Seed
from tests.console.test_large import NUM_LINES, NUM_STEPS, make_large, more

FOLLOWED = 20
"""Batches of new steps and lines, one a second, as workers write them."""
LOADS = 5
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
}).observe({ type: 'longtask', buffered: true });
"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder, live(Path(folder) / "data") as gateway:
        seed = Seed(gateway.database, make_storage(gateway.settings))
        seed.folder = Path(folder)
        id = make_large(seed, NUM_STEPS, NUM_LINES)
        curve = timed(lambda: gateway.http.get(f"/requests/{id}/curve").raise_for_status())
        with launched(chromium()) as browser:
            watched = Watched(browser, gateway.settings.public_url)
            watched.context.add_init_script(WATCH)
            page = watched.page()
            paints, curves = [], []
            for _ in range(LOADS):
                started = time.perf_counter()
                page.goto(f"/console/requests/{id}")
                page.wait_for_selector("#chart canvas")
                curves.append((time.perf_counter() - started) * 1000)
                paints.append(page.evaluate(PAINT))
            loading = page.evaluate("() => window.longTasks.splice(0)")
            for batch in range(FOLLOWED):
                more(seed, id, NUM_STEPS + 1 + batch * 20, 20)
                page.wait_for_timeout(1000)
            following = page.evaluate("() => window.longTasks")
            watched.check()
    lines = [
        f"# A page with {NUM_STEPS:,} steps and {NUM_LINES:,} log lines",
        "",
        "`python -m benchmarks.console`; milliseconds.",
        "",
        "| what | value |",
        "|---|---|",
        f"| first contentful paint, median of {LOADS} loads | {statistics.median(paints):.0f} |",
        f"| the curve drawn, after the click, median | {statistics.median(curves):.0f} |",
        f"| the curve's answer by itself | {curve:.0f} |",
        f"| longest task of the last load | {max(loading, default=0):.0f} |",
        f"| longest task while following {FOLLOWED} s | {max(following, default=0):.0f} |",
        f"| tasks over 50 ms while following | {len(following)} |",
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if out:
        out.write_text(text)


def timed(run: Any) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
