"""Following a request: everything once, in order, and through a restart of the service."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.client import watch
from app.client.errors import Unreachable
from app.client.service import Handle, Service
from app.client.show import OnTerminal, Plain, fraction, headline
from app.client.watch import LogLine, Update, follow, what_follows
from app.requests import lifecycle
from app.requests.lifecycle import Happened, Log
from tests.app.client.conftest import Served
from tests.app.conftest import MODE, submit
from tests.app.test_lifecycle import do


class Acting:
    """Keeps what is shown; at each update the next of ``acts`` happens in the service."""

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)
        self.updates: list[Update] = []
        self.said: list[str] = []

    def update(self, update: Update) -> None:
        self.updates.append(update)
        if self.acts:
            self.acts.pop(0)()

    def say(self, line: str) -> None:
        self.said.append(line)
        if self.acts:
            self.acts.pop(0)()


@pytest.fixture
def handle(served: Served) -> Handle:
    return Handle(submit(served.database), MODE["endpoint"])


def test_everything_is_shown_once(
    served: Served, service: Service, handle: Handle, tmp_path: Path
) -> None:
    held: list[Any] = []
    preview = {"step": 2, "index": 0, "prompt": "a", "file": served.store("p", b"p", tmp_path)}

    def begin() -> None:
        held.append(served.train())
        do(served.database, lifecycle.progress, held[0], progress={"step": 1, "of": 2},
           logs=[Log("one"), Log("one")], events=[Happened("step", {"step": 1})])  # fmt: skip

    def go_on() -> None:
        do(served.database, lifecycle.progress, held[0], logs=[Log("two", "WARN")],
           events=[Happened("preview", preview), Happened("step", {"step": 2})])  # fmt: skip

    shown = Acting(begin, go_on, lambda: served.complete(held[0], {}))
    last = follow(service, handle, shown, poll_s=0.0)
    assert [u.status for u in shown.updates] == ["IN_QUEUE", *["IN_PROGRESS"] * 2, "COMPLETED"]
    assert [u.position for u in shown.updates] == [0, None, None, None]
    assert [line.message for u in shown.updates for line in u.lines] == ["one", "one", "two"]
    (event,) = [event for u in shown.updates for event in u.previews]
    assert event["file"]["url"].startswith(f"{served.url}/files/")
    assert shown.updates[1].progress == {"step": 1, "of": 2}
    assert last.completed
    assert last.error is None


def test_a_restart_of_the_service_is_waited_for(
    served: Served, service: Service, handle: Handle
) -> None:
    def end() -> None:
        served.start()
        do(served.database, lifecycle.request_cancel, handle.request_id, "local")

    shown = Acting(served.stop, end)
    assert follow(service, handle, shown, poll_s=0.0).error == lifecycle.CANCELLED_TEXT
    (said,) = shown.said
    assert "can't be reached" in said
    assert "the request goes on" in said


def test_patience_ends(
    served: Served, service: Service, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    served.stop()
    with pytest.raises(Unreachable):
        follow(service, handle, Acting(), poll_s=0.0)


def lines(*messages: str) -> list[LogLine]:
    return [LogLine("2030-01-01T10:11:12.000000Z", "INFO", message) for message in messages]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(0, 12), st.integers(1, 12))
def test_a_moving_window_loses_nothing_it_shows(log: list[str], cut: int, size: int) -> None:
    """Lines that repeat may be told apart by nothing; then the longest overlap is taken."""
    numbered = [f"{index}{letter}" for index, letter in enumerate(log)]
    before, now = lines(*numbered[:cut])[-size:], lines(*numbered)[-size:]
    expected = [line for line in now if line not in before]
    assert what_follows(before, now) == expected


UPDATE = Update("IN_PROGRESS", None, "train", {}, (), (), None)
HEADLINES = {
    "in the queue, 3 before it": Update("IN_QUEUE", 3, "prepare", {}, (), (), None),
    "in the queue for train": Update("IN_QUEUE", None, "train", {}, (), (), None),
    "prepare": Update("IN_PROGRESS", None, "prepare", {}, (), (), None),
    "download  1.5 MB of 3.0 MB": Update(
        "IN_PROGRESS", None, "prepare",
        {"stage": "download", "done": 1_500_000, "total": 3_000_000}, (), (), None,
    ),
    "encode latents  3/8": Update(
        "IN_PROGRESS", None, "train", {"stage": "encode_latents", "done": 3, "total": 8},
        (), (), None,
    ),
    "train  step 5/100  loss 0.1235  2 min left": Update(
        "IN_PROGRESS", None, "train",
        {"stage": "train", "step": 5, "of": 100, "loss": 0.12345, "eta_s": 120}, (), (), None,
    ),
    "completed": Update("COMPLETED", None, "train", {"step": 100}, (), (), None),
    "failed": Update("COMPLETED", None, "train", {"step": 9}, (), (), "broken"),
}  # fmt: skip


@pytest.mark.parametrize(("says", "update"), HEADLINES.items())
def test_a_headline(says: str, update: Update) -> None:
    assert headline(update) == says


@pytest.mark.parametrize(
    ("progress", "done"),
    [({}, None), ({"step": 1, "of": 4}, 0.25), ({"done": 3, "total": 2}, 1.0), ({"done": 3}, None)],
)
def test_the_bar(progress: dict[str, Any], done: float | None) -> None:
    assert fraction(progress) == done


def test_in_a_pipe_lines() -> None:
    said: list[str] = []
    shown = Plain(said.append)
    queued = Update("IN_QUEUE", 1, "prepare", {}, (), (), None)
    shown.update(queued)
    shown.update(queued)
    preview = {"step": 5, "file": {"url": "https://example.com/p.mp4"}}
    shown.update(Update("IN_PROGRESS", None, "train", {}, lines("a\x1b[2Jb\nc"), (preview,), None))
    assert said == [
        "in the queue, 1 before it",
        "10:11:12 a[2Jb c",
        "preview at step 5: https://example.com/p.mp4",
    ]


def test_on_a_terminal_a_bar_at_the_bottom() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    progress = {"stage": "train", "step": 50, "of": 100, "loss": 0.5, "eta_s": 42}
    warning = LogLine("2030-01-01T10:11:12.0Z", "WARN", "[red]careful")
    with OnTerminal(console) as shown:
        shown.update(Update("IN_PROGRESS", None, "train", progress, (warning,), (), None))
    bottom = Console(file=io.StringIO(), width=100)
    with bottom.capture() as captured:
        bottom.print(shown.rendered())
    rows = captured.get().splitlines()
    assert "50%" in rows[0]
    assert "step 50/100  loss 0.5000  42 s left" in rows[0]
    assert rows[1].strip() == "[red]careful"
    assert isinstance(console.file, io.StringIO)
    assert "10:11:12 WARN: [red]careful" in console.file.getvalue()
