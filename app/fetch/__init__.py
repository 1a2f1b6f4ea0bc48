"""Downloads from URLs that users name, without reaching into the operator's own network."""

from app.fetch.download import Downloaded, Fetcher
from app.fetch.errors import AddressRefused, DownloadFailed, FetchError, FileTooLarge, UrlRefused
from app.fetch.policy import FetchPolicy

__all__ = [
    "AddressRefused",
    "DownloadFailed",
    "Downloaded",
    "FetchError",
    "FetchPolicy",
    "Fetcher",
    "FileTooLarge",
    "UrlRefused",
]
