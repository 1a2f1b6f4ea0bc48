"""A client who repeats a submit until it is answered, and writes down what it was told."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.faults.material import LORA, SOURCE
from tests.faults.servers import Files

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
"""As fal's clients, and 500 besides."""
PAUSE_S = 0.2

TRAINING = {
    "rank": 8,
    "number_of_steps": 100,
    "learning_rate": 0.001,
    "number_of_frames": 9,
    "resolution": "low",
    "aspect_ratio": "16:9",
    "validation": [],
}
"""The least that the API takes: seconds on the tiny model."""
LEAST_UNITS = 100
"""What the shortest training costs; a longer one costs its steps."""
GENERATION: dict[str, Any] = {
    "prompt": "a man in a car on a wide road",
    "resolution": {"width": 256, "height": 144},
    "num_frames": 9,
    "num_inference_steps": 8,
    "generate_audio": False,
    "seed": 7,
}
"""As little: less than a megapixel, and with its seed the same video every time."""
GENERATION_UNITS = 1
PATHS = {
    "training": "/t2v",
    "check": "/t2v/check",
    "generation": "/fal-ai/ltx-2.3-quality/outpaint/lora",
}
"""Where each kind of request goes."""


@dataclass(frozen=True)
class Accepted:
    """A submit that was answered with 200."""

    key: str
    request_id: str
    kind: str
    """One of `PATHS`."""
    status_url: str
    response_url: str
    cancel_url: str
    units: int
    """What it costs if it ends well."""


@dataclass
class Client:
    """``log`` is what it knows at the end: one line per accepted submit, on disk at once."""

    url: str
    log: Path
    files: Files
    hook_url: str | None = None
    accepted: list[Accepted] = field(default_factory=list)
    posts: int = 0
    """Submits that were sent, repetitions included."""
    longest_s: float = 0.0
    """The longest that one POST took, whatever came of it."""
    seen: dict[int, int] = field(default_factory=dict)
    """Answers by status; 0: none came."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(
        self,
        kind: str = "training",
        *,
        key: str | None = None,
        limit_s: float = 120.0,
        give_up: Callable[[], bool] = lambda: False,
        **fields: Any,
    ) -> Accepted | None:
        """Until it is accepted. None: ``give_up`` said so; then it may have been, or not."""
        key = key or uuid.uuid4().hex
        body = {**self._least(kind), **fields}
        deadline = time.monotonic() + limit_s
        with httpx.Client(base_url=self.url, timeout=15.0, trust_env=False) as http:
            while not give_up():
                reply = self._post(http, PATHS[kind], body, key)
                if reply is not None and reply.status_code == 200:
                    return self._accept(key, kind, reply.json(), units_of(kind, body))
                if reply is not None and reply.status_code not in RETRIED:
                    raise AssertionError(f"{reply.status_code}: {reply.text}")
                assert time.monotonic() < deadline, f"no submit was accepted in {limit_s:g} s"
                time.sleep(PAUSE_S)
        return None

    def _least(self, kind: str) -> dict[str, Any]:
        """The body of the least request of its kind."""
        if kind == "generation":
            lora = {"path": self.files.url_of(LORA)}
            return {**GENERATION, "video_url": self.files.url_of(SOURCE), "loras": [lora]}
        return {**TRAINING, "training_data_url": self.files.url}

    def _post(
        self, http: httpx.Client, path: str, body: dict[str, Any], key: str
    ) -> httpx.Response | None:
        params = {} if self.hook_url is None else {"fal_webhook": self.hook_url}
        started = time.monotonic()
        reply: httpx.Response | None
        try:
            reply = http.post(path, params=params, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            reply = None
        with self._lock:
            status = 0 if reply is None else reply.status_code
            self.posts += 1
            self.seen[status] = self.seen.get(status, 0) + 1
            self.longest_s = max(self.longest_s, time.monotonic() - started)
        return reply

    def _accept(self, key: str, kind: str, answer: dict[str, Any], units: int) -> Accepted:
        urls = {name: answer[name] for name in ("status_url", "response_url", "cancel_url")}
        accepted = Accepted(key, answer["request_id"], kind, **urls, units=units)
        with self._lock, self.log.open("a") as log:
            log.write(json.dumps(vars(accepted)) + "\n")
            self.accepted.append(accepted)
        return accepted


def units_of(kind: str, body: dict[str, Any]) -> int:
    """What a request costs if it ends well."""
    match kind:
        case "training":
            return max(LEAST_UNITS, int(body["number_of_steps"]))
        case "generation":
            return GENERATION_UNITS
    return 0


def patiently(ask: Callable[[], httpx.Response], limit_s: float = 60.0) -> httpx.Response:
    """The answer, asked for again while the service is away (as fal's clients do)."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            reply = ask()
            if reply.status_code not in RETRIED - {500, 504}:
                return reply
            problem: object = reply.status_code
        except httpx.TransportError as error:
            problem = error
        assert time.monotonic() < deadline, f"no answer in {limit_s:g} s: {problem}"
        time.sleep(PAUSE_S)
