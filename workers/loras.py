"""LoRA files of generations: fetched and checked once, kept in the store by content.

loras/{of content and model}/lora.safetensors      the file
loras/{of content and model}/manifest.json         `CheckedFile`, written last
links/{of the URL}/manifest.json                   `Link`: what was behind a URL, and its ETag

A file of this service is known by its checksum before it is read; one elsewhere by its ETag, about
which its server is asked every time. What no request uses any more goes with the retention.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict

from app.modes.generation import MAX_LORA_BYTES, LoRAInput
from app.requests.retention import LINKS, LORAS
from app.storage import Storage
from app.storage.errors import ObjectMissing
from preprocessing.manifest import MANIFEST_FILE
from trainer.job import LORA_FILE
from trainer.lora_check import LoraFacts, LoraReport
from workers.attempt import Attempt
from workers.children import ChildProcess, EventTail
from workers.failures import our_fault, users_fault
from workers.inputs import download, download_if_changed, wait

log = structlog.get_logger()

FORMAT: Final = 1
"""Part of a file's key: raised when the check asks for more."""

D = TypeVar("D", bound=BaseModel)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True)


class CheckedFile(_Data):
    """A LoRA that the service's model can use."""

    sha256: str
    facts: LoraFacts


class Link(_Data):
    """What a URL led to when it was last fetched."""

    sha256: str
    etag: str
    file_name: str


class PreparedLora(_Data):
    """One LoRA of a request, as its row keeps it for the GPU stage (and for the retention)."""

    key: str
    link: str | None
    name: str
    """What its user knows it as."""


class LoraStore:
    """The files and links above."""

    def __init__(self, storage: Storage, model: str, scratch: Path) -> None:
        self._storage = storage
        self._model = model
        self._scratch = scratch

    def key(self, sha256: str) -> str:
        """Of a file that was checked against this model."""
        return f"{LORAS}/{_digest(f'{FORMAT} {self._model} {sha256}')}"

    def link_key(self, url: str) -> str:
        return f"{LINKS}/{_digest(url)}"

    def find(self, sha256: str) -> CheckedFile | None:
        """None where it is not here, or was not checked."""
        return self._read(self.key(sha256), CheckedFile)

    def link(self, url: str) -> Link | None:
        return self._read(self.link_key(url), Link)

    def put(self, checked: CheckedFile, path: Path) -> None:
        """Store the file at ``path``, which is moved, and then what it is."""
        folder = self._scratch / "lora"
        folder.mkdir()
        path.rename(folder / LORA_FILE)
        (folder / MANIFEST_FILE).write_text(checked.model_dump_json())
        self._storage.put_tree(self.key(checked.sha256), folder, last=MANIFEST_FILE)
        (folder / LORA_FILE).unlink()
        (folder / MANIFEST_FILE).unlink()
        folder.rmdir()

    def put_link(self, url: str, link: Link) -> None:
        path = self._scratch / "link.json"
        path.write_text(link.model_dump_json())
        self._storage.put_file(f"{self.link_key(url)}/{MANIFEST_FILE}", path)
        path.unlink()

    def _read(self, key: str, kind: type[D]) -> D | None:
        try:
            return kind.model_validate_json(
                b"".join(self._storage.open_range(f"{key}/{MANIFEST_FILE}"))
            )
        except ObjectMissing:
            return None


def prepare(attempt: Attempt, index: int, lora: LoRAInput) -> tuple[PreparedLora, LoraFacts]:
    """Have LoRA number ``index`` of the request in the store, checked. Raises `Failure`."""
    settings, storage = attempt.runtime.settings, attempt.runtime.storage
    store = LoraStore(storage, settings.model, attempt.folder)
    fetch = _Fetch(attempt, store, attempt.folder / f"lora-{index}", f"loras.{index}.path")
    key = storage.key_of_own_url(lora.path)
    located = fetch.elsewhere(lora.path) if key is None else fetch.own(lora.path, key)
    checked = store.find(located.sha256)
    if checked is None:
        facts = check(attempt, fetch.path, located.name, fetch.field)
        checked = CheckedFile(sha256=located.sha256, facts=facts)
        store.put(checked, fetch.path)
        attempt.forward.log(f"LoRA {located.name}: {facts.description}")
    else:
        fetch.path.unlink(missing_ok=True)
        attempt.forward.log(f"LoRA {located.name} is here already: {checked.facts.description}")
    link = store.link_key(lora.path) if key is None else None
    return (
        PreparedLora(key=store.key(located.sha256), link=link, name=located.name),
        checked.facts,
    )


@dataclass(frozen=True)
class _Located:
    """A file that is in the store, checked, or else was just fetched."""

    sha256: str
    name: str


@dataclass(frozen=True)
class _Fetch:
    """Brings a file to ``path`` unless the store has it."""

    attempt: Attempt
    store: LoraStore
    path: Path
    field: str

    def own(self, url: str, key: str) -> _Located:
        stored = self.attempt.runtime.storage.stat(key)
        if stored is not None and stored.sha256 and self.store.find(stored.sha256):
            return _Located(stored.sha256, key.rpartition("/")[2])
        got = download(self.attempt, url, self.path, self.field, max_bytes=MAX_LORA_BYTES)
        return _Located(got.sha256, got.file_name)

    def elsewhere(self, url: str) -> _Located:
        link = self.store.link(url)
        etag = link.etag if link is not None and self.store.find(link.sha256) else ""
        got = download_if_changed(
            self.attempt, url, self.path, self.field, etag, max_bytes=MAX_LORA_BYTES
        )
        if got is None:
            assert link is not None
        else:
            link = Link(sha256=got.sha256, etag=got.etag, file_name=got.file_name)
            self.store.put_link(url, link)
        return _Located(link.sha256, link.file_name)


def check(attempt: Attempt, path: Path, name: str, field: str) -> LoraFacts:
    """Look at the file in a child process without secrets. Raises `Failure`."""
    report_path = attempt.folder / "lora-report.json"
    arguments = ["check-lora", str(path), "--name", name, "--out", str(report_path)]
    model = Path(attempt.runtime.settings.model).expanduser()
    if model.is_dir():
        arguments += ["--model", str(model)]
    child = ChildProcess("trainer", arguments, attempt.folder)
    code = wait(attempt, child, EventTail(attempt.folder / "none"))
    if code not in (0, ChildProcess.REFUSED):
        log.error("lora_check.crashed", code=code, stderr=child.stderr_tail())
        raise our_fault("Checking a LoRA failed on our side; nothing is billed.")
    report = LoraReport.model_validate_json(report_path.read_bytes())
    if report.problem is not None:
        problem = report.problem
        raise users_fault(problem.message, error_type=problem.type, field=field, ctx=problem.ctx)
    (facts,) = report.files
    return facts


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
