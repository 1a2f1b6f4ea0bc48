"""Pictures of every screen for docs/console/: ``python -m tests.console.screenshots``.

A real service with the tiny model trains, checks, fails and cancels for them (minutes); nothing in
the pictures is made up. On a desktop and on a phone, light and dark.
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from tests.conftest import real_clip
from tests.console.browser import DESKTOP, PHONE, Watched, chromium, launched
from tests.service.harness import SMALL, Stack, stack, upload, zip_of

OUT = Path(__file__).parents[2] / "docs" / "console"
COLOURS = 96
"""Of the palette: screens have few, and pictures stay small."""
NUM_FLAT = 56
"""Of them, for what is drawn and not photographed."""
MAX_HEIGHT = 1_300
"""Pixels of a picture; what is below repeats what is above."""
LOOKS: dict[str, dict[str, Any]] = {
    "desktop-light": {"viewport": DESKTOP, "color_scheme": "light"},
    "desktop-dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone-light": {"viewport": PHONE, "color_scheme": "light"},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}
MAIN = ("overview", "outpaint", "done")
"""Screens that are taken in every look; the others on a light desktop and a dark phone."""
LIMIT_S = 900.0
"""For each training; on a busy machine they take minutes."""
PROMPT = [{"prompt": "rbt9 a white rabbit in a meadow"}]
HOOK = "https://receiver.invalid/hook"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with stack(work / "service", REELSMITH_PREVIEW_STEPS="4") as service:
            ids = make_history(service, work)
            with launched(chromium()) as browser:
                for name, options in LOOKS.items():
                    watched = Watched(browser, service.service.url, **options)
                    shoot_all(watched.page(), ids, clips_in(work), out, name)
                    watched.context.close()
    total = sum(path.stat().st_size for path in out.glob("*.png"))
    sys.stdout.write(f"{len(list(out.glob('*.png')))} pictures, {total / 1e6:.2f} MB in {out}\n")


def clips_in(work: Path) -> Path:
    """A folder as somebody has it: clips, captions, a mask."""
    folder = work / "clips"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(real_clip("bigbuckbunny.mp4"), folder / "rabbit.mp4")
        (folder / "rabbit.txt").write_text("a large white rabbit wakes up in a sunny meadow")
        shutil.copy(real_clip("carphone_pristine.mp4"), folder / "talk.mp4")
        (folder / "talk.txt").write_text("a man in a suit talks in the back of a moving car")
        mask = Image.new("L", (1280, 720))
        mask.paste(255, (200, 120, 760, 690))
        mask.save(folder / "rabbit_mask.png")
    return folder


def make_history(service: Stack, work: Path) -> dict[str, str]:
    """Requests in every state, and their ids."""
    folder = clips_in(work)
    clips = [(path.name, path) for path in sorted(folder.iterdir()) if "mask" not in path.name]
    archive = zip_of(work / "clips.zip", *clips)
    # Two seconds at most, so that one of them is dropped and says why.
    long = {"number_of_frames": 121, "trigger_phrase": "rbt9"}
    made: dict[str, Any] = {}
    made["done"] = service.submit(archive, trigger_phrase="rbt9", validation=PROMPT)
    made["other"] = service.submit(
        archive, trigger_phrase="rbt9 slower", rank=16, learning_rate=0.0003, validation=PROMPT
    )
    check = service.http.post("/t2v/check", json={**SMALL, **long, **archive_of(service, archive)})
    made["check"] = check.json()
    refused = zip_of(work / "refused.zip", ("short.mp4", real_clip("carphone_pristine.mp4")))
    body = {**SMALL, **long, "frame_rate": 8, **archive_of(service, refused)}
    made["failed"] = service.http.post(
        "/extend-suffix", params={"fal_webhook": HOOK}, json={**body, "with_audio": True}
    ).json()
    for request in made.values():
        service.wait(request, LIMIT_S)
    made["running"] = service.submit(archive, trigger_phrase="rbt9", number_of_steps=2_000)
    running = made["running"]
    service.until(
        lambda: any(event["data"]["step"] >= 60 for event in service.events(running, "step")),
        LIMIT_S,
        running,
    )
    made["queued"] = service.submit(archive, mode="t2v", trigger_phrase="next in line")
    return {name: request["request_id"] for name, request in made.items()}


def archive_of(service: Stack, path: Path) -> dict[str, str]:
    return {"training_data_url": upload(service.http, path)}


def shoot_all(page: Page, ids: dict[str, str], folder: Path, out: Path, look: str) -> None:
    everywhere = {"desktop-light", "phone-dark"}
    for name, path, act in (
        ("overview", "", None),
        ("new", "/new", None),
        ("form", "/new/t2v", fill_form(folder)),
        ("outpaint", "/new/outpaint", fill_form(folder)),
        ("inpaint", "/new/inpaint", fill_form(folder)),
        ("suffix", "/new/extend-suffix", None),
        ("check", "/check", None),
        ("report", f"/requests/{ids['check']}/report", None),
        ("running", f"/requests/{ids['running']}", drawn),
        ("done", f"/requests/{ids['done']}", drawn),
        ("failed", f"/requests/{ids['failed']}", None),
        ("history", "/requests", None),
        ("compare", f"/compare?id={ids['done']}&id={ids['other']}", None),
        ("generate", f"/generate?lora={ids['done']}", None),
        ("usage", "/usage", None),
        ("webhooks", "/webhooks", None),
        ("login", "/login", None),
    ):
        if look not in everywhere and name not in MAIN:
            continue
        page.goto(f"/console{path}", wait_until="load")
        if act is not None:
            act(page)
        page.wait_for_timeout(700)  # videos paint their first frame
        save(page, out / f"{name}-{look}.png")


def drawn(page: Page) -> None:
    """Until the curve and the log have come, which a busy machine takes its time for."""
    page.wait_for_selector("#chart canvas")
    page.wait_for_function("() => document.querySelector('#log-count').textContent !== ''")


def fill_form(folder: Path) -> Callable[[Page], None]:
    def act(page: Page) -> None:
        page.wait_for_selector("html[data-ready]")
        page.set_input_files("#folder-input", folder)
        page.wait_for_selector("#upload-note:text('Uploaded.')")
        page.click("[data-start=quick]")
        page.fill("#f-trigger_phrase", "rbt9")
        page.evaluate("() => document.querySelector('#say').replaceChildren()")
        page.evaluate("() => scrollTo(0, 0)")

    return act


def save(page: Page, path: Path) -> None:
    """As a PNG with a palette."""
    height = min(MAX_HEIGHT, page.evaluate("() => document.documentElement.scrollHeight"))
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": size["width"], "height": max(height, size["height"])})
    page.wait_for_timeout(150)
    picture = Image.open(io.BytesIO(page.screenshot()))
    page.set_viewport_size(size)
    with_palette(picture.convert("RGB")).save(path, optimize=True)


def with_palette(picture: Image.Image) -> Image.Image:
    """Flat colours stay exactly what they are; what is left of the palette is for photographs."""
    counted = picture.getcolors(picture.width * picture.height) or []
    flat: list[tuple[int, ...]] = []
    for _, colour in sorted(counted, reverse=True):
        assert isinstance(colour, tuple)
        if all(sum(abs(a - b) for a, b in zip(colour, one, strict=True)) > 12 for one in flat):
            flat.append(colour)
        if len(flat) == NUM_FLAT:
            break
    rest = picture.quantize(COLOURS - len(flat)).getpalette() or []
    palette = np.array([*flat, *np.reshape(rest, (-1, 3))], np.int32)[:COLOURS]  # [P, 3]
    # Pillow's own mapping rounds colours first.
    pixels = np.asarray(picture).reshape(-1, 3)
    unique, where = np.unique(pixels, axis=0, return_inverse=True)
    distances = ((unique[:, None, :].astype(np.int32) - palette) ** 2).sum(axis=2)
    index = distances.argmin(axis=1).astype(np.uint8)[where.reshape(-1)]
    found = Image.fromarray(index.reshape(picture.height, picture.width), "P")
    found.putpalette(palette.astype(np.uint8).tobytes())
    return found


if __name__ == "__main__":
    main()
