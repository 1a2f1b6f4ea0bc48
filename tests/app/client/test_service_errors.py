"""Addresses, error bodies in words, and where the key goes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from app.client import service as services
from app.client.errors import Refused, Unreachable
from app.client.service import Handle, Service, address
from app.client.text import clean, problem_lines
from app.dev import free_port

ADDRESSES = {
    "http://127.0.0.1:8000/": "http://127.0.0.1:8000",
    "localhost:8000": "http://localhost:8000",
    "reelsmith.example.org": "https://reelsmith.example.org",
    "gpu.example.org:8443/lora/": "https://gpu.example.org:8443/lora",
    "http://10.0.0.5:8000": "http://10.0.0.5:8000",
}


@pytest.mark.parametrize(("text", "url"), ADDRESSES.items())
def test_an_address(text: str, url: str) -> None:
    assert address(text) == url


@pytest.mark.parametrize("text", ["", "ftp://a", "http://", "http://a:b", "http://u:p@a", "a?b=c"])
def test_no_address(text: str) -> None:
    with pytest.raises(Refused, match="no address"):
        address(text)


FILE = f"/files/1800000000-{'a' * 64}/uploads/x/a.zip"
URLS = {
    f"https://inner:8000/base{FILE}": f"http://127.0.0.1:9{FILE}",
    f"https://inner{FILE}?name=a.zip": f"http://127.0.0.1:9{FILE}?name=a.zip",
    "https://s3.example.com/bucket/files/a": "https://s3.example.com/bucket/files/a",
    "https://s3.example.com/b/a?x=/files/1-2/b": "https://s3.example.com/b/a?x=/files/1-2/b",
}


@pytest.mark.parametrize(("given", "reached"), URLS.items())
def test_files_of_the_gateway_are_reached_where_we_reach_it(given: str, reached: str) -> None:
    with Service("http://127.0.0.1:9") as service:
        assert service.reachable(given) == reached


BODIES = {
    "a field": (
        {"detail": [{"loc": ["body", "validation", 0, "prompt"], "msg": "Too long", "type": "x"}]},
        ["validation.0.prompt: Too long"],
    ),
    "with its value": (
        {"detail": [{"loc": ["body", "rank"], "msg": "No", "input": 33}]},
        ["rank: No (given: 33)"],
    ),
    "the body": ({"detail": [{"loc": ["body"], "msg": "No"}]}, ["No"]),
    "a header": ({"detail": [{"loc": ["header", "x"], "msg": "No"}]}, ["header.x: No"]),
    "flat": ({"detail": "Busy.", "error_type": "busy"}, ["Busy."]),
    "unknown": ({"status": "NOT_FOUND"}, ["There is no such request"]),
    "ended": ({"status": "ALREADY_COMPLETED"}, ["The request has already completed."]),
    "foreign": ([1], ["1"]),
    "other": ({"a": 1}, ['{"a": 1}']),
}


@pytest.mark.parametrize(("body", "lines"), BODIES.values(), ids=BODIES)
def test_an_error_in_words(body: object, lines: list[str]) -> None:
    found = problem_lines(body)
    assert len(found) == len(lines)
    assert all(line.startswith(begin) for line, begin in zip(found, lines, strict=True))


def test_nothing_moves_the_cursor() -> None:
    assert clean("a\x1b[31m\r\nb\u202ec\x07") == "a[31m  bc"


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer, and who asked it: method, path and key."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers['authorization']}")
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PAUSES_S", (0.0, 0.0))


@pytest.mark.usefixtures("impatient")
def test_a_proxys_page_is_said_in_short() -> None:
    page = b"<html>\x1b[2J502 Bad Gateway</html>" + b" " * 9000
    with answering(502, page) as (url, asked), Service(url, "k") as service:
        with pytest.raises(Unreachable, match="answers 502") as error:
            service.list()
        assert error.value.lines[1] == "HTTP 502: <html>[2J502 Bad Gateway</html>"
        assert len(asked) == 3


@pytest.mark.usefixtures("impatient")
def test_a_submit_is_sent_once() -> None:
    """Nobody knows whether the first one arrived."""
    with answering(503, b"{}") as (url, asked), Service(url, "k") as service:
        with pytest.raises(Unreachable):
            service.submit("t2v", {})
        assert len(asked) == 1


@pytest.mark.usefixtures("impatient")
def test_a_redirect_is_not_followed() -> None:
    with answering(302, b"", location="http://127.0.0.1:9/") as (url, asked), Service(url) as s:
        with pytest.raises(Refused, match="HTTP 302"):
            s.find("x")
        assert len(asked) == 1


def test_the_key_goes_to_the_service_only() -> None:
    with answering(200, b'{"requests": []}') as (url, asked), Service(url, "secret") as service:
        service.list()
        service.file_call("GET", f"{url}/files/a")
    assert asked == ["GET /requests?limit=20 Key secret", "GET /files/a None"]


@pytest.mark.usefixtures("impatient")
def test_nobody_there() -> None:
    unreachable = pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:\d+ can't be reached")
    with Service(f"http://127.0.0.1:{free_port()}") as service, unreachable:
        service.list()
    assert Handle("i", "a/b/c/d").path == "/a/b/requests/i"
