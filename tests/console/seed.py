"""Requests in every state, as rows and files, for pages to show. Nothing here ran."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from app.clock import db_now
from app.db.engine import Database
from app.db.models import Attempt, Event, LogLine, Request, WebhookAttempt, Worker
from app.keys import store
from app.keys.store import Limits
from app.storage import Storage
from tests.conftest import real_clip

NOW = 1_796_000_000.0
"""Only differences between times show."""
LONG = "an_extraordinarily_long_trigger_phrase_without_any_space_" * 3
CAPTION = "a large white rabbit wakes up in a sunny meadow and looks around"


def input_of(**more: Any) -> dict[str, Any]:
    """Of a training, as a row holds it."""
    return {
        "training_data_url": "https://example.com/clips.zip",
        "trigger_phrase": "rbt9",
        "rank": 32,
        "number_of_steps": 2000,
        "learning_rate": 0.0002,
        "number_of_frames": 89,
        "resolution": "medium",
        "aspect_ratio": "1:1",
        "validation": [{"prompt": "rbt9 in a meadow"}],
        **more,
    }


class Seed:
    """Fills one database and store; remembers ids by what they are."""

    def __init__(self, database: Database, storage: Storage, owner: str = "local") -> None:
        self.database = database
        self.storage = storage
        self.owner = owner
        self.ids: dict[str, str] = {}
        self._clip: dict[str, Any] | None = None

    def all(self) -> "Seed":
        self.request("queued")
        running = self.request("running", state="running", stage="train", started_at=NOW)
        self.trained(running, steps=120, of=2000)
        put(
            self.database,
            running,
            progress={
                "stage": "train",
                "step": 120,
                "of": 2000,
                "loss": 0.41,
                "lr": 2e-4,
                "step_time_s": 1.9,
                "eta_s": 3572.0,
            },
            worker="host:1",
        )
        done = self.ended(
            "done",
            200,
            {"lora_file": self.file("lora.safetensors", b"x" * 900)},
            billable_units=2000,
        )
        self.trained(done, steps=400, of=2000, previews=True)
        other = self.ended(
            "other",
            200,
            {"lora_file": self.file("b.safetensors", b"y")},
            input=input_of(rank=64, trigger_phrase="rbt10"),
        )
        self.trained(other, steps=300, of=2000)
        failed = self.ended(
            "failed",
            422,
            {"detail": []},
            error_type="value_error",
            input=input_of(trigger_phrase=LONG),
            error="No clip can be used: all 3 are too short. " * 4,
        )
        self.report(failed, dropped=True)
        self.ended(
            "cancelled",
            499,
            {"detail": "Cancelled"},
            error="Request was cancelled",
            error_type="client_cancelled",
        )
        check = self.ended("check", 200, {"ok": True, "samples": 1}, purpose="check")
        self.report(check)
        hooked = self.ended("hooked", 200, {}, webhook_url="https://example.com/hook?secret=1")
        with self.database.write() as session:
            for number, error in ((1, "the receiver answered 500"), (2, None)):
                session.add(
                    WebhookAttempt(
                        request_id=hooked,
                        number=number,
                        started_at=NOW,
                        seconds=0.2,
                        status=500 if error else 200,
                        error=error,
                    )
                )
            session.add(
                Worker(
                    name="host:1",
                    queue="gpu",
                    facts={
                        "device": "NVIDIA H200",
                        "memory_total_bytes": 150e9,
                        "memory_used_bytes": 61e9,
                        "load_percent": 97.0,
                    },
                )
            )
            session.add(Worker(name="host:2", queue="cpu", seen_at=NOW - 9e7, facts={}))
            lacks = {"device": "CPU, 16 cores", "load_percent": 2.0, "lacks": "gpu"}
            session.add(Worker(name="host:3", queue="gpu", facts=lacks))
        return self

    def key(self, name: str = "ann", **limits: int) -> tuple[str, str]:
        with self.database.write() as session:
            return store.create(session, name, Limits(**limits))

    def request(self, name: str, **columns: Any) -> str:
        id = f"{len(self.ids):08x}-0000-4000-8000-{len(self.ids):012x}"
        self.ids[name] = id
        values = {
            "id": id,
            "owner": self.owner,
            "endpoint": "fal-ai/ltx23-trainer-v2/t2v",
            "app": "fal-ai/ltx23-trainer-v2",
            "mode": "t2v",
            "input": input_of(),
            "storage_prefix": f"requests/{id}",
            "created_at": NOW - 600 + len(self.ids),
            **columns,
        }
        with self.database.write() as session:
            session.add(Request(**values))
        return id

    def ended(self, name: str, status: int, body: dict[str, Any], **columns: Any) -> str:
        with self.database.read() as session:
            now = session.scalar(select(db_now())) or NOW
        id = self.request(
            name,
            state="completed",
            stage="train",
            result_status=status,
            result_body=body,
            started_at=now - 500,
            finished_at=now - 20,
            inference_time=480.0,
            **columns,
        )
        with self.database.write() as session:
            for number, stage in ((1, "prepare"), (2, "train")):
                session.add(
                    Attempt(
                        token=f"{id}-{number}",
                        request_id=id,
                        number=number,
                        stage=stage,
                        worker="host:1",
                        started_at=NOW,
                        ended_at=NOW + 9,
                        outcome="advanced" if number == 1 else "completed",
                    )
                )
        return id

    def trained(self, id: str, *, steps: int, of: int, previews: bool = False) -> None:
        """Events and log of ``steps`` steps."""
        with self.database.write() as session:
            for name in ("unpack", "probe", "fit"):
                for state in ("start", "end"):
                    data = {"name": name, "state": state, "seconds": 1.2}
                    session.add(Event(request_id=id, kind="stage", data=data, ts=NOW))
            session.add(
                Event(request_id=id, kind="stage", data={"name": "train", "state": "start"})
            )
            session.execute(insert(Event), step_rows(id, range(1, steps + 1), of))
            session.execute(insert(LogLine), line_rows(id, range(30)))
            if previews:
                for step in (100, 200, 300):
                    data = {
                        "step": step,
                        "index": 0,
                        "prompt": "rbt9 in a meadow",
                        "file": self.clip(),
                    }
                    session.add(Event(request_id=id, kind="preview", data=data, ts=NOW))

    def report(self, id: str, *, dropped: bool = False) -> None:
        """A dataset report with one clip, and its look where it is used."""
        facts = {
            "width": 1280,
            "height": 720,
            "num_frames": 132,
            "duration_s": 5.28,
            "codec": "h264",
            "audio": None,
        }
        became = {
            "sample": "0001",
            "start_s": 0.0,
            "end_s": 3.5,
            "num_frames": 89,
            "width": 768,
            "height": 768,
            "time_scale": 1.0,
            "audio": None,
            "mask": None,
        }
        clip = {
            "name": "a/very/long/path/to/" + "bunny_" * 8 + ".mp4",
            "size_bytes": 1_100_000,
            "kind": "video",
            "facts": facts,
            "caption": {"file": "bunny.txt", "text": CAPTION, "as_trained": f"rbt9 {CAPTION}"},
            "became": [] if dropped else [became],
            "dropped": {"reason": "too_short", "message": "It has 12 frames; 89 are needed."}
            if dropped
            else None,
            "warnings": [],
        }
        report = {
            "version": 1,
            "verdict": "refused" if dropped else "ok",
            "problem": {"message": "No clip can be used."} if dropped else None,
            "archive": {"size_bytes": 1_200_000, "sha256": "0", "num_entries": 2},
            "totals": {"clips": 1, "used": int(not dropped), "dropped": int(dropped), "samples": 1},
            "audio": None if dropped else {"trained": False, "reason": "1 of 1 clips is silent"},
            "clips": [clip],
            "ignored": [{"name": "notes.psd", "reason": "neither a clip nor a caption"}],
            "warnings": ["1 file is used; 10 or more are advised"],
        }
        self.file("report.json", json.dumps(report).encode(), key=f"requests/{id}/report.json")
        if not dropped:
            self.storage.put_file(
                f"prepared/{id}/looks/0001.mp4", real_clip("bikes.mp4"), content_type="video/mp4"
            )
            put(self.database, id, prepared={"key": f"prepared/{id}"})

    def file(self, name: str, content: bytes, key: str = "") -> dict[str, Any]:
        path = Path(self.folder) / name
        path.unlink(missing_ok=True)  # the store may share the bytes of the one before
        path.write_bytes(content)
        stored = self.storage.put_file(key or f"requests/files/{name}", path)
        return {
            "key": stored.key,
            "content_type": stored.content_type,
            "file_name": name,
            "file_size": stored.size_bytes,
        }

    def clip(self) -> dict[str, Any]:
        if self._clip is None:
            path = real_clip("carphone_pristine.mp4")
            stored = self.storage.put_file("requests/files/p.mp4", path, content_type="video/mp4")
            self._clip = {
                "key": stored.key,
                "content_type": "video/mp4",
                "file_name": "p.mp4",
                "file_size": stored.size_bytes,
            }
        return self._clip

    folder: Path = Path()


def put(database: Database, id: str, **columns: Any) -> None:
    with database.write() as session:
        session.execute(update(Request).where(Request.id == id).values(columns))


def step_rows(id: str, steps: Iterable[int], of: int) -> list[dict[str, Any]]:
    """Events of training steps: a loss that falls, with a spike at every hundredth."""
    return [
        {
            "request_id": id,
            "kind": "step",
            "ts": NOW + step,
            "data": {
                "step": step,
                "of": of,
                "loss": round(0.3 + math.exp(-step / of * 4) + (0.5 if step % 100 == 0 else 0), 5),
                "lr": 2e-4 * (1 - 0.9 * step / of),
                "step_time_s": 1.9,
                "eta_s": 2.0 * (of - step),
            },
        }
        for step in steps
    ]


def line_rows(id: str, numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [
        {
            "request_id": id,
            "ts": NOW + number,
            "level": "WARN" if number % 100 == 7 else "INFO",
            "message": f"line {number}: step {number} of many, loss 0.{number % 1000:03d}",
        }
        for number in numbers
    ]
