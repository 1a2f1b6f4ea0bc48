"""Checks the signature of a presigned S3 URL (AWS Signature Version 4, query form).

An S3 store does this itself. The service does it too, to recognise a URL it gave out: a training
that names one reads the file from the store instead of downloading it.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"
_SIGNATURE = "X-Amz-Signature"
_DATE_FORMAT = "%Y%m%dT%H%M%SZ"


def presigned_holds(
    url: str,
    *,
    method: str,
    access_key: str,
    secret_key: str,
    now: Callable[[], float] = time.time,
) -> bool:
    """Whether ``url`` was signed with this key for this method, and hasn't expired.

    Only URLs that sign nothing but the host header are accepted: those of `generate_presigned_url`.
    """
    parts = urlsplit(url)
    pairs = [pair.partition("=")[::2] for pair in parts.query.split("&")]
    query = dict(pairs)
    if len(query) != len(pairs):
        return False
    given = query.pop(_SIGNATURE, "")
    scope = unquote(query.get("X-Amz-Credential", "")).split("/")
    date = query.get("X-Amz-Date", "")
    lifetime = query.get("X-Amz-Expires", "")
    if (
        query.get("X-Amz-Algorithm") != _ALGORITHM
        or query.get("X-Amz-SignedHeaders") != "host"
        or len(scope) != 5
        or scope[0] != access_key
        or not re.fullmatch(r"\d{8}T\d{6}Z", date)
        or not re.fullmatch(r"[0-9]{1,7}", lifetime)
    ):
        return False
    try:
        signed_at = datetime.strptime(date, _DATE_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return False
    if now() >= signed_at + int(lifetime):
        return False

    canonical = "\n".join(
        (
            method,
            parts.path,
            "&".join(f"{name}={value}" for name, value in sorted(query.items())),
            f"host:{parts.netloc}\n",
            "host",
            "UNSIGNED-PAYLOAD",
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join((_ALGORITHM, date, "/".join(scope[1:]), digest))
    key = f"AWS4{secret_key}".encode()
    for part in (*scope[1:], to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(key.hex().encode(), given.encode())
