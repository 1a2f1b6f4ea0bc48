"""What can go wrong with stored files.

StorageError
├── InvalidKey              a key that no file of this service can have
├── ObjectMissing           nothing is stored under the key
├── ObjectDamaged           what came back isn't what was stored
├── StorageRefused          the store said no: permissions, no such bucket
└── StorageUnavailable      the store can't be reached or is failing; trying again may help

None of them is the user's fault, and none of their texts is for users: they name keys.
"""


class StorageError(Exception):
    """A file could not be stored or read back."""


class InvalidKey(StorageError):
    """Keys are ASCII path segments without ``..``, hidden names or an absolute start."""

    def __init__(self, key: str) -> None:
        super().__init__(f"not a storage key: {key!r}")


class ObjectMissing(StorageError):
    """Nothing is stored under ``key``."""

    def __init__(self, key: str) -> None:
        super().__init__(f"nothing is stored under {key!r}")
        self.key = key


class ObjectDamaged(StorageError):
    """Size or checksum of ``key`` differ from what was stored."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key!r} is damaged: {detail}")
        self.key = key


class StorageRefused(StorageError):
    """The store answered, and trying again won't change the answer."""


class StorageUnavailable(StorageError):
    """The store failed in a way that may pass."""
