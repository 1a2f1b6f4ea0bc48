"""What a receiver gets: the body, and its signature (`fal-protocol.md` 2.8)."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.db.models import Request
from app.requests.answers import urls
from app.requests.files import signed
from app.storage import Storage

REQUEST_ID: Final = "X-Fal-Webhook-Request-Id"
USER_ID: Final = "X-Fal-Webhook-User-Id"
TIMESTAMP: Final = "X-Fal-Webhook-Timestamp"
SIGNATURE: Final = "X-Fal-Webhook-Signature"

MAX_BODY_BYTES: Final = 64 * 1024
"""A result names its files by URL and takes a few kB; frameworks refuse bodies from 100 kB on."""


def body_of(row: Request, storage: Storage, public_url: str) -> bytes:
    """The JSON about a completed request, file URLs signed now."""
    assert row.result_status is not None
    ok = 200 <= row.result_status < 300
    message = {
        "request_id": row.id,
        "gateway_request_id": row.id,
        "status": "OK" if ok else "ERROR",
        "error": None if ok else f"Invalid status code: {row.result_status}",
        "payload": signed(storage, row.result_body),
    }
    body = _json(message)
    if len(body) <= MAX_BODY_BYTES:
        return body
    result_url = urls(public_url, row)["response_url"]
    return _json(
        {
            **message,
            "payload": None,
            "payload_error": f"The payload is larger than a webhook's {MAX_BODY_BYTES} bytes. "
            f"Get it from the queue: {result_url}",
        }
    )


def signature_headers(
    key: Ed25519PrivateKey, request_id: str, user_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The four headers of one attempt. ``timestamp``: Unix seconds, of this attempt."""
    message = "\n".join((request_id, user_id, str(timestamp), hashlib.sha256(body).hexdigest()))
    return {
        REQUEST_ID: request_id,
        USER_ID: user_id,
        TIMESTAMP: str(timestamp),
        SIGNATURE: key.sign(message.encode()).hex(),
    }


def _json(message: Mapping[str, Any]) -> bytes:
    # As Starlette writes the result route's answer.
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
