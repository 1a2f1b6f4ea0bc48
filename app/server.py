"""The gateway as a process."""

import gc
import logging
import socket
import sys
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from app.guard import guarded, max_connections, raise_file_limit
from app.settings import Settings

GRACE_S: Final = 10
"""For replies that are being made when the process is told to stop."""


class Server(uvicorn.Server):
    """Ends waiting replies (streams, runs) when it stops: they would use up the grace."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.watcher.close()
        if self.config.is_ssl:
            self._drop_idle()
        await super().shutdown(sockets)

    def _drop_idle(self) -> None:
        """TLS is ended by both sides, and a client that waits for nothing does not look: each of
        its open connections would use up the grace."""
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_complete:
                connection.transport.abort()


def configured(
    app: FastAPI, host: str, port: int, tls_cert: Path | None = None, tls_key: Path | None = None
) -> Server:
    """A server for ``app``, of HTTPS where a certificate is given; logs are the app's own."""
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
            log_level=logging.WARNING,
            log_config=None,
            server_header=False,
            http=guarded(max_connections(raise_file_limit())),
            ws="none",
            # Both cost every request something, and nothing here asks for them: the app logs calls
            # itself, and its URLs are those of REELSMITH_PUBLIC_URL.
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def run(app: FastAPI, settings: Settings) -> None:
    """Until a signal ends it."""
    # What is loaded stays. The garbage collector would look through all of it every now and then,
    # and every reply of that moment would wait a tenth of a second.
    gc.collect()
    gc.freeze()
    server = configured(app, settings.host, settings.port, settings.tls_cert, settings.tls_key)
    server.run()
    if not server.started:
        sys.exit(3)
