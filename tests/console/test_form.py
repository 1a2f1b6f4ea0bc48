"""The generated form in a real browser: what is typed becomes what the API takes."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.app.live import Live
from tests.conftest import real_clip
from tests.console.browser import Watched

READY = "html[data-ready]"


def opened(watched: Watched, path: str) -> Page:
    page = watched.page()
    page.goto(path)
    page.wait_for_selector(READY)
    return page


def snippet(page: Page) -> dict[str, Any]:
    """The body in the curl command."""
    text = page.locator("#snippet").text_content() or ""
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found


@pytest.mark.parametrize(
    ("typed", "says"),
    [("90", "Becomes 89: 89 frames, 3.71 s"), ("97", "97 frames, 4.04 s")],
)
def test_frames_snap_as_they_are_typed(
    watched: Watched, gateway: Live, typed: str, says: str
) -> None:
    page = opened(watched, "/console/new/t2v")
    page.fill("#f-number_of_frames", typed)
    expect(page.locator("[data-field=number_of_frames] .snap")).to_have_text(says)


def test_the_estimate_follows(watched: Watched, gateway: Live) -> None:
    page = opened(watched, "/console/new/t2v")
    expect(page.locator("#estimate .big")).to_have_text("$12.00")
    page.fill("#f-number_of_steps", "500")
    expect(page.locator("#estimate .big")).to_have_text("$3.00")
    page.click("[data-start=quick]")
    expect(page.locator("#estimate .big")).to_have_text("$0.60")
    assert snippet(page)["resolution"] == "low"


def test_what_the_api_refuses_is_said_at_the_field(watched: Watched, gateway: Live) -> None:
    page = opened(watched, "/console/new/t2v")
    page.click("text=or give a URL")
    page.fill("#f-archive", "https://example.com/clips.zip")
    page.fill("#f-number_of_steps", "150")
    expect(page.locator("[data-field=number_of_steps] .error")).to_contain_text("multiple of 100")
    page.click("#submit")
    expect(page.locator("#form-problem")).to_be_visible()
    expect(page.locator("#f-number_of_steps")).to_be_focused()
    watched.forgive("422")


def test_a_training_by_url_is_what_was_typed(watched: Watched, gateway: Live) -> None:
    page = opened(watched, "/console/new/extend-suffix")
    page.click("text=or give a URL")
    page.fill("#f-archive", "https://example.com/clips.zip")
    page.locator(".ruler").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.click("[data-add]")
    page.fill(".entry textarea", "a door")
    page.fill(".entry input", "https://example.com/a.mp4")
    said = snippet(page)
    page.click("#submit")
    page.wait_for_url("**/console/requests/*")
    id = page.url.rpartition("/")[2]
    found = gateway.http.get(f"/requests/{id}").json()
    assert found["input"]["conditioning_frames"] == 24
    assert found["input"]["validation"] == said["validation"]
    assert said["validation"] == [{"prompt": "a door", "video_url": "https://example.com/a.mp4"}]
    page.click("#cancel")
    expect(page.locator("#state .badge")).to_have_text("Cancelled")
    page.click("text=Again with changes")
    page.wait_for_selector(READY)
    assert snippet(page) == {**said, "training_data_url": "https://example.com/clips.zip"}


@pytest.mark.parametrize(
    ("keys", "corners"),
    [
        ([], [[128, 128], [640, 640]]),
        (["ArrowRight", "ArrowDown"], [[160, 160], [672, 672]]),
        (["Shift+ArrowLeft"], [[128, 128], [608, 640]]),
    ],
    ids=["as it begins", "moved", "resized"],
)
def test_the_rectangle_by_keys(
    watched: Watched, gateway: Live, keys: list[str], corners: list[list[int]]
) -> None:
    page = opened(watched, "/console/new/outpaint")
    page.locator("#drawing canvas").focus()
    for key in keys:
        page.keyboard.press(key)
    assert [snippet(page)[name] for name in ("crop_top_left", "crop_bottom_right")] == corners


def test_the_rectangle_is_drawn_with_the_mouse(watched: Watched, gateway: Live) -> None:
    page = opened(watched, "/console/new/outpaint")
    canvas = page.locator("#drawing canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    unit = box["width"] / 768
    page.mouse.move(box["x"] + 10 * unit, box["y"] + 34 * unit)
    page.mouse.down()
    page.mouse.move(box["x"] + 300 * unit, box["y"] + 70 * unit, steps=4)
    page.mouse.up()
    assert snippet(page)["crop_top_left"] == [0, 32]
    assert snippet(page)["crop_bottom_right"] == [288, 64]


def folder_of(path: Path, **files: bytes) -> Path:
    for name, content in files.items():
        file = path / "clips" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path / "clips"


def test_a_mask_is_laid_over_its_clip(watched: Watched, gateway: Live, tmp_path: Path) -> None:
    clip = real_clip("carphone_pristine.mp4").read_bytes()
    folder = folder_of(tmp_path, **{"one.mp4": clip, "two.mp4": clip, "one_mask.mp4": clip})
    page = opened(watched, "/console/new/inpaint")
    page.set_input_files("#folder-input", folder)
    note = page.locator("#drawing p")
    expect(note).to_contain_text("one_mask.mp4: what is coloured is made anew")
    page.locator("#drawing select").select_option("1")
    expect(note).to_contain_text("two.mp4 has no mask")


def test_a_folder_becomes_a_zip(watched: Watched, gateway: Live, tmp_path: Path) -> None:
    files = {"a.mp4": b"a" * 3000, "a.txt": "ä cat".encode(), "more/ü.mov": b"b" * 500}
    folder = folder_of(tmp_path, **{k.replace("/", "__"): v for k, v in files.items()},
                       **{".DS_Store": b"x", "notes.psd": b"y"})  # fmt: skip
    page = opened(watched, "/console/new/t2v")
    page.set_input_files("#folder-input", folder)
    expect(page.locator("#upload-note")).to_have_text("Uploaded.")
    stored = gateway.http.get(snippet(page)["training_data_url"]).content
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


ZIP = """
async ({ base, files, limit }) => {
  const { zipOf } = await import(`${base}/zip.js`);
  const { checksum } = await import(`${base}/checksum.js`);
  const entries = files.map(([name, text]) => ({ name, file: new File([text], name) }));
  const blob = await zipOf(entries, { checksum, limit });
  return [...new Uint8Array(await blob.arrayBuffer())];
}
"""


@pytest.mark.parametrize("limit", [1, 12, 1000], ids=["all zip64", "some zip64", "none"])
def test_large_archives_are_zip64(watched: Watched, gateway: Live, limit: int) -> None:
    page = opened(watched, "/console/new/t2v")
    script = page.locator("script[src$='form.js']").get_attribute("src") or ""
    files = [["a.txt", "short"], ["b.txt", "a longer text than that"], ["c.txt", ""]]
    given = {"base": script.rpartition("/")[0], "files": files, "limit": limit}
    content = bytes(page.evaluate(ZIP, given))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert [[name, archive.read(name).decode()] for name in archive.namelist()] == files


def test_an_upload_goes_on_after_faults_and_a_reload(
    watched: Watched, gateway: Live, tmp_path: Path
) -> None:
    archive = tmp_path / "clips.zip"
    archive.write_bytes(bytes(range(256)) * (40 * 1024))  # two parts
    sent: list[str] = []
    faults = [1]

    def pass_on(route: Route) -> None:
        part = route.request.url.rpartition("/")[2]
        sent.append(part)
        if part == "2" and faults:
            route.abort()
        else:
            route.continue_()

    watched.context.route(re.compile(r"/multipart/[^/]+/\d+$"), pass_on)
    page = opened(watched, "/console/new/t2v")
    page.set_input_files("#zip-input", archive)
    expect(page.locator("#upload-note")).to_contain_text("Trying again")
    page.reload()
    page.wait_for_selector(READY)
    faults.clear()
    sent.clear()
    page.set_input_files("#zip-input", archive)
    expect(page.locator("#upload-note")).to_have_text("Uploaded.")
    assert sent == ["2"]
    assert gateway.http.get(snippet(page)["training_data_url"]).content == archive.read_bytes()
    watched.forgive("ERR_FAILED")


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_copied_as_code(watched: Watched, gateway: Live, language: str) -> None:
    page = opened(watched, "/console/new/t2v")
    page.click(f"[data-snippet={language}]")
    text = page.locator("#snippet").text_content() or ""
    assert "fal-ai/ltx23-trainer-v2/t2v" in text
    if language == "python":
        compile(text, "snippet", "exec")
