"""A short run of `make faults`: the whole service, a plan of faults, and the judge's verdict.

``REELSMITH_FAULTS_SEED`` tries another plan; the seed is in the test's output when it fails.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.db.models import Request
from tests.faults import chaos, plan
from tests.faults.chaos import Load
from tests.faults.client import Client
from tests.faults.judge import Verdict, judge
from tests.faults.stack import Layout, Stack, left_behind, running

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

SEED = int(os.environ.get("REELSMITH_FAULTS_SEED", "1"))
LOAD = Load(trainings=1, generations=1, checks=2, cancels=1, seconds=15.0, faults=12, drain_s=200.0)


def layout() -> Layout:
    if shutil.which("redis-server"):
        return Layout()
    if os.environ.get("CI"):
        pytest.fail("CI must have redis-server (see .ci/run)")
    return Layout(broker="files")


@pytest.fixture(scope="module")
def suffered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Client, Verdict]]:
    """A service after its faults, with everything ended."""
    folder = tmp_path_factory.mktemp("faults")
    print(f"seed {SEED}; again: REELSMITH_FAULTS_SEED={SEED} pytest {__file__}")
    with running(folder / "stack", chaos.small_archive(folder), SEED, layout()) as stack:
        client = Client(stack.front.url, folder / "log", stack.files, stack.hooks.url)
        _, cancelled = chaos.suffer(stack, client, SEED, LOAD, print)
        stack.heal()
        chaos.drain(stack, client, LOAD, print)
        yield stack, client, judge(stack, client, cancelled)
    assert left_behind(stack) == []


def test_each_request_ends_once_and_nothing_is_left(
    suffered: tuple[Stack, Client, Verdict],
) -> None:
    stack, _, verdict = suffered
    assert verdict.findings == [], stack.tails()
    assert verdict.accepted == LOAD.trainings + LOAD.generations + LOAD.checks + LOAD.cancels
    assert verdict.ended.total() == verdict.accepted


def test_every_part_tells_its_numbers(suffered: tuple[Stack, Client, Verdict]) -> None:
    """Each process by itself, whatever became of its children."""
    stack, client, _ = suffered
    for parts in stack.workers.values():
        for part in parts:
            url = f"http://127.0.0.1:{part.env['REELSMITH_METRICS_PORT']}/metrics"
            assert "reelsmith_step_seconds" in httpx.get(url, trust_env=False).text
    found = stack.http.get("/metrics").text
    completed = re.findall(r'reelsmith_requests\{.*state="completed".*\} (\S+)', found)
    assert sum(map(float, completed)) == len(client.accepted)


def _bill_twice(stack: Stack, client: Client) -> None:
    _set(stack, client, billable_units=200)


def _forget_the_end(stack: Stack, client: Client) -> None:
    _set(stack, client, state="running")


def _lose_the_row(stack: Stack, client: Client) -> None:
    one = next(one for one in client.accepted if one.kind == "check")
    client.accepted.append(replace(one, key="another", request_id="0" * 36))


def _make_another_attempt(stack: Stack, client: Client) -> None:
    _set(stack, client, attempt=99)


def _set(stack: Stack, client: Client, **columns: Any) -> None:
    with stack.database.write() as session:
        session.execute(
            update(Request).where(Request.id == _first(client, "training")).values(**columns)
        )  # fmt: skip


def _first(client: Client, kind: str) -> str:
    return next(one.request_id for one in client.accepted if one.kind == kind)


def _damage_the_lora(stack: Stack, client: Client) -> None:
    _change(stack, _first(client, "training"), "lora_file", lambda content: content[:-1])


def _damage_the_video(stack: Stack, client: Client) -> None:
    """Its size stays, so that only a decoder sees it."""

    def half(content: bytes) -> bytes:
        return content[: len(content) // 2].ljust(len(content), b"\0")

    _change(stack, _first(client, "generation"), "video", half)


def _change(stack: Stack, request_id: str, name: str, how: Callable[[bytes], bytes]) -> None:
    """A file of a result, in the store."""
    with stack.database.read() as session:
        row = session.scalars(select(Request).where(Request.id == request_id)).one()
        assert row.result_body is not None
        key = row.result_body[name]["key"]
    path = stack.folder / "changed"
    stack.storage.fetch(key, path)
    path.write_bytes(how(path.read_bytes()))
    stack.storage.put_file(key, path)


def _lose_webhooks(stack: Stack, client: Client) -> None:
    stack.hooks.received.clear()


def _leave_a_file(stack: Stack, client: Client) -> None:
    (stack.settings.data_dir / "staging" / "half").write_bytes(b"x")


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (_leave_a_file, "left in staging"),
        (_lose_webhooks, "no webhook of"),
        (_bill_twice, "200 units"),
        (_make_another_attempt, "of 99"),
        (_damage_the_lora, "lora_file is answered with 200"),
        (_damage_the_video, "its video is damaged"),
        (_forget_the_end, "never ended"),
        (_lose_the_row, "is unknown"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_the_judge_is_not_blind(
    suffered: tuple[Stack, Client, Verdict], tamper: Any, finding: str
) -> None:
    """Comes last: it breaks what was judged, one thing after the other."""
    stack, client, verdict = suffered
    tamper(stack, client)
    found = judge(stack, client).findings
    assert any(finding in one for one in found if one not in verdict.findings), found


def test_a_plan_is_its_seeds() -> None:
    first = plan.make_plan(5, Layout(), 50, 60.0)
    assert first == plan.make_plan(5, Layout(), 50, 60.0)
    assert first != plan.make_plan(6, Layout(), 50, 60.0)
    assert {fault.name for fault in plan.make_plan(1, Layout(postgres="x"), 2000, 60.0)} == set(
        plan.catalogue(Layout(postgres="x"))
    )
