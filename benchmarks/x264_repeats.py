"""Whether x264 makes one file of equal frames, with and without its AVX-512 code; and the cost.

    python -m benchmarks.x264_repeats [--seconds 30]

Counts the different files that each setting made of the same noise, and of waves with a little
noise over them, in turns, and their time as a ratio to x264's own choice.
"""

import argparse
import hashlib
import io
import time
from collections import Counter
from fractions import Fraction
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

SETTINGS: Final = {
    "as it is": {},
    "one thread": {"threads": "1"},
    "asm=avx2": {"x264-params": "asm=avx2"},
    "asm=avx2, one thread": {"x264-params": "asm=avx2", "threads": "1"},
}


def frames_of(kind: str) -> NDArray[np.uint8]:
    """[9, 64, 96, 3]"""
    rng = np.random.default_rng(1)
    if kind == "noise":
        return rng.integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    f, y, x = np.meshgrid(np.arange(9), np.arange(64), np.arange(96), indexing="ij")
    waves = [127.5 + 60 * np.sin((x + 2 * f) / a) * np.cos((y - f) / b) for a, b in _WAVELENGTHS]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 3, (9, 64, 96, 3))
    return pixels.clip(0, 255).astype(np.uint8)


_WAVELENGTHS: Final = ((7, 5), (11, 9), (4, 13))


def encoded(frames: NDArray[np.uint8], options: dict[str, str]) -> str:
    """A digest of the MP4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(24),
            options={"crf": "17", "preset": "veryfast", **options},
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return hashlib.sha256(file.getvalue()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    print("| frames | setting | files | different | time |")
    print("|---|---|---|---|---|")
    for kind in ("noise", "waves"):
        frames = frames_of(kind)
        digests: dict[str, Counter[str]] = {name: Counter() for name in SETTINGS}
        spent = dict.fromkeys(SETTINGS, 0.0)
        end = time.monotonic() + seconds / 2
        while time.monotonic() < end:
            for name, options in SETTINGS.items():
                began = time.perf_counter()
                digests[name][encoded(frames, options)] += 1
                spent[name] += time.perf_counter() - began
        for name, counter in digests.items():
            ratio = spent[name] / spent["as it is"]
            print(f"| {kind} | {name} | {counter.total()} | {len(counter)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
