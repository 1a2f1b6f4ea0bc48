"""Large uploads in parts (`spec/fal-protocol.md` 1.6), without state in the gateway.

A part is a stored file of its own, so any gateway takes any part, in any order, again after a
restart. The upload id is a capability: signed for one key, it says when it ends and what type the
whole will have.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.errors import BadRequest, BodyTooLarge
from app.storage.base import (
    FALLBACK_CONTENT_TYPE,
    Storage,
    StoredObject,
    random_part,
    served_content_type,
)
from app.storage.signing import UrlSigner

PARTS_PREFIX: Final = "parts"
LIFETIME_S: Final = 24 * 3600
"""Ends an upload that nobody completes; `sweep_parts` then removes what came."""

MAX_PARTS: Final = 10_000
"""S3's limit. Both clients send 10 MiB a part, so it stands at 100 GB."""

MAX_PART_BYTES: Final = 128 * 1024 * 1024
"""Ten times what the clients send unless told otherwise."""

_PURPOSE: Final = "multipart"


@dataclass(frozen=True)
class Upload:
    """One multipart upload: where its parts lie and what they will be."""

    key: str
    content_type: str
    parts_prefix: str

    def part_key(self, number: int) -> str:
        return f"{self.parts_prefix}/{number:05d}"


def new_upload_id(signer: UrlSigner, key: str, content_type: str | None) -> str:
    """``{random}.{expires}-{signature}.{content type}``, fit for a path segment."""
    random, served = random_part(), served_content_type(content_type)
    signed = signer.sign(LIFETIME_S, _PURPOSE, key, random, served)
    return ".".join((random, signed, served.replace("/", "~")))


def find_upload(signer: UrlSigner, key: str, upload_id: str) -> Upload | None:
    """The upload behind an id of `new_upload_id` for this key; None for any other text."""
    random, _, rest = upload_id.partition(".")
    signed, _, escaped = rest.partition(".")
    content_type = escaped.replace("~", "/") or FALLBACK_CONTENT_TYPE
    if not signer.verify(signed, _PURPOSE, key, random, content_type):
        return None
    expires = signed.partition("-")[0]
    return Upload(key, content_type, f"{PARTS_PREFIX}/{expires}-{random}")


def etag_of(part: StoredObject) -> str:
    return f'"{part.sha256}"'


def assemble(
    storage: Storage, upload: Upload, etags: Mapping[int, str], *, scratch: Path, max_bytes: int
) -> StoredObject:
    """Join the parts in the order of their numbers and store the whole.

    ``etags`` is what the client says it sent, by part number. Done again after it succeeded, it
    changes nothing: the clients repeat it when an answer is lost. Raises `BadRequest` for a gap, a
    part that never came or one that came otherwise, `BodyTooLarge` for more than ``max_bytes``.
    """
    if not etags or sorted(etags) != list(range(1, len(etags) + 1)):
        raise BadRequest("The parts of an upload are numbered 1 to N without a gap.")
    if not storage.list_keys(upload.parts_prefix):
        done = storage.stat(upload.key)
        if done is not None:
            return done
    size = 0
    try:
        with scratch.open("xb") as whole:
            for number in range(1, len(etags) + 1):
                part = storage.stat(upload.part_key(number))
                if part is None or etag_of(part).strip('"') != etags[number].strip('"'):
                    raise BadRequest(f"Part {number} did not arrive as it was sent; send it again.")
                size += part.size_bytes
                if size > max_bytes:
                    raise BodyTooLarge(f"A file may have at most {max_bytes} bytes.")
                digest = hashlib.sha256()
                for chunk in storage.open_range(part.key):
                    digest.update(chunk)
                    whole.write(chunk)
                if digest.hexdigest() != part.sha256:
                    raise BadRequest(f"Part {number} was damaged; send it again.")
        stored = storage.put_file(upload.key, scratch, content_type=upload.content_type)
    finally:
        scratch.unlink(missing_ok=True)
    storage.delete_tree(upload.parts_prefix)
    return stored


def sweep_parts(storage: Storage, *, now: Callable[[], float] = time.time) -> int:
    """Remove parts of uploads that were never completed; returns how many uploads."""
    uploads = {key.split("/")[1] for key in storage.list_keys(PARTS_PREFIX)}
    ended = [name for name in uploads if int(name.partition("-")[0]) < now()]
    for name in ended:
        storage.delete_tree(f"{PARTS_PREFIX}/{name}")
    return len(ended)
