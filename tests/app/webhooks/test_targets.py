"""Where webhooks may go (`fal-protocol.md` C32; `reliability.md` 4.1, A31, S32 to S40)."""

import datetime
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.db.engine import Database
from app.fetch import FetchPolicy
from app.fetch.addresses import IPAddress
from app.storage import Storage
from app.webhooks.sender import Sender
from app.webhooks.targets import NameUnknown, resolve
from tests.app.conftest import Gateway, row, running
from tests.app.test_lifecycle import messages
from tests.app.webhooks.conftest import (
    attempts,
    cancel,
    once,
    pending,
    run_sender,
    with_deliverers,
)
from tests.app.webhooks.receiver import Receiver, receiving

BODY = {"training_data_url": "https://example.com/a.zip"}
NAME = "hooks.example.org"


def submitted(gateway: Gateway, url: str) -> Any:
    return gateway.client.post("/t2v", params={"fal_webhook": url}, json=BODY)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1/hook", "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS"),
        ("http://169.254.169.254/latest", "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS"),
        ("https://10.0.0.7/hook", "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS"),
        ("http://[::1]/hook", "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS"),
        ("http://[::ffff:7f00:1]/hook", "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS"),
        ("https://example.com:6379/hook", "REELSMITH_WEBHOOK_EXTRA_PORTS"),
        ("http://0x7f000001/hook", "plain IPv4"),
        ("http://2130706433/hook", "plain IPv4"),
        ("https://user:pass@example.com/hook", "user name or password"),
        ("http://127.0.0.1:80\\@example.com/", "host"),
    ],
)
def test_what_can_be_told_from_the_url_is_refused_at_submit(
    shared_gateway: Gateway, url: str, says: str
) -> None:
    reply = submitted(shared_gateway, url)
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert (detail["loc"], detail["type"]) == (["query", "fal_webhook"], "value_error")
    assert says in detail["msg"]
    assert "upload" not in detail["msg"].lower()


def test_settings_allow_private_hosts_and_ports(tmp_path: Path, migrated_sqlite: Path) -> None:
    options: dict[str, Any] = {
        "webhook_allow_private_hosts": "10.0.0.0/8",
        "webhook_extra_ports": "3000",
    }
    with running(tmp_path, migrated_sqlite, **options) as gateway:
        url = "http://10.0.0.7:3000/hook?token=a"
        reply = submitted(gateway, url)
        assert reply.status_code == 200
        assert row(gateway.database, reply.json()["request_id"]).webhook_url == url
        assert submitted(gateway, "http://192.168.0.7:3000/hook").status_code == 422
        assert submitted(gateway, "http://10.0.0.7:3001/hook").status_code == 422


def test_hosts_that_files_come_from_are_no_receivers(tmp_path: Path, migrated_sqlite: Path) -> None:
    with running(tmp_path, migrated_sqlite, fetch_allow_private_hosts="10.0.0.0/8") as gateway:
        assert submitted(gateway, "http://10.0.0.7/hook").status_code == 422


def answering(port: int, allowed: Sequence[str], *addresses: str) -> FetchPolicy:
    """A policy whose resolver knows one answer."""

    def lookup(host: str, _: int) -> Sequence[IPAddress]:
        return [ip_address(address) for address in addresses]

    return FetchPolicy.allowing(allowed, [port], lookup)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"]])
def test_a_name_that_leads_inside_fails_for_good(
    database: Database, database_url: str, storage: Storage, receiver: Receiver, answer: list[str]
) -> None:
    request_id = cancel(database, f"http://{NAME}:{receiver.port}/hook")
    with_deliverers(database_url, storage, answering(receiver.port, [], *answer), once)
    assert not receiver.received
    assert not pending(database, request_id)
    (attempt,) = attempts(database, request_id)
    assert (attempt.status, (attempt.error or "")[:8]) == (None, "refused:")
    assert "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS" in messages(database, request_id)[-1]


def test_the_operator_may_have_changed_his_mind(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    """What was taken at submit is looked at again at every attempt."""
    request_id = cancel(database, receiver.url)
    with_deliverers(database_url, storage, FetchPolicy.allowing([], [receiver.port]), once)
    assert not receiver.received
    assert not pending(database, request_id)


def test_an_allowed_name_is_connected_at_its_address(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    cancel(database, f"http://{NAME}:{receiver.port}/hook?token=%41b")
    with_deliverers(database_url, storage, answering(receiver.port, [NAME], "127.0.0.1"), once)
    (got,) = receiver.received
    assert got.headers["host"] == f"{NAME}:{receiver.port}"
    assert got.path == "/hook?token=%41b"


def test_the_next_address_is_tried(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    cancel(database, f"http://{NAME}:{receiver.port}/hook")
    policy = answering(receiver.port, [NAME], "127.0.0.2", "127.0.0.1")
    with_deliverers(database_url, storage, policy, once)
    assert len(receiver.received) == 1


def test_a_name_that_is_not_found_is_tried_again(
    database: Database, database_url: str, storage: Storage
) -> None:
    def unknown(host: str, port: int) -> Sequence[IPAddress]:
        raise NameUnknown

    request_id = cancel(database, f"http://{NAME}/hook")
    with_deliverers(database_url, storage, FetchPolicy.allowing([], (), unknown), once)
    assert pending(database, request_id)
    assert attempts(database, request_id)[0].error == "the host's name is not found"


def test_a_failed_look_up_is_told_apart() -> None:
    with pytest.raises(NameUnknown):
        resolve("x" * 64, 80)


def test_a_proxy_of_the_environment_is_not_used(
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        cancel(database, receiver.url)
        policy = FetchPolicy.allowing(["127.0.0.1"], [receiver.port])
        with_deliverers(database_url, storage, policy, once)
        assert (len(receiver.received), len(proxy.received)) == (1, 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, for `NAME`; key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "error"),
    [
        (NAME, True, None),
        (NAME, False, "the receiver's certificate is not valid"),
        ("other.example.org", True, "the receiver's certificate is not valid"),
    ],
)
def test_certificates_are_checked_for_the_name(
    certificate: Path, host: str, trusted: bool, error: str | None
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with receiving(tls=tls) as receiver:
        context = ssl.create_default_context(cafile=certificate if trusted else None)
        sender = Sender(answering(receiver.port, [host], "127.0.0.1"), context)
        outcome = run_sender(sender, f"https://{host}:{receiver.port}/hook")
        assert (outcome.error, outcome.final) == (error, False)
        assert len(receiver.received) == (error is None)
