"""The gateway: validates, stores, answers. It loads neither torch nor a media library."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import cache

import structlog
from fastapi import APIRouter, FastAPI
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import modes, replies
from app.auth import Authenticator
from app.broker import Waker, make_celery
from app.console.routes import make_routes as console_routes
from app.cors import CrossOrigin
from app.db.engine import AsyncDatabase
from app.db.migrate import upgrade
from app.errors import Unavailable
from app.hosts import Hosts
from app.insight import deliveries, overview, request_endpoints, usage
from app.keys.opening import require_key
from app.logging import configure
from app.openapi import routes as openapi
from app.openapi.document import document_of
from app.requests import estimate_endpoints, namespaces
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
    configure(settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    storage = storage or make_storage(settings, patience_s=STORAGE_PATIENCE_S)
    database = AsyncDatabase(settings.database_url)
    publisher = Publisher(database, send or _waker(settings))
    reaper = Reaper(
        database,
        publisher.notify,
        interval_s=settings.reaper_interval_s,
        attempts_limit=settings.attempts_limit,
    )
    sweeper = Sweeper(storage, database, settings.retention_s)
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
    deliverer = Deliverer.of(settings, database, storage)

    parts = (publisher, reaper, sweeper, service.watcher, deliverer)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(upgrade, settings.database_url)
        await database.read(require_key, settings)
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

    app = FastAPI(
        title="Reelsmith",
        version=VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Our own log has a line for every call; asking for it costs a tenth of a status poll.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_middleware(
        StatusPolls,
        apps=prefixes_of(modes.all()),
        reader=StatusReader(database),
        authenticate=authenticate,
        public_url=settings.public_url,
    )
    app.state.watcher = service.watcher
    app.add_middleware(Hosts, run_hosts=settings.run_hosts)
    replies.install(app, CrossOrigin.of(settings))
    for router in (
        make_router(modes.all(), service, authenticate, storage, run_wait_s=settings.run_wait_s),
        listing_router(database, settings.public_url, authenticate, settings.retention_s),
        estimate_endpoints.make_router(modes.all(), database, authenticate, settings.model),
        request_endpoints.make_router(service, authenticate, storage),
        overview.make_router(database, authenticate, storage, settings, VERSION),
        usage.make_router(database, authenticate),
        deliveries.make_router(database, authenticate),
        _health(database),
        router_for(storage, settings, authenticate, database),
        jwks_router(database, KeyRing.of(settings)),
        openapi.make_router(modes.all(), settings.public_url),
        namespaces.make_router(authenticate),
    ):
        # Flat: an included router is searched twice for every call.
        app.router.routes.extend(router.routes)
    app.router.routes.extend(console_routes(app, settings, authenticate))
    document = cache(lambda: document_of(app, modes.all(), settings.public_url))
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _waker(settings: Settings) -> Waker:
    redis = settings.redis_url
    return Waker(make_celery(redis.get_secret_value() if redis else None, settings.data_dir))


def _health(database: AsyncDatabase) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """The process can take requests: its database answers. 503 otherwise."""
        try:
            await database.read(_ping)
        except SQLAlchemyError as error:
            log.error("gateway.not_ready", error=repr(error))
            raise Unavailable from error
        return {"status": "ok"}

    return router


def _ping(session: Session) -> None:
    session.execute(text("SELECT version_num FROM alembic_version"))
