"""What is true at the end, seen from outside: answers, rows, files, webhooks, processes.

A finding is a sentence about something that must not be. An empty list is the verdict.
"""

import hashlib
import io
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select

from app.db.models import Attempt, Outcome, Request, State
from tests.faults.client import GENERATION, Accepted, Client, patiently
from tests.faults.servers import Hook
from tests.faults.stack import S3_KEYS, Stack
from workers.workdir import sweep

CANCELLED = 499
SECRETS = (S3_KEYS[1], "X-Amz-Signature")
PLAIN = ("worker: ",)
"""How lines begin that Celery itself says to whoever stops it."""


@dataclass
class Verdict:
    """What was judged, and what was wrong with it."""

    accepted: int = 0
    ended: Counter[int] = field(default_factory=Counter)
    """By the status of the result."""
    attempts: Counter[str] = field(default_factory=Counter)
    """By stage and outcome."""
    webhooks: int = 0
    """POSTs that came."""
    swept: dict[str, int] = field(default_factory=dict)
    """What the sweeps that a service does by itself took away."""
    told: dict[str, int] = field(default_factory=dict)
    """Attempts that were lost or retried, and of how many of them a log line tells."""
    findings: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return sum("never ended" in finding or "is unknown" in finding for finding in self.findings)


def judge(stack: Stack, client: Client, cancelled: Iterable[str] = ()) -> Verdict:
    """Everything but processes, which are looked at once the service has stopped."""
    verdict = Verdict(accepted=len(client.accepted))
    with stack.database.read() as session:
        rows = {row.id: row for row in session.scalars(select(Request))}
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in session.scalars(select(Attempt).order_by(Attempt.number)):
            attempts[attempt.request_id].append(attempt)
    say = verdict.findings.append
    _keys(client, rows, say)
    asked = set(cancelled)
    digests: dict[str, dict[str, str]] = defaultdict(dict)
    for one in client.accepted:
        row = rows.get(one.request_id)
        if row is None:
            say(f"{one.request_id} was accepted and is unknown")
            continue
        _end(one, row, attempts[row.id], one.request_id in asked, say)
        verdict.ended[row.result_status or 0] += 1
        verdict.attempts.update(f"{a.stage}:{a.outcome}" for a in attempts[row.id])
        _answer(stack, one, row, digests, say)
    for name, found in digests.items():
        if len(set(found.values())) > 1:
            say(f"equal requests made different files: {name}, {Counter(found.values())}")
    _webhooks(stack, client, rows, verdict)
    _left_over(stack, rows, verdict)
    _logs(stack, attempts, verdict)
    return verdict


def _keys(client: Client, rows: dict[str, Request], say: Any) -> None:
    by_key = Counter(row.idempotency_key for row in rows.values() if row.idempotency_key)
    for key, number in by_key.items():
        if number > 1:
            say(f"the Idempotency-Key {key} made {number} requests")
    told = Counter(one.key for one in client.accepted)
    for key, number in told.items():
        ids = {one.request_id for one in client.accepted if one.key == key}
        if len(ids) > 1:
            say(f"the Idempotency-Key {key} was answered with {number} requests")


def _end(one: Accepted, row: Request, attempts: list[Attempt], asked: bool, say: Any) -> None:
    if row.state != State.COMPLETED:
        say(f"{row.id} never ended: {row.state}, {row.stage}, attempt {row.attempt}")
        return
    completed = [a for a in attempts if a.outcome == Outcome.COMPLETED]
    running = [a for a in attempts if a.outcome is None]
    if running:
        say(f"{row.id} has ended, and attempt {running[0].number} of it has not")
    if len(completed) != (row.result_status == 200):
        say(f"{row.id} ended with {row.result_status} and {len(completed)} completed attempts")
    if completed and completed[0].number != row.attempt:
        say(f"{row.id} was completed by attempt {completed[0].number} of {row.attempt}")
    units = one.units if row.result_status == 200 else 0
    if row.billable_units != units:
        say(f"{row.id} ended with {row.result_status} and {row.billable_units} units")
    if row.result_status != 200 and not (asked and row.result_status == CANCELLED):
        say(f"{row.id} ended with {row.result_status}: {row.error}")


def _answer(
    stack: Stack, one: Accepted, row: Request, digests: dict[str, dict[str, str]], say: Any
) -> None:
    """The client's own view of the same, down to the bytes of the LoRA or the video."""
    status = patiently(lambda: stack.http.get(one.status_url)).json()["status"]
    if (status == "COMPLETED") != (row.state == State.COMPLETED):
        say(f"{row.id} is {row.state} and answered as {status}")
    if row.result_status != 200 or one.kind not in FILES:
        return
    result = patiently(lambda: stack.http.get(one.response_url))
    if result.status_code != 200:
        say(f"the result of {row.id} is answered with {result.status_code}")
        return
    assert row.result_body is not None
    for name in FILES[one.kind]:
        key, told = row.result_body[name]["key"], result.json()[name]
        if f"/outputs/{row.attempt}/" not in key:
            say(f"{row.id}: {key} is not of attempt {row.attempt}, which completed it")
        got = patiently(lambda told=told: stack.http.get(told["url"]))  # type: ignore[misc]
        if got.status_code != 200 or len(got.content) != told["file_size"]:
            say(f"{row.id}: {name} is answered with {got.status_code}, {len(got.content)} bytes")
        elif name in WHOLE:
            digests[name][row.id] = hashlib.sha256(got.content).hexdigest()
            if not WHOLE[name](got.content):
                say(f"{row.id}: its {name} is damaged")


def _whole_safetensors(content: bytes) -> bool:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends) == len(content)


def _whole_video(content: bytes) -> bool:
    """Whether every frame that was asked for can be decoded."""
    try:
        with av.open(io.BytesIO(content)) as container:
            sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    except av.FFmpegError:
        return False
    size = (GENERATION["resolution"]["width"], GENERATION["resolution"]["height"])
    return sizes == [size] * GENERATION["num_frames"]


FILES: Final = {"training": ("lora_file", "config_file"), "generation": ("video",)}
"""Of a request that ended well, by its kind."""
WHOLE: Final = {"lora_file": _whole_safetensors, "video": _whole_video}
"""What made equal requests equal, and whether a file is all there."""


def _webhooks(stack: Stack, client: Client, rows: dict[str, Request], verdict: Verdict) -> None:
    """At least one that the receiver took for each; all genuine; all say the same."""
    say = verdict.findings.append
    taken: dict[str, list[Hook]] = defaultdict(list)
    keys = [
        Ed25519PublicKey.from_public_bytes(_base64(key["x"]))
        for key in patiently(lambda: stack.http.get("/.well-known/jwks.json")).json()["keys"]
    ]
    said: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for hook in stack.hooks.received:
        verdict.webhooks += 1
        message = json.loads(hook.body)
        said[message["request_id"]].add((message["status"], str(message["error"])))
        if hook.taken:
            taken[message["request_id"]].append(hook)
        if not _genuine(hook, keys):
            say(f"a webhook of {message['request_id']} is not signed by a published key")
    if client.hook_url is None:
        return
    for one in client.accepted:
        row = rows.get(one.request_id)
        if row is None or row.state != State.COMPLETED:
            continue
        if not taken[row.id]:
            say(f"no webhook of {row.id} was delivered; due: {row.webhook_next_at}")
        expected = "OK" if row.result_status == 200 else "ERROR"
        if any(status != expected for status, _ in said[row.id]) or len(said[row.id]) > 1:
            say(f"webhooks of {row.id}, which ended with {row.result_status}, say {said[row.id]}")


def _base64(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _genuine(hook: Hook, keys: list[Ed25519PublicKey]) -> bool:
    """The rule of docs/webhooks.md, written anew here."""
    part = "x-fal-webhook-"
    digest = hashlib.sha256(hook.body).hexdigest()
    names = (f"{part}request-id", f"{part}user-id", f"{part}timestamp")
    message = "\n".join([*(hook.headers[name] for name in names), digest]).encode()
    signature = bytes.fromhex(hook.headers[f"{part}signature"])
    for key in keys:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


def _left_over(stack: Stack, rows: dict[str, Request], verdict: Verdict) -> None:
    """Files of nobody, once the sweeps have been there that come by themselves, only later."""
    say, data = verdict.findings.append, stack.settings.data_dir
    storage = stack.storage
    named = json.dumps([row.result_body for row in rows.values()])
    strange = [
        key
        for key in storage.list_keys("requests")
        if "/outputs/" in key and key not in named
    ]  # fmt: skip
    verdict.swept["outputs of lost attempts"] = len(strange)
    verdict.swept["writes"] = storage.sweep(0.0)
    if (again := storage.sweep(0.0)) > 0:
        say(f"{again} interrupted writes or multipart uploads can't be swept")
    work = data / "work"
    verdict.swept["work folders"] = len(sweep(work)) if work.exists() else 0
    for folder in (work, data / "staging", stack.folder / "tmp"):
        left = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        if left:
            say(f"{len(left)} files are left in {folder.name}, such as {left[0].name}")
    parts = [path.name for path in _files(data / "cache") if path.name.endswith((".part", ".tmp"))]
    if parts:
        say(f"half-written files in the cache: {parts[:3]}")


def _logs(stack: Stack, attempts: dict[str, list[Attempt]], verdict: Verdict) -> None:
    """Each line is an event in JSON without a secret; what went wrong has one with its request."""
    say = verdict.findings.append
    reaped: set[str] = set()
    failed: set[tuple[str, int]] = set()
    for part in stack.parts:
        if part is stack.redis:
            continue
        for line in filter(None, map(str.strip, part.log.splitlines())):
            if any(secret in line for secret in SECRETS):
                say(f"{part.name} writes down a secret")
            try:
                event = json.loads(line)
            except ValueError:
                if not line.startswith(PLAIN):
                    say(f"{part.name} writes a line that is no JSON: {line[:200]}")
                continue
            if event.get("event") == "reaper.pass":
                reaped.update(event["requeued"], event["dead"], event["cancelled"])
            if event.get("event") == "attempt.failed":
                failed.add((event["request_id"], event["attempt"]))
    every = [attempt for found in attempts.values() for attempt in found]
    lost = [a for a in every if a.outcome == Outcome.LOST]
    retried = [a for a in every if a.outcome == Outcome.RETRIED]
    verdict.told = {
        "lost": len(lost),
        "lost, told": sum(a.request_id in reaped for a in lost),
        "retried": len(retried),
        "retried, told": sum((a.request_id, a.number) in failed for a in retried),
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
