"""Browser sessions: a key becomes a cookie, which only pages of this service can use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.clock import db_now
from app.db.models import BrowserSession
from app.keys import store
from app.sessions import COOKIE
from tests.app.conftest import Gateway, running

KEY = "the:key"
BODY = {"training_data_url": "https://example.com/a.zip"}


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Gateway]:
    with running(tmp_path, migrated_sqlite, api_keys=KEY) as gateway:
        yield gateway


def log_in(gateway: Gateway, key: str = KEY, **form: str) -> httpx.Response:
    return gateway.client.post(
        "/console/login",
        data={"key": key, **form},
        headers={"origin": gateway.settings.public_url},
        follow_redirects=False,
    )


def test_a_key_becomes_a_cookie(gateway: Gateway) -> None:
    answer = log_in(gateway, next="/console/usage")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/usage")
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert KEY not in cookie
    assert gateway.client.get("/requests").status_code == 200
    assert gateway.client.get("/console").status_code == 200


def test_the_cookie_is_for_tls_alone_where_that_is_spoken(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    with running(
        tmp_path, migrated_sqlite, api_keys=KEY, public_url="https://example.com"
    ) as secure:
        cookie = log_in(secure).headers["set-cookie"]
        assert cookie.startswith(f"__Host-{COOKIE}=")
        assert "Secure" in cookie
        assert secure.client.get("/requests").status_code == 200
        own = {"origin": "https://example.com"}
        gone = secure.client.post("/console/logout", headers=own, follow_redirects=False)
        assert "Secure" in gone.headers["set-cookie"]
        assert secure.client.get("/requests").status_code == 401


def test_a_wrong_key_opens_nothing(gateway: Gateway) -> None:
    answer = log_in(gateway, "another")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    page = gateway.client.get("/console/usage", follow_redirects=False)
    assert page.headers["location"] == "/console/login?next=%2Fconsole%2Fusage"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "//evil.example",
        "///console/usage",
        "/console\\@evil.example",
        "/files/x",
        "/consoles",
    ],
)
def test_a_login_leads_nowhere_else(gateway: Gateway, target: str) -> None:
    assert log_in(gateway, next=target).headers["location"] == "/console"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:8000", 200), ("https://evil.example", 403), ("null", 403), (None, 403)],
    ids=str,
)
def test_only_our_pages_change_anything(gateway: Gateway, origin: str | None, status: int) -> None:
    log_in(gateway)
    headers = {} if origin is None else {"origin": origin}
    assert gateway.client.post("/t2v", json=BODY, headers=headers).status_code == status
    for form, data in (("theme", {"theme": "dark"}), ("login", {"key": KEY}), ("logout", {})):
        answer = gateway.client.post(
            f"/console/{form}", data=data, headers=headers, follow_redirects=False
        )
        assert (answer.status_code == 403) == (status == 403)
        assert ("set-cookie" in answer.headers) == (status == 200)


def test_logging_out_ends_a_copied_cookie_too(gateway: Gateway) -> None:
    log_in(gateway)
    own = {"origin": gateway.settings.public_url}
    copied = cookie(gateway.client.cookies[COOKIE])
    log_in(gateway)
    other = cookie(gateway.client.cookies[COOKIE])
    gateway.client.cookies.clear()
    assert gateway.client.post("/console/logout", headers=copied).status_code == 403
    assert gateway.client.get("/requests", headers=copied).status_code == 200
    gateway.client.post("/console/logout", headers={**copied, **own}, follow_redirects=False)
    assert gateway.client.get("/requests", headers=copied).status_code == 401
    assert gateway.client.get("/requests", headers=other).status_code == 200, "another browser"


def test_a_session_ends_with_its_key(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        id, key = store.create(session, "ann", store.Limits())
    log_in(gateway, key)
    assert gateway.client.get("/requests").status_code == 200
    with gateway.database.write() as session:
        store.revoke(session, id)
    assert gateway.client.get("/requests").status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", None], ids=str)
def test_no_other_page_makes_or_revokes_a_key(gateway: Gateway, origin: str | None) -> None:
    log_in(gateway)
    headers = {} if origin is None else {"origin": origin}
    made = gateway.client.post("/keys", json={"name": "eve"}, headers=headers)
    assert made.status_code == 403
    assert gateway.client.delete("/keys/rs-1", headers=headers).status_code == 403
    own = {"origin": gateway.settings.public_url}
    assert gateway.client.post("/keys", json={"name": "ann"}, headers=own).status_code == 201


def test_the_single_user_makes_no_key(tmp_path: Path, migrated_sqlite: Path) -> None:
    """It would lock the browser out."""
    with running(tmp_path, migrated_sqlite) as alone:
        answer = alone.client.post("/keys", json={"name": "ann"})
        assert answer.status_code == 403
        assert "reelsmith keys create" in answer.json()["detail"]
        assert alone.client.get("/requests").status_code == 200


def test_a_session_ends_by_itself(gateway: Gateway) -> None:
    log_in(gateway)
    kept = cookie(gateway.client.cookies[COOKIE])
    with gateway.database.write() as session:
        session.execute(update(BrowserSession).values(expires_at=db_now() - 1))
    gateway.client.cookies.clear()
    assert gateway.client.get("/requests", headers=kept).status_code == 401
    log_in(gateway)
    with gateway.database.read() as session:
        assert len(session.scalars(select(BrowserSession)).all()) == 1, "the old one is swept"


def test_the_database_does_not_have_the_cookie(gateway: Gateway) -> None:
    log_in(gateway)
    with gateway.database.read() as session:
        found = session.scalars(select(BrowserSession)).one()
    assert gateway.client.cookies[COOKIE] not in (found.digest, found.owner)


@pytest.mark.parametrize(
    "change",
    [lambda v: v[::-1], lambda v: v[:-1], lambda v: "", lambda v: "1-2.local"],
    ids=["another", "cut", "empty", "made up"],
)
def test_a_cookie_of_ones_own_making(gateway: Gateway, change: Any) -> None:
    log_in(gateway)
    value = gateway.client.cookies[COOKIE].strip('"')
    gateway.client.cookies.clear()
    assert gateway.client.get("/requests", headers=cookie(value)).status_code == 200
    assert gateway.client.get("/requests", headers=cookie(change(value))).status_code == 401


def cookie(value: str) -> dict[str, str]:
    return {"cookie": f"{COOKIE}={value}"}


def test_a_header_goes_before_a_cookie(gateway: Gateway) -> None:
    log_in(gateway)
    wrong = {"authorization": "Key wrong"}
    assert gateway.client.get("/requests", headers=wrong).status_code == 401


@pytest.mark.parametrize("path", ["/console/login", "/console"])
def test_pages_have_a_strict_policy(gateway: Gateway, path: str) -> None:
    log_in(gateway)
    answer = gateway.client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert " style=" not in answer.text
    assert "onclick" not in answer.text


def test_static_files_may_be_kept(gateway: Gateway) -> None:
    text = gateway.client.get("/console/login").text
    sheet = text.partition('href="')[2].partition('"')[0]
    answer = gateway.client.get(sheet)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    assert gateway.client.get(sheet.replace("icon.svg", "../pages.py")).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/requests/%2e%2e", 404),
        ("/console/new/t2v?from=..", 404),
        ("/console/compare?id=..", 404),
        ("/console/compare?id=", 200),
        ("/console/nowhere/at/all", 404),
        ("/console/requests/0f8fad5b-d9cb-469f-a165-70867728950e", 404),
    ],
)
def test_what_is_no_requests_id_has_no_page(gateway: Gateway, path: str, status: int) -> None:
    log_in(gateway)
    answer = gateway.client.get(path)
    assert (answer.status_code, "</html>" in answer.text) == (status, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("host", b"[::1"), ("host", b"a:b"), ("host", b"\xe9"), ("cookie", b"a=\xe9")],
)
def test_a_page_bears_headers_that_make_no_sense(gateway: Gateway, name: str, value: bytes) -> None:
    headers = [("authorization", f"Key {KEY}".encode()), (name, value)]
    assert gateway.client.get("/console", headers=headers).status_code == 200


def test_a_stranger_does_not_learn_where_the_model_lies(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    with running(tmp_path, migrated_sqlite, api_keys=KEY, model="/srv/models/ltx-2.3") as gateway:
        page = gateway.client.get("/console/login").text
    assert "ltx-2.3" in page
    assert "/srv" not in page
