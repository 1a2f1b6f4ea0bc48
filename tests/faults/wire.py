"""A TCP proxy whose connections can be cut, held still, slowed, or lose an answer."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["open", "cut", "hold"]
PIECE = 64 * 1024


@dataclass
class Wire:
    """Between clients and ``upstreams``, which take turns; one that refuses is passed over.

    ``cut``: connections are reset, and new ones refused. ``hold``: nothing moves and nobody is
    told, as when a cable is pulled; what waits goes on when it is ``open`` again.
    """

    upstreams: list[int]
    port: int = 0
    mode: Mode = "open"
    latency_s: float = 0.0
    lost_answers: int = 0
    """So many answers to come are swallowed: the client's connection is reset in their place."""
    connections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _turn: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: Mode) -> None:
        """Safe from any thread."""
        self.mode = mode
        if mode == "cut":
            self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.mode == "cut":
            writer.transport.abort()
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._open()
            upstream = await self._connect()
            if upstream is None:
                writer.transport.abort()
                return
            theirs, to_them = upstream
            pair = {writer, to_them}
            self._writers |= pair
            try:
                await _first_of(
                    self._pump(reader, to_them), self._pump(theirs, writer, answers=True)
                )
            finally:
                self._writers -= pair
                for one in pair:
                    one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(self._turn)
        for number in range(len(self.upstreams)):
            port = self.upstreams[(first + number) % len(self.upstreams)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False
    ) -> None:
        while piece := await reader.read(PIECE):
            if answers and self.lost_answers > 0:
                self.lost_answers -= 1
                writer.transport.abort()
                return
            await self._open()
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        if not answers:
            # A client that has sent everything still waits for its answer.
            await asyncio.Event().wait()

    async def _open(self) -> None:
        while self.mode == "hold":
            await asyncio.sleep(0.02)


async def _first_of(*pumps: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def wire(*upstreams: int) -> Iterator[Wire]:
    """A wire on a free port for the length of a block."""
    made = Wire(list(upstreams))
    loop = made._loop

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(made.serve, "127.0.0.1", 0)

    thread = threading.Thread(target=loop.run_forever, name="wire", daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*filter(None, tasks), return_exceptions=True)
