"""Shapes, token order and positions: golden 02, and the statistics' space."""

import re
from fractions import Fraction

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

from tests.trainer.jobs import golden
from trainer.latents import (
    VideoGeometry,
    audio_coords,
    normalise_audio,
    normalise_video,
    num_audio_latents,
    pack_audio,
    pack_video,
    unnormalise_audio,
    unnormalise_video,
    unpack_audio,
    unpack_video,
    video_coords,
)
from trainer.model import BaseModel

POSITIONS = golden("02_positions_rope")
VIDEO_POSITIONS = [name for name in POSITIONS if name.startswith("video_pos")]
AUDIO_POSITIONS = [name for name in POSITIONS if name.startswith("audio_pos")]
ROPES = sorted(
    {name.rsplit("_", 1)[0] for name in POSITIONS if name.startswith("rope_")},
)


def geometry_of(name: str) -> VideoGeometry:
    f, h, w, fps = map(int, re.findall(r"_(?:f|h|w|fps)(\d+)", name))
    return VideoGeometry(8 * f - 7, 32 * h, 32 * w, Fraction(fps))


@pytest.mark.golden
@pytest.mark.parametrize("name", VIDEO_POSITIONS)
def test_video_positions_are_the_reference_positions(name: str) -> None:
    expected = POSITIONS[name]
    coords = video_coords(geometry_of(name), batch_size=expected.shape[0])
    torch.testing.assert_close(coords, expected, atol=0, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", AUDIO_POSITIONS)
def test_audio_positions_are_the_reference_positions(name: str) -> None:
    expected = POSITIONS[name]
    coords = audio_coords(expected.shape[2], batch_size=expected.shape[0])
    torch.testing.assert_close(coords, expected, atol=0, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", ROPES)
def test_rotations_at_our_positions_are_the_reference_rotations(name: str) -> None:
    num_heads = int(re.search(r"_h(\d+)$", name)[1])
    width = int(re.search(r"_(?:inner|dim)(\d+)_", name)[1])
    modality = "video" if "video" in name else "audio"
    num_tokens = POSITIONS[f"{name}_cos"].shape[2]
    if modality == "audio":
        coords = audio_coords(num_tokens)
    else:
        matching = [n for n in VIDEO_POSITIONS if POSITIONS[n].shape[2] == num_tokens]
        coords = video_coords(geometry_of(next(n for n in matching if n.endswith("fps24"))))
    if "cross" in name:
        coords = coords[:, :1]
    rope = LTX2AudioVideoRotaryPosEmbed(
        dim=width, modality=modality, rope_type="split", num_attention_heads=num_heads
    )
    for table, result in zip(("cos", "sin"), rope(coords), strict=True):
        torch.testing.assert_close(result, POSITIONS[f"{name}_{table}"], atol=1e-5, rtol=0)


def test_tokens_go_frame_by_frame_then_row_by_row() -> None:
    geometry = VideoGeometry(17, 64, 96, Fraction(24))
    latents = torch.arange(3 * 2 * 3).view(1, 1, 3, 2, 3)
    assert pack_video(latents)[0, :, 0].tolist() == list(range(18))
    latents = torch.randn(2, 128, 3, 2, 3)
    assert torch.equal(unpack_video(pack_video(latents), geometry), latents)
    audio = torch.randn(2, 8, 5, 16)
    assert pack_audio(audio).shape == (2, 5, 128)
    assert torch.equal(unpack_audio(pack_audio(audio)), audio)


def test_statistics_are_per_video_channel_and_per_packed_audio_channel(tiny: BaseModel) -> None:
    vae, audio_vae = tiny.video_vae(), tiny.audio_vae()
    latents = torch.randn(1, 128, 2, 2, 2)
    normalised = normalise_video(latents, vae)
    channel = 5
    expected = (latents[0, channel] - vae.latents_mean[channel]) / vae.latents_std[channel]
    torch.testing.assert_close(normalised[0, channel], expected)
    torch.testing.assert_close(unnormalise_video(normalised, vae), latents)

    tokens = pack_audio(torch.randn(1, 2, 3, 16))
    normalised = normalise_audio(tokens, audio_vae)
    channel = 16 + 3  # latent channel 1, mel bin 3
    expected = tokens[0, :, channel] - audio_vae.latents_mean[channel]
    torch.testing.assert_close(normalised[0, :, channel], expected / audio_vae.latents_std[channel])
    torch.testing.assert_close(unnormalise_audio(normalised, audio_vae), tokens)


def test_the_rate_moves_positions_in_time_only() -> None:
    slow, fast = (video_coords(VideoGeometry(17, 64, 64, Fraction(fps))) for fps in (12, 24))
    assert torch.equal(slow[:, 0], fast[:, 0] * 2)
    assert torch.equal(slow[:, 1:], fast[:, 1:])


@pytest.mark.parametrize(
    ("num_frames", "rate", "expected"),
    [
        (89, Fraction(8), 278),
        (89, Fraction(24), 93),
        (89, Fraction(30), 74),
        (89, Fraction(60), 37),
        (89, Fraction(30000, 1001), 74),
        (9, Fraction(50), 4),
    ],
)
def test_audio_latents_per_clip(num_frames: int, rate: Fraction, expected: int) -> None:
    assert num_audio_latents(num_frames, rate) == expected


@pytest.mark.parametrize("size", [(10, 64, 64), (9, 60, 64), (9, 64, 33), (0, 64, 64)])
def test_sizes_the_model_does_not_have_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        VideoGeometry(*size, Fraction(24))
