"""Every mode but t2v through the real service: dataset, conditioned previews, LoRA, errors."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.conftest import real_clip
from tests.service.harness import Stack, upload, zip_of

pytestmark = [pytest.mark.service, pytest.mark.timeout(400)]

BUNNY = real_clip("bigbuckbunny.mp4")
PHONE = real_clip("carphone_pristine.mp4")


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White (to be regenerated) in the middle of a black picture of another size."""
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    image = Image.new("L", (640, 360))
    ImageDraw.Draw(image).rectangle((200, 100, 440, 260), fill=255)
    image.save(path)
    return path


def film(path: Path, codec: str, pictures: list[Image.Image]) -> Path:
    """A clip of 25 pictures a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode(None))
    return path


def webm_and_mask(folder: Path) -> tuple[Path, Path]:
    """The rabbit as VP8, and a mask that moves and is shorter than the clip."""
    with av.open(str(BUNNY)) as container:
        frames = [frame.to_image() for frame in islice(container.decode(video=0), 20)]
    masks = []
    for number in range(12):
        masks.append(Image.new("L", (320, 180)))
        box = (40 + 8 * number, 40, 140 + 8 * number, 120)
        ImageDraw.Draw(masks[-1]).rectangle(box, fill=255)
    return (
        film(folder / "a.webm", "libvpx", [frame.resize((640, 360)) for frame in frames]),
        film(folder / "mask.mp4", "libx264", [mask.convert("RGB") for mask in masks]),
    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, mask: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    clip, moving = webm_and_mask(folder)
    return {
        "webm": zip_of(folder / "webm.zip", ("a.webm", clip), ("a_mask.mp4", moving)),
        "plain": zip_of(folder / "plain.zip", ("a.mp4", BUNNY), ("a.txt", "a rabbit")),
        "masked": zip_of(
            folder / "masked.zip", ("a.mp4", BUNNY), ("a_mask.png", mask), ("a.txt", "a rabbit")
        ),
    }


LONGER = {"validation_number_of_frames": 17}
"""Nine kept frames leave nothing of nine."""

CASES: list[Any] = [
    pytest.param("inpaint", "masked", {}, False, id="inpaint"),
    pytest.param("inpaint", "webm", {}, False, id="inpaint, webm with a moving mask"),
    pytest.param(
        "outpaint",
        "plain",
        {"crop_top_left": [128, 64], "crop_bottom_right": [384, 224]},
        False,
        id="outpaint",
    ),
    pytest.param(
        "extend-suffix",
        "plain",
        {"conditioning_frames": 8, "with_audio": True},
        True,
        id="suffix with sound",
    ),
    pytest.param(
        "extend-prefix",
        "plain",
        {"conditioning_frames": 9, "with_audio": True, **LONGER},
        True,
        id="prefix with sound",
    ),
]
FRAMES = {"number_of_frames": 17, "validation_number_of_frames": 9}


@pytest.mark.parametrize(("mode", "archive", "fields", "with_audio"), CASES)
def test_mode(
    running: Stack,
    archives: dict[str, Path],
    mask: Path,
    tmp_path: Path,
    mode: str,
    archive: str,
    fields: dict[str, Any],
    with_audio: bool,
) -> None:
    entry = {"prompt": "a rabbit at night", "video_url": upload(running.http, BUNNY)}
    if mode == "inpaint":
        entry["mask_url"] = upload(running.http, mask)
    request = running.submit(archives[archive], mode, validation=[entry], **{**FRAMES, **fields})
    response = running.wait(request)
    assert response.status_code == 200, response.text
    result = response.json()

    config = json.loads(running.download(result["config_file"], tmp_path / "c").read_text())
    assert config["training_type"] == mode
    assert len(config["conditions"]) == 1

    with safe_open(running.download(result["lora_file"], tmp_path / "lora"), "pt") as tensors:
        names = list(tensors.keys())
    assert any("audio" in name for name in names) == with_audio

    with av.open(str(running.download(result["video"], tmp_path / "reel.mp4"))) as reel:
        assert bool(reel.streams.audio) == with_audio
        assert sum(1 for _ in reel.decode(video=0)) >= 4 * 9
    assert len(running.events(request, "preview")) == 4


def test_errors_that_need_the_files(
    running: Stack, archives: dict[str, Path], mask: Path, tmp_path: Path
) -> None:
    """Each ends as a 422 whose loc names the field, and whose text names the file."""
    white = tmp_path / "white.png"
    Image.new("L", (64, 64), 255).save(white)
    short = upload(running.http, PHONE)
    rows = [
        ("inpaint", archives["plain"], {}, ["training_data_url"], "a.mp4"),
        (
            "inpaint",
            zip_of(tmp_path / "white.zip", ("a.mp4", BUNNY), ("a_mask.png", white)),
            {},
            ["training_data_url"],
            "a_mask.png",
        ),
        (
            "inpaint",
            archives["masked"],
            {"validation": [{"prompt": "x", "video_url": short, "mask_url": upload_text(running)}]},
            ["validation", 0, "mask_url"],
            "validation[0].mask_url",
        ),
        (
            "extend-suffix",
            archives["plain"],
            {"with_audio": True, "validation": [{"prompt": "x", "video_url": short}]},
            ["validation", 0, "video_url"],
            "validation[0].video_url",
        ),
        (
            "outpaint",
            zip_of(tmp_path / "images.zip", ("a.png", mask)),
            {"crop_top_left": [0, 0], "crop_bottom_right": [256, 256]},
            ["training_data_url"],
            "a.png",
        ),
    ]
    requests = [
        running.submit(archive, mode, **{**FRAMES, **fields})
        for mode, archive, fields, _, _ in rows
    ]
    for request, (mode, _, _, loc, text) in zip(requests, rows, strict=True):
        response = running.wait(request, 90)
        assert response.status_code == 422, (mode, response.text)
        (detail,) = response.json()["detail"]
        assert detail["loc"] == ["body", *loc], (mode, detail)
        assert text in detail["msg"], (mode, detail)


def upload_text(running: Stack) -> str:
    """A file that is no mask."""
    url: str = running.http.post(
        "/files/upload", content=b"not a mask", headers={"content-type": "image/png"}
    ).json()["access_url"]
    return url
