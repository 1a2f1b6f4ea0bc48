"""One media file through the code of the preparation's children, in such a child."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import MediaError
from preprocessing.media import fit_video, probe_and_fit_image, probe_video
from preprocessing.pool import Pool
from preprocessing.report import VideoFacts
from preprocessing.rules import DatasetRule
from tests.hostile.costs import peak_bytes

OK = "ok"


@dataclass(frozen=True)
class Exam:
    """A file, called ``name`` by its archive, and what is asked of it."""

    name: str
    path: Path
    rule: DatasetRule
    out: Path
    still: bool = False


@dataclass(frozen=True)
class Verdict:
    """``reason`` is `OK` or that of the `MediaError`; the frames are then at the exam's ``out``."""

    reason: str
    message: str
    seconds: float
    peak_bytes: int
    """Of the child so far: what came before in the same child counts as well."""
    facts: VideoFacts | None = None


def examine(name: str, exam: Exam) -> Verdict:
    """Probe and fit, as `preprocessing.stages` does. Other errors than `MediaError` are raised."""
    started = time.perf_counter()
    reason, message, facts = OK, "", None
    try:
        if exam.still:
            probe_and_fit_image(exam.path, exam.name, exam.rule, exam.out)
        else:
            clip = probe_video(exam.path, exam.name)
            facts = clip.facts
            fit_video(clip, clip.whole, exam.rule, exam.out)
    except MediaError as error:
        reason, message = error.reason, error.message
    return Verdict(reason, message, time.perf_counter() - started, peak_bytes(), facts)


def examine_all(exams: Sequence[Exam], folder: Path) -> list[Verdict]:
    """In one confined child, in order. ``folder`` holds all files and takes the frames."""
    verdicts: dict[int, Verdict] = {}
    # What it says about its own memory is a file, too.
    with Pool(1, folder, [Path("/proc/self")]) as pool:
        for index, answer in pool.run(examine, [(exam.name, exam) for exam in exams]):
            if isinstance(answer, MediaError):  # the child died of it, twice
                answer = Verdict(answer.reason, answer.message, 0.0, 0)
            verdicts[index] = answer
    return [verdicts[index] for index in range(len(exams))]
