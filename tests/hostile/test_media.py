"""M1 to M52: media files, in a confined child of the preparation.

Every file is probed and fitted by what the preparation's children run, in one such child with all
its limits (`examining.py`). Pass: the expected answer, no frame from another file, the canary
never asked, bounded memory and time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.rules import VIDEO_EXTENSIONS, DatasetRule
from tests.app.fetch.server import ScriptedServer, answer, scripted_server
from tests.hostile import media_files as files
from tests.hostile.costs import MEBIBYTE, Meter
from tests.hostile.examining import OK, Exam, Verdict, examine_all
from tests.hostile.media_files import Make, black_png, holding, patched
from tests.hostile.preparing import Job, prepare_all
from tests.preprocessing.media import test_pictures as pictures
from tests.preprocessing.media.made import (
    make_clip,
    numbered,
    numbered_clip,
    numbers_in,
    patch,
    rule,
    tone,
)
from tests.preprocessing.media.test_frames import NTSC, offset_times, with_b_frames
from tests.preprocessing.media.test_refusals import HLS, MPD, SVG, cover_art_only, sound_only
from tests.preprocessing.zips import zip_of

MAX_PEAK_BYTES = 2048 * MEBIBYTE
MAX_SECONDS = 60.0
SECRET = 900
"""Numbers of the frames in the file of another tenant; those of the cases are below."""

IMF = '<?xml version="1.0"?><AssetMap><Path>{target}</Path></AssetMap>'
ASX = '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'
CONCAT = "ffconcat version 1.0\nfile {target}\n"
PLS = "[playlist]\nFile1={target}\nNumberOfEntries=1\n"
SDP = "v=0\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@dataclass(frozen=True)
class Case:
    """``make`` writes the file; of a text, ``{target}`` and the like are filled in.

    ``expected``: the reasons that are right. `OK` means that it works, with the frames
    ``numbers`` if those are given.
    """

    id: str
    name: str
    make: Make | str
    expected: tuple[str, ...]
    numbers: list[int] | None = None
    rule: DatasetRule = field(default_factory=rule)
    check: Callable[[Any], None] | None = None
    """Of the frames [F, H, W, 3]."""
    still: bool = False


def refused(id: str, name: str, make: Make | str, *reasons: str, still: bool = False) -> Case:
    return Case(id, name, make, reasons, still=still)


def works(id: str, name: str, make: Make, count: int = 9, **more: Any) -> Case:
    return Case(id, name, make, (OK,), list(range(count)), **more)


NOT = "not_a_video"
IMAGE = "not_an_image"

TEXTS = [
    *(
        refused(f"M1-playlist-of-http-as-{kind}", f"clip.{kind}", HLS.format(target="{url}"), NOT)
        for kind in ("mp4", "mov", "mkv", "avi")
    ),
    refused("M2-playlist-of-an-absolute-path", "clip.mp4", HLS, NOT),
    refused("M2-playlist-of-a-file-url", "clip.mp4", HLS.format(target="file:{target}"), NOT),
    refused("M2-playlist-of-a-parent", "clip.mp4", HLS.format(target="../other/{file}"), NOT),
    refused("M3-playlist-called-m3u8", "clip.m3u8", HLS, NOT),
    refused("M4-playlist-of-concat", "clip.mp4", HLS.format(target="concat:{target}|x"), NOT),
    refused(
        "M4-playlist-of-subfile",
        "clip.mp4",
        HLS.format(target="subfile,,start,0,end,9999,,:{target}"),
        NOT,
    ),
    refused("M4-playlist-of-data", "clip.mp4", HLS.format(target="data:video/mp4,x"), NOT),
    refused("M5-concat-script-absolute", "clip.mp4", CONCAT, NOT),
    refused("M6-concat-script-of-a-parent", "clip.mp4", CONCAT.format(target="../{file}"), NOT),
    refused("M7-concat-script-of-a-sibling", "clip.mp4", CONCAT.format(target="{file}"), NOT),
    refused("M8-dash", "clip.mp4", MPD.format(target="{url}"), NOT),
    refused("M9-sdp", "clip.mp4", SDP, NOT),
    refused("M10-imf", "clip.mp4", IMF, NOT),
    refused("M11-asx", "clip.mp4", ASX, NOT),
    refused("M11-pls", "clip.mp4", PLS, NOT),
    refused("M11-lrc", "clip.mp4", "[00:01.00]la la la\n", NOT),
    refused("M12-svg", "image.png", SVG, IMAGE, still=True),
    refused("M26-text", "clip.mp4", "not a film\n", NOT),
]


def turned(matrix: tuple[int, int, int, int]) -> Make:
    a, b, c, d = matrix

    def setup(stream: Any) -> None:
        stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))

    return lambda path: make_clip(path, [pictures.CORNERS] * 9, setup=setup)


def upright(turn: str) -> Case:
    matrix, turn_picture = pictures.TURNS[turn]
    wanted = turn_picture(pictures.CORNERS)
    height, width = wanted.shape[:2]

    def check(frames: Any) -> None:
        for y in (20, height - 20):
            for x in (20, width - 20):
                assert np.abs(frames[0, y, x].astype(int) - wanted[y, x]).max() < 20

    asked = rule(width=width, height=height)
    name = turn.replace(" ", "-")
    return Case(f"M41-{name}", "clip.mp4", turned(matrix), (OK,), rule=asked, check=check)


def coloured(id: str, pixel_format: str, matrix: int, range_: int, tagged: bool = True) -> Case:
    """A clip of one colour, which must come out as that colour."""
    size = pictures.HD if not tagged else pictures.SD

    def make(path: Path) -> None:
        codes = pictures.codes_of(pictures.RED, matrix, range_)
        frame = pictures.yuv_frame(size, pixel_format, codes)
        setup = {"setup": pictures.tags(matrix, range_)} if tagged else {}
        make_clip(path, [frame], pixel_format=pixel_format, **pictures.LOSSLESS, **setup)

    return Case(id, "clip.mkv", make, (OK,), rule=rule(num_frames=1), check=is_red)


def is_red(frames: Any) -> None:
    assert np.abs(frames[0].astype(float) - np.array(pictures.RED)).max() <= 2


def is_gray(frames: Any) -> None:
    assert np.ptp(frames[0], axis=-1).max() <= 1


def is_on_black(frames: Any) -> None:
    assert frames[0, 10:-10, 100:150].max() <= 4
    assert np.abs(frames[0, 10:-10, 10:60].astype(int) - pictures.RED).max() <= 10


def hdr(transfer: int) -> Make:
    def make(path: Path) -> None:
        frame = pictures.yuv_frame(pictures.SD, "yuv420p10le", (120, 128, 128))
        tags = pictures.tags(
            pictures.BT2020, pictures.LIMITED, primaries=pictures.BT2020, transfer=transfer
        )
        make_clip(path, [frame], pixel_format="yuv420p10le", setup=tags, **pictures.LOSSLESS)

    return make


def anamorphic(path: Path) -> None:
    def squeeze(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)

    make_clip(path, (numbered(n, 90, 96) for n in range(9)), setup=squeeze)


def interlaced(path: Path) -> None:
    options = {"crf": "8", "x264-params": "interlaced=1:tff=1"}
    make_clip(path, [pictures.woven(n) for n in range(12)], options=options)


def no_combs(frames: Any) -> None:
    assert max(pictures.combing(frame) for frame in frames) < 2


def transparent(codec: str, pixel_format: str) -> Make:
    options = {"auto-alt-ref": "0", "b": "2M"} if codec.startswith("libvpx") else {}

    def make(path: Path) -> None:
        frames = [pictures.with_alpha().reformat(format=pixel_format) for _ in range(2)]
        make_clip(path, frames, codec=codec, pixel_format=pixel_format, options=options)

    return make


def with_sound(seconds: float, rate: int = 48_000, layout: str = "stereo", **how: Any) -> Make:
    channels = {"mono": 1, "stereo": 2, "7.1": 8}[layout]

    def make(path: Path) -> None:
        sound = np.repeat(tone(seconds, 440, rate)[:1], channels, axis=0)
        numbered_clip(
            path,
            20,
            sound=sound,
            sound_rate=rate,
            sound_layout=layout,
            sound_codec="pcm_f32le",
            sound_format="flt",
            **how,
        )

    return make


def sound_of_no_numbers(path: Path) -> None:
    sound = tone(0.8, 440)
    sound[:, 100:200] = np.nan
    sound[:, 300:400] = np.inf
    numbered_clip(path, 20, sound=sound, sound_codec="pcm_f32le", sound_format="flt")


def animation(codec: str, format: str, pixel_format: str) -> Make:
    frames = [patch((9, 9, 9)), patch((99, 9, 9))]
    return lambda path: make_clip(
        path, frames, codec=codec, format=format, pixel_format=pixel_format, options={}
    )


def black(width: int, height: int, codec: str = "ffv1") -> Make:
    options = {"preset": "ultrafast"} if codec == "libx264" else {}
    return lambda path: make_clip(
        path, [patch((0, 0, 0), width, height)] * 2, codec=codec, options=options
    )


ONE = rule(num_frames=1)
LONG = rule(num_frames=89)

FILES = [
    Case("M16-header-claims-65535", "clip.mp4", patched(9, files.size_of_65535), (OK,)),
    works("M18-two-billion-times", "clip.mp4", patched(20, files.two_billion_times)),
    works("M19-a-century", "clip.mp4", patched(20, files.a_century)),
    refused(
        "M20-two-billion-sizes",
        "clip.mp4",
        patched(20, files.two_billion_sizes),
        "unreadable",
    ),
    refused("M21-no-index", "clip.mp4", patched(20, files.without_index), "unreadable"),
    works(
        "M22-cut-off",
        "clip.mp4",
        patched(
            100,
            files.cut_in_half,
            options={"g": "10", "crf": "12"},
            container_options={"movflags": "faststart"},
        ),
    ),
    *(
        Case(f"M23-flipped-bits-{seed}", "clip.mp4", patched(20, files.flipped_bits(seed)), ())
        for seed in range(20)
    ),
    refused("M24-zeros", "clip.mp4", holding(bytes(100_000)), NOT),
    refused("M25-empty", "clip.mp4", holding(b""), NOT),
    refused("M27-program", "clip.mp4", holding(b"\x7fELF" + bytes(200)), NOT),
    refused("M28-sound-only", "clip.mp4", lambda path: sound_only(path.parent), "no_video"),
    refused("M29-cover-art", "clip.mp4", lambda path: cover_art_only(path.parent), "no_video"),
    refused("M30-gif", "clip.mp4", animation("gif", "gif", "rgb8"), NOT),
    refused("M30-animated-png", "image.png", animation("apng", "apng", "rgb24"), IMAGE, still=True),
    refused(
        "M30-animated-webp",
        "image.png",
        holding(b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(40)),
        IMAGE,
        still=True,
    ),
    refused("M31-one-frame", "clip.mp4", lambda path: numbered_clip(path, 1), "too_short"),
    Case(
        "M32-one-frame-short",
        "clip.mp4",
        lambda path: numbered_clip(path, 88),
        ("too_short",),
        rule=LONG,
    ),
    works("M33-exactly-enough", "clip.mp4", lambda path: numbered_clip(path, 89), 89, rule=LONG),
    Case("M35-variable-rate", "clip.mp4", files.variable_rate, (OK,), [0, 1, 2, 3, 3, 3, 4, 5, 6]),
    works(
        "M36-half-a-frame-per-second",
        "clip.mp4",
        lambda path: numbered_clip(path, 12, rate=Fraction(1, 2)),
    ),
    works("M37-240-per-second", "clip.mp4", lambda path: numbered_clip(path, 12, rate=240)),
    works(
        "M38-23-976", "clip.mp4", lambda path: numbered_clip(path, 12, rate=Fraction(24000, 1001))
    ),
    Case(
        "M38-29-97-to-24",
        "clip.mp4",
        lambda path: numbered_clip(path, 60, rate=NTSC),
        (OK,),
        [0, 1, 2, 4, 5, 6, 7, 9, 10],
        rule=rule(auto_scale=True),
    ),
    works("M39-late-start", "clip.mkv", lambda path: offset_times(path, 100_000)),
    works("M40-reordered", "clip.mp4", with_b_frames),
    works(
        "M40-negative-times",
        "clip.mp4",
        lambda path: numbered_clip(
            path,
            20,
            options={"bf": "2", "crf": "12"},
            container_options={"use_editlist": "0", "movflags": "negative_cts_offsets"},
        ),
    ),
    *map(upright, ("90 clockwise", "180", "270 clockwise", "mirrored")),
    works("M42-anamorphic", "clip.mp4", anamorphic),
    Case("M43-interlaced", "clip.mp4", interlaced, (OK,), check=no_combs),
    Case("M44-pq", "clip.mkv", hdr(pictures.PQ), (OK,), rule=ONE, check=is_gray),
    Case("M44-hlg", "clip.mkv", hdr(pictures.HLG), (OK,), rule=ONE, check=is_gray),
    *(
        coloured(f"M45-{pixel_format}-{name}", pixel_format, pictures.BT709, range_)
        for pixel_format in ("yuv444p", "yuv422p", "yuv420p10le")
        for name, range_ in (("limited", pictures.LIMITED), ("full", pictures.FULL))
    ),
    coloured("M45-untagged-hd", "yuv420p", pictures.BT709, pictures.LIMITED, tagged=False),
    Case(
        "M45-gray",
        "clip.mkv",
        lambda path: make_clip(
            path, [patch((90, 90, 90))], codec="ffv1", pixel_format="gray", options={}
        ),
        (OK,),
        rule=ONE,
        check=is_gray,
    ),
    Case(
        "M45-rgb",
        "clip.mkv",
        lambda path: make_clip(
            path, [patch(pictures.RED)], codec="ffv1", pixel_format="bgr0", options={}
        ),
        (OK,),
        rule=ONE,
        check=is_red,
    ),
    Case(
        "M46-prores-4444",
        "clip.mov",
        transparent("prores_ks", "yuva444p10le"),
        (OK,),
        rule=ONE,
        check=is_on_black,
    ),
    Case(
        "M46-vp9",
        "clip.mkv",
        transparent("libvpx-vp9", "yuva420p"),
        (OK,),
        rule=ONE,
        check=is_on_black,
    ),
    Case("M47-321x239", "clip.mkv", black(321, 239), (OK,), rule=ONE),
    refused("M47-1x1", "clip.mkv", black(1, 1), "too_small", "unreadable"),
    Case("M47-8192x16", "clip.mkv", black(8192, 16), (OK, "too_small"), rule=ONE),
    works("M48-two-sizes", "clip.mkv", files.two_sizes),
    works("M49-eight-channels-at-192-kHz", "clip.mkv", with_sound(0.8, 192_000, "7.1")),
    works("M49-mono-at-8-kHz", "clip.mkv", with_sound(0.8, 8_000, "mono")),
    works("M49-no-numbers", "clip.mkv", sound_of_no_numbers),
    works("M49-shorter-than-the-picture", "clip.mkv", with_sound(0.2)),
    refused(
        "M50-900-million-pixels",
        "image.png",
        holding(black_png(30_000, 30_000)),
        "too_large",
        "unreadable",
        still=True,
    ),
    refused(
        "M50-header-of-2-31",
        "image.png",
        holding(black_png(2**31 - 1, 2)),
        "too_large",
        "unreadable",
        still=True,
    ),
    refused(
        "M50-16384-square",
        "image.png",
        holding(black_png(16_384, 16_384)),
        "too_large",
        "unreadable",
        still=True,
    ),
    Case(
        "M50-inflates-to-200-MB",
        "image.png",
        holding(black_png(64, 64, 200 * 2**20)),
        (OK, "unreadable"),
        still=True,
        rule=ONE,
    ),
    # The dear ones last: the peak of a process never falls.
    refused("M17-a-million-frames", "clip.mov", files.million_frames, "too_long"),
    refused(
        "M15-16000-square",
        "clip.mov",
        files.picture_in_mov(16_000, 16_000),
        "too_large",
        "unreadable",
    ),
    refused("M15-8192x4608-h264", "clip.mp4", black(8192, 4608, "libx264"), "too_large"),
]


@pytest.fixture(scope="module")
def canary() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        server.scripts = [answer(b"from inside")]
        yield server
        assert server.heads == []


@dataclass(frozen=True)
class Examined:
    cases: dict[str, tuple[Case, Exam, Verdict]]
    folder: Path


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory, canary: ScriptedServer) -> Examined:
    """All files of one folder, in one child; the other tenant's file lies in the next folder."""
    root = tmp_path_factory.mktemp("media")
    folder, other = root / "job", root / "other"
    other.mkdir()
    secret = make_clip(other / "secret.mp4", (numbered(SECRET + n) for n in range(20)))
    cases = [*TEXTS, *with_targets(secret, canary), *FILES]
    exams = []
    for number, case in enumerate(cases):
        place = folder / f"{number}"
        place.mkdir(parents=True)
        path = place / case.name
        if isinstance(case.make, str):
            text = case.make.replace("{target}", str(secret)).replace("{url}", canary.url)
            text = text.replace("{file}", secret.name).replace("{port}", str(canary.port))
            path.write_text(text)
            (place / secret.name).write_bytes(secret.read_bytes())
        else:
            case.make(path)
        exams.append(Exam(f"clips/{case.name}", path, case.rule, place / "out.npy", case.still))
    verdicts = examine_all(exams, folder)
    triples = zip(cases, exams, verdicts, strict=True)
    return Examined({triple[0].id: triple for triple in triples}, folder)


def with_targets(secret: Path, canary: ScriptedServer) -> list[Case]:
    """Files that name another one in their own binary way."""
    playlist = HLS.format(target=secret).encode()
    either = (OK, "unreadable")
    return [
        refused("M4-avi-with-gab2", "clip.avi", files.avi_with_playlist(playlist), *either),
        refused("M13-external-track", "clip.mov", files.external_reference(secret), *either),
    ]


IDS = [case.id for case in (*TEXTS, *with_targets(Path("x"), None), *FILES)]  # type: ignore[arg-type]


@pytest.mark.parametrize("case_id", IDS)
def test_file(examined: Examined, meter: Meter, case_id: str) -> None:
    case, exam, verdict = examined.cases[case_id]
    meter.measured(verdict.seconds, verdict.peak_bytes)
    assert verdict.peak_bytes < MAX_PEAK_BYTES
    assert verdict.seconds < MAX_SECONDS
    if case.expected:
        assert verdict.reason in case.expected, verdict.message
    if verdict.reason != OK:
        assert exam.name in verdict.message
        assert verdict.message.isprintable()
        assert str(examined.folder) not in verdict.message
        return
    frames = np.load(exam.out)
    assert frames.shape == (case.rule.num_frames, case.rule.height, case.rule.width, 3)
    if case.check is not None:
        case.check(frames)
    if not case.still and case.rule.width == 160:
        found = numbers_in(exam.out)
        assert max(found) < SECRET or case.check is not None
        assert case.numbers is None or found == case.numbers


def test_M2_every_disguised_file_is_named(examined: Examined, tmp_path: Path, meter: Meter) -> None:
    """The same files in one archive: the report has the reason for each."""
    contents: dict[str, bytes | Path] = {}
    for number, (_, exam, verdict) in enumerate(examined.cases.values()):
        if verdict.reason == NOT and exam.path.suffix in VIDEO_EXTENSIONS:
            contents[f"{number}{exam.path.suffix}"] = exam.path
    archive = zip_of(tmp_path / "dataset.zip", contents)
    job = Job("all", archive, tmp_path / "out", rule())
    one = prepare_all([job], tmp_path / "notes")["all"]
    meter.measured(one.outcome.seconds, one.outcome.peak_bytes)
    one.refused()
    reasons = {clip.name: clip.dropped and clip.dropped.reason for clip in one.report.clips}
    assert reasons == dict.fromkeys(contents, NOT)
    assert len(contents) > 20
