"""Where a gateway's metrics can be read.

They tell how much everybody uses the service. So they are on a port of their own
(``REELSMITH_METRICS_PORT``) that only the operator's network reaches, and on the public port only
while the service has no keys.
"""

import contextlib
from collections.abc import Iterator

import structlog
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest, start_http_server
from starlette.concurrency import run_in_threadpool

from app.auth import SINGLE_USER, Authenticator
from app.db.engine import Database
from app.errors import NotFound
from app.metrics.tables import Everything
from app.settings import Settings

log = structlog.get_logger()


@contextlib.contextmanager
def exposed(settings: Settings) -> Iterator[Everything]:
    """The gateway's metrics; on a port of their own for the length of a block, if one is set."""
    database = Database(settings.database_url)
    everything = Everything(database)
    with contextlib.ExitStack() as stack:
        stack.callback(database.close)
        if settings.metrics_port is not None:
            port, host = settings.metrics_port, settings.metrics_host
            server, thread = start_http_server(port, host, everything)
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            log.info("metrics.served", host=host, port=port)
        yield everything


def make_router(authenticate: Authenticator) -> APIRouter:
    """``/metrics``, as long as there is one user: everybody else's are not his business."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        if await authenticate(request) != SINGLE_USER:
            raise NotFound("With keys, metrics are at REELSMITH_METRICS_PORT only.")
        text = await run_in_threadpool(generate_latest, request.app.state.metrics)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
