"""Encoding once: what is cached, when it is found again, and the numbers in it."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing.events import EventLog
from preprocessing.manifest import Manifest
from tests.trainer.jobs import make_dataset
from trainer.cache import EncodedCache
from trainer.encode import encode_all, scaled_pixels
from trainer.footage import Dataset
from trainer.latents import VideoGeometry, unnormalise_video, unpack_video
from trainer.model import BaseModel
from trainer.text import MAX_TOKENS


def encode(folder: Path, base: BaseModel, cache: Path, prompts: tuple[str, ...] = ()) -> list[str]:
    """Encode, and say which stages had something to do."""
    events = cache / "events.jsonl"
    events.unlink(missing_ok=True)
    cache.mkdir(exist_ok=True)
    dataset = Dataset(folder)
    with EventLog(events) as log:
        encode_all(
            dataset.footage,
            [*dataset.captions, *prompts],
            base,
            EncodedCache(cache, base),
            log,
            between=lambda: None,
        )
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return [line["name"] for line in lines if line["kind"] == "stage" and line["state"] == "end"]


def test_nothing_is_encoded_twice(tiny: BaseModel, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "dataset", with_audio=True)
    cache = tmp_path / "cache"
    assert encode(folder, tiny, cache) == ["encode_text", "encode_latents"]
    assert encode(folder, tiny, cache) == []
    assert encode(folder, tiny, cache, ("a preview",)) == ["encode_text"]
    again = make_dataset(tmp_path / "same clips", with_audio=True, caption="other {}".format)
    assert encode(again, tiny, cache) == ["encode_text"]
    assert not list(cache.rglob("*.part"))


def test_a_prompt_that_is_cut_is_told(tiny: BaseModel, tmp_path: Path) -> None:
    """Tokens of the tiny model are bytes."""
    folder, cache = make_dataset(tmp_path / "dataset"), tmp_path / "cache"
    whole, cut = "a" * (MAX_TOKENS - 1), "b" * MAX_TOKENS  # a token begins each
    encode(folder, tiny, cache, (whole, cut))
    lines = map(json.loads, (cache / "events.jsonl").read_text().splitlines())
    (warning,) = [line["message"] for line in lines if line["kind"] == "log"]
    assert warning.startswith(f"A caption or prompt of {MAX_TOKENS + 1} tokens is cut to")
    assert warning.endswith(f"begins with {'b' * 60!r}")


@pytest.mark.parametrize("change", ["pictures", "sound", "rate", "model"])
def test_what_was_changed_is_encoded_again(tiny: BaseModel, tmp_path: Path, change: str) -> None:
    folder, cache = make_dataset(tmp_path / "dataset", with_audio=True), tmp_path / "cache"
    encode(folder, tiny, cache)
    expected = ["encode_latents"]
    match change:
        case "pictures" | "sound":
            kind = {"pictures": "frames", "sound": "audio"}[change]
            path = folder / f"samples/0.{kind}.npy"
            values = np.load(path)
            np.save(path, values[..., ::-1].copy())
        case "rate":
            manifest = Manifest.load(folder)
            sample = manifest.samples[0].model_copy(update={"frame_rate": Fraction(30)})
            manifest.model_copy(update={"samples": (sample,)}).save(folder)
        case "model":
            copy = shutil.copytree(tiny.folder, tmp_path / "model")
            (weights,) = (copy / "transformer").glob("*.safetensors")
            content = weights.read_bytes()
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            tiny = BaseModel.open(str(copy), cache, "cpu")
            expected = ["encode_text", "encode_latents"]
    assert encode(folder, tiny, cache) == expected


def test_a_damaged_file_is_encoded_again(tiny: BaseModel, tmp_path: Path) -> None:
    folder, cache = make_dataset(tmp_path / "dataset"), tmp_path / "cache"
    encode(folder, tiny, cache)
    dataset, encoded = Dataset(folder), EncodedCache(cache, tiny)
    path = encoded.latents_path(dataset.footage[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert encode(folder, tiny, cache) == ["encode_latents"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("num_frames", "rate", "expected"),
    [(9, Fraction(24), 9), (25, Fraction(24), 26), (9, Fraction(30000, 1001), 8)],
)
def test_audio_is_as_long_as_the_clip(
    tiny: BaseModel, tmp_path: Path, num_frames: int, rate: Fraction, expected: int
) -> None:
    """The encoder gives 10 latents for 9 frames at 24 fps; the tenth is past the end."""
    folder = make_dataset(
        tmp_path / "dataset", num_samples=1, with_audio=True, num_frames=num_frames, frame_rate=rate
    )
    encode(folder, tiny, tmp_path / "cache")
    dataset = Dataset(folder)
    latents = EncodedCache(tmp_path / "cache", tiny).latents(dataset.footage[0])
    assert latents.audio.shape == (1, expected, 32)
    assert latents.video.shape == (1, (num_frames - 1) // 8 * 4 + 4, 128)


def test_latents_are_the_vaes_mean_normalised(tiny: BaseModel, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "dataset", num_samples=1)
    encode(folder, tiny, tmp_path / "cache")
    dataset = Dataset(folder)
    sample = dataset.manifest.samples[0]
    tokens = EncodedCache(tmp_path / "cache", tiny).latents(dataset.footage[0]).video
    vae = tiny.video_vae()
    frames = torch.from_numpy(np.load(folder / sample.frames))
    pixels = frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean
    geometry = VideoGeometry(9, 64, 64, Fraction(24))
    latents = unnormalise_video(unpack_video(tokens, geometry), vae)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_level_is_rounded_once(dtype: torch.dtype) -> None:
    """A frame of all 256 levels; the exact values are level / 127.5 - 1."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = scaled_pixels(torch.from_numpy(levels), dtype)
    assert pixels.shape == (1, 3, 1, 16, 16)
    exact = [float(Fraction(2 * level, 255) - 1) for level in range(256)]
    for channel in pixels[0]:
        torch.testing.assert_close(
            channel.flatten().double(),
            torch.tensor(exact, dtype=torch.float64),
            atol=2**-24,  # float32's own, next to 0
            rtol=torch.finfo(dtype).eps / 2 + 2**-23,
        )


def test_the_rate_changes_positions_not_latents(tiny: BaseModel, tmp_path: Path) -> None:
    tokens = []
    for rate in (12, 24):
        folder = make_dataset(tmp_path / f"{rate}", num_samples=1, frame_rate=Fraction(rate))
        encode(folder, tiny, tmp_path / "cache")
        dataset = Dataset(folder)
        encoded = EncodedCache(tmp_path / "cache", tiny)
        tokens.append(encoded.latents(dataset.footage[0]).video)
    assert torch.equal(*tokens)


def test_an_image_is_one_frame(tiny: BaseModel, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "dataset", num_samples=1, num_frames=1)
    encode(folder, tiny, tmp_path / "cache")
    dataset = Dataset(folder)
    latents = EncodedCache(tmp_path / "cache", tiny).latents(dataset.footage[0])
    assert latents.video.shape == (1, 4, 128)
    assert latents.audio is None


def test_encoding_stops_between_two_samples(tiny: BaseModel, tmp_path: Path) -> None:
    folder, cache = make_dataset(tmp_path / "dataset"), tmp_path / "cache"
    calls = iter(range(100))

    def stop_at_the_fifth() -> None:
        if next(calls) == 4:
            raise InterruptedError

    dataset = Dataset(folder)
    with EventLog(tmp_path / "events.jsonl") as log, pytest.raises(InterruptedError):
        encode_all(
            dataset.footage,
            dataset.captions,
            tiny,
            EncodedCache(cache, tiny),
            log,
            between=stop_at_the_fifth,
        )
    assert len(list((cache / "contexts").iterdir())) == 3
    assert len(list((cache / "latents").iterdir())) == 1
