"""Files of users and results: a folder or an S3 bucket behind one interface (`base.Storage`)."""

from app.storage.base import Storage, StoredObject
from app.storage.errors import ObjectMissing, StorageError, StorageUnavailable
from app.storage.factory import make_signer, make_storage

__all__ = [
    "ObjectMissing",
    "Storage",
    "StorageError",
    "StorageUnavailable",
    "StoredObject",
    "make_signer",
    "make_storage",
]
