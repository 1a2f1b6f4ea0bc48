"""A22 to A27, A33: connections that are slow, endless, ambiguous or too many."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest

from app.guard import HEAD_TIMEOUT_S, MAX_HEAD_BYTES, max_connections
from app.requests.body import MAX_BODY_BYTES
from tests.hostile.costs import MEBIBYTE, Meter, peak_bytes
from tests.hostile.gateway import ALICE, OPEN_FILES, Served, read_answer, status_of

AUTH = f"Authorization: Key {ALICE}\r\n".encode()
POST = b"POST /t2v HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + AUTH
BODY = b'{"training_data_url": "https://example.com/a.zip"}'
SUBMIT = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CLOSED_WITHIN_S = 120.0
"""The promise is 15 s; this is how long a test waits on a machine that does other things, too."""
MAX_GROWTH_BYTES = 64 * MEBIBYTE


@pytest.fixture(autouse=True)
def borne(served: Served, meter: Meter) -> Iterator[None]:
    meter.borne_by(served.pid)
    before = peak_bytes(served.pid)
    yield
    assert peak_bytes(served.pid) - before < MAX_GROWTH_BYTES
    assert served.is_well()


class TestTooLarge:
    """A22, A23: refused while it streams in."""

    def test_A22_declared_200_MB(self, served: Served) -> None:
        """Not a byte of the body is needed to be refused, or few."""
        answer = served.say(POST + b"Content-Length: 209715200\r\n\r\n", bytes(2 * MAX_BODY_BYTES))
        assert status_of(answer) in (413, 0), "a reset may overtake the answer"

    def test_A22_chunked_without_end(self, served: Served) -> None:
        with served.connect() as connection:
            connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            sent = 0
            with suppress(BrokenPipeError, ConnectionResetError):
                while sent < 300 * MEBIBYTE:
                    connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                    sent += 0x10000
        assert sent < 300 * MEBIBYTE

    def test_A22_length_lies(self, served: Served) -> None:
        """More than promised is the next request, which makes no sense; less is waited for."""
        answer = served.say(POST + b"Content-Length: 5\r\n\r\n" + BODY)
        assert status_of(answer) in (400, 422)

    def test_A23_2_MB_header(self, served: Served) -> None:
        answer = served.say(b"GET /health HTTP/1.1\r\nX: ", *[b"x" * 65536] * 32, b"\r\n\r\n")
        assert status_of(answer) in (431, 0)

    def test_A23_endless_header(self, served: Served) -> None:
        with served.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
            sent = 0
            with suppress(BrokenPipeError, ConnectionResetError):
                while sent < 300 * MEBIBYTE:
                    sent += connection.send(b"x" * 65536)
        assert sent < 100 * MAX_HEAD_BYTES

    def test_A23_10000_headers(self, served: Served) -> None:
        many = b"".join(b"x-%d: y\r\n" % number for number in range(10_000))
        assert status_of(served.say(b"GET /health HTTP/1.1\r\n" + many + b"\r\n")) in (431, 0)

    @pytest.mark.parametrize("length", [20_000, 65_000, 66_000])
    def test_A23_long_url(self, served: Served, length: int) -> None:
        """Of 64 KiB and more the parser makes nothing; the client reads the same."""
        answer = served.say(b"GET /" + b"x" * length + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status_of(answer) in (414, 431)
        assert b"error_type" in answer

    def test_A23_1_MB_url(self, served: Served) -> None:
        answer = served.say(b"GET /", *[b"x" * 65536] * 16, b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status_of(answer) in (414, 431, 0)

    def test_A23_trailers(self, served: Served) -> None:
        """Headers after the body count as well."""
        start = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        with served.connect() as connection:
            connection.sendall(start)
            sent = 0
            with suppress(BrokenPipeError, ConnectionResetError):
                while sent < 300 * MEBIBYTE:
                    sent += connection.send(b"x-trailer: " + b"y" * 60_000 + b"\r\n")
        assert sent < 100 * MEBIBYTE


NUM_SLOW = 40


STARTS = {
    "nothing": b"",
    "headers": b"GET /health HTTP/1.1\r\nX: y",
    "second-request": b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: y",
    "body": POST + b"Content-Length: 100000\r\n\r\n",
    "rest-of-a-body": b"POST /nowhere HTTP/1.1\r\nContent-Length: 100000\r\n\r\n",
}
BIG_ANSWERS = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 50


@dataclass(frozen=True)
class Closed:
    """What became of slow clients, all of them there at once: what waits for the clock waits
    together. Meanwhile others were answered."""

    lifetimes: dict[str, list[float]]
    """By kind, seconds that each connection lived."""
    reader_got: int
    """Bytes that a client gets who asks for `BIG_ANSWERS` and sleeps until it is closed."""


@pytest.fixture(scope="module")
def closed(served: Served) -> Iterator[Closed]:
    with ExitStack() as stack:
        slow = {
            kind: [stack.enter_context(served.connect()) for _ in range(NUM_SLOW)]
            for kind in STARTS
        }
        reader = stack.enter_context(socket.socket())
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(CLOSED_WITHIN_S)
        reader.connect(("127.0.0.1", served.settings.port))
        reader.sendall(BIG_ANSWERS)
        started = time.monotonic()
        for kind, connections in slow.items():
            for connection in connections:
                connection.sendall(STARTS[kind])
        lifetimes = watch(served, slow, started)
        yield Closed(lifetimes, len(read_to_end(reader)))


def read_to_end(connection: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionResetError):
        while received := connection.recv(65536):
            got += received
    return got


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("nothing", id="A24-nothing"),
        pytest.param("headers", id="A24-headers"),
        pytest.param("second-request", id="A24-second-request"),
        pytest.param("body", id="A25-body"),
        pytest.param("rest-of-a-body", id="A25-rest-of-a-body"),
    ],
)
def test_slow_writers_are_closed(closed: Closed, kind: str) -> None:
    assert len(closed.lifetimes[kind]) == NUM_SLOW, "all of them"
    assert min(closed.lifetimes[kind]) > HEAD_TIMEOUT_S / 2, "and none at once"


def test_A26_a_reader_that_sleeps(served: Served, closed: Closed) -> None:
    assert was_told_not_read(served)
    assert 0 < closed.reader_got < 50 * len(served.http.get("/openapi.json").content)


def watch(
    served: Served, slow: dict[str, list[socket.socket]], started: float
) -> dict[str, list[float]]:
    """Feed all connections a byte now and then until the gateway has closed them, and the one that
    does not read."""
    ends: dict[str, list[float]] = {kind: [] for kind in slow}
    left = {connection: kind for kind, those in slow.items() for connection in those}
    for connection in left:
        connection.setblocking(False)
    while left or not was_told_not_read(served):
        if time.monotonic() - started > CLOSED_WITHIN_S:
            break
        for connection, kind in list(left.items()):
            if is_closed(connection, feed=kind != "nothing"):
                ends[kind].append(time.monotonic() - started)
                del left[connection]
        assert served.is_well(), "others are served meanwhile"
        time.sleep(0.3)
    return ends


def is_closed(connection: socket.socket, *, feed: bool) -> bool:
    try:
        while connection.recv(65536):
            pass  # an answer
    except BlockingIOError:
        pass
    except OSError:
        return True
    else:
        return True
    with suppress(OSError):
        if feed:
            connection.send(b"x")
    return False


def was_told_not_read(served: Served) -> bool:
    return any(
        json.loads(line)["event"] == "connection.not_read"
        for line in served.log.read_text().splitlines()
    )


AMBIGUOUS = {
    "A27-length-and-chunked": POST
    + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "A27-two-lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "A27-two-chunked": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "A27-unknown-coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "A27-length-of-no-digits": POST + b"Content-Length: 0x10\r\n\r\n{}",
    "A27-negative-length": POST + b"Content-Length: -1\r\n\r\n{}",
    "A27-space-before-colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "A27-folded-header": b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "A27-bare-line-feeds": b"GET /health HTTP/1.1\nHost: a\n\n",
    "A27-NUL-in-a-header": b"GET /health HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    "A27-other-protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "A27-HTTP-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous(served: Served, case: str) -> None:
    assert status_of(served.say(AMBIGUOUS[case])) == 400


def test_A33_as_many_as_there_are_files(served: Served) -> None:
    """The gateway keeps files for itself, refuses who comes too late, and recovers."""
    limit = max_connections(OPEN_FILES)
    with ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(limit + 40)]
        answers = [late(connection) for connection in idle[-30:]]
        assert {status_of(answer) for answer in answers} <= {429, 0}
        assert 429 in {status_of(answer) for answer in answers}
        assert any(b"retry-after" in answer for answer in answers)
    deadline = time.monotonic() + CLOSED_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if status_of(served.say(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")) == 200:
                break
        time.sleep(0.1)
    assert status_of(served.say(SUBMIT)) == 200


def late(connection: socket.socket) -> bytes:
    """What a connection beyond the limit is told."""
    with suppress(OSError):
        return read_answer(connection)
    return b""


def test_A33_websockets_are_not_spoken(served: Served) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    answer = served.say(b"GET /t2v HTTP/1.1\r\nHost: a\r\n" + upgrade + key + b"\r\n")
    assert status_of(answer) == 405
