"""Files in results: the row names keys, the reader gets URLs that are signed as he reads."""

import base64
from collections.abc import Mapping
from typing import Any, Final

from app.storage import ObjectMissing, Storage

REPORT_FILE: Final = "report.json"
"""Of `preprocessing.manifest`, which the service does not import."""

FILE_FIELDS: Final = ("content_type", "file_name", "file_size")
"""fal's File, beside its ``url``; a row has them beside the ``key``."""
INLINE: Final = "inline"
"""Beside the key of a small file that its reader gets in the URL itself (fal's ``sync_mode``)."""


def signed(storage: Storage, body: Any) -> Any:
    """``body`` with every stored file (its ``key`` and `FILE_FIELDS`) turned into fal's File."""
    if isinstance(body, list):
        return [signed(storage, item) for item in body]
    if not isinstance(body, Mapping):
        return body
    if "key" in body and all(field in body for field in FILE_FIELDS):
        if body.get(INLINE):
            url = data_uri(storage, body["key"], body["content_type"])
        else:
            url = storage.signed_url(body["key"], file_name=body["file_name"])
        return {"url": url, **{field: body[field] for field in FILE_FIELDS}}
    return {name: signed(storage, value) for name, value in body.items()}


def data_uri(storage: Storage, key: str, content_type: str) -> str:
    """The whole file in a URL. Raises `StorageError`."""
    content = b"".join(storage.open_range(key))
    return f"data:{content_type};base64,{base64.b64encode(content).decode()}"


def report_key(storage_prefix: str) -> str:
    """Where a request's dataset report lies."""
    return f"{storage_prefix}/{REPORT_FILE}"


def read_report(storage: Storage, storage_prefix: str) -> bytes | None:
    """The dataset report as JSON bytes; None while there is none."""
    try:
        return b"".join(storage.open_range(report_key(storage_prefix)))
    except ObjectMissing:
        return None
