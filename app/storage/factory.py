"""Which store the settings ask for."""

from typing import Final

from app.settings import Settings
from app.storage.base import Storage
from app.storage.local import LocalStorage
from app.storage.s3 import S3Account, S3Storage
from app.storage.signing import UrlSigner, stored_secret

SIGNING_FILE: Final = "secret"


def service_secret(settings: Settings) -> bytes:
    """What signatures and encryption of this service rest on. Without a configured secret one is
    made and kept in the data folder, which is enough where all processes share that folder.
    """
    configured = settings.secret_key
    if configured is not None:
        return configured.get_secret_value().encode()
    return stored_secret(settings.data_dir / SIGNING_FILE)


def make_signer(settings: Settings) -> UrlSigner:
    """Signs URLs of the gateway."""
    return UrlSigner(service_secret(settings), settings.public_url)


def make_storage(settings: Settings, *, patience_s: float | None = None) -> Storage:
    """S3 when a bucket is configured, else a folder in the data folder.

    ``patience_s`` (default: the settings' ``s3_patience_s``) is how long an operation outlasts a
    store that is down.
    """
    signer = make_signer(settings)
    if settings.s3_bucket is None:
        return LocalStorage(
            settings.data_dir / "storage", signer, url_expiry_s=settings.url_expiry_s
        )
    secret_key = settings.s3_secret_access_key
    account = S3Account(
        bucket=settings.s3_bucket,
        endpoint_url=settings.s3_endpoint,
        public_endpoint_url=settings.s3_public_endpoint,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=secret_key.get_secret_value() if secret_key else None,
    )
    return S3Storage(
        account,
        signer,
        url_expiry_s=settings.url_expiry_s,
        patience_s=settings.s3_patience_s if patience_s is None else patience_s,
    )
