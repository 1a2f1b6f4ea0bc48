"""Reading a request's body: JSON in UTF-8, uncompressed, small, and in time."""

import asyncio
from typing import Final

from starlette.requests import Request

from app.errors import BadRequest, BodyTooLarge, UnsupportedBody

MAX_BODY_BYTES: Final = 1 << 20
"""1 MiB: two prompts and a negative prompt of the greatest length take 60 kB."""
BODY_TIMEOUT_S: Final = 15.0
"""A body that small is here at once; who takes longer only holds a connection."""

JSON_TYPES: Final = ("application/json",)
UTF8: Final = ("utf-8", "utf8")


async def read_json_bytes(request: Request) -> bytes:
    """The body, unparsed; an empty one is ``{}`` (fal's JavaScript client sends none for no input).

    Raises:
        UnsupportedBody: another media type, character set or a content coding. Requiring the type
            also keeps web pages out: they can't send it elsewhere without asking first (CORS).
        BodyTooLarge: more than `MAX_BODY_BYTES`, noticed while it streams in.
        BadRequest: it did not arrive within `BODY_TIMEOUT_S`.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedBody("Send the body without Content-Encoding.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLarge(
                        f"The body is larger than {MAX_BODY_BYTES} bytes.", {"connection": "close"}
                    )
    except TimeoutError:
        raise BadRequest(
            f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", {"connection": "close"}
        ) from None
    if not body.strip():
        return b"{}"
    _check_type(request.headers.get("content-type", ""))
    return bytes(body)


def _check_type(content_type: str) -> None:
    media_type, *parameters = [part.strip().lower() for part in content_type.split(";")]
    if media_type not in JSON_TYPES:
        raise UnsupportedBody("Send the input as JSON with 'Content-Type: application/json'.")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in UTF8:
            raise UnsupportedBody("JSON is UTF-8; other character sets are not read.")
