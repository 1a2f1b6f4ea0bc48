"""Progress for eyes: a live line on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.client.text import clean, duration, size
from app.client.watch import LogLine, Update

BAR_CELLS: Final = 30
PLAIN_TRANSFER_S: Final = 5.0
"""Between two lines about one transfer in a pipe."""
LOUD: Final = ("WARN", "ERROR")

Preview = Callable[[Mapping[str, Any]], str]
"""What to say of a preview: where it can be looked at."""


def preview_url(event: Mapping[str, Any]) -> str:
    file = event.get("file")
    return str(file["url"]) if isinstance(file, Mapping) and "url" in file else "(no file)"


def headline(update: Update) -> str:
    """Where a request is, in a line.

    >>> headline(Update("IN_QUEUE", 2, "prepare", {}, (), (), None))
    'in the queue, 2 before it'
    """
    if update.completed:
        return "failed" if update.error else "completed"
    if update.status == "IN_QUEUE":
        what = "" if update.stage == "prepare" else f" for {update.stage}"
        before = "" if update.position is None else f", {update.position} before it"
        return f"in the queue{what}{before}"
    progress = update.progress
    parts = [str(progress.get("stage") or update.stage).replace("_", " ")]
    if progress.get("step") is not None:
        parts.append(f"step {progress['step']}/{progress.get('of', '?')}")
    elif progress.get("done") is not None:
        parts.append(_amount(progress))
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if progress.get("eta_s") is not None:
        parts.append(f"{duration(progress['eta_s'])} left")
    return clean("  ".join(parts))


def fraction(progress: Mapping[str, Any]) -> float | None:
    """How much of the present stage is done, 0 to 1; None where nobody knows."""
    for done, total in (("step", "of"), ("done", "total")):
        if progress.get(done) is not None and progress.get(total):
            return min(1.0, float(progress[done]) / float(progress[total]))
    return None


def _amount(progress: Mapping[str, Any]) -> str:
    total = progress.get("total")
    if progress.get("stage") == "download":
        return size(progress["done"]) + (f" of {size(total)}" if total else "")
    return f"{progress['done']}" + (f"/{total}" if total else "")


class Plain:
    """Lines, for pipes and files. Use as a context manager, as `OnTerminal`."""

    def __init__(
        self, write: Callable[[str], None] | None = None, preview: Preview = preview_url
    ) -> None:
        self._write = write or _to_stderr
        self._preview = preview
        self._said = ""
        self._transfer = ("", 0.0)

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, line: str) -> None:
        self._write(clean(line))

    def update(self, update: Update) -> None:
        for line in update.lines:
            self.say(log_line(line))
        if update.status == "IN_QUEUE" and (where := headline(update)) != self._said:
            self._said = where
            self.say(where)
        for event in update.previews:
            self.say(f"preview at step {event.get('step')}: {self._preview(event)}")

    def transfer(self, what: str, done: int, total: int) -> None:
        """Bytes of one file under way."""
        name, said_at = self._transfer
        ended = done >= total
        if name == what and not ended and time.monotonic() - said_at < PLAIN_TRANSFER_S:
            return
        self._transfer = ("" if ended else what, time.monotonic())
        self.say(f"{what}: {size(done)} of {size(total)}")


class OnTerminal:
    """A bar and a line that stay at the bottom; warnings and previews scroll by above."""

    def __init__(self, console: Console | None = None, preview: Preview = preview_url) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._preview = preview
        self._bar: float | None = None
        self._head = ""
        self._newest = ""
        self._live = Live(
            console=self._console,
            get_renderable=self.rendered,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> "OnTerminal":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(Text(clean(line)), soft_wrap=True)

    def update(self, update: Update) -> None:
        self._head, self._bar = headline(update), fraction(update.progress)
        if update.status != "IN_PROGRESS":
            self._bar = None
        for line in update.lines:
            self._newest = clean(line.message)
            if line.level in LOUD:
                self.say(log_line(line))
        for event in update.previews:
            self.say(f"preview at step {event.get('step')}: {self._preview(event)}")

    def transfer(self, what: str, done: int, total: int) -> None:
        """Bytes of one file under way."""
        self._head = clean(f"{what}  {size(done)} of {size(total)}")
        self._bar = done / total if total else 1.0
        self._newest = ""

    def rendered(self) -> RenderableType:
        """What stands at the bottom now."""
        line = Table.grid(padding=(0, 2, 0, 0))
        if self._bar is None:
            line.add_row(Text(self._head))
        else:
            bar = ProgressBar(total=1.0, completed=self._bar, width=BAR_CELLS)
            line.add_row(bar, Text(f"{self._bar:4.0%}"), Text(self._head, no_wrap=True))
        newest = Text(self._newest, style="dim", no_wrap=True, overflow="ellipsis")
        return Group(line, newest) if self._newest else line


Shown = Plain | OnTerminal


def display(preview: Preview = preview_url) -> Shown:
    """For stderr, whatever that is."""
    return OnTerminal(preview=preview) if sys.stderr.isatty() else Plain(preview=preview)


def log_line(line: LogLine) -> str:
    """``HH:MM:SS message``, in UTC, with its level where that matters."""
    level = f"{line.level}: " if line.level in LOUD else ""
    return clean(f"{line.timestamp[11:19]} {level}{line.message}")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
