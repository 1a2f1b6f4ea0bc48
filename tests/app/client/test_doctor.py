"""`reelsmith doctor`: each check on what is well and on what is broken."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app.client import doctor
from app.db.engine import Database
from app.db.migrate import upgrade
from app.db.models import Request, Worker
from app.dev import free_port
from app.machine import Finding
from app.settings import Settings
from tests.app.client.conftest import KEY, Command, Served, serving
from tests.app.conftest import postgres_url, put, submit


def settings(folder: Path, **more: object) -> Settings:
    return Settings.model_validate({"data_dir": folder, **more})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the children that import torch: they have a test of their own."""
    monkeypatch.setattr(doctor, "torch", lambda: iter(()))
    monkeypatch.setattr(doctor, "media", lambda: Finding("ok", "ffmpeg", ""))


def states(output: str) -> dict[str, str]:
    lines = [line.split() for line in output.splitlines() if not line.startswith(" ")]
    return {line[1]: line[0] for line in lines}


@pytest.mark.usefixtures("quick")
def test_a_healthy_service(served: Served, command: Command) -> None:
    env = {
        "REELSMITH_DATA_DIR": str(served.settings.data_dir),
        "REELSMITH_DATABASE_URL": served.settings.database_url,
    }
    done = command("doctor", "--host", served.url, **env)
    assert done.exit_code == 0, done.output
    found = states(done.stdout)
    for name in ("python", "libraries", "database", "broker", "storage", "model"):
        assert found.pop(name) == "ok"
    assert {found[name] for name in ("gateway", "clock", "key")} == {"ok"}


@pytest.mark.usefixtures("quick")
def test_nothing_runs_yet(command: Command, tmp_path: Path) -> None:
    """A fresh machine is no failure, and looking leaves nothing behind."""
    data = tmp_path / "data"
    port = free_port()
    before = doctor.run(f"http://127.0.0.1:{port}", None, expected=False)
    assert before == 0
    done = command("doctor", "--host", f"127.0.0.1:{port}", REELSMITH_DATA_DIR=str(data))
    assert done.exit_code == 1, "the user said that there is one"
    found = states(done.stdout)
    assert (found["database"], found["storage"], found["gateway"]) == ("warn", "ok", "fail")
    assert not data.exists()


@pytest.mark.usefixtures("quick")
def test_a_wrong_key(command: Command, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with serving(tmp_path / "service", url, api_keys=KEY) as served:
        assert states(command("doctor", "--host", served.url, FAL_KEY="no").stdout)["key"] == "fail"
        assert states(command("doctor", "--host", served.url, FAL_KEY=KEY).stdout)["key"] == "ok"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REELSMITH_PORT", "99999"),
        ("REELSMITH_DATABASE_URL", "nonsense"),
        ("REELSMITH_DATABASE_URL", "postgresql://me:secret@db:port/x"),
        ("REELSMITH_DATABASE_URL", "mysql://me:secret@db/x"),
        ("REELSMITH_REDIS_URL", "redis://:secret@[broker"),
        ("REELSMITH_REDIS_URL", "redis://:secret@broker:port"),
    ],
)
def test_settings_that_are_wrong_are_named(command: Command, name: str, value: str) -> None:
    done = command("doctor", **{name: value})
    assert done.exit_code == 1
    assert f"{name}: " in done.stdout
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.usefixtures("quick")
def test_armed_failpoints_are_told(command: Command, tmp_path: Path) -> None:
    armed = str(tmp_path / "armed")
    done = command("doctor", REELSMITH_FAILPOINTS=armed)
    assert (done.exit_code, states(done.stdout)["failpoints"]) == (1, "fail")
    assert armed in done.stdout
    assert "failpoints" not in command("doctor").stdout


def test_a_database_of_another_version(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    upgrade(url, "0001")
    old = doctor.database(settings(tmp_path, database_url=url))
    assert (old.state, old.advice) == ("fail", "Run `reelsmith migrate`.")
    upgrade(url)
    assert doctor.database(settings(tmp_path, database_url=url)).state == "ok"
    (tmp_path / "a.db").write_bytes(b"no database" * 1000)
    assert doctor.database(settings(tmp_path, database_url=url)).state == "fail"


@pytest.mark.parametrize(
    ("columns", "state", "says"),
    [
        ({"tags": {}}, "ok", "1 wait, 0 run"),
        ({"created_at": Request.created_at - 3600}, "warn", "the oldest for 60 min"),
        ({"state": "running", "lease_expires_at": Request.created_at + 30}, "ok", "0 wait, 1 run"),
        ({"state": "running", "lease_expires_at": 1.0}, "fail", "1 lost their worker"),
    ],
)
def test_who_works_on_what_waits(
    database: Database, database_url: str, tmp_path: Path, columns: Any, state: str, says: str
) -> None:
    put(database, submit(database), **columns)
    found = doctor.queue(settings(tmp_path, database_url=database_url))
    assert found.state == state
    assert says in found.says
    assert bool(found.advice) == (state != "ok")


def test_a_worker_that_takes_nothing(database: Database, database_url: str, tmp_path: Path) -> None:
    with database.write() as session:
        session.add(Worker(name="host:3", queue="gpu", facts={"lacks": "gpu"}))
        session.add(Worker(name="gone:4", queue="gpu", seen_at=1.0, facts={"lacks": "gpu"}))
    found = doctor.queue(settings(tmp_path, database_url=database_url))
    assert (found.state, found.says) == ("warn", "0 wait, 0 run; host:3 can take nothing")


@pytest.fixture
def postgres() -> str:
    url = postgres_url()
    upgrade(url)
    return url


def test_postgresql(postgres: str, tmp_path: Path) -> None:
    assert doctor.database(settings(tmp_path, database_url=postgres)).state == "ok"
    wrong = make_url(postgres).set(password="not-this").render_as_string(hide_password=False)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(wrong)
    found = doctor.database(settings(tmp_path, database_url=wrong))
    assert found.state == "fail"
    assert "not-this" not in doctor.line(found)


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    url = f"postgresql://reelsmith:secret@127.0.0.1:{free_port()}/x"
    found = doctor.database(settings(tmp_path, database_url=url))
    assert found.state == "fail"
    assert "secret" not in doctor.line(found)


def test_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    found = doctor.broker(settings(tmp_path, redis_url=url))
    assert found.state == "fail"
    assert "secret" not in doctor.line(found)
    assert doctor.broker(settings(tmp_path, broker="files")).state == "ok"


def test_a_store_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    found = doctor.storage(settings(
        tmp_path, s3_bucket="b", s3_endpoint=endpoint, s3_region="us-east-1",
        s3_access_key_id="a", s3_secret_access_key="secret",
    ))  # fmt: skip
    assert found.state == "fail"
    assert "secret" not in doctor.line(found)
    assert capsys.readouterr() == ("", ""), "no log of tries between the doctor's lines"
