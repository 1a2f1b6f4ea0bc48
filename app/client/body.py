"""The input of a submit, out of a file, options and local paths."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from app import modes
from app.client.errors import Refused
from app.client.service import Service
from app.modes.base import AnyMode, Training
from preprocessing.rules import DatasetRule

ARCHIVE_FIELD: Final = "training_data_url"
VALIDATION_FIELD: Final = "validation"
_URL = re.compile(r"https?://", re.IGNORECASE)

Location = tuple[str | int, ...]


def is_url(text: str) -> bool:
    return bool(_URL.match(text))


def read_input(path: Path | None) -> dict[str, Any]:
    """The JSON object in ``path``; nothing without one. Raises `Refused`."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise Refused(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"{path} must hold a JSON object, the request's fields")
    return found


def with_fields(body: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """``body`` with each ``name=value``: the value is JSON, or else text. Raises `Refused`.

    >>> with_fields({"rank": 8}, ["rank=16", "trigger_phrase=tronl cat", "with_audio=null"])
    {'rank': 16, 'trigger_phrase': 'tronl cat', 'with_audio': None}
    """
    fields = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise Refused(f"{pair!r} is no field: write name=value")
        try:
            fields[name.strip()] = json.loads(value, parse_constant=_no_number)
        except ValueError:
            fields[name.strip()] = value
    return {**body, **fields}


def with_previews(
    body: Mapping[str, Any], prompts: Sequence[str], videos: Sequence[str], masks: Sequence[str]
) -> dict[str, Any]:
    """``body`` with an entry of ``validation`` for each prompt. The first video and mask belong to
    the first prompt, and so on. Raises `Refused`."""
    if not (prompts or videos or masks):
        return dict(body)
    if body.get(VALIDATION_FIELD):
        raise Refused("validation is given twice: in the fields, and as --prompt")
    for option, sources in (("--video", videos), ("--mask", masks)):
        if sources and len(sources) != len(prompts):
            raise Refused(
                f"{len(prompts)} --prompt and {len(sources)} {option}: give one for each prompt"
            )
    entries: list[dict[str, str]] = []
    for index, prompt in enumerate(prompts):
        entry = {"prompt": prompt}
        if videos:
            entry["video_url"] = videos[index]
        if masks:
            entry["mask_url"] = masks[index]
        entries.append(entry)
    return {**body, VALIDATION_FIELD: entries}


def local_files(body: Any, location: Location = ()) -> dict[Location, Path]:
    """Every field ``..._url`` that names a file here instead of a URL. Raises `Refused` for one
    that is not there."""
    found: dict[Location, Path] = {}
    if isinstance(body, list):
        for index, item in enumerate(body):
            found |= local_files(item, (*location, index))
    elif isinstance(body, Mapping):
        for name, value in body.items():
            here = (*location, name)
            if not (str(name).endswith("_url") and isinstance(value, str)):
                found |= local_files(value, here)
            elif not is_url(value):
                path = Path(value).expanduser()
                if not path.is_file():
                    where = ".".join(map(str, here))
                    raise Refused(f"{where}: {value!r} is neither a URL nor a file here")
                found[here] = path
    return found


def replaced(body: Any, values: Mapping[Location, str], location: Location = ()) -> Any:
    """A copy of ``body`` with the values at these places."""
    if location in values:
        return values[location]
    if isinstance(body, list):
        return [replaced(item, values, (*location, i)) for i, item in enumerate(body)]
    if isinstance(body, Mapping):
        return {name: replaced(value, values, (*location, name)) for name, value in body.items()}
    return body


def ask_first(
    service: Service,
    mode: str,
    body: Mapping[str, Any],
    places: Sequence[Location],
    **options: Any,
) -> None:
    """Let the service check all fields before gigabytes are sent: the same request without what is
    to be uploaded to ``places``, which it refuses for that alone. Raises `Refused` for anything
    else."""
    try:
        handle, _ = service.submit(mode, without(body, places), **options)
    except Refused as error:
        if error.status != 422:
            raise
        expected = {".".join(map(str, where)) for where in places}
        real = [line for line in error.lines if line.partition(":")[0] not in expected]
        if real:
            raise Refused(*real, status=422) from None
    else:
        service.cancel(handle)
        first = ".".join(map(str, places[0]))
        raise Refused(f"{mode} takes no {first}, so there is nothing to send it")


def without(body: Any, places: Sequence[Location]) -> Any:
    """A copy of ``body`` in which these fields are missing."""
    if isinstance(body, list):
        return [without(item, _below(places, index)) for index, item in enumerate(body)]
    if isinstance(body, Mapping):
        gone = {place[0] for place in places if len(place) == 1}
        return {
            name: without(value, _below(places, name))
            for name, value in body.items()
            if name not in gone
        }
    return body


def known_mode(name: str) -> AnyMode | None:
    """The mode at this path or full id, where this version knows it."""
    wanted = name.strip("/")
    return next((mode for mode in modes.all() if wanted in (mode.path, mode.id)), None)


def unknown_fields(name: str, body: Mapping[str, Any]) -> list[str]:
    """Fields of ``body`` that the mode does not have, where this version knows the mode. The
    service passes over them, as fal does, so that a slip of the pen trains with a default."""
    mode = known_mode(name)
    known = set(mode.request_model.model_fields) if mode is not None else set(body)
    return [field for field in body if field not in known]


def dataset_rule(name: str, body: Mapping[str, Any]) -> DatasetRule | None:
    """What the training asks of its clips, where this version knows the mode and the fields fit."""
    mode = known_mode(name)
    if not isinstance(mode, Training):
        return None
    filled = {**body, ARCHIVE_FIELD: "https://example.com/a.zip", VALIDATION_FIELD: []}
    try:
        rule: DatasetRule = mode.dataset_rule(mode.parse(filled))
    except ValueError:
        return None
    return rule


def _below(places: Sequence[Location], name: str | int) -> list[Location]:
    return [place[1:] for place in places if len(place) > 1 and place[0] == name]


def _no_number(name: str) -> Any:
    raise ValueError(name)
