"""The signing keys: made once, rotated without a gap, useless to who copies the database."""

import base64
import threading
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from app.db.engine import Database
from app.db.models import SigningKey
from app.webhooks.keys import DAY_S, Key, KeyRing, RotationRefused, jwks
from app.webhooks.message import signature_headers
from tests.app.test_lifecycle import do
from tests.app.webhooks.conftest import SECRET

RING = KeyRing(SECRET)


def days_pass(database: Database, days: float) -> None:
    """Everything in the table becomes so much older."""
    with database.write() as session:
        for row in session.scalars(select(SigningKey)):
            row.signs_from -= days * DAY_S
            if row.retired_at is not None:
                row.retired_at -= days * DAY_S


def ids(keys: list[Key]) -> list[str]:
    return [key.id for key in keys]


def state(database: Database) -> tuple[str, list[str]]:
    """What signs, and what is published."""
    return do(database, RING.ensure).id, ids(do(database, RING.published))


def test_the_first_use_makes_one(database: Database) -> None:
    assert do(database, RING.signing) is None
    assert do(database, RING.published) == []
    first = do(database, RING.ensure)
    assert state(database) == ("1", ["1"])
    assert do(database, RING.signing).jwk() == first.jwk()


def test_gateways_that_start_together_agree(database_url: str, database: Database) -> None:
    barrier = threading.Barrier(6)
    made: list[Any] = []

    def start() -> None:
        mine = Database(database_url)
        barrier.wait()
        made.append(do(mine, RING.ensure).jwk())
        mine.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [made[0]] * 6
    assert state(database) == ("1", ["1"])


def test_a_rotation_leaves_no_gap(database: Database) -> None:
    do(database, RING.ensure)
    do(database, RING.rotate)
    assert state(database) == ("1", ["1", "2"])
    days_pass(database, 0.99)
    assert state(database) == ("1", ["1", "2"])
    days_pass(database, 0.02)
    assert state(database) == ("2", ["1", "2"])
    days_pass(database, 0.98)
    assert state(database) == ("2", ["1", "2"])
    days_pass(database, 0.02)
    assert state(database) == ("2", ["2"])
    do(database, RING.rotate)
    assert state(database) == ("2", ["2", "3"])
    with database.read() as session:
        assert sorted(session.scalars(select(SigningKey.id))) == ["2", "3"]


def test_one_rotation_at_a_time(database: Database) -> None:
    do(database, RING.ensure)
    do(database, RING.rotate)
    with pytest.raises(RotationRefused):
        do(database, RING.rotate)
    assert state(database) == ("1", ["1", "2"])


def test_a_rotation_without_a_key_makes_the_first(database: Database) -> None:
    do(database, RING.rotate)
    assert state(database) == ("1", ["1"])


def test_a_leaked_key_is_gone_at_once(database: Database) -> None:
    do(database, RING.ensure)
    do(database, RING.rotate)
    do(database, RING.replace)
    assert state(database) == ("3", ["3"])


def test_the_private_part_is_stored_encrypted(database: Database) -> None:
    private = do(database, RING.ensure).private.private_bytes_raw()
    with database.read() as session:
        stored = session.scalars(select(SigningKey.private)).one()
    assert private not in base64.b64decode(stored)


def test_another_secret_opens_nothing_and_makes_its_own(database: Database) -> None:
    first = do(database, RING.ensure)
    other = KeyRing(b"t" * 32)
    assert do(database, other.published) == []
    second = do(database, other.ensure)
    assert second.id == "2"
    assert second.jwk()["x"] != first.jwk()["x"]
    assert ids(do(database, other.published)) == ["2"]


def test_an_entry_is_bound_to_its_id(database: Database) -> None:
    do(database, RING.ensure)
    with database.write() as session:
        session.scalars(select(SigningKey)).one().id = "7"
    assert do(database, RING.published) == []


def test_the_jwks_is_padded(database: Database) -> None:
    (key,) = jwks([do(database, RING.ensure)])["keys"]
    assert (key["kty"], key["crv"], key["kid"], len(key["x"])) == ("OKP", "Ed25519", "1", 44)
    assert len(base64.urlsafe_b64decode(key["x"])) == 32


def test_the_signed_message() -> None:
    """Made once with `openssl pkeyutl -sign -rawin`, from the four lines written by hand."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    headers = signature_headers(key, "id-1", "local", 1_700_000_000, b'{"a":"\xc3\xa9"}')
    assert headers == {
        "X-Fal-Webhook-Request-Id": "id-1",
        "X-Fal-Webhook-User-Id": "local",
        "X-Fal-Webhook-Timestamp": "1700000000",
        "X-Fal-Webhook-Signature": SIGNED,
    }


SIGNED = (
    "cd8c4df6bc3651d2c1f0322bf331dcb646151e360a4039cf20eb237e507ada61"
    "2d74d679b83e05729d80bd9ebd933d7574ac0938a8f0c4ef41f88b473e7c8209"
)
