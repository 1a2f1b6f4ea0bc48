"""Long clips in pieces: how far from the whole, and how much is held at once."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video

from trainer.decode import Decoder
from trainer.encode import encode_video
from trainer.latents import VideoGeometry, unnormalise_video, unpack_video
from trainer.model import BaseModel
from trainer.tiling import decode_pieces, encode_pieces

GEOMETRY = VideoGeometry(289, 64, 64, Fraction(24))
"""37 latent frames."""
PIECE_PIXELS = 129 * 64 * 64
"""17 latent frames: what a piece has at 1080p."""


@pytest.fixture(scope="module")
def vae(tiny: BaseModel) -> AutoencoderKLLTX2Video:
    return tiny.video_vae()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Coarse noise that drifts: every latent frame differs from its neighbours."""
    cells = np.random.default_rng(5).integers(0, 256, (64, 8, 8, 3)).astype(np.float32)
    at = np.linspace(0, 60, GEOMETRY.num_frames)
    low, part = at.astype(int), (at % 1)[:, None, None, None]
    mixed = cells[low] * (1 - part) + cells[low + 1] * part
    return mixed.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def psnr(frames: np.ndarray, expected: np.ndarray, peak: float) -> np.ndarray:
    """Of each frame [F, ...], in dB."""
    error = np.square(frames.astype(float) - expected).reshape(len(frames), -1).mean(axis=1)
    return 10 * np.log10(peak**2 / np.maximum(error, 1e-12))


@pytest.mark.parametrize(("warm_up", "share"), [(8, 0.01), (13, 1e-6)])
def test_encoding_in_pieces_is_nearly_the_whole(
    vae: AutoencoderKLLTX2Video, frames: np.ndarray, warm_up: int, share: float
) -> None:
    """``share``: mean square error by mean square. A random VAE, whose every layer looks as far
    back as it can, is the hardest case; with enough warm-up it is exact, so the pieces fit."""
    whole = encode_video(frames, vae)
    pieces = encode_video(frames, vae, max_pixels=PIECE_PIXELS, warm_up=warm_up)
    assert pieces.shape == whole.shape
    error = (pieces - whole).square().mean() / whole.square().mean()
    assert error < share
    first = 17 * GEOMETRY.latent_height * GEOMETRY.latent_width
    torch.testing.assert_close(pieces[:, :first], whole[:, :first], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("overlap", "least_db"), [(6, 20), (14, 40)])
def test_decoding_in_pieces_is_nearly_the_whole(
    vae: AutoencoderKLLTX2Video, overlap: int, least_db: float
) -> None:
    """Of random latents by a random VAE, again the hardest case: the worst frame's PSNR."""
    tokens = torch.randn(1, GEOMETRY.num_tokens, 128, generator=torch.Generator().manual_seed(1))
    latents = unnormalise_video(unpack_video(tokens, GEOMETRY), vae)
    with torch.inference_mode():
        whole = vae.decode(latents, None, return_dict=False)[0]
        pieces = list(decode_pieces(vae, latents, max_pixels=PIECE_PIXELS, overlap=overlap))
    joined = torch.cat(pieces, dim=2)
    assert joined.shape == whole.shape
    spread = float(whole.max() - whole.min())
    quality = psnr(joined[0].transpose(0, 1).numpy(), whole[0].transpose(0, 1).numpy(), spread)
    assert quality.min() > least_db, quality.min()
    assert (quality > 80).sum() > 60, "far from a seam it is the whole"


def test_no_more_is_decoded_than_is_asked_for(vae: AutoencoderKLLTX2Video) -> None:
    """A piece waits until the one before is used, and none is larger than the limit."""
    sizes: list[int] = []
    handle = vae.decoder.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[2]))
    tokens = torch.zeros(1, GEOMETRY.num_tokens, 128)
    pieces = Decoder(vae).frames(tokens, GEOMETRY, max_pixels=PIECE_PIXELS)
    first = next(pieces)
    assert sizes == [129]
    lengths = [len(first), *(len(piece) for piece in pieces)]
    handle.remove()
    assert lengths == [88, 88, 113]
    assert sum(lengths) == GEOMETRY.num_frames
    assert max(sizes) == 129


@pytest.mark.parametrize("max_pixels", [1, 33 * 64 * 64, PIECE_PIXELS, 10**9], ids=str)
@pytest.mark.parametrize("num_frames", [1, 9, 33, 41, 161, 481])
def test_every_frame_is_encoded_once(num_frames: int, max_pixels: int) -> None:
    frames = np.zeros((num_frames, 64, 64, 3), np.uint8)
    found = [
        latent
        for part, dropped in encode_pieces(frames, max_pixels=max_pixels)
        for latent in range(part.start // 8 + dropped, (part.stop - 1) // 8 + 1)
    ]
    assert found == list(range((num_frames - 1) // 8 + 1))
