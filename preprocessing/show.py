"""A strip of one prepared sample with its keep mask laid over: polarity and crop, seen early."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from preprocessing.latent_mask import Cells, latent_frame_of
from preprocessing.manifest import Manifest, Sample
from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS

NUM_PICTURES: Final = 8
"""Frames on a strip, spread evenly from the first to the last."""
COLUMNS: Final = 4
PICTURE_WIDTH: Final = 320
"""Pixels; four of them fill a page."""

_GAP: Final = 6
_LEGEND_HEIGHT: Final = 34
_FONT_SIZE: Final = 16
_COLORS: Final = 256
"""A palette makes a strip a third of the size; it is looked at, not trained on."""
_PAPER: Final = (255, 255, 255)
_INK: Final = (32, 32, 32)
_TINT: Final = (214, 40, 120)
"""Magenta: rare in footage, and told from gray by the colour-blind."""
_TINT_SHARE: Final = 0.5
_GRID: Final = 0.14
"""Share of white in the lines between cells."""

Picture = npt.NDArray[np.uint8]
"""[H, W, 3]."""


@dataclass(frozen=True)
class Rectangle:
    """What an outpainting keeps, in pixels of the sample; edges are floored to cells."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Window:
    """Frames of the sample that an extension keeps: the first or the last ``num_frames``."""

    num_frames: int
    at_end: bool


Keep = Rectangle | Window | None
"""What is given; None: the sample's own mask, and without one nothing."""


class UnusableKeep(ValueError):
    """What is to be given does not fit the sample, or leaves nothing to train or to start from."""


def write_strip(prepared: Path, out: Path, keep: Keep = None, sample_id: str | None = None) -> None:
    """Draw a sample of the dataset in ``prepared``, the first one unless named, to a PNG.

    Cells that the training regenerates are tinted, cells that it is given are clear. Raises
    `UnusableKeep` for a ``keep`` that no training takes, `ValueError` for a sample that is not
    there, `FileNotFoundError` where no prepared dataset is.
    """
    manifest = Manifest.load(prepared)
    sample = _chosen(manifest, sample_id)
    frames: npt.NDArray[np.uint8] = np.load(prepared / sample.frames, mmap_mode="r")
    kept = _kept(keep, frames.shape, prepared, sample)
    indices = np.unique(np.linspace(0, len(frames) - 1, NUM_PICTURES).round().astype(int))
    pictures = [_overlaid(frames[i], kept[latent_frame_of(int(i))]) for i in indices]
    labels = [f"{i}" for i in indices]
    strip = _strip(pictures, labels, _legend(sample, frames.shape, kept))
    # Quantized twice: only for a given palette does Pillow dither.
    palette = strip.quantize(_COLORS)
    strip.quantize(_COLORS, palette=palette).save(out, format="PNG", optimize=True)


def _chosen(manifest: Manifest, sample_id: str | None) -> Sample:
    if sample_id is None:
        return manifest.samples[0]
    for sample in manifest.samples:
        if sample.id == sample_id:
            return sample
    last = manifest.samples[-1].id
    raise ValueError(f"there is no sample {sample_id}; they are {manifest.samples[0].id} to {last}")


def given_cells(keep: Keep, num_frames: int, width: int, height: int) -> Cells:
    """What ``keep`` gives of a sample of this size in pixels: [f, h, w], true = given.

    The cells that a training is given (`trainer.conditions.keep_masks`), so that a strip shows what
    will be trained; it refuses the same rectangles. Raises `UnusableKeep`.
    """
    cell = LATENT_STRIDE_PIXELS
    kept = np.zeros((latent_frame_of(num_frames - 1) + 1, height // cell, width // cell), bool)
    match keep:
        case Rectangle(left, top, right, bottom):
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise UnusableKeep(f"{keep} is not inside the sample's {width}x{height} pixels")
            kept[:, top // cell : bottom // cell, left // cell : right // cell] = True
            if not kept.any():
                raise UnusableKeep(
                    f"{keep} gives nothing: with its edges floored to cells of {cell} pixels it is "
                    "empty. Make it larger."
                )
            if kept.all():
                raise UnusableKeep(
                    f"{keep} gives all of the sample's {width}x{height} pixels, so nothing is left "
                    "to regenerate. Make it smaller."
                )
        case Window(count, at_end):
            whole = count if at_end else count - 1
            if count < 1 or whole % LATENT_STRIDE_FRAMES or count >= num_frames:
                rule = "a multiple of 8" if at_end else "8k + 1"
                raise UnusableKeep(f"{count} frames: must be {rule} and less than {num_frames}")
            latent = -(-count // LATENT_STRIDE_FRAMES)
            kept[-latent if at_end else 0 : None if at_end else latent] = True
        case None:
            pass
    return kept


def _kept(keep: Keep, shape: tuple[int, ...], prepared: Path, sample: Sample) -> Cells:
    """[f, h, w], true = given; ``shape`` is that of the frames, [F, H, W, 3]."""
    if keep is None and sample.keep_mask is not None:
        own: Cells = np.load(prepared / sample.keep_mask)
        return own
    num_frames, height, width = shape[:3]
    return given_cells(keep, num_frames, width, height)


def _overlaid(frame: Picture, kept: Cells) -> Picture:
    """The frame with regenerated cells tinted and the grid of cells drawn faintly."""
    cell = LATENT_STRIDE_PIXELS
    edited = ~kept.repeat(cell, axis=0).repeat(cell, axis=1)
    picture = frame.astype(np.float32)
    tinted = picture * (1 - _TINT_SHARE) + np.array(_TINT, np.float32) * _TINT_SHARE
    picture = np.where(edited[..., None], tinted, picture)
    for lines in (picture[cell::cell], picture[:, cell::cell]):
        lines += (255 - lines) * _GRID
    return picture.round().astype(np.uint8)


def _legend(sample: Sample, shape: tuple[int, ...], kept: Cells) -> str:
    num_frames, height, width = shape[:3]
    share = 100 * (1 - np.count_nonzero(kept) / kept.size)
    return (
        f"{sample.source}: {width}x{height}, {num_frames} frames, {sample.frame_rate} per second. "
        f"Tinted: regenerated ({share:.1f} %). Clear: given. One square: one cell of 32 px."
    )


def _strip(pictures: list[Picture], labels: list[str], legend: str) -> Image.Image:
    """Pictures in rows of `COLUMNS`, each with its frame's number, above the legend."""
    height, width = pictures[0].shape[:2]
    size = PICTURE_WIDTH, round(height * PICTURE_WIDTH / width)
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    across, down = (side + _GAP for side in size)
    page = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP + _LEGEND_HEIGHT), _PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = _GAP + place % columns * across, _GAP + place // columns * down
        page.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 8, y + 5), label, _PAPER, font, stroke_width=2, stroke_fill=_INK)
    draw.text((_GAP, rows * down + _GAP), legend, _INK, font)
    return page
