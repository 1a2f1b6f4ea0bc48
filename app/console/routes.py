"""The console's pages. Each asks the public API, and shows what it answers."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from app import modes
from app.auth import Authenticator
from app.console import request_page
from app.console.api import Api, ApiError
from app.console.form import drawing_of, form_of
from app.console.pages import STATIC, THEME_COOKIE, THEMES, Pages
from app.console.starts import STARTS
from app.errors import Forbidden, NotAuthenticated
from app.modes.base import AnyMode, Generation, Training
from app.sessions import Sessions
from app.settings import Settings

BASE: Final = "/console"
PER_PAGE: Final = 25
MAX_COMPARED: Final = 4
MAX_LOGIN_BYTES: Final = 4_096
YEAR_S: Final = 365 * 24 * 3600

Page = Callable[[Request, Api], Awaitable[Response]]
Change = Callable[[Request, Sessions], Awaitable[Response]]


class Versioned(StaticFiles):
    """Files under a path that changes with them: browsers may keep them for ever."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_age(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                age = f"public, max-age={YEAR_S}, immutable".encode()
                message["headers"] = [*message["headers"], (b"cache-control", age)]
            await send(message)

        await super().__call__(scope, receive, with_age)


def make_routes(app: Starlette, settings: Settings, authenticate: Authenticator) -> list[BaseRoute]:
    """The routes below `BASE`."""
    console = Console(app, Pages(settings, getattr(app, "version", "")), authenticate)
    pages: tuple[tuple[str, Page], ...] = (
        ("", console.overview),
        ("/new", console.cards),
        ("/new/{mode:path}", console.new),
        ("/check", console.checks),
        ("/check/{mode:path}", console.check),
        ("/generate", console.generate),
        ("/generate/{mode:path}", console.generate_with),
        ("/requests", console.history),
        ("/requests/{id}", console.request),
        ("/requests/{id}/state", console.request_state),
        ("/requests/{id}/files", console.request_files),
        ("/requests/{id}/report", console.request_report),
        ("/compare", console.compare),
        ("/usage", console.usage),
        ("/webhooks", console.webhooks),
    )
    routes: list[BaseRoute] = [
        Mount(f"{console.pages.static}", Versioned(directory=STATIC), name="console-static"),
        Route(f"{BASE}/login", console.login_form, methods=["GET"]),
        *(
            Route(f"{BASE}/{change.__name__}", console.change(change), methods=["POST"])
            for change in (console.login, console.logout, console.theme)
        ),
        *(Route(BASE + path, console.page(show), methods=["GET"]) for path, show in pages),
        Route(f"{BASE}/{{rest:path}}", console.nowhere, methods=["GET"]),
    ]
    return routes


class Console:
    """One method for each page."""

    def __init__(self, app: Starlette, pages: Pages, authenticate: Authenticator) -> None:
        self._app = app
        self.pages = pages
        self._authenticate = authenticate

    def page(self, show: Page) -> Callable[[Request], Awaitable[Response]]:
        """``show`` for those who may look; others are led to the login, errors become pages."""

        @functools.wraps(show)
        async def endpoint(request: Request) -> Response:
            request.state.needs_key = await self._authenticate.needs_key()
            try:
                await self._authenticate(request)
                return await show(request, Api(self._app, request))
            except NotAuthenticated:
                return _to_login(request)
            except ApiError as error:
                return self._render(
                    request,
                    "error.html",
                    error.status,
                    status_code=error.status,
                    text=error.message,
                )
            except HTTPException:
                return await self.nowhere(request)

        return endpoint

    def change(self, make: Change) -> Callable[[Request], Awaitable[Response]]:
        """``make`` for forms of our own pages only: what it answers sets or ends a cookie."""

        @functools.wraps(make)
        async def endpoint(request: Request) -> Response:
            sessions = self._authenticate.sessions
            assert sessions is not None
            try:
                sessions.check_origin(request)
            except Forbidden as error:
                return error.response()
            return await make(request, sessions)

        return endpoint

    def _render(
        self, request: Request, template: str, status: int = 200, **values: Any
    ) -> Response:
        needs_key = getattr(request.state, "needs_key", False)
        return self.pages.render(request, template, status, needs_key=needs_key, **values)

    async def nowhere(self, request: Request) -> Response:
        """What is below `BASE` and no page."""
        text = "There is no such page."
        return self._render(request, "error.html", 404, status_code=404, text=text)

    # Who looks

    async def login_form(self, request: Request) -> Response:
        return self._render(request, "login.html", wrong=False, next=_next_of(request))

    async def login(self, request: Request, sessions: Sessions) -> Response:
        """A key for a session."""
        form = await _form_of(request)
        owner = await self._authenticate.owner_of_key(form.get("key", "").strip())
        target = _local(form.get("next", ""))
        if owner is None:
            return self._render(request, "login.html", 401, wrong=True, next=target)
        answer = RedirectResponse(target, 303, self.pages.headers())
        await sessions.begin(answer, owner)
        return answer

    async def logout(self, request: Request, sessions: Sessions) -> Response:
        answer = RedirectResponse(f"{BASE}/login", 303, self.pages.headers())
        await sessions.end(request, answer)
        return answer

    async def theme(self, request: Request, sessions: Sessions) -> Response:
        """Remember light or dark where pages are made: none flashes in the other."""
        wanted = (await _form_of(request)).get("theme", "")
        answer = Response(status_code=204)
        if wanted in THEMES:
            answer.set_cookie(THEME_COOKIE, wanted, max_age=YEAR_S, samesite="lax", httponly=True)
        else:
            answer.delete_cookie(THEME_COOKIE)
        return answer

    # Pages

    async def overview(self, request: Request, api: Api) -> Response:
        found = await api.get("/overview")
        running = await api.get("/requests", {"standing": "running", "limit": 10})
        queued = await api.get("/requests", {"standing": "queued", "limit": 10})
        recent = await api.get("/requests", {"limit": 6})
        template = "parts/overview.html" if request.headers.get("hx-request") else "overview.html"
        return self._render(
            request,
            template,
            section="overview",
            overview=found,
            active=[*running["requests"], *queued["requests"]],
            recent=recent["requests"],
        )

    async def cards(self, request: Request, api: Api) -> Response:
        return self._render(request, "cards.html", section="new", modes=trainers(), purpose="train")

    async def new(self, request: Request, api: Api) -> Response:
        return await self._form(request, api, _mode(request, trainers()), "new")

    async def checks(self, request: Request, api: Api) -> Response:
        found = await api.get("/requests", {"purpose": "check", "limit": PER_PAGE})
        return self._render(
            request,
            "cards.html",
            section="check",
            modes=trainers(),
            purpose="check",
            requests=found["requests"],
        )

    async def check(self, request: Request, api: Api) -> Response:
        return await self._form(request, api, _mode(request, trainers()), "check")

    async def generate(self, request: Request, api: Api) -> Response:
        found = generators()
        if len(found) == 1:
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(f"{BASE}/generate/{found[0].path}{query}", 303)
        return self._render(request, "generate.html", section="generate", modes=found)

    async def generate_with(self, request: Request, api: Api) -> Response:
        return await self._form(request, api, _mode(request, generators()), "generate")

    async def _form(self, request: Request, api: Api, mode: AnyMode, section: str) -> Response:
        """The form of ``mode``, perhaps with the values of an earlier request (``?from=ID``)."""
        given: dict[str, Any] = {}
        source = request.query_params.get("from")
        if source:
            given = (await request_page.found_at(api, source))["input"]
        loras: list[Any] = []
        if section == "generate":
            loras = await request_page.own_loras(api)
        return self._render(
            request,
            "form.html",
            section=section,
            mode=mode,
            form=form_of(mode, check=section == "check"),
            drawing=drawing_of(mode),
            starts=STARTS if section == "new" else (),
            given=given,
            source=source,
            loras=loras,
            wanted_lora=request.query_params.get("lora", ""),
            example=(mode.request_model.model_json_schema().get("examples") or [{}])[0],
        )

    async def history(self, request: Request, api: Api) -> Response:
        names = ("standing", "endpoint", "purpose", "search", "before")
        wanted = {name: request.query_params.get(name, "") for name in names}
        found = await api.get("/requests", {**wanted, "limit": PER_PAGE})
        older = {**{k: v for k, v in wanted.items() if v}, "before": found["before"]}
        is_part = request.headers.get("hx-target") == "rows"
        return self._render(
            request,
            "parts/history_rows.html" if is_part else "history.html",
            section="history",
            requests=found["requests"],
            older=f"{BASE}/requests?{urlencode(older)}" if found["before"] else None,
            wanted=wanted,
            modes=modes.all(),
        )

    async def request(self, request: Request, api: Api) -> Response:
        values = await request_page.whole(api, request.path_params["id"])
        return self._render(request, "request.html", section="history", **values)

    async def request_state(self, request: Request, api: Api) -> Response:
        values = await request_page.state(api, request.path_params["id"])
        return self._render(request, "parts/request_state.html", **values)

    async def request_files(self, request: Request, api: Api) -> Response:
        values = await request_page.files(api, request.path_params["id"])
        return self._render(request, "parts/request_files.html", **values)

    async def request_report(self, request: Request, api: Api) -> Response:
        values = await request_page.report(api, request.path_params["id"])
        return self._render(request, "report.html", section="history", **values)

    async def compare(self, request: Request, api: Api) -> Response:
        wanted = dict.fromkeys(request.query_params.getlist("id"))
        ids = [id for id in wanted if id][:MAX_COMPARED]
        compared = [await request_page.compared(api, id) for id in ids]
        recent = await api.get("/requests", {"purpose": "train", "limit": PER_PAGE})
        return self._render(
            request,
            "compare.html",
            section="history",
            compared=compared,
            settings=request_page.differences([one["found"]["input"] for one in compared]),
            recent=recent["requests"],
            ids=ids,
        )

    async def usage(self, request: Request, api: Api) -> Response:
        return self._render(
            request,
            "usage.html",
            section="usage",
            usage=await api.get("/usage"),
            keys=await api.get("/keys"),
        )

    async def webhooks(self, request: Request, api: Api) -> Response:
        found = await api.get("/webhooks/deliveries")
        part = request.headers.get("hx-request")
        return self._render(
            request,
            "parts/deliveries.html" if part else "webhooks.html",
            section="webhooks",
            deliveries=found["deliveries"],
        )


def trainers() -> list[AnyMode]:
    """Modes that train."""
    return [mode for mode in modes.all() if isinstance(mode, Training)]


def generators() -> list[AnyMode]:
    """Modes that use what was trained."""
    return [mode for mode in modes.all() if isinstance(mode, Generation)]


def _mode(request: Request, among: list[AnyMode]) -> AnyMode:
    path = request.path_params["mode"]
    found = next((mode for mode in among if path in (mode.path, mode.id)), None)
    if found is None:
        raise HTTPException(404)
    return found


def _to_login(request: Request) -> Response:
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    login = f"{BASE}/login?{urlencode({'next': here})}"
    if request.headers.get("hx-request"):
        return Response(status_code=204, headers={"hx-redirect": login})
    return RedirectResponse(login, 303)


def _next_of(request: Request) -> str:
    return _local(request.query_params.get("next", ""))


def _local(target: str) -> str:
    """A page of the console; anything else leads to its first page."""
    # By its very beginning: "///console" is a path for `urlsplit`, and a host for browsers.
    is_ours = target.partition("?")[0] == BASE or target.startswith(f"{BASE}/")
    return target if is_ours and target.isprintable() and "\\" not in target else BASE


async def _form_of(request: Request) -> dict[str, str]:
    """A small form, as browsers send it."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_LOGIN_BYTES:
            return {}
    found = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in found.items()}
