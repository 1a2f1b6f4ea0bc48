"""Hostile and broken zips: every row of the catalogue, through the real reader."""

import hashlib
import io
import lzma
import resource
import stat
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.archive import MAX_FOLDER_DEPTH, MAX_UNPACKED_BYTES, ZipArchive
from preprocessing.errors import ArchiveError
from preprocessing.zip_directory import MAX_ENTRIES
from tests.preprocessing import zips
from tests.preprocessing.zips import UTF8, RawEntry, RawZip, named, raw

CLIP = b"not a film, but bytes " * 40


def opened(tmp_path: Path, data: bytes) -> ZipArchive:
    path = tmp_path / "dataset.zip"
    path.write_bytes(data)
    return ZipArchive(path)


def unpacked(tmp_path: Path, data: bytes) -> dict[str, bytes]:
    """Open and fetch everything, as the preparation does, under names of our own."""
    contents = {}
    with opened(tmp_path, data) as archive:
        for number, member in enumerate(archive.members):
            out = tmp_path / f"{number:05d}.bin"
            archive.fetch(member, out)
            contents[member.name] = out.read_bytes()
    return contents


def made_with_zipfile(name: str, data: bytes, method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def tar_gz() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("clip.mp4"))
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("clip.mp4"))
    return file.getvalue()


HONEST = named("clip.mp4", "clip.txt", data=CLIP)


def damaged_checksum() -> bytes:
    return raw(RawEntry(b"clip.mp4", CLIP, crc=1))


def damaged_deflate() -> bytes:
    packed = bytearray(RawEntry(b"clip.mp4", CLIP, method=8).sealed())
    packed[0] = 0xFF
    return raw(RawEntry(b"clip.mp4", CLIP, method=8, packed=bytes(packed)))


def cut_deflate() -> bytes:
    packed = RawEntry(b"clip.mp4", CLIP, method=8).sealed()[:-3]
    return raw(RawEntry(b"clip.mp4", CLIP, method=8, packed=packed))


def inflates_to_more() -> bytes:
    packed = RawEntry(b"", bytes(100 * 2**20), method=8).sealed()
    crc = zlib.crc32(bytes(10))
    return raw(RawEntry(b"clip.mp4", method=8, packed=packed, declared_size=10, crc=crc))


def huge_zip64() -> bytes:
    return zips.zip64_end(2**63, 2**63, 2**63, 2**63)


def gigabyte_of_zeros() -> bytes:
    """1 GiB in 1 MB: one deflated block of 16 MiB, 64 times."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    packed = block * 64 + b"\x03\x00"
    return raw(RawEntry(b"clip.avi", method=8, packed=packed, declared_size=2**30))


def split(data: bytes) -> bytes:
    """The end record says that the zip began on another disk."""
    at = data.rindex(b"PK\x05\x06")
    return data[: at + 4] + b"\x01\x00\x01\x00" + data[at + 8 :]


def wrong_name_inside() -> bytes:
    return raw(RawEntry(b"clip.mp4", CLIP, local_name=b"clap.mp4"))


REFUSED = {
    # id: (bytes, words of the message)
    "Z1 parent": (lambda: named("../../x.mp4"), "leads out"),
    "Z2 parent with backslashes": (lambda: named("..\\..\\x.mp4"), "leads out"),
    "Z3 absolute": (lambda: named("/abs.mp4"), "absolute"),
    "Z4 parent in the middle": (lambda: named("a/b/../../../x.mp4"), "leads out"),
    "Z5 drive letter": (lambda: named("C:/Windows/x.mp4"), "absolute"),
    "Z5 drive letter with backslashes": (lambda: named("C:\\Windows\\x.mp4"), "absolute"),
    "Z6 symlink": (
        lambda: raw(RawEntry(b"clip.mp4", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)),
        "symbolic link",
    ),
    "Z7 symlinked folder": (
        lambda: raw(
            RawEntry(b"dir", b"/etc", mode=stat.S_IFLNK | 0o777), RawEntry(b"dir/passwd", b"x")
        ),
        "symbolic link",
    ),
    "Z8 fifo": (lambda: raw(RawEntry(b"clip.mp4", mode=stat.S_IFIFO | 0o644)), "device or pipe"),
    "Z8 device": (lambda: raw(RawEntry(b"clip.mp4", mode=stat.S_IFBLK | 0o644)), "device or pipe"),
    "Z10 twice": (lambda: named("clip.mp4", "clip.mp4"), "twice"),
    "Z10 twice by spelling": (lambda: named("a/clip.mp4", "a//./clip.mp4"), "twice"),
    "Z11 case collision": (lambda: named("Clip.MP4", "clip.mp4"), "differ only in case"),
    "Z12 Unicode collision": (lambda: named("\u00e9.mp4", "e\u0301.mp4"), "Unicode form"),
    "Z16 zero byte": (lambda: named("clip.mp4\0.txt"), "zero byte"),
    "Z17 long component": (lambda: named("a" * 300 + ".mp4"), "longer than 255"),
    "Z18 deep": (lambda: named("a/" * 3000 + "clip.mp4"), f"more than {MAX_FOLDER_DEPTH} folders"),
    "Z19 dot dot": (lambda: named(".."), "leads out"),
    "Z19 dot": (lambda: named("."), "without a name"),
    "Z19 slashes": (lambda: named("//"), "absolute"),
    "Z19 empty": (lambda: named(""), "without a name"),
    "Z20 file and folder": (lambda: named("clip.mp4", "clip.mp4/x.txt"), "a file and a folder"),
    "Z20 file and folder entry": (lambda: named("clip.mp4", "CLIP.mp4/"), "a file and a folder"),
    "Z26 one gigabyte of zeros": (gigabyte_of_zeros, "zip bomb"),
    "Z27 bzip2": (
        lambda: made_with_zipfile("clip.mp4", bytes(10**6), zipfile.ZIP_BZIP2),
        "bzip2",
    ),
    "Z28 lzma": (lambda: made_with_zipfile("clip.mp4", bytes(10**6), zipfile.ZIP_LZMA), "LZMA"),
    "Z29 full overlap": (zips.full_overlap, "disagrees"),
    "Z29 full overlap, one name": (
        lambda: raw(RawEntry(b"a.mp4", CLIP), RawEntry(b"a.mp4", CLIP, header_offset=0)),
        "share the same bytes",
    ),
    "Z30 quoted overlap": (zips.quoted_overlap, "share the same bytes"),
    "Z31 inflates to more": (inflates_to_more, "larger than the zip says"),
    "Z33 zip64 with 2^63": (huge_zip64, "outside the file"),
    "Z34 offset out of range": (
        lambda: raw(RawEntry(b"clip.mp4", CLIP, header_offset=10**6)),
        "outside the file",
    ),
    "Z34 data out of range": (
        lambda: raw(RawEntry(b"clip.mp4", CLIP, declared_packed=10**6, declared_size=10**6)),
        "outside the file",
    ),
    "Z35 count too high": (
        lambda: RawZip([RawEntry(b"clip.mp4", CLIP)], num_entries=7).build(),
        "says it has 7 entries, but lists 1",
    ),
    "Z35 count too low": (
        lambda: RawZip([RawEntry(b"a.mp4"), RawEntry(b"b.mp4")], num_entries=1).build(),
        "says it has 1 entries, but lists 2",
    ),
    "Z36 other name inside": (wrong_name_inside, "disagrees"),
    "Z37 encrypted": (lambda: raw(RawEntry(b"clip.mp4", CLIP, flags=1)), "encrypted"),
    "Z37 AES": (lambda: raw(RawEntry(b"clip.mp4", CLIP, flags=1, method=99)), "encrypted"),
    "Z38 zstd": (lambda: raw(RawEntry(b"clip.mp4", CLIP, method=93)), "Zstandard"),
    "Z38 method 97": (lambda: raw(RawEntry(b"clip.mp4", CLIP, method=97)), "WavPack"),
    "Z38 unknown method": (lambda: raw(RawEntry(b"clip.mp4", CLIP, method=77)), "method 77"),
    "Z39 bad checksum": (damaged_checksum, "checksum is wrong"),
    "Z39 bad deflate data": (damaged_deflate, "clip.mp4 is damaged"),
    "Z39 deflate data cut off": (cut_deflate, "clip.mp4 is damaged"),
    "Z40 not the UTF-8 it claims": (
        lambda: raw(RawEntry(b"\xff\xfe.mp4", CLIP, flags=UTF8)),
        "not the UTF-8",
    ),
    "Z43 70 kB after": (lambda: HONEST + bytes(70_000), "cut off"),
    "Z43 a few bytes after": (lambda: HONEST + b"junk", "follow the end"),
    "Z43 two archives in a row": (lambda: named("a.mp4") + named("b.mp4"), "two ends"),
    "Z43 an archive in the comment": (
        lambda: RawZip([RawEntry(b"a.mp4")], comment=named("b.mp4")).build(),
        "two ends",
    ),
    "Z43 what looks like a thousand ends before": (
        lambda: (b"PK\5\6" + bytes(8) + b"\xff" * 8 + bytes(2)) * 1001 + HONEST,
        "two ends",
    ),
    "Z44 truncated": (lambda: HONEST[:-30], "cut off"),
    "Z44 HTML": (lambda: b"\n<!DOCTYPE html><html><body>Log in", "an HTML page"),
    "Z44 RAR": (lambda: b"Rar!\x1a\x07\x01\x00" + bytes(100), "a RAR archive"),
    "Z44 7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
    "Z44 empty": (lambda: b"", "an empty file"),
    "Z44 tar.gz": (tar_gz, "a gzip file"),
    "Z44 tar": (tar, "a tar archive"),
    "Z44 xz": (lambda: lzma.compress(b"x"), "an xz file"),
    "Z44 a video": (lambda: b"\0\0\0\x20ftypisom" + bytes(100), "a single video"),
    "Z44 a JSON error": (lambda: b'{"error": "denied"}', "a JSON document"),
    "Z44 noise": (lambda: b"\x01\x02\x03\x04", "something else (it begins with the bytes 01 02"),
    "split zip": (lambda: split(HONEST), "split zip"),
    "two sizes": (lambda: raw(RawEntry(b"clip.mp4", CLIP, declared_size=9)), "two different sizes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    build, words = REFUSED[case]
    data = build()
    started = time.process_time()  # what it takes, however busy the machine is
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError) as caught:
        unpacked(tmp_path, data)
    assert words in caught.value.message
    assert caught.value.type == "invalid_archive"
    assert caught.value.ctx == {"supported_extensions": [".zip"]}
    assert str(tmp_path) not in caught.value.message
    assert caught.value.message.isprintable()
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"
    assert sum(file.stat().st_size for file in tmp_path.glob("*.bin")) <= 2 * 2**20


def test_z26_z31_inflate_in_little_memory(tmp_path: Path) -> None:
    """A ratio just below the limit is unpacked, a chunk at a time."""
    content = bytes(60 * 2**20)
    with opened(tmp_path, raw(RawEntry(b"clip.avi", content, method=8))) as archive:
        tracemalloc.start()
        archive.fetch(archive.members[0], tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size == len(content)
    assert peak < 8 * 2**20


def test_z32_too_many_entries(tmp_path: Path) -> None:
    data = named(*(f"{number}.mp4" for number in range(60_000)), data=b"")
    started = time.process_time()  # what it takes, however busy the machine is
    with pytest.raises(ArchiveError) as caught:
        opened(tmp_path, data)
    assert time.process_time() - started < 1
    assert caught.value.type == "archive_file_count_exceeds_maximum"
    assert caught.value.ctx["max_count"] == MAX_ENTRIES
    assert caught.value.ctx["provided_count"] == 60_000
    assert ".mp4" in caught.value.ctx["supported_extensions"]


def test_z32_a_count_that_lies_does_not_get_past_the_limit(tmp_path: Path) -> None:
    entries = [RawEntry(b"%d.mp4" % number) for number in range(MAX_ENTRIES + 5)]
    with pytest.raises(ArchiveError) as caught:
        opened(tmp_path, RawZip(entries, num_entries=3).build())
    assert caught.value.type == "archive_file_count_exceeds_maximum"


def test_declared_sizes_are_summed(tmp_path: Path) -> None:
    entries = [
        RawEntry(b"%d.mp4" % number, method=8, declared_size=2**32 - 2) for number in range(17)
    ]
    with pytest.raises(ArchiveError) as caught:
        opened(tmp_path, raw(*entries))
    assert caught.value.type == "file_too_large"
    assert caught.value.ctx == {"max_size": MAX_UNPACKED_BYTES}


ACCEPTED = {
    # id: (bytes, names in order)
    "Z9 setuid and world-writable": (
        lambda: raw(RawEntry(b"clip.mp4", CLIP, mode=stat.S_IFREG | 0o6777)),
        ["clip.mp4"],
    ),
    "Z13 one base name in two folders": (
        lambda: named("b/clip.mp4", "a/clip.mp4"),
        ["a/clip.mp4", "b/clip.mp4"],
    ),
    "Z14 right-to-left and zero-width": (
        lambda: named("a\u202e4pm.mp4", "b\u200b.mp4"),
        ["a\u202e4pm.mp4", "b\u200b.mp4"],
    ),
    "Z15 terminal escapes": (lambda: named("a\x1b[31m\r\n\a.mp4"), ["a\x1b[31m\r\n\a.mp4"]),
    "Z19 dot slash": (lambda: named("./", "./clip.mp4"), ["clip.mp4"]),
    "Z19 blank": (lambda: named(" "), [" "]),
    "Z22 shell and patterns": (
        lambda: named(
            "$(id).mp4", "%s%n.mp4", "-rf.mp4", "a:b.mp4", "a?.mp4", "aux", "img%03d.png"
        ),
        ["$(id).mp4", "%s%n.mp4", "-rf.mp4", "a:b.mp4", "a?.mp4", "aux", "img%03d.png"],
    ),
    "Z23 empty zip": (lambda: raw(), []),
    "Z24 folders only": (lambda: named("a/", "a/b/"), []),
    "Z25 zip in zip, stored": (lambda: named("inner.zip", data=HONEST), ["inner.zip"]),
    "Z41 UTF-8 without its flag": (lambda: raw(RawEntry("é.mp4".encode(), CLIP)), ["é.mp4"]),
    "Z42 self-extractor": (
        lambda: RawZip([RawEntry(b"clip.mp4", CLIP)], prefix=b"MZ" + bytes(9000)).build(),
        ["clip.mp4"],
    ),
    "Z46 zip64": (lambda: zips.zip64_of(b"clip.mp4", CLIP), ["clip.mp4"]),
    "Windows separators": (lambda: named("day\\clip.mp4"), ["day/clip.mp4"]),
    "a comment": (
        lambda: RawZip([RawEntry(b"clip.mp4", CLIP)], comment=b"mine").build(),
        ["clip.mp4"],
    ),
    "deflate": (lambda: raw(RawEntry(b"clip.mp4", CLIP, method=8)), ["clip.mp4"]),
    "an empty file, deflated": (lambda: raw(RawEntry(b"a.txt", b"", method=8)), ["a.txt"]),
    "a long Japanese name": (lambda: named("\u3042" * 120 + ".mp4"), ["\u3042" * 120 + ".mp4"]),
    "system files that differ in case": (
        lambda: named("__MACOSX/._A", "__macosx/._a"),
        ["__MACOSX/._A", "__macosx/._a"],
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, tmp_path: Path) -> None:
    build, names = ACCEPTED[case]
    assert list(unpacked(tmp_path, build())) == names
    assert {path.name for path in tmp_path.iterdir()} == {
        "dataset.zip",
        *(f"{number:05d}.bin" for number in range(len(names))),
    }, "only names of our own are written"


def test_z41_shift_jis_letters_are_not_folded(tmp_path: Path) -> None:
    """In Shift-JIS two kana differ in what looks like the case of a letter: they stay apart, and a
    byte that looks like a backslash is no separator."""
    names = [text.encode("shift_jis") for text in ("ア.mp4", "チ.mp4", "表.mp4", "表.txt")]
    with opened(tmp_path, raw(*(RawEntry(name, CLIP) for name in names))) as archive:
        keys = [member.key for member in archive.members]
        assert len(set(keys)) == 4
        assert not any("/" in member.name for member in archive.members)
        stems = [key.rpartition(".")[0] for key in keys]
    assert sorted(stems.count(stem) for stem in stems) == [1, 1, 2, 2]


def test_z46_five_thousand_files(tmp_path: Path) -> None:
    data = named(*(f"{number:04d}.mp4" for number in range(5000)), data=CLIP)
    tracemalloc.start()
    with opened(tmp_path, data) as archive:
        for member in archive.members:
            assert archive.read(member) == CLIP
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_z46_above_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file: 4 GiB of hole, then a zip whose offsets need 64 bits."""
    path = tmp_path / "large.zip"
    hole = 4 * 2**30 + 5
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26))
        file.seek(hole)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("clip.mp4", CLIP)
    with ZipArchive(path) as archive:
        assert [member.name for member in archive.members] == ["clip.mp4"]
        assert archive.read(archive.members[0]) == CLIP


def test_facts(tmp_path: Path) -> None:
    with opened(tmp_path, HONEST) as archive:
        facts = archive.facts()
    assert (facts.size_bytes, facts.num_entries) == (len(HONEST), 2)
    assert facts.sha256 == hashlib.sha256(HONEST).hexdigest()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_zip_is_refused_or_right(data: st.DataObject, tmp_path_factory) -> None:
    """Whatever bytes change, the answer is an `ArchiveError` or the right contents."""
    damaged = bytearray(raw(RawEntry(b"a.mp4", CLIP, method=8), RawEntry(b"b.txt", b"hello")))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 40))
    try:
        contents = unpacked(tmp_path_factory.mktemp("fuzz"), bytes(damaged[: len(damaged) - cut]))
    except ArchiveError:
        return
    assert set(contents.values()) <= {CLIP, b"hello"}


@settings(max_examples=100, deadline=None)
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.(mp4|txt)", fullmatch=True),
        st.binary(max_size=3000),
        max_size=12,
    ),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    prefix=st.binary(max_size=50),
)
def test_reads_what_the_standard_library_writes(
    files: dict[str, bytes], method: int, prefix: bytes, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("honest")
    path = zips.zip_of(folder / "honest.zip", files, method)
    assert unpacked(folder, prefix + path.read_bytes()) == files
