"""Z1 to Z46: zips, through the preparation child.

The archives that must be refused go there one by one. What must be accepted is one archive with all
the odd names and captions at once, of real images.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing.archive import ZipArchive
from preprocessing.report import ClipReport
from preprocessing.rules import DatasetRule
from preprocessing.zip_directory import MAX_ENTRIES
from tests.hostile.catalogue import as_id
from tests.hostile.costs import MEBIBYTE, Meter
from tests.hostile.preparing import Job, Prepared, prepare_all
from tests.preprocessing.test_archive import CLIP, REFUSED, named
from tests.preprocessing.zips import UTF8, RawEntry, RawZip, raw, zip64_end

IMAGES = DatasetRule(num_frames=1, frame_rate=24, width=32, height=32)
MASKED = DatasetRule(
    num_frames=9,
    frame_rate=24,
    width=32,
    height=32,
    image_extensions=(),
    masks=True,
    unique_names=True,
)
MAX_PEAK_BYTES = 400 * MEBIBYTE
"""Of a child that refuses an archive: its libraries take a third of that."""


def png(width: int = 32, height: int = 32) -> bytes:
    """A real image, gray."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + bytes([128] * width) for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = png()


def captioned(caption: bytes) -> bytes:
    return raw(RawEntry(b"a.png", PNG), RawEntry(b"a.txt", caption, method=8))


def many_entries(count: int) -> bytes:
    """Empty files without their local headers: who reads the directory only never misses them."""
    start = len(PNG)
    directory = b"".join(
        b"PK\x01\x02" + bytes(24) + struct.pack("<H", 9) + bytes(16) + b"%05d.mp4" % number
        for number in range(count)
    )
    return PNG + directory + zip64_end(count, count, len(directory), start)


Build = Callable[[], bytes]


ALONE: dict[str, tuple[Build, str]] = {
    **{as_id(case): row for case, row in REFUSED.items() if re.match(r"Z\d", case)},
    "Z13-one-base-name-in-two-folders-with-masks": (
        lambda: named("a/x.mp4", "b/x.mp4", "a/x_mask.png", "b/x_mask.png"),
        "x.mp4",
    ),
    "Z23-empty": (lambda: raw(), "no usable media"),
    "Z24-folders-only": (lambda: named("a/", "a/b/"), "no usable media"),
    "Z25-zip-in-zip": (lambda: named("in.zip", data=named("a.mp4")), "are not opened"),
    "Z32-100000-entries": (lambda: many_entries(100_000), "at most"),
    "Z32-a-count-that-lies": (
        lambda: RawZip(
            [RawEntry(b"%d.mp4" % n) for n in range(MAX_ENTRIES + 5)], num_entries=3
        ).build(),
        "at most",
    ),
    "Z45-caption-of-50-MB": (lambda: captioned(b"x" * (50 * 2**20)), "at most 10000"),
    "Z45-caption-of-a-million-words": (lambda: captioned(b"word " * 1_000_000), "at most 10000"),
    "Z45-caption-with-NUL": (lambda: captioned(b"a\0b"), "not a text file"),
    "Z45-damaged-utf-16": (lambda: captioned(b"\xff\xfea"), "damaged"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    folder = tmp_path_factory.mktemp("refused")
    jobs = []
    for number, (case, (build, _)) in enumerate(ALONE.items()):
        archive = folder / f"{number}.zip"
        archive.write_bytes(build())
        rule = MASKED if "masks" in case else IMAGES
        jobs.append(Job(case, archive, folder / f"{number}-out", rule))
    found = prepare_all(jobs, folder / "notes")
    assert {path.name for path in folder.iterdir()} == {
        "notes",
        *(job.archive.name for job in jobs),
        *(job.out.name for job in jobs),
    }, "no entry was written anywhere else"
    return found


@pytest.mark.parametrize("case", ALONE)
def test_refused(refused: dict[str, Prepared], meter: Meter, case: str) -> None:
    one = refused[case]
    meter.measured(one.outcome.seconds, one.outcome.peak_bytes)
    assert ALONE[case][1] in one.refused()
    assert one.outcome.peak_bytes < MAX_PEAK_BYTES


SJIS = "表紙".encode("shift_jis")
"""Its second byte is that of a backslash."""

TAME: dict[str, tuple[list[RawEntry], list[str]]] = {
    # id: (entries, names of the images as the report shows them)
    "Z9-setuid-and-world-writable": (
        [RawEntry(b"z9.png", PNG, mode=stat.S_IFREG | 0o6777)],
        ["z9.png"],
    ),
    "Z11-caption-in-capitals": (
        [RawEntry(b"z11.PNG", PNG), RawEntry(b"Z11.TXT", b"in capitals")],
        ["z11.PNG"],
    ),
    "Z12-clip-NFC-caption-NFD": (
        [
            RawEntry("z12\u00e9.png".encode(), PNG, flags=UTF8),
            RawEntry("z12e\u0301.txt".encode(), b"decomposed", flags=UTF8),
        ],
        ["z12\u00e9.png"],
    ),
    "Z13-one-base-name-in-two-folders": (
        [
            RawEntry(b"a/z13.png", PNG),
            RawEntry(b"a/z13.txt", b"of a"),
            RawEntry(b"b/z13.png", PNG),
            RawEntry(b"b/z13.txt", b"of b"),
        ],
        ["a/z13.png", "b/z13.png"],
    ),
    "Z14-right-to-left-and-zero-width": (
        [RawEntry("z14\u202egnp\u200b.png".encode(), PNG, flags=UTF8)],
        ["z14\\u202egnp\\u200b.png"],
    ),
    "Z15-terminal-escapes": (
        [RawEntry(b"z15\x1b[31m\r\n\a.png", PNG)],
        ["z15\\u001b[31m\\u000d\\u000a\\u0007.png"],
    ),
    "Z19-dot-and-slashes": (
        [RawEntry(b"./", b""), RawEntry(b"./z19//x.png", PNG)],
        ["z19/x.png"],
    ),
    "Z21-system-files": (
        [
            RawEntry(b"__MACOSX/._z9.png", b"junk"),
            RawEntry(b"__macosx/z9.png", b"junk"),
            RawEntry(b"._x.png", b"junk"),
            RawEntry(b".DS_Store", b"junk"),
            RawEntry(b"Thumbs.db", b"junk"),
        ],
        [],
    ),
    "Z22-shells-patterns-and-devices": (
        [
            RawEntry(name, PNG)
            for name in (
                b"$(id).png",
                b"%s%n.png",
                b"-rf.png",
                b"CON.png",
                b"a'\"b.png",
                b"a:b.png",
                b"a?.png",
                b"aux.png",
                b"concat:x.png",
                b"img%03d.png",
            )
        ],
        [
            *("$(id).png", "%s%n.png", "-rf.png", "CON.png", "a'\"b.png", "a:b.png", "a?.png"),
            *("aux.png", "concat:x.png", "img%03d.png"),
        ],
    ),
    "Z41-cp437": ([RawEntry(b"z41\x81.png", PNG)], ["z41ü.png"]),
    "Z41-shift-jis": (
        [RawEntry(SJIS + b".png", PNG), RawEntry(SJIS + b".txt", b"a cover")],
        [SJIS.decode("cp437") + ".png"],
    ),
    "Z45-utf-16": (
        [RawEntry(b"z45a.png", PNG), RawEntry(b"z45a.txt", "größer".encode("utf-16"))],
        ["z45a.png"],
    ),
    "Z45-byte-order-mark": (
        [RawEntry(b"z45b.png", PNG), RawEntry(b"z45b.txt", b"\xef\xbb\xbfplain")],
        ["z45b.png"],
    ),
    "Z45-latin-1": (
        [RawEntry(b"z45c.png", PNG), RawEntry(b"z45c.txt", b"caf\xe9")],
        ["z45c.png"],
    ),
    "Z45-empty": ([RawEntry(b"z45d.png", PNG), RawEntry(b"z45d.txt", b"")], ["z45d.png"]),
    "Z45-orphan": ([RawEntry(b"orphan.txt", b"of nothing")], []),
    "Z45-terminal-escapes": (
        [RawEntry(b"z45e.png", PNG), RawEntry(b"z45e.txt", b"\x1b[2Jred\r\nfox")],
        ["z45e.png"],
    ),
}
CAPTIONS = {
    "z11.PNG": "in capitals",
    "z12\u00e9.png": "decomposed",
    "a/z13.png": "of a",
    "b/z13.png": "of b",
    SJIS.decode("cp437") + ".png": "a cover",
    "z45a.png": "größer",
    "z45b.png": "plain",
    "z45c.png": "café",
    "z45d.png": "",
    "z45e.png": "red fox",
}


@pytest.fixture(scope="module")
def tame(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Everything that must work, in one archive behind a self-extractor's program (Z42)."""
    folder = tmp_path_factory.mktemp("tame")
    entries = [entry for entries, _ in TAME.values() for entry in entries]
    archive = folder / "tame.zip"
    archive.write_bytes(RawZip(entries, prefix=b"MZ" + bytes(9000)).build())
    job = Job("tame", archive, folder / "out", IMAGES)
    one = prepare_all([job], folder / "notes")["tame"]
    one.accepted()
    return one


@pytest.mark.parametrize("case", TAME)
def test_accepted(tame: Prepared, meter: Meter, case: str) -> None:
    meter.measured(tame.outcome.seconds, tame.outcome.peak_bytes)
    clips = {clip.name: clip for clip in tame.report.clips}
    for name in TAME[case][1]:
        check_clip(tame.job.out, clips[name])


def check_clip(out: Path, clip: ClipReport) -> None:
    assert clip.dropped is None
    assert clip.caption.text == CAPTIONS.get(clip.name, "")
    (sample,) = clip.became
    assert (out / "samples" / f"{sample.sample}.frames.npy").stat().st_mode & 0o7777 == 0o644
    assert clip.name.isprintable()


def test_Z42_behind_a_program(tame: Prepared) -> None:
    assert len(tame.report.clips) == sum(len(names) for _, names in TAME.values())


def test_Z21_system_files_are_told(tame: Prepared) -> None:
    ignored = {one.name: one.reason for one in tame.report.ignored}
    system = {entry.name.decode() for entry in TAME["Z21-system-files"][0]}
    assert {name for name, reason in ignored.items() if "system" in reason} == system
    assert "without a clip" in ignored["orphan.txt"]


def test_Z22_only_names_of_our_own_are_written(tame: Prepared) -> None:
    written = {name for name in tame.files if name.startswith("samples/")}
    assert written == {
        f"samples/{number:04d}.frames.npy" for number in range(1, len(tame.report.clips) + 1)
    }


def test_Z46_above_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file: 4 GiB of hole, then a zip whose offsets need 64 bits."""
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26))
        file.seek(4 * 2**30 + 5)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("clip.mp4", CLIP)
    with ZipArchive(path) as found:
        assert found.read(found.members[0]) == CLIP


def test_Z46_five_thousand_files(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(named(*(f"{number:04d}.mp4" for number in range(5000)), data=CLIP))
    with ZipArchive(path) as archive:
        assert all(archive.read(member) == CLIP for member in archive.members)
