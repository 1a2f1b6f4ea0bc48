"""What the container files promise. They are read as text: no daemon and no image is needed."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.dev import worker_command

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
TEXT = COMPOSE.read_text()
DATA: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = DATA["services"]
OURS = ("gateway", "cpu-worker", "gpu-worker")
MONITORING = ("prometheus", "grafana")
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

SECRET_NAME = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|AUTH|REDIS_URL|DATABASE_URL")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<rule>:\?|:-)(?P<text>[^}]*)\}")
REQUIRED = sorted({m["name"] for m in VARIABLE.finditer(TEXT) if m["rule"] == ":?"})

by_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
by_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def pinned(image: str) -> bool:
    """Whether an image is named with an exact version: digits, two parts at least."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return re.match(r"v?\d+\.\d+", tag) is not None


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, the rest), continued lines joined."""
    joined = re.sub(r"\\\n", " ", path.read_text())
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def test_there_is_everything_that_is_promised() -> None:
    assert set(SERVICES) == {*OURS, "redis", "postgres", "seaweedfs", *MONITORING}
    assert [path.name for path in DOCKERFILES] == ["gateway.Dockerfile", "worker.Dockerfile"]


@by_service
def test_every_image_is_pinned(service: dict[str, Any]) -> None:
    assert pinned(service["image"]), service["image"]


@pytest.mark.parametrize(
    ("image", "exact"),
    [
        ("redis", False),
        ("redis:latest", False),
        ("redis:8", False),
        ("redis:alpine", False),
        ("registry:5000/redis", False),
        ("redis:8.0.3-alpine", True),
        ("registry:5000/redis:8.0", True),
    ],
)
def test_how_a_pin_is_told(image: str, exact: bool) -> None:
    assert pinned(image) is exact


@by_dockerfile
def test_every_base_image_is_pinned(path: Path) -> None:
    stages: set[str] = set()
    for word, rest in instructions(path):
        if word == "FROM":
            image, _, stage = rest.partition(" AS ")
            assert image in stages or pinned(image), image
            stages.add(stage)
    assert stages


@by_dockerfile
def test_images_do_not_run_as_root(path: Path) -> None:
    words = list(instructions(path))
    users = [rest for word, rest in words if word == "USER"]
    assert users
    assert users[-1] == "reelsmith"
    last_from = max(index for index, (word, _) in enumerate(words) if word == "FROM")
    assert ("USER", "reelsmith") in words[last_from:]
    assert any(word == "HEALTHCHECK" for word, _ in words[last_from:])


@by_service
def test_no_service_runs_as_root(service: dict[str, Any]) -> None:
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]) in DOCKERFILES
    else:
        assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", [*OURS, "redis"])
def test_read_only(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["tmpfs"] == ["/tmp"]


@by_service
def test_every_secret_comes_from_the_environment(service: dict[str, Any]) -> None:
    for name, value in service.get("environment", {}).items():
        if not SECRET_NAME.search(name):
            continue
        found = list(VARIABLE.finditer(str(value)))
        assert found, f"{name} is written into the file"
        for variable in found:
            given_or_absent = variable["rule"] == ":?" or variable["text"] == ""
            assert given_or_absent, f"{name} has a default"
    for part in service.get("command", ()):
        if "PASSWORD" in part:
            assert VARIABLE.fullmatch(part)
            assert ":?" in part


def test_example_names_every_variable_and_no_value() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    required = {line.removesuffix("=") for line in lines if re.fullmatch(r"\w+=", line)}
    optional = {
        match[1]: match[2] for line in lines if (match := re.fullmatch(r"#(\w+)=(.*)", line))
    }
    assert sorted(required) == REQUIRED
    defaults = {m["name"]: m["text"] for m in VARIABLE.finditer(TEXT) if m["rule"] == ":-"}
    assert optional == defaults
    assert not [line for line in lines if re.match(r"\w+=.", line)]


@by_service
def test_every_service_has_a_health_check(service: dict[str, Any]) -> None:
    check = service["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@by_service
def test_every_service_keeps_its_data_in_a_named_volume(service: dict[str, Any]) -> None:
    mounts = [volume.split(":") for volume in service["volumes"]]
    names = {name for name, *_ in mounts if not name.startswith("./")}
    assert names
    assert names <= set(DATA["volumes"])
    for file, _, *mode in (mount for mount in mounts if mount[0] not in names):
        assert (ROOT / file).is_file()
        assert mode == ["ro"]


def test_monitoring_is_asked_for() -> None:
    for name, service in SERVICES.items():
        assert service.get("profiles", []) == (["monitoring"] if name in MONITORING else [])


def test_prometheus_asks_all_of_ours() -> None:
    """On the inner network, at the port where their metrics are."""
    config = yaml.safe_load((ROOT / "docker/monitoring/prometheus.yml").read_text())
    port = int(SERVICES["gateway"]["environment"]["REELSMITH_METRICS_PORT"])
    asked = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert set(asked) == set(OURS)
    for name, where in asked.items():
        assert (where["names"], where["port"]) == ([name], port)
        assert "inside" in SERVICES[name]["networks"]


def test_every_alert_says_what_to_do() -> None:
    (group,) = yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())["groups"]
    names = [alert["alert"] for alert in group["rules"]]
    assert len(names) == len(set(names)) > 5
    for alert in group["rules"]:
        assert set(alert["annotations"]) == {"summary", "do"}
        assert len(alert["annotations"]["do"].split()) > 8


def test_services_wait_for_what_they_need() -> None:
    for name in OURS:
        waits = SERVICES[name]["depends_on"]
        assert {"redis", "seaweedfs"} <= set(waits)
        assert {wait["condition"] for wait in waits.values()} == {"service_healthy"}
        assert set(waits) <= set(SERVICES)
    assert "postgres" in SERVICES["gateway"]["depends_on"]


def test_only_gateway_and_files_are_reachable() -> None:
    published = {name for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"gateway", "seaweedfs", "grafana"}
    assert DATA["networks"]["inside"]["internal"] is True
    for name in ("redis", "postgres"):
        assert SERVICES[name]["networks"] == ["inside"]
    for name in published:
        for port in SERVICES[name]["ports"]:
            assert port.startswith("${REELSMITH_BIND:-127.0.0.1}:")


def test_redis_loses_nothing() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == "redis-server"
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "--requirepass" in options


@pytest.mark.parametrize("queue", ["cpu", "gpu"])
def test_workers_start_as_the_embedded_service_starts_them(queue: str) -> None:
    embedded = worker_command(queue)
    assert embedded[1:3] == ["-m", "celery"]
    entrypoint = next(
        yaml.safe_load(rest)
        for word, rest in instructions(ROOT / "docker/worker.Dockerfile")
        if word == "ENTRYPOINT"
    )
    service = SERVICES[f"{queue}-worker"]
    assert entrypoint + service["command"] == ["celery", *embedded[3:]]
    assert service["stop_grace_period"] == "3m"


def test_gpu() -> None:
    (device,) = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "deploy" not in SERVICES["cpu-worker"]


def readme_commands() -> list[list[str]]:
    """Every `docker compose` command in the README's code blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].split() for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[:2] == ["docker", "compose"]]


def test_readme_names_services_that_exist() -> None:
    commands = readme_commands()
    started = {
        word
        for words in commands
        if "up" in words
        for word in words[words.index("up") + 1 :]
        if not word.startswith("-")
    }
    assert started == set(OURS)
    assert "cp .env.example .env" in (ROOT / "README.md").read_text()


def compose_program() -> str:
    """The `docker-compose` on PATH; without one the test is skipped, in CI it fails."""
    program = shutil.which("docker-compose")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs docker-compose")
        pytest.skip("docker-compose is not on PATH")
    return program


def run_config(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    # In an empty folder, so that nobody's own .env fills a gap.
    return subprocess.run(
        [
            *(compose_program(), "--file", str(COMPOSE), "--project-directory", str(folder)),
            *("config", "--quiet"),
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_docker_compose_accepts_it(tmp_path: Path) -> None:
    outcome = run_config(dict.fromkeys(REQUIRED, "dummy"), tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""


def test_docker_compose_refuses_an_empty_environment(tmp_path: Path) -> None:
    outcome = run_config({}, tmp_path)
    assert outcome.returncode != 0
    assert "see .env.example" in outcome.stderr


class TestWorkerHealth:
    """The workers' health check, run beside something that looks like a worker."""

    @pytest.fixture(autouse=True)
    def worker(self) -> Iterator[None]:
        command = [sys.executable, "-c", "input()", "workers.celery_app"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            yield
            process.kill()

    def check(self, database_url: str, redis_url: str | None = None) -> int:
        environment = {"PATH": os.environ["PATH"], "REELSMITH_DATABASE_URL": database_url}
        if redis_url is not None:
            environment["REELSMITH_REDIS_URL"] = redis_url
        return subprocess.run(
            [sys.executable, ROOT / "docker" / "worker_health.py"],
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            timeout=60,
        ).returncode

    def test_healthy(self, tmp_path: Path) -> None:
        assert self.check(f"sqlite:///{tmp_path}/reelsmith.db") == 0

    def test_no_database(self, tmp_path: Path) -> None:
        assert self.check(f"sqlite:///{tmp_path}/no/such/folder/reelsmith.db") != 0

    def test_no_broker(self, tmp_path: Path) -> None:
        assert self.check(f"sqlite:///{tmp_path}/reelsmith.db", "redis://127.0.0.1:1/0") != 0
