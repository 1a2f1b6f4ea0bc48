"""Templates, and the headers that every page of the console has."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from app.console import shown
from app.settings import Settings

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
THEME_COOKIE: Final = "reelsmith_theme"
THEMES: Final = ("light", "dark")
NAVIGATION: Final = (
    ("overview", "/console", "Overview"),
    ("new", "/console/new", "New training"),
    ("check", "/console/check", "Check dataset"),
    ("generate", "/console/generate", "Generate"),
    ("history", "/console/requests", "History"),
    ("usage", "/console/usage", "Keys & usage"),
    ("webhooks", "/console/webhooks", "Webhooks"),
)
"""Name, path, title; in the order of the sidebar."""


class Pages:
    """Renders templates for one service."""

    def __init__(self, settings: Settings, version: str) -> None:
        self.static = f"/console/static/{static_version()}"
        self._csp = content_security_policy(settings)
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=select_autoescape(),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
        self._environment.filters |= {**shown.FILTERS, "data": data_json}
        self._environment.globals |= {
            "navigation": NAVIGATION,
            "static": self.static,
            "version": version,
            "model": settings.model_name,
            "between": shown.between,
            "STANDINGS": shown.STANDINGS,
            "STAGES": shown.STAGES,
        }

    def render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """A page, or a part of one for htmx."""
        theme = request.cookies.get(THEME_COOKIE, "")
        html = self._environment.get_template(template).render(
            request=request,
            theme=theme if theme in THEMES else "",
            htmx=request.headers.get("hx-request") == "true",
            **{"section": "", "needs_key": False, **values},
        )
        return Response(html, status, self.headers(), media_type="text/html")

    def headers(self) -> dict[str, str]:
        return {
            "content-security-policy": self._csp,
            "cache-control": "no-store",
            # Not "no-referrer": forms would be sent with the origin "null".
            "referrer-policy": "same-origin",
            "x-frame-options": "DENY",
            "cross-origin-opener-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }


def content_security_policy(settings: Settings) -> str:
    """Scripts and styles are files of this service; media may also come from its store."""
    origins = {_origin(settings.public_url)}
    if settings.s3_bucket is not None:
        endpoint = settings.s3_public_endpoint or settings.s3_endpoint
        origins.add(_origin(endpoint) if endpoint else "https://*.amazonaws.com")
    store = " ".join(sorted(origins))
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "worker-src 'self'",
            f"img-src 'self' blob: data: {store}",
            f"media-src 'self' blob: data: {store}",
            f"connect-src 'self' {store}",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


def static_version() -> str:
    """Of all static files together: a part of their path, so that they may be kept for ever."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def data_json(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">`` block, which ends at nothing of it."""
    text = json.dumps(value, ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    # Nothing of HTML is left in it.
    return Markup(text)  # noqa: S704  # nosec B704


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
