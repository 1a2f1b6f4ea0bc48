"""How fast clips are prepared, beside what bare decoding costs.

    python -m benchmarks.preprocess [--quick] [--no-gates] [--rounds N] [--out results.md]

One made clip (10 s, 1920x1080, 30 frames per second, H.264 with noise), all measurements in turn,
the best of N rounds. What runs on one thread is measured in CPU seconds, children included, and
reported as a ratio; the row of two processes goes by the clock. The gates are those of
`reliability.md` 5.2: a missed one is marked and makes the exit status 1, unless ``--no-gates``
(a shared machine) or ``--quick`` (CI) is given.

A is the first 89 frames at 24 per second (decodes 111 frames), B is 89 spread over the whole clip.
Frames are written to memory (/dev/shm) where there is one: the disk is not what is timed.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from benchmarks.rows import Row, table
from preprocessing.events import EventLog
from preprocessing.media import Clip, detect_scenes, probe_video
from preprocessing.media.fit import write_frames
from preprocessing.media.timeline import FramePlan, plan
from preprocessing.prepare import prepare
from preprocessing.rules import DatasetRule
from tests.preprocessing.media.made import make_clip, tone
from tests.preprocessing.media.reference import (
    full_chroma_rgb,
    noisy_frame,
    psnr,
    reference,
    through_graph,
)

RULE = DatasetRule(
    num_frames=89, frame_rate=24, width=768, height=768, auto_scale=True, split_scenes=False
)
SECONDS, QUICK_SECONDS = 10, 5
ROUNDS, QUICK_ROUNDS = 5, 1
BIT_RATE = 8_200_000
CLIPS_IN_ARCHIVE = 4
TASKS_PER_PROCESS = 3


def make_source(out: Path, seconds: int) -> Path:
    """FFmpeg's test picture under moving noise, with a tone."""
    graph = Graph()
    graph.link_nodes(
        graph.add("testsrc2", f"size=1920x1080:rate=30:duration={seconds}"),
        graph.add("noise", "alls=12:allf=t"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return make_clip(
        out,
        (graph.vpull() for _ in range(30 * seconds)),
        rate=30,
        options={"preset": "veryfast", "b": str(BIT_RATE)},
        sound=tone(seconds, 440),
    )


def plan_a(clip: Clip) -> FramePlan:
    chosen = plan(clip.timeline, clip.whole, RULE)
    assert chosen is not None
    return chosen


def plan_b(clip: Clip) -> FramePlan:
    last = clip.facts.num_frames - 1
    indices = tuple(int(index) for index in np.linspace(0, last, RULE.num_frames).round())
    return FramePlan(indices, Fraction(24), clip.whole, Fraction(1), last + 1)


def decode(path: Path, num_frames: int) -> None:
    """What nothing can beat: FFmpeg's decoder through PyAV, frames thrown away."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.thread_count = 1
        for number, _ in enumerate(container.decode(stream), start=1):
            if number == num_frames:
                return


def filter_graph(path: Path, indices: tuple[int, ...]) -> None:
    """The same frames by one FFmpeg filter graph in PyAV: the recipe of `reliability.md` 5.2."""
    graph = Graph()
    graph.threads = 1
    filters = [
        ("buffer", "video_size=1920x1080:pix_fmt=yuv420p:time_base=1/1"),
        ("crop", "1080:1080"),
        ("scale", "768:768:flags=bicubic"),
        ("format", "yuv444p"),
        ("scale", "flags=accurate_rnd+full_chroma_int"),
        ("format", "rgb24"),
        ("buffersink", None),
    ]
    graph.link_nodes(*(graph.add(name, args) for name, args in filters)).configure()
    frames = np.empty((len(indices), RULE.height, RULE.width, 3), np.uint8)
    places = {index: place for place, index in enumerate(indices)}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in places:
                frame.pts = 0
                graph.push(frame)
                frames[places[index]] = graph.vpull().to_ndarray()
            if index >= indices[-1]:
                return


def ffmpeg_program(path: Path, indices: tuple[int, ...]) -> None:
    """The same frames cut and scaled by the ``ffmpeg`` program, read through a pipe."""
    chosen = "+".join(f"eq(n\\,{index})" for index in sorted(set(indices)))
    filters = f"select='{chosen}',crop=1080:1080,scale=768:768:flags=bicubic"
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-an", "-vf", filters]
    command += ["-filter_threads", "1", "-vsync", "passthrough", "-frames:v", str(len(indices))]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run(command, check=True, capture_output=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 768, 768, 3)
    assert len(frames) == len(indices)


def clock_seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def cpu_seconds(function: Callable[[], object]) -> float:
    """Of this process and of the children it waited for."""
    begun = sum(os.times()[:4])
    function()
    return sum(os.times()[:4]) - begun


def measure_speed(path: Path, folder: Path, rounds: int) -> dict[str, float]:
    """CPU seconds of each measurement, the best of ``rounds`` taken in turn."""
    clip = probe_video(path, path.name)
    a, b = plan_a(clip), plan_b(clip)
    out = folder / "out.npy"
    measurements: dict[str, Callable[[], object]] = {
        "decode A": lambda: decode(path, a.indices[-1] + 1),
        "fit A": lambda: write_frames(clip, a, RULE, out),
        "graph A": lambda: filter_graph(path, a.indices),
        "decode B": lambda: decode(path, b.indices[-1] + 1),
        "fit B": lambda: write_frames(clip, b, RULE, out),
        "graph B": lambda: filter_graph(path, b.indices),
        "scenes": lambda: detect_scenes(clip),
        "probe": lambda: probe_video(path, path.name),
    }
    if shutil.which("ffmpeg"):
        measurements |= {
            "ffmpeg A": lambda: ffmpeg_program(path, a.indices),
            "ffmpeg B": lambda: ffmpeg_program(path, b.indices),
        }
    best = dict.fromkeys(measurements, float("inf"))
    for _ in range(rounds):
        for name, function in measurements.items():
            out.unlink(missing_ok=True)
            best[name] = min(best[name], cpu_seconds(function))
    return best


def fit_repeatedly(path: Path, out: Path) -> None:
    """One child's steady work."""
    clip = probe_video(path, path.name)
    for _ in range(TASKS_PER_PROCESS):
        write_frames(clip, plan_a(clip), RULE, out)


def throughput(path: Path, folder: Path, processes: int) -> float:
    """Samples per second of warm processes."""
    context = multiprocessing.get_context("spawn")
    outs = [folder / f"{number}.npy" for number in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(probe_video, [path] * processes, ["warm"] * processes))
        seconds = clock_seconds(lambda: list(pool.map(fit_repeatedly, [path] * processes, outs)))
    return processes * TASKS_PER_PROCESS / seconds


def peak_mb_of_child(path: Path, folder: Path) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(fit_repeatedly, path, folder / "out.npy").result()
        return pool.submit(_peak_mb).result()


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def whole_preparation(path: Path, folder: Path) -> float:
    """CPU seconds per clip from a zip to a prepared dataset, one process, its start included."""
    archive = folder / "clips.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(CLIPS_IN_ARCHIVE):
            file.write(path, f"{number}.mp4")
    out = folder / "prepared"
    out.mkdir()
    with EventLog(out / "events.jsonl") as events:
        seconds = cpu_seconds(lambda: prepare(archive, RULE, out, events, processes=1))
    shutil.rmtree(out)
    return seconds / CLIPS_IN_ARCHIVE


def quality() -> tuple[float, float]:
    """PSNR in dB and bias in levels against the reference's resize, on noise."""
    frame = noisy_frame(1920, 1080)
    want = reference(full_chroma_rgb(frame), RULE.width, RULE.height)
    got = through_graph(frame, RULE.width, RULE.height)
    return psnr(got, want), float((got - want).mean())


def run(folder: Path, seconds: int, rounds: int) -> list[Row]:
    path = make_source(folder / "clip.mp4", seconds)
    best = measure_speed(path, folder, rounds)
    rows = [
        Row("fit A, of the decode-only rate", best["decode A"] / best["fit A"], ".0%", 0.55),
        Row("fit B, of the decode-only rate", best["decode B"] / best["fit B"], ".0%", 0.72),
    ]
    others = {"ffmpeg": "the ffmpeg program", "graph": "one filter graph (5.2)"}
    for case, (key, other) in itertools.product(("A", "B"), others.items()):
        if f"{key} {case}" in best:
            faster = best[f"{key} {case}"] / best[f"fit {case}"]
            rows.append(Row(f"fit {case}, times the speed of {other}", faster, ".2f"))
    scenes = best["scenes"] / best["decode B"]
    rows.append(Row("scene detection, of the decode time", scenes, ".2f", at_most=1.15))
    probing = best["probe"] / best["decode B"]
    rows.append(Row("probing, of the decode time", probing, ".3f"))
    alone = min(whole_preparation(path, folder) for _ in range(min(rounds, 3)))
    ratio = best["decode A"] / alone
    rows.append(Row("whole preparation of a clip (A), of the decode-only rate", ratio, ".0%"))
    # Each its own best: a ratio of two single runs would be the noise of both.
    speeds = [(throughput(path, folder, 1), throughput(path, folder, 2)) for _ in range(rounds)]
    scaling = max(two for _, two in speeds) / max(one for one, _ in speeds)
    rows.append(Row("two processes, times the samples of one", scaling, ".2f", at_least=1.7))
    peak = peak_mb_of_child(path, folder)
    rows.append(Row("peak memory of a process, MB", peak, ".0f", at_most=700))
    decibels, bias = quality()
    rows.append(Row("PSNR against the reference's resize on noise, dB", decibels, ".1f", 45))
    rows.append(Row("bias against it, levels", bias, "+.2f", at_least=-0.5, at_most=0.5))
    return rows


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a shorter clip, one round (CI)")
    parser.add_argument("--no-gates", action="store_true", help="a missed gate is only marked")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    seconds = QUICK_SECONDS if given.quick else SECONDS
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        rows = run(Path(folder), seconds, rounds)
    versions = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    text = (
        f"{table(rows)}\n\n{seconds} s of 1920x1080 at 30 per second to 89 frames of 768x768; best "
        f"of {rounds}; {os.cpu_count()} cores, {versions}, Python {platform.python_version()}, "
        f"{platform.machine()}.\n"
    )
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    missed = [row.what for row in rows if row.missed]
    if missed:
        print(f"gates missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed and not (given.no_gates or given.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
