"""What is fuzzed: each target takes bytes and raises only where something is wrong with us."""

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from app.fetch import AddressRefused, FetchPolicy, UrlRefused
from app.fetch.addresses import IPAddress, is_public
from preprocessing.archive import ZipArchive
from preprocessing.errors import ArchiveError
from tests.preprocessing import zips
from trainer.errors import LoraFileError
from trainer.safetensors_header import read_header

MAX_READ_BYTES: Final = 2**20
"""Of a member that is unpacked: larger ones are only judged."""


def zip_walker(data: bytes) -> None:
    """A zip is refused in our words, or every small member comes out as long as it says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset.zip"
        path.write_bytes(data)
        try:
            with ZipArchive(path) as archive:
                for member in archive.members:
                    if member.size_bytes <= MAX_READ_BYTES:
                        assert len(archive.read(member)) == member.size_bytes
        except ArchiveError as error:
            _one_line(error.message)


def _one_line(message: str) -> None:
    assert message.isprintable()


def inside(host: str, port: int) -> Sequence[IPAddress]:
    """A resolver that always leads inside."""
    return [ip_address("127.0.0.1")]


def url_classifier(data: bytes) -> None:
    """A URL is refused, or read in one way only; and where it leads inside, it is never allowed."""
    policy = FetchPolicy.allowing([], resolver=inside)
    try:
        target = policy.check(data.decode("utf-8", "surrogatepass"))
    except (UrlRefused, UnicodeDecodeError):
        return
    assert policy.check(target.url) == target, "read again, it says the same"
    assert target.host.isascii()
    assert target.path.isascii()
    assert not set(target.url) & set("\r\n\t \0\\")
    try:
        found = policy.addresses(target.host, target.port)
    except AddressRefused:
        return
    assert all(map(is_public, found)), "only addresses may stand for themselves"


def lora_header(data: bytes) -> None:
    """A LoRA file is refused in our words, or its tensors fill it exactly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        path.write_bytes(data)
        try:
            header = read_header(path)
        except LoraFileError as error:
            _one_line(str(error))
            return
    ends = [entry.offset + entry.size_bytes for entry in header.tensors]
    assert max(ends, default=len(data)) == len(data)


def seed_zips() -> list[bytes]:
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/clip.mp4", b"not a film " * 20)
        archive.writestr("a/clip.txt", "größer")
    return [
        plain.getvalue(),
        zips.named("a.mp4", "b.txt"),
        zips.zip64_of(b"a.mp4", b"x" * 40),
        zips.quoted_overlap(4),
    ]


SEED_URLS: Final = [
    b"https://example.com/a/clips.zip?x=1#y",
    b"http://127.0.0.1:80\\@example.com/",
    b"http://[::ffff:127.0.0.1]/",
    "http://①②⑦.0.0.1/".encode(),
    b"http://0x7f.1/",
    b"http://[64:ff9b::7f00:1]:443/",
    b"HTTP://example.com.:443",
]


def seed_loras() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a.lora_A.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "a.lora_B.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [12, 20]},
    }
    text = json.dumps(header).encode()
    return [struct.pack("<Q", len(text)) + text + bytes(20), struct.pack("<Q", 2) + b"{}"]


TARGETS: Final[dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]]] = {
    "zip": (zip_walker, seed_zips),
    "url": (url_classifier, lambda: list(SEED_URLS)),
    "lora": (lora_header, seed_loras),
}
"""Name -> the target and honest inputs to begin with."""
