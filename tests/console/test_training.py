"""The whole way in a real browser on the real service with the tiny model: a folder is dropped,
trained on, watched to its end through a reload and a gateway that is killed, and looked back at."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import real_clip
from tests.console.browser import Watched
from tests.service.harness import Stack, kill_group, stack

END_MS = 150_000
"""The tiny model needs seconds; a busy machine may need more."""
ASKED = {"save": "Saved the checkpoint of step", "sample": "Made previews after step"}
FEW = {"number_of_frames": "9", "validation_number_of_frames": "9"}
SMALL = {"aspect_ratio": "16:9", "validation_aspect_ratio": "16:9", "resolution": "low"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("service"), REELSMITH_PREVIEW_STEPS="2") as service:
        yield service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, one with a caption."""
    folder = tmp_path_factory.mktemp("clips") / "my clips"
    folder.mkdir()
    shutil.copy(real_clip("bigbuckbunny.mp4"), folder / "bunny.mp4")
    (folder / "bunny.txt").write_text("a rabbit in a meadow")
    shutil.copy(real_clip("carphone_pristine.mp4"), folder / "phone.mp4")
    return folder


def drop(page: Page, target: str, path: Path) -> None:
    """What a file manager does: real files, so that folders are folders."""
    page.locator(target).scroll_into_view_if_needed()
    box = page.locator(target).bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 12}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})
    session.detach()


def fill(page: Page) -> None:
    page.click("[data-start=quick]")
    page.fill("#f-trigger_phrase", "rbt9")
    page.click("[data-add]")
    page.fill(".entry textarea", "rbt9 in a meadow")
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for name, value in FEW.items():
        page.fill(f"#f-{name}", value)
    for name, value in SMALL.items():
        page.select_option(f"#f-{name}", value)


def generate(page: Page, source: Path) -> None:
    """Use the LoRA of the training that is shown."""
    page.click("text=Use in Generate")
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#lora option:checked")).to_contain_text("rbt9")
    expect(page.locator(".entry [data-field=path] input")).to_have_value(re.compile("lora"))
    page.fill("#f-prompt", "rbt9 in a wider meadow")
    with page.expect_file_chooser() as chooser:
        page.click("[data-field=video_url] [data-upload]")
    chooser.value.set_files(source)
    expect(page.locator("#f-video_url")).to_have_value(re.compile("phone.mp4"))
    page.select_option("#f-resolution", "square")
    page.fill("#f-num_frames", "9")
    page.fill("#f-num_inference_steps", "8")
    expect(page.locator("#estimate [data-of=video]")).to_contain_text("512×512, 9 frames")
    page.click("#submit")
    page.wait_for_url("**/console/requests/*")
    expect(page.locator("#state .badge")).to_have_text("Done", timeout=END_MS)
    expect(page.locator("#files video")).to_be_visible()
    expect(page.locator("#files")).to_contain_text("Seed")


def restart_gateway(service: Stack) -> None:
    gateway = service.service.children[0]
    kill_group(gateway)
    gateway.start(service.service.env)


def test_from_a_folder_to_a_lora(service: Stack, browser: Browser, folder: Path) -> None:
    watched = Watched(browser, service.service.url)
    page = watched.page()
    page.goto("/console/new/t2v")
    page.wait_for_selector("html[data-ready]")
    drop(page, "#drop", folder)
    expect(page.locator("#clips li")).to_have_count(3)
    expect(page.locator("#upload-note")).to_have_text("Uploaded.")
    fill(page)
    expect(page.locator("#estimate .big")).to_have_text("$0.60")
    page.click("#submit")
    page.wait_for_url("**/console/requests/*")
    watched.check()

    badge = page.locator("#state .badge")
    expect(page.locator("#now-numbers")).to_be_visible(timeout=END_MS)
    for wish in ("save", "sample"):
        button = page.locator(f"[data-wish={wish}]")
        button.click()
        expect(page.locator("#log")).to_contain_text(ASKED[wish], timeout=END_MS)
        expect(button).to_be_enabled()
    page.reload()
    restart_gateway(service)
    expect(badge).to_have_text("Done", timeout=END_MS)
    watched.forgive("ERR_CONNECTION", "ERR_INCOMPLETE_CHUNKED_ENCODING", "htmx:")

    expect(page.locator("#now-step")).to_have_text("100")
    expect(page.locator("#chart canvas")).to_be_visible()
    asked_at = re.search(rf"{ASKED['sample']} (\d+)", page.locator("#log").inner_text())
    assert asked_at is not None
    steps = {25, 50, 75, 100, int(asked_at[1])}
    expect(page.locator("#previews figure")).to_have_count(len(steps))
    expect(page.locator("[data-wish=save]")).to_be_hidden()
    expect(page.locator("#log")).to_contain_text("Storing the LoRA and the previews")
    for name in ("lora.safetensors", "config.json", "reel.mp4"):
        expect(page.locator("#files")).to_contain_text(name)
    with page.expect_download() as download:
        page.click("text=lora.safetensors")
    assert Path(download.value.path()).stat().st_size > 10_000

    request = page.url
    generate(page, folder / "phone.mp4")
    watched.check()

    page.goto(request)
    page.click("text=What became of each clip")
    expect(page.locator("video.look")).to_have_count(2)
    expect(page.locator("table.report")).to_contain_text("rbt9 a rabbit in a meadow")

    page.goto("/console")
    expect(page.locator("#overview")).to_contain_text("idle")
    expect(page.locator("#overview [aria-labelledby=h-workers] li")).to_have_count(2)
    watched.check()
    watched.context.close()
