"""The gateway: validates, stores, answers. It loads neither torch nor a media library."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import cache, partial

import structlog
from fastapi import APIRouter, FastAPI

from app import health, modes, replies
from app.auth import Authenticator
from app.broker import Waker, make_celery
from app.console.routes import make_routes as console_routes
from app.cors import CrossOrigin
from app.db.engine import AsyncDatabase
from app.db.migrate import upgrade
from app.hosts import Hosts
from app.insight import deliveries, overview, request_endpoints, usage
from app.keys import endpoints as key_endpoints
from app.keys.opening import require_key
from app.logging import configure
from app.metrics import endpoint as metrics_endpoint
from app.openapi import routes as openapi
from app.openapi.document import document_of
from app.requests import estimate_endpoints, namespaces, wish_endpoints
from app.requests.background import Publisher, Reaper, Sweeper
from app.requests.endpoints import make_router, prefixes_of
from app.requests.listing import listing_router
from app.requests.outbox import Send
from app.requests.polls import StatusPolls, StatusReader
from app.requests.service import RequestService
from app.requests.sources import SourceCheck
from app.settings import Settings
from app.storage import Storage, make_storage
from app.storage.endpoints import router_for
from app.storage.receiving import STAGING
from app.webhooks.deliverer import Deliverer
from app.webhooks.endpoints import make_router as jwks_router
from app.webhooks.keys import KeyRing
from app.webhooks.targets import WebhookCheck

VERSION = "0.1.0"
STORAGE_PATIENCE_S = 5.0
"""How long a client waits while the store is down."""

log = structlog.get_logger()


def create_app(
    settings: Settings | None = None, storage: Storage | None = None, send: Send | None = None
) -> FastAPI:
    """The gateway's ASGI app.

    ``storage`` and ``send`` default to what the settings name; tests pass their own.
    """
    settings = settings or Settings()
    configure(settings.log_level, settings.secrets)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    storage = storage or make_storage(settings, patience_s=STORAGE_PATIENCE_S)
    database = AsyncDatabase(settings.database_url)
    send = send or _waker(settings)
    checks = health.Health(database, storage, getattr(send, "ping", None), settings.data_dir)
    publisher = Publisher(database, send)
    reaper = Reaper(
        database,
        publisher.notify,
        interval_s=settings.reaper_interval_s,
        attempts_limit=settings.attempts_limit,
    )
    sweeper = Sweeper(storage, database, settings.data_dir / STAGING, settings.retention_s)
    authenticate = Authenticator.of(settings, database)
    service = RequestService(
        database,
        settings.public_url,
        publisher.notify,
        WebhookCheck.of(settings),
        SourceCheck.of(settings, storage),
        settings.dedupe_window_s,
        settings.retention_s,
    )
    delivering = Deliverer.of(settings, database, storage)
    parts = (publisher, reaper, sweeper, service.watcher, delivering)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(upgrade, settings.database_url)
        await database.read(require_key, settings)
        metrics = contextlib.ExitStack()
        app.state.metrics = metrics.enter_context(metrics_endpoint.exposed(settings))
        publisher.notify()
        tasks = [asyncio.create_task(part.run()) for part in parts]
        log.info("gateway.started", public_url=settings.public_url, model=settings.model)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await database.close()
            await asyncio.to_thread(metrics.close)

    app = FastAPI(
        title="Reelsmith",
        version=VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Our own log has a line for every call; asking for it costs a tenth of a status poll.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.watcher = service.watcher
    cross_origin = CrossOrigin.of(settings)
    answering_polls = partial(
        StatusPolls,
        apps=prefixes_of(modes.all()),
        reader=StatusReader(database),
        authenticate=authenticate,
        public_url=settings.public_url,
    )
    app.add_middleware(answering_polls)  # the last one added is the first to be asked
    app.add_middleware(Hosts, run_hosts=settings.run_hosts)
    replies.install(app, cross_origin)
    app.add_middleware(answering_polls, outermost=cross_origin)
    for router in _routers(settings, database, storage, service, authenticate, checks):
        # Flat: an included router is searched twice for every call.
        app.router.routes.extend(router.routes)
    app.router.routes.extend(console_routes(app, settings, authenticate))
    document = cache(lambda: document_of(app, modes.all(), settings.public_url))
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _routers(
    settings: Settings,
    database: AsyncDatabase,
    storage: Storage,
    service: RequestService,
    authenticate: Authenticator,
    checks: health.Health,
) -> tuple[APIRouter, ...]:
    """All of the public API's, what is called most first."""
    return (
        make_router(modes.all(), service, authenticate, storage, run_wait_s=settings.run_wait_s),
        listing_router(database, settings.public_url, authenticate, settings.retention_s),
        wish_endpoints.make_router(database, authenticate, settings.retention_s),
        estimate_endpoints.make_router(modes.all(), database, authenticate, settings.model),
        health.make_router(checks),
        metrics_endpoint.make_router(authenticate),
        request_endpoints.make_router(service, authenticate, storage),
        overview.make_router(database, authenticate, checks, settings, VERSION),
        usage.make_router(database, authenticate),
        key_endpoints.make_router(database, authenticate),
        deliveries.make_router(database, authenticate),
        router_for(storage, settings, authenticate, database),
        jwks_router(database, KeyRing.of(settings)),
        openapi.make_router(modes.all(), settings.public_url),
        namespaces.make_router(authenticate),
    )


def _waker(settings: Settings) -> Waker:
    redis = settings.redis_url
    return Waker(make_celery(redis.get_secret_value() if redis else None, settings.data_dir))
