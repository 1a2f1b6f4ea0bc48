"""The URLs inside a submit: what can be told from a URL alone is told at once, not in an hour."""

from collections.abc import Iterator

from app.errors import InvalidInput
from app.fetch import FetchPolicy, UrlRefused
from app.modes.base import AnyMode
from app.modes.common import TrainerRequest
from app.settings import Settings
from app.storage import Storage

Loc = tuple[str | int, ...]


class SourceCheck:
    """Refuses a submit whose files could never be fetched: another scheme or port, an address
    that is not on the public internet, a number in the place of a name. Looks nothing up; names
    are judged by the fetcher, when it connects."""

    def __init__(self, policy: FetchPolicy, storage: Storage) -> None:
        self._policy = policy
        self._storage = storage

    @classmethod
    def of(cls, settings: Settings, storage: Storage) -> "SourceCheck":
        return cls(FetchPolicy.of(settings), storage)

    def __call__(self, mode: AnyMode, request: TrainerRequest) -> None:
        """Raises `InvalidInput` for the first URL that is refused."""
        for loc, url in _urls_of(mode, request):
            try:
                self._policy.check(url)
            except UrlRefused as error:
                # A file of this service comes from the store, wherever the service runs.
                if self._storage.key_of_own_url(url) is None:
                    raise InvalidInput.at(loc, error.message, error.type) from None


def _urls_of(mode: AnyMode, request: TrainerRequest) -> Iterator[tuple[Loc, str]]:
    yield ("body", "training_data_url"), request.training_data_url
    for index, source in enumerate(mode.validation_sources(request)):
        yield ("body", "validation", index, "video_url"), source.video_url
        if source.mask_url is not None:
            yield ("body", "validation", index, "mask_url"), source.mask_url
