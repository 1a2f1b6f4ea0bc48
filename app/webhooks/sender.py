"""One POST to one receiver, within the operator's rules; every end of it is an `Outcome`."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Final

import httpcore
import httpx

from app.fetch import AddressRefused, FetchPolicy
from app.fetch.policy import Target
from app.fetch.transport import AsyncPinnedBackend
from app.webhooks.deliveries import Outcome
from app.webhooks.targets import NameUnknown, TargetRefused, check, refusal

GONE: Final = 410
"""The receiver's way to say "never again"."""
MAX_REPLY_BYTES: Final = 4 * 1024
"""Read and thrown away, so that a usual reply is not cut off; the status has said it all."""
REPLY_PATIENCE_S: Final = 1.0
"""For that."""
RESOLVERS: Final = 8
"""Threads that look names up."""


class Sender:
    """Follows no redirect, keeps no connection, uses no proxy of the environment."""

    def __init__(self, policy: FetchPolicy, ssl_context: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._given_context = ssl_context
        self._resolving = ThreadPoolExecutor(RESOLVERS, "webhook-names")

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> Outcome:
        """``timeout_s``: until the head of the answer is there."""
        try:
            target = check(self._policy, url)
        except TargetRefused as error:
            return Outcome(f"refused: {error}", final=True)
        started = time.monotonic()
        try:
            status = await self._status(target, body, headers, timeout_s)
        except TimeoutError:
            outcome = Outcome(f"no answer within {timeout_s:g} s")
        except AddressRefused as error:
            outcome = Outcome(f"refused: {refusal(error)}", final=True)
        except NameUnknown:
            outcome = Outcome("the host's name is not found")
        except httpcore.ConnectError as error:
            outcome = Outcome(
                "the receiver's certificate is not valid"
                if _is_certificate(error)
                else "the receiver can't be connected"
            )
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            outcome = Outcome("the connection breaks off before an answer")
        else:
            outcome = judge(status)
        return Outcome(outcome.error, outcome.status, outcome.final, time.monotonic() - started)

    def close(self) -> None:
        self._resolving.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        # Reading all the certificates takes a while: not before the first delivery.
        return self._given_context or httpx.create_ssl_context()

    async def _status(
        self, target: Target, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> int:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(timeout_s):
                pool = await stack.enter_async_context(
                    httpcore.AsyncConnectionPool(
                        ssl_context=self._ssl_context,
                        network_backend=AsyncPinnedBackend(self._policy, self._resolving),
                    )
                )
                response = await stack.enter_async_context(
                    pool.stream(
                        "POST",
                        httpcore.URL(
                            scheme=target.scheme,
                            host=target.host,
                            port=target.port,
                            target=target.path,
                        ),
                        headers=_encoded(
                            {
                                "Host": target.authority,
                                "User-Agent": "reelsmith",
                                "Content-Type": "application/json",
                                "Content-Length": str(len(body)),
                                "Connection": "close",
                                **headers,
                            }
                        ),
                        content=body,
                    )
                )
            with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
                async with asyncio.timeout(REPLY_PATIENCE_S):
                    await _drain(response)
            return response.status


def _is_certificate(error: BaseException | None) -> bool:
    """Whether a certificate is at the bottom of ``error``: each layer wraps it once more."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


async def _drain(response: httpcore.Response) -> None:
    size = 0
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size >= MAX_REPLY_BYTES:
            return


def judge(status: int) -> Outcome:
    """Any 2xx is a success; a redirect is not followed and ends it, as 410 does; the rest may go
    better later (404 too: the submitter may not have stored the id yet)."""
    if 200 <= status < 300:
        return Outcome(status=status)
    if 300 <= status < 400:
        return Outcome(f"the receiver redirects ({status}), and webhooks follow none", status, True)
    return Outcome(f"the receiver answers {status}", status, final=status == GONE)
