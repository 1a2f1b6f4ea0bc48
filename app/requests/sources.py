"""The URLs inside a submit: what can be told from a URL alone is told at once, not in an hour."""

from app.errors import InvalidInput
from app.fetch import FetchPolicy, UrlRefused
from app.modes.base import AnyMode
from app.modes.common import Input
from app.settings import Settings
from app.storage import Storage


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

    def __call__(self, mode: AnyMode, request: Input) -> None:
        """Raises `InvalidInput` for the first URL that is refused."""
        for field, url in mode.urls(request):
            try:
                self._policy.check(url)
            except UrlRefused as error:
                # A file of this service comes from the store, wherever the service runs.
                if self._storage.key_of_own_url(url) is None:
                    raise InvalidInput.at(("body", *field), error.message, error.type) from None
