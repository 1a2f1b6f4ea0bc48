"""A1 to A21, A28 to A32, A34: bodies, headers and paths, to the real gateway process.

Gate: never a 5xx, no answer above 16 kB, nothing of the machine in it, one JSON line in the log.
"""

import gzip
import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from tests.app.asking import MISSING, changed
from tests.app.test_bad_requests import BODIES, HEADERS, PATHS, SUBMIT_OPTIONS, URL, with_field
from tests.hostile.catalogue import as_id
from tests.hostile.costs import Meter
from tests.hostile.gateway import ALICE, Served

MAX_ANSWER_BYTES = 16_000
JSON = {"content-type": "application/json"}
EVIL = '"}\n{"event": "forged", "level": "critical", "request_id": "0"'
"""Tries to end the line of the log and begin its own."""


def check(served: Served, reply: Any, *statuses: int) -> None:
    assert reply.status_code in statuses, reply.text[:300]
    assert len(reply.content) < MAX_ANSWER_BYTES
    assert "x-fal-request-id" in reply.headers
    assert_tells_nothing(served, reply.text)
    if reply.content and reply.headers["content-type"] == "application/json":
        json.loads(reply.content, parse_constant=pytest.fail)


def assert_tells_nothing(served: Served, text: str) -> None:
    """T11's oracle: no path, module or traceback of this machine, no key."""
    for secret in (str(served.settings.data_dir), "Traceback", 'File "', "site-packages", ALICE):
        assert secret not in text


@pytest.fixture(autouse=True)
def borne(served: Served, meter: Meter) -> None:
    meter.borne_by(served.pid)


WELL_KNOWN = [(as_id(case), body, status) for case, body, status in BODIES]
MORE_BODIES = [
    ("A7-exponent-of-5000-digits", with_field("learning_rate", b"1e" + b"9" * 5000), 422),
    ("A12-zero", with_field("learning_rate", b"0"), 422),
    ("A12-negative", with_field("learning_rate", b"-1"), 422),
    ("A12-a-million", with_field("learning_rate", b"1e6"), 422),
    ("A13-null", with_field("validation", b"null"), 422),
    ("A13-object", with_field("validation", b"{}"), 422),
    ("A13-three-entries", with_field("validation", b'[{"prompt":"a"}' + b',{"prompt":"a"}' * 2
     + b"]"), 422),
    ("A13-2-MB-prompt", with_field("validation", b'[{"prompt":"%s"}]' % (b"x" * 2**21)), 413),
    ("A14-10-MB-prompt", with_field("trigger_phrase", b'"%s"' % (b"x" * 10**7)), 413),
    ("A15-constructor", with_field("constructor", b'{"prototype": {"a": 1}}'), 200),
    ("A16-100000-nested-arrays", with_field("x", b"[" * 100_000 + b"]" * 100_000), 422),
    ("A17-100000-nested-objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 422),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [row[1:] for row in (*WELL_KNOWN, *MORE_BODIES)],
    ids=[row[0] for row in (*WELL_KNOWN, *MORE_BODIES)],
)
def test_body(served: Served, body: bytes, status: int) -> None:
    check(served, served.http.post("/t2v", content=body, headers=JSON), status)


FIELDS: list[tuple[str, str, dict[str, Any], str | None]] = [
    # id, mode, changes, the field that is blamed (None: accepted)
    ("A8-below-64-bit", "outpaint", {"crop_top_left": [-(2**63) - 1, 0]}, "crop_top_left"),
    ("A8-10-to-20", "outpaint", {"crop_bottom_right": [10**20, 10**20]}, "crop_bottom_right"),
    ("A8-floats", "outpaint", {"crop_top_left": [1.5, 2.5]}, "crop_top_left"),
    ("A8-nested", "outpaint", {"crop_top_left": [[1], [2]]}, "crop_top_left"),
    ("A8-three-numbers", "outpaint", {"crop_top_left": [1, 2, 3]}, "crop_top_left"),
    ("A8-wrong-order", "outpaint", {"crop_bottom_right": [64, 640]}, "crop_bottom_right"),
    (
        "A8-covers-the-frame",
        "outpaint",
        {"crop_top_left": [0, 0], "crop_bottom_right": [768, 768]},
        "crop_bottom_right",
    ),
    (
        "A8-snaps-to-the-frame",
        "outpaint",
        {"crop_top_left": [31, 31], "crop_bottom_right": [768, 768]},
        "crop_bottom_right",
    ),
    (
        "A8-below-32-pixels",
        "outpaint",
        {"crop_top_left": [128, 128], "crop_bottom_right": [150, 150]},
        "crop_bottom_right",
    ),
    ("A9-99", "t2v", {"number_of_steps": 99}, "number_of_steps"),
    ("A9-100", "t2v", {"number_of_steps": 100}, None),
    ("A9-20000", "t2v", {"number_of_steps": 20_000}, None),
    ("A9-20001", "t2v", {"number_of_steps": 20_001}, "number_of_steps"),
    ("A9-150-in-steps-of-100", "t2v", {"number_of_steps": 150}, "number_of_steps"),
    ("A9-150-elsewhere", "inpaint", {"number_of_steps": 150}, None),
    ("A10-7", "t2v", {"rank": 7}, "rank"),
    ("A10-text", "t2v", {"rank": "32"}, "rank"),
    ("A10-case", "t2v", {"resolution": "MEDIUM"}, "resolution"),
    ("A10-space", "t2v", {"aspect_ratio": "1:1 "}, "aspect_ratio"),
    ("A11-8", "t2v", {"number_of_frames": 8}, "number_of_frames"),
    ("A11-9", "t2v", {"number_of_frames": 9}, None),
    ("A11-121", "t2v", {"number_of_frames": 121}, None),
    ("A11-122", "t2v", {"number_of_frames": 122}, "number_of_frames"),
    (
        "A11-window-as-long-as-the-clip",
        "extend-suffix",
        {"number_of_frames": 9, "conditioning_frames": 16},
        "conditioning_frames",
    ),
    ("A11-window-of-12", "extend-suffix", {"conditioning_frames": 12}, "conditioning_frames"),
    (
        "A13-missing-mask",
        "inpaint",
        {"validation": [{"prompt": "a", "video_url": "https://example.com/a.mp4"}]},
        "mask_url",
    ),
    (
        "A13-one-url-twice",
        "inpaint",
        {
            "validation": [
                {
                    "prompt": "a",
                    "video_url": "https://example.com/a.mp4",
                    "mask_url": "https://example.com/a.mp4",
                }
            ]
        },
        None,
    ),
    ("A14-1-MB-phrase", "t2v", {"trigger_phrase": "x" * 1_000_000}, "trigger_phrase"),
    ("A14-bell", "t2v", {"trigger_phrase": "a\x07b"}, "trigger_phrase"),
    ("A18-nothing-given", "t2v", {"training_data_url": MISSING}, "training_data_url"),
]


@pytest.mark.parametrize(
    ("mode", "changes", "blamed"), [row[1:] for row in FIELDS], ids=[row[0] for row in FIELDS]
)
def test_field(served: Served, mode: str, changes: dict[str, Any], blamed: str | None) -> None:
    reply = served.http.post(f"/{mode}", json=changed(mode, changes))
    check(served, reply, 422 if blamed else 200)
    if blamed:
        assert all(blamed in detail["loc"] for detail in reply.json()["detail"])


def test_A11_90_is_89(served: Served) -> None:
    reply = served.http.post("/t2v", json=changed("t2v", {"number_of_frames": 90}))
    check(served, reply, 200)


def test_A15_the_last_of_two_equal_keys_counts(served: Served) -> None:
    """And so a good value after a bad one is accepted, the other way round not."""
    good_last = b'{%s, "rank": 7, "rank": 8}' % URL
    bad_last = b'{%s, "rank": 8, "rank": 7}' % URL
    assert served.http.post("/t2v", content=good_last, headers=JSON).status_code == 200
    assert served.http.post("/t2v", content=bad_last, headers=JSON).status_code == 422


def media_type_id(name: str) -> str:
    number = "A19" if name.startswith("utf") else "A21" if name == "deflate" else "A20"
    return as_id(f"{number} {name}")


MEDIA_TYPES = [(media_type_id(name), headers, s) for name, headers, s in HEADERS if s == 415]


@pytest.mark.parametrize(
    ("headers", "status"), [r[1:] for r in MEDIA_TYPES], ids=[r[0] for r in MEDIA_TYPES]
)
def test_media_type(served: Served, headers: dict[str, str], status: int) -> None:
    check(served, served.http.post("/t2v", content=b"{%s}" % URL, headers=headers), status)


def test_A21_a_bomb_is_never_inflated(served: Served) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {**JSON, "content-encoding": "gzip"}
    check(served, served.http.post("/t2v", content=bomb, headers=headers), 415)


OPTIONS = [(as_id(r[0]), *r[1:]) for r in SUBMIT_OPTIONS if re.match(r"A(23|31|32)", r[0])]
MORE_OPTIONS = [
    ("A31-internal", "fal_webhook=https://127.0.0.1/hook", {}, 422),
    ("A31-other-port", "fal_webhook=https://example.com:6379/", {}, 422),
    ("A32-priority", "", {"x-fal-queue-priority": "~" * 500}, 200),
    ("A32-no-retry", "", {"x-fal-no-retry": "maybe"}, 200),
]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [r[1:] for r in (*OPTIONS, *MORE_OPTIONS)],
    ids=[r[0] for r in (*OPTIONS, *MORE_OPTIONS)],
)
def test_option(served: Served, query: str, headers: dict[str, str], status: int) -> None:
    reply = served.http.post(f"/t2v?{query}", content=b"{%s}" % URL, headers={**JSON, **headers})
    check(served, reply, status)


def path_id(method: str, path: str) -> str:
    number = "A30" if method in ("OPTIONS", "TRACE", "HEAD", "PUT", "DELETE") else "A28"
    if "/requests/" in path:
        number = "A29"
    return as_id(f"{number} {method} {path[:50]}")


@pytest.mark.parametrize(
    ("method", "path", "status"), PATHS, ids=[path_id(method, path) for method, path, _ in PATHS]
)
def test_path(served: Served, method: str, path: str, status: int) -> None:
    reply = served.http.request(method, path, headers={"Origin": "null"})
    check(served, reply, status)
    assert "set-cookie" not in reply.headers
    assert reply.headers.get("access-control-allow-origin") in (None, "*"), "never reflected"


MORE_IDS = ["*", "{a}", "[0-9]", "%", "'--", "..", "0" * 10_000, "00000000-0000-1000-8000-00000000"]


@pytest.mark.parametrize(
    "request_id", MORE_IDS, ids=[f"A29-id-{number}" for number in range(len(MORE_IDS))]
)
def test_request_id(served: Served, request_id: str) -> None:
    for method, tail in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel"), ("GET", "/report")):
        reply = served.http.request(method, f"/t2v/requests/{request_id}{tail}")
        check(served, reply, 404, 405)


def test_A34_one_line_per_event(served: Served) -> None:
    """What tries to break a line, in every place that a stranger fills."""
    before = len(served.log.read_bytes())
    marks = {"trigger_phrase": EVIL, "resolution": EVIL, "training_data_url": EVIL}
    for field, value in marks.items():
        served.http.post("/t2v", json=changed("t2v", {field: value}))
    served.http.post("/t2v", params={"fal_webhook": EVIL}, json=changed("t2v", {}))
    served.http.post("/t2v", headers={"x-fal-tags": "a=\u2028b".encode()}, json=changed("t2v", {}))
    served.http.get("/" + quote(EVIL))
    served.http.post("/" + EVIL.replace("\n", "%0a%e2%80%a8"))
    served.say(b"GET /\x00 HTTP/1.1\r\n" + EVIL.encode() + b"\r\n\r\n")
    served.http.post(
        "/t2v", headers={"idempotency-key": "a\u2028b".encode()}, json=changed("t2v", {})
    )
    lines = served.log.read_bytes()[before:].decode("ascii").splitlines()
    assert len(lines) >= 6
    for line in lines:
        event = json.loads(line)
        assert {"event", "level", "timestamp"} <= event.keys()
        assert event["event"] != "forged"


def test_A34_answers_are_found_in_the_log(served: Served) -> None:
    """Every reply's id is in its line, and a submit's line names its request."""
    reply = served.http.post("/t2v", json=changed("t2v", {}))
    request_id = reply.json()["request_id"]
    events = [json.loads(line) for line in served.log.read_text().splitlines()]
    mine = [event for event in events if event.get("request_id") == request_id]
    assert {"request.submitted", "http"} <= {event["event"] for event in mine}
    assert len({event["reply_id"] for event in mine}) == 1
