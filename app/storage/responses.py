"""A stored file as an HTTP answer: ranges, validators, and headers that keep browsers from it."""

import re
from typing import ClassVar, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.errors import RequestError
from app.storage.base import Storage, StoredObject, attachment

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

_SAFE_HEADERS: Final = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, max-age=3600",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class UnsatisfiableRange(RequestError):
    """The range begins behind the end of the file."""

    status: ClassVar[int] = 416
    error_type: ClassVar[str] = "range_not_satisfiable"


def file_response(
    request: Request, storage: Storage, stored: StoredObject, file_name: str
) -> Response:
    """Answer GET or HEAD for ``stored``: 200, 206, 304, or 416 (`UnsatisfiableRange`)."""
    etag = f'"{stored.sha256}"'
    headers = {
        **_SAFE_HEADERS,
        "ETag": etag,
        "Content-Disposition": attachment(file_name),
        "Content-Type": stored.content_type,
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    part = _requested_part(request, stored.size_bytes, etag)
    start, length = part or (0, stored.size_bytes)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{stored.size_bytes}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(
        storage.open_range(stored.key, start, length), status_code=status, headers=headers
    )


def _requested_part(request: Request, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """(start, length) of a single range; None for all of it, as RFC 9110 14.2 has it for a header
    that makes no sense, several ranges, or an If-Range that no longer holds."""
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if first:
        start = int(first)
        end = min(int(last), size_bytes - 1) if last else size_bytes - 1
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(0, size_bytes - int(last)), size_bytes - 1
    else:
        return None
    if start >= size_bytes or end < start:
        raise UnsatisfiableRange(
            f"The file has {size_bytes} bytes.", {"Content-Range": f"bytes */{size_bytes}"}
        )
    return start, end - start + 1
