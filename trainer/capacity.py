"""How large a training is, in tokens and bytes: arithmetic, importable by the gateway (no torch).

The trainer's memory policy (`policy.py`) and the service's estimates compute with the same numbers.
"""

from fractions import Fraction
from pathlib import Path
from typing import Final

from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS

TINY: Final = "tiny"
"""The name of the random stand-in for the model."""

AUDIO_LATENTS_PER_SECOND: Final = 25
"""16000 samples a second / 160 a mel frame / 4 mel frames a latent."""

NUM_BLOCKS: Final = 48
WIDTH: Final = 4096
"""Of LTX-2.3's transformer; only this architecture can be trained."""
WEIGHT_BYTES: Final = {False: 26_248_632_576, True: 37_977_676_288}
"""Of the transformer in bf16, without and with its audio branch (`ltx-training.md` 5.1)."""
ADAPTER_PARAMETERS_PER_RANK: Final = {False: 3_145_728, True: 6_684_672}
"""Inputs plus outputs of all adapted linears, without and with audio (`adapter.py`)."""
BYTES_PER_ADAPTER_PARAMETER: Final = 16
"""fp32: the weight, its gradient and Adam's two moments."""

BLOCK_BYTES: Final = {False: 537_624_704, True: 773_390_720}
"""Of one block in bf16, without and with audio."""
QUANTISED_PARAMETERS_PER_BLOCK: Final = {False: 268_435_456, True: 385_875_968}
"""Of a block, those that a quantised base has in one byte in place of two (`quantised.py`)."""
FULL_PRECISION_BLOCKS: Final = 2
"""At each end of the transformer, which no precision quantises."""
BYTES_PER_BOUNDARY: Final = 2
"""Kept of a recomputed block, per token and unit of width: its input in bf16."""

RESERVED_BYTES: Final = 5 * 10**9
"""For kernels' workspace, copies of adapters and texts in bf16, and fragmentation. A guess until it
was measured; the trainer proves every plan with a step."""

# Bytes that one block keeps for one video token, per unit of width.
_BYTES_BASE = 62
"""83.9 GB / 48 blocks / 6912 tokens / 4096."""
_BYTES_WITH_AUDIO = 22
"""More in a joint training: 114 GB in place of 83.9."""


def model_id(name: str) -> str:
    """What a model is called in results: a folder by its last part, others as they are.

    >>> model_id("/models/LTX-2.3"), model_id("diffusers/LTX-2.3-Diffusers"), model_id("tiny")
    ('LTX-2.3', 'diffusers/LTX-2.3-Diffusers', 'tiny')
    """
    folder = Path(name).expanduser()
    if name != TINY and (folder.is_absolute() or folder.is_dir()):
        return folder.resolve().name
    return name


def num_video_tokens(num_frames: int, height: int, width: int) -> int:
    """Tokens of a clip of ``num_frames`` (8k + 1) frames of ``height`` x ``width`` pixels.

    >>> num_video_tokens(89, 768, 768)
    6912
    """
    num_latent_frames = (num_frames - 1) // LATENT_STRIDE_FRAMES + 1
    return num_latent_frames * (height // LATENT_STRIDE_PIXELS) * (width // LATENT_STRIDE_PIXELS)


def num_audio_latents(num_frames: int, frame_rate: Fraction) -> int:
    """Audio latents that go with ``num_frames`` pixel frames: their seconds times 25, rounded.

    >>> [num_audio_latents(n, Fraction(24)) for n in (9, 25, 89, 121)]
    [9, 26, 93, 126]
    """
    return round(num_frames / Fraction(frame_rate) * AUDIO_LATENTS_PER_SECOND)


def activation_bytes_per_block(num_tokens: int, *, with_audio: bool) -> int:
    """What the backward pass needs of one block, for one sample of ``num_tokens`` video tokens.
    Given tokens cost nothing more (`blocks.py`)."""
    return num_tokens * WIDTH * (_BYTES_BASE + _BYTES_WITH_AUDIO * with_audio)
