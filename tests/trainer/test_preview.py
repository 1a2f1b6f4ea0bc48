"""Previews: real samples of the tiny model, read back from their files."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from preprocessing.events import EventLog
from trainer.adapter import adapter_state, add_adapter
from trainer.decode import Decoder
from trainer.latents import VideoGeometry
from trainer.model import BaseModel
from trainer.mp4 import SAMPLE_RATE
from trainer.preview import PreviewPrompt, find_previews, make_previews, preview_steps
from trainer.sampler import Given
from trainer.spec import ValidationSpec
from trainer.text import PromptContext

SPEC = ValidationSpec(num_frames=9, frame_rate=24, width=96, height=64, num_inference_steps=2)
PROMPTS = ("a red car", "ein Haus — «größer»")


@pytest.fixture(scope="module")
def contexts(tiny: BaseModel) -> list[PromptContext]:
    return tiny.text_encoder().encode([*PROMPTS, "blurry"])


@pytest.fixture(scope="module")
def prompts(contexts: list[PromptContext]) -> list[PreviewPrompt]:
    return [PreviewPrompt(*pair) for pair in zip(PROMPTS, contexts, strict=False)]


def events_of(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.mark.parametrize("with_audio", [True, False], ids=["with-audio", "silent"])
@pytest.mark.parametrize("frame_rate", [24, 30], ids=["24fps", "30fps"])
def test_previews_are_playable_files(
    tiny: BaseModel,
    contexts: list[PromptContext],
    prompts: list[PreviewPrompt],
    tmp_path: Path,
    with_audio: bool,
    frame_rate: int,
) -> None:
    spec = SPEC.model_copy(update={"num_frames": 25, "frame_rate": frame_rate})
    with EventLog(tmp_path / "events.jsonl") as events:
        previews = make_previews(
            tiny.transformer(with_audio=with_audio),
            Decoder.open(tiny, with_audio=with_audio),
            prompts,
            contexts[-1],
            spec,
            step=25,
            folder=tmp_path,
            events=events,
            with_audio=with_audio,
        )
    names = ["step-000025_prompt-0.mp4", "step-000025_prompt-1.mp4"]
    assert [preview.path.name for preview in previews] == names
    for preview in previews:
        with av.open(str(preview.path)) as container:
            video = container.streams.video[0]
            assert video.codec_context.name == "h264"
            assert video.codec_context.pix_fmt == "yuv420p"
            assert (video.width, video.height) == (96, 64)
            assert video.average_rate == frame_rate
            assert video.frames == 25
            assert sum(1 for _ in container.decode(video=0)) == 25
        with av.open(str(preview.path)) as container:
            assert len(container.streams.audio) == with_audio
            if with_audio:
                audio = container.streams.audio[0]
                assert audio.codec_context.name == "aac"
                assert audio.codec_context.sample_rate == SAMPLE_RATE
                assert audio.codec_context.layout.name == "stereo"
                assert audio.duration is not None
                assert audio.time_base is not None
                seconds = audio.duration * audio.time_base
                assert abs(seconds - Fraction(25, frame_rate)) < Fraction(1, 500)
                sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
                assert np.abs(sound).max() > 0
    reported = [(e["step"], e["index"], e["prompt"]) for e in events_of(tmp_path, "preview")]
    assert reported == [(25, 0, PROMPTS[0]), (25, 1, PROMPTS[1])]
    progress = events_of(tmp_path, "progress")
    assert [event["done"] for event in progress] == [1, 2, 3, 4]
    assert {event["total"] for event in progress} == {4}
    assert find_previews(tmp_path, PROMPTS) == previews


def render(
    transformer: LTX2VideoTransformer3DModel,
    tiny: BaseModel,
    folder: Path,
    prompts: list[PreviewPrompt],
    negative: PromptContext,
) -> list[np.ndarray]:
    folder.mkdir()
    with EventLog(folder / "events.jsonl") as events:
        previews = make_previews(
            transformer,
            Decoder.open(tiny, with_audio=False),
            prompts,
            negative,
            SPEC,
            step=1,
            folder=folder,
            events=events,
            with_audio=False,
        )
    return [pictures(preview.path) for preview in previews]


def test_the_adapter_shows_and_nothing_is_left_behind(
    tiny: BaseModel,
    contexts: list[PromptContext],
    prompts: list[PreviewPrompt],
    tmp_path: Path,
) -> None:
    transformer = tiny.transformer(with_audio=False)
    base = render(transformer, tiny, tmp_path / "base", prompts, contexts[-1])
    add_adapter(transformer, 4, False)
    untrained = render(transformer, tiny, tmp_path / "untrained", prompts, contexts[-1])
    assert all(np.array_equal(*pair) for pair in zip(base, untrained, strict=True))

    state = adapter_state(transformer)
    for key, tensor in state.items():
        if key.endswith("lora_B.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    before = {key: tensor.clone() for key, tensor in state.items()}
    generator_state = torch.get_rng_state()
    trained = render(transformer, tiny, tmp_path / "trained", prompts, contexts[-1])
    assert not any(np.array_equal(*pair) for pair in zip(base, trained, strict=True))
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert all(torch.equal(before[key], tensor) for key, tensor in state.items())


def test_given_tokens_reach_the_picture(
    tiny: BaseModel, contexts: list[PromptContext], tmp_path: Path
) -> None:
    """A preview whose every token is given is the given clip."""
    geometry = VideoGeometry(SPEC.num_frames, SPEC.height, SPEC.width, Fraction(24))
    clean = torch.randn(1, geometry.num_tokens, 128, generator=torch.Generator().manual_seed(2))
    keep = torch.ones(geometry.num_tokens, dtype=torch.bool)
    prompt = PreviewPrompt(PROMPTS[0], contexts[0], given_video=Given(keep, clean))
    transformer = tiny.transformer(with_audio=False)
    (shown,) = render(transformer, tiny, tmp_path / "given", [prompt], contexts[-1])
    free_prompt = replace(prompt, given_video=None)
    (free,) = render(transformer, tiny, tmp_path / "free", [free_prompt], contexts[-1])
    (expected,) = Decoder(tiny.video_vae()).frames(clean, geometry)

    def difference(frames: np.ndarray) -> float:
        """Of the luma: 4:2:0 keeps nothing of coloured noise."""
        return float(np.abs((frames.astype(float) - expected) @ [0.2126, 0.7152, 0.0722]).mean())

    assert difference(shown) < 5
    assert difference(free) > 10


def test_a_stop_ends_the_previews(
    tiny: BaseModel,
    contexts: list[PromptContext],
    prompts: list[PreviewPrompt],
    tmp_path: Path,
) -> None:
    with EventLog(tmp_path / "events.jsonl") as events:
        previews = make_previews(
            tiny.transformer(with_audio=False),
            Decoder.open(tiny, with_audio=False),
            prompts,
            contexts[-1],
            SPEC,
            step=1,
            folder=tmp_path,
            events=events,
            with_audio=False,
            should_stop=lambda: bool(events_of(tmp_path, "preview")),
        )
    assert [preview.index for preview in previews] == [0]
    assert [path.name for path in tmp_path.glob("*.mp4*")] == ["step-000001_prompt-0.mp4"]


def test_a_sample_that_is_nan_is_left_out_and_said(
    tiny: BaseModel,
    contexts: list[PromptContext],
    prompts: list[PreviewPrompt],
    tmp_path: Path,
) -> None:
    broken = PreviewPrompt("nan", PromptContext(contexts[0].video * torch.nan, contexts[0].audio))
    with EventLog(tmp_path / "events.jsonl") as events:
        previews = make_previews(
            tiny.transformer(with_audio=False),
            Decoder.open(tiny, with_audio=False),
            [broken, prompts[1]],
            contexts[-1],
            SPEC,
            step=3,
            folder=tmp_path,
            events=events,
            with_audio=False,
        )
    assert [preview.index for preview in previews] == [1]
    (warning,) = events_of(tmp_path, "log")
    assert warning["level"] == "WARN"
    assert "prompt 0 after step 3" in str(warning["message"])


def test_pixels_are_rounded_not_cut(tiny: BaseModel) -> None:
    vae = tiny.video_vae()
    geometry = VideoGeometry(9, 64, 64, Fraction(24))
    tokens = torch.randn(1, geometry.num_tokens, 128, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    handle = vae.decoder.register_forward_hook(lambda _m, _i, output: seen.append(output))
    (frames,) = Decoder(vae).frames(tokens, geometry)
    handle.remove()
    exact = (seen[0][0].clamp(-1, 1).double() + 1) * 127.5
    error = torch.from_numpy(frames).permute(3, 0, 1, 2).double() - exact
    assert error.abs().max() <= 0.5 + 1e-4
    assert abs(error.mean()) < 0.05
    assert frames.dtype == np.uint8
    assert frames.shape == (9, 64, 64, 3)


def test_steps_of_the_previews() -> None:
    assert preview_steps(100, (0.25, 0.5, 0.75, 1.0)) == (25, 50, 75, 100)
    assert preview_steps(2000, ()) == (2000,)
    assert preview_steps(3, (0.25, 0.5, 0.75)) == (1, 2, 3)
    assert preview_steps(10, (0.0,)) == (1, 10)
