"""A running service, over HTTP: one method per route, errors as `errors.py` has them.

The key goes to the service's own address and nowhere else; URLs of files carry their permission
and are read without it.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import httpx

from app.client.errors import Refused, RequestFailed, Unreachable
from app.client.text import problem_lines, problem_of
from app.errors import BILLABLE_UNITS
from app.settings import is_loopback

DEFAULT_URL: Final = "http://127.0.0.1:8000"
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0)
"""Between tries of a call that may be repeated."""
BUSY: Final = (429, 500, 502, 503, 504)
_FILE_OF_GATEWAY: Final = re.compile(r"https?://[^/]+(?:/[^?#]*)?(/files/\d+-[0-9a-f]{64}/.+)")
"""What `app.storage.signing` makes."""


@dataclass(frozen=True)
class Handle:
    """A request and where its routes are."""

    request_id: str
    endpoint: str

    @property
    def path(self) -> str:
        """As fal's clients build it: owner and alias of the endpoint, then the id."""
        owner_and_alias = "/".join(self.endpoint.split("/")[:2])
        return f"/{owner_and_alias}/requests/{self.request_id}"


class Service:
    """Close it, or use it as a context manager."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None) -> None:
        self.url = address(url)
        # A proxy of the environment knows nothing of this machine's own addresses.
        trust_env = not is_loopback(urlsplit(self.url).hostname or "")
        headers = {"authorization": f"Key {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=trust_env
        )
        self._files = httpx.Client(timeout=TIMEOUT, trust_env=trust_env)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        self._files.close()

    def submit(
        self,
        mode: str,
        body: Mapping[str, Any],
        *,
        webhook: str | None = None,
        priority: str | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[Handle, dict[str, Any]]:
        """POST a request; ``mode`` is a path or a full id. Not repeated once it was sent, because
        nobody knows whether it arrived.

        Raises:
            Refused: the service does not take it.
            Unreachable: no answer; look at `list` before submitting again.
        """
        headers = {
            "x-fal-queue-priority": priority,
            "idempotency-key": idempotency_key,
        }
        response = self._call(
            "POST",
            f"/{mode.strip('/')}",
            json=dict(body),
            params={"fal_webhook": webhook} if webhook else None,
            headers={name: value for name, value in headers.items() if value},
            repeat=False,
        )
        answer = response.json()
        # The status URL names the app; what comes before it is where *the service* believes to be.
        path = urlsplit(answer["status_url"]).path.partition("/requests/")[0]
        return Handle(answer["request_id"], "/".join(path.split("/")[-2:])), answer

    def find(self, request_id: str) -> Handle:
        """Raises `Refused` where there is none."""
        if not request_id.strip():  # a script's empty variable; the route would be the list's
            raise Refused("the id of the request is empty")
        path = f"/requests/{quote(request_id.strip(), safe='')}"
        return Handle(request_id.strip(), self._get(path).json()["endpoint"])

    def list(self, limit: int = 20, before: str | None = None) -> dict[str, Any]:
        """`app.requests.schemas.RequestList`."""
        params = {"limit": limit, **({"before": before} if before else {})}
        return dict(self._get("/requests", params=params).json())

    def status(self, handle: Handle, *, logs: bool = False, repeat: bool = True) -> dict[str, Any]:
        """`app.requests.schemas.RequestStatus`."""
        params = {"logs": int(logs)}
        return dict(self._get(f"{handle.path}/status", params=params, repeat=repeat).json())

    def events(self, handle: Handle, after: int, *, repeat: bool = True) -> dict[str, Any]:
        """`app.requests.schemas.Events`: one page."""
        params = {"after": after}
        return dict(self._get(f"{handle.path}/events", params=params, repeat=repeat).json())

    def all_events(
        self, handle: Handle, after: int = 0, *, repeat: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Every event behind ``after`` until there is none left."""
        while page := self.events(handle, after, repeat=repeat)["events"]:
            yield from page
            after = page[-1]["id"]

    def result(self, handle: Handle) -> tuple[dict[str, Any], float]:
        """The result and the units it is billed as.

        Raises:
            RequestFailed: it ended without one.
            Refused: it has not ended.
        """
        response = self._get(handle.path, own_answer=BILLABLE_UNITS)
        if not response.is_success:
            raise RequestFailed(f"request {handle.request_id} failed", *problem_of(response))
        return dict(response.json()), float(response.headers[BILLABLE_UNITS])

    def report(self, handle: Handle) -> dict[str, Any] | None:
        """The dataset report; None while there is none."""
        try:
            return dict(self._get(f"{handle.path}/report").json())
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def cancel(self, handle: Handle) -> None:
        """Raises `Refused` when it has ended already."""
        self._call("PUT", f"{handle.path}/cancel")

    def wish(self, handle: Handle, name: Literal["save", "sample"]) -> None:
        """Raises `Refused` when it is not among the steps of a training."""
        self._call("PUT", f"/requests/{handle.request_id}/{name}")

    def post(self, path: str, json: Mapping[str, Any]) -> dict[str, Any]:
        """A POST that may be repeated."""
        return dict(self._call("POST", path, json=dict(json)).json())

    def get(self, path: str) -> httpx.Response:
        """Any route, once. Raises `Unreachable`; every answer but "not now" is returned."""
        return self._send("GET", path)

    def file_call(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One call of a file's URL, not repeated. Raises `Refused` or `Unreachable`."""
        try:
            response = self._files.request(method, self.reachable(url), **options)
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error
        return self._checked(response)

    @contextmanager
    def reading(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A file's bytes as they come. Raises `Refused` or `Unreachable`, also amidst them."""
        try:
            with self._files.stream("GET", self.reachable(url), headers=headers) as response:
                if not response.is_success:
                    response.read()
                yield self._checked(response)
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error

    def reachable(self, url: str) -> str:
        """``url`` of a file of the gateway, at the address by which *we* reach the gateway: behind
        a tunnel or in a container it knows itself by another. Other URLs stay as they are."""
        match = _FILE_OF_GATEWAY.fullmatch(url)
        return self.url + match[1] if match else url

    def _get(self, path: str, **options: Any) -> httpx.Response:
        return self._call("GET", path, **options)

    def _call(
        self,
        method: str,
        path: str,
        *,
        repeat: bool = True,
        own_answer: str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """``own_answer`` names a header; an answer that has it is returned whatever its status."""
        for pause in (*(PAUSES_S if repeat else ()), None):
            try:
                response = self._send(method, path, **options)
                if own_answer and own_answer in response.headers:
                    return response
                return self._checked(response)
            except Unreachable:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        lines = problem_of(response)
        if response.status_code in BUSY:
            raise Unreachable(f"{self.url} answers {response.status_code}", *lines)
        if response.status_code == 401:
            lines.append("Name your key in REELSMITH_KEY, FAL_KEY or --key-file.")
        raise Refused(*lines, status=response.status_code)


def address(text: str) -> str:
    """``text`` as a base URL. A name alone means https, this machine http. Raises `Refused`."""
    url = text.strip()
    if "://" not in url:
        name = urlsplit(f"//{url}").hostname or ""
        url = f"{'http' if is_loopback(name) else 'https'}://{url}"
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.username:
        raise Refused(f"{text!r} is no address of a service; give one such as {DEFAULT_URL}")
    return url


def failure_lines(status: Mapping[str, Any]) -> list[str]:
    """What a status says of a failure."""
    return problem_lines({"detail": status.get("error") or "no reason was given"})


def _unreachable(url: str, error: Exception) -> Unreachable:
    host = urlsplit(url)
    where = f"{host.scheme}://{host.netloc}"
    return Unreachable(f"{where} can't be reached: {str(error) or type(error).__name__}")
