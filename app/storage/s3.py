"""Files in an S3 bucket: multipart uploads, presigned URLs, every write proved."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import boto3
import stamina
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.metrics.counts import STORE_ERRORS
from app.storage.base import (
    CHUNK_BYTES,
    FALLBACK_CONTENT_TYPE,
    StoredObject,
    TreeStorage,
    attachment,
    check_key,
    served_content_type,
    sha256_of,
)
from app.storage.errors import (
    ObjectDamaged,
    ObjectMissing,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)
from app.storage.signing import UrlSigner
from app.storage.sigv4 import presigned_holds
from preprocessing.failpoints import reach

PART_BYTES: Final = 16 * 1024 * 1024
"""Multipart parts: a LoRA is 0.1 to 1 GB (`spec/reliability.md` 5.3)."""

NUM_THREADS: Final = 10
CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 60
MAX_PRESIGNED_S: Final = 7 * 24 * 3600
"""What Signature Version 4 allows."""

QUICK_TRIES: Final = 3
"""botocore's own, for one call; `patience_s` repeats the whole operation on top of them."""

WAIT_INITIAL_S: Final = 0.2
WAIT_MAX_S: Final = 30.0

SHA256_METADATA: Final = "sha256"

_TRANSIENT_CODES: Final = frozenset(
    {
        "BadDigest",
        "InvalidDigest",
        "InvalidPart",
        "InvalidPartOrder",
        "NoSuchUpload",
        "RequestTimeout",
        "XAmzContentSHA256Mismatch",
    }
)
"""4xx answers that a second upload of the same bytes can mend."""

_MISSING_CODES: Final = frozenset({"404", "NoSuchKey", "NotFound"})


@dataclass(frozen=True)
class S3Account:
    """Where a bucket is and who may use it. Without keys, boto3 looks in its usual places."""

    bucket: str
    endpoint_url: str | None = None
    """None is AWS."""
    public_endpoint_url: str | None = None
    """The same store as clients reach it, for presigned URLs; None: as ``endpoint_url``."""
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None


class S3Storage(TreeStorage):
    """`Storage` in one bucket. ``patience_s``: how long an operation outlasts a store that is down.

    A worker that holds hours of training waits long (`spec/reliability.md` R10); a gateway, whose
    client is waiting, does not.
    """

    def __init__(
        self, account: S3Account, signer: UrlSigner, *, url_expiry_s: int, patience_s: float
    ) -> None:
        self._bucket = account.bucket
        self._signer = signer
        self._url_expiry_s = url_expiry_s
        self._patience_s = patience_s
        self._session = boto3.Session(
            aws_access_key_id=account.access_key_id,
            aws_secret_access_key=account.secret_access_key,
            region_name=account.region or ("us-east-1" if account.endpoint_url else None),
        )
        self._client = _client(self._session, account.endpoint_url)
        self._public = _client(self._session, account.public_endpoint_url or account.endpoint_url)
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=NUM_THREADS,
            preferred_transfer_client="classic",
        )

    def prepare(self) -> None:
        """Make the bucket, if there is none."""
        for attempt in self._retrying():
            with attempt, _translated(self._bucket):
                try:
                    self._client.head_bucket(Bucket=self._bucket)
                except ClientError as error:
                    if _status(error) != HTTPStatus.NOT_FOUND:
                        raise
                    self._client.create_bucket(Bucket=self._bucket)

    def put_file(self, key: str, path: Path, *, content_type: str | None = None) -> StoredObject:
        check_key(key)
        digest = _Digest.of(path)
        stored = StoredObject(
            key, digest.size_bytes, digest.sha256, served_content_type(content_type)
        )
        reach("store.before_put")
        try:
            for attempt in self._retrying():
                with attempt, _translated(key):
                    self._client.upload_file(
                        str(path),
                        self._bucket,
                        key,
                        ExtraArgs={
                            "ContentType": stored.content_type,
                            "Metadata": {SHA256_METADATA: stored.sha256},
                        },
                        Config=self._transfer,
                    )
                    reach("store.between")
                    self._prove(stored, digest.etag)
        except _Unproved:
            with contextlib.suppress(StorageError):
                self.delete(key)
            raise
        reach("store.after_put")
        return stored

    def fetch(self, key: str, path: Path) -> StoredObject:
        path.parent.mkdir(parents=True, exist_ok=True)
        arriving = path.with_name(path.name + ".part")
        try:
            for attempt in self._retrying():
                with attempt, _translated(key):
                    stored = self._head(key)
                    self._client.download_file(
                        self._bucket, key, str(arriving), Config=self._transfer
                    )
                    size = arriving.stat().st_size
                    if size != stored.size_bytes or sha256_of(arriving) != stored.sha256:
                        raise ObjectDamaged(key, f"{size} bytes came, with another checksum")
                    arriving.replace(path)
        finally:
            arriving.unlink(missing_ok=True)
        return stored

    def stat(self, key: str) -> StoredObject | None:
        check_key(key)
        try:
            for attempt in self._retrying():
                with attempt, _translated(key):
                    return self._head(key)
        except ObjectMissing:
            pass
        return None

    def open_range(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        check_key(key)
        if length == 0:
            return
        last = "" if length is None else str(start + length - 1)
        wanted = {} if start == 0 and length is None else {"Range": f"bytes={start}-{last}"}
        with _translated(key):
            body = self._client.get_object(Bucket=self._bucket, Key=key, **wanted)["Body"]
            with contextlib.closing(body):
                yield from body.iter_chunks(CHUNK_BYTES)

    def list_keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2")
        for attempt in self._retrying():
            with attempt, _translated(prefix):
                return sorted(
                    item["Key"]
                    for page in pages.paginate(Bucket=self._bucket, Prefix=f"{check_key(prefix)}/")
                    for item in page.get("Contents", ())
                )
        raise AssertionError("retry_context returns or raises")

    def delete(self, key: str) -> None:
        check_key(key)
        for attempt in self._retrying():
            with attempt, _translated(key):
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def delete_tree(self, prefix: str) -> None:
        # One by one: stores differ in what bulk deletion wants (Content-MD5 or not).
        for key in self.list_keys(prefix):
            self.delete(key)

    def signed_url(
        self, key: str, *, file_name: str | None = None, expires_s: int | None = None
    ) -> str:
        name = file_name or check_key(key).rpartition("/")[2]
        return str(
            self._public.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentDisposition": attachment(name),
                },
                ExpiresIn=min(expires_s or self._url_expiry_s, MAX_PRESIGNED_S),
            )
        )

    def key_of_own_url(self, url: str) -> str | None:
        uploaded = self._signer.key_of(url)
        if uploaded is not None:
            return uploaded
        probe = self.signed_url("x")
        start = probe[: probe.index("?") - 1]
        if not url.startswith(start):
            return None
        credentials = self._session.get_credentials().get_frozen_credentials()
        ours = presigned_holds(
            url,
            method="GET",
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
        )
        # A key is made of characters that a URL holds as they are.
        return url[len(start) :].partition("?")[0] if ours else None

    def sweep(self, older_than_s: float) -> int:
        """Abort multipart uploads whose writer died; their parts cost money until then."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        pages = self._client.get_paginator("list_multipart_uploads")
        aborted = 0
        with _translated(self._bucket):
            for page in pages.paginate(Bucket=self._bucket):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"] < before:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        aborted += 1
        return aborted

    def _head(self, key: str) -> StoredObject:
        head = self._client.head_object(Bucket=self._bucket, Key=check_key(key))
        return StoredObject(
            key,
            head["ContentLength"],
            head["Metadata"].get(SHA256_METADATA, ""),
            head.get("ContentType", FALLBACK_CONTENT_TYPE),
        )

    def _prove(self, stored: StoredObject, etag: str) -> None:
        """Ask the store what it has. Raises `_Unproved`, which is tried again.

        Its ETag is the checksum it computed of what arrived. Where a store makes ETags its own
        way (encrypted buckets, gateways), the bytes are read back instead.
        """
        head = self._client.head_object(Bucket=self._bucket, Key=stored.key)
        if head["ContentLength"] != stored.size_bytes:
            raise _Unproved(stored.key, head["ContentLength"], stored.size_bytes)
        if head["ETag"].strip('"') == etag:
            return
        digest = hashlib.sha256()
        for chunk in self.open_range(stored.key):
            digest.update(chunk)
        if digest.hexdigest() != stored.sha256:
            raise _Unproved(stored.key, head["ContentLength"], stored.size_bytes)

    def _retrying(self) -> Iterator[Any]:
        return iter(
            stamina.retry_context(
                on=(StorageUnavailable, ObjectDamaged),
                attempts=None if self._patience_s else 1,
                timeout=self._patience_s or None,
                wait_initial=WAIT_INITIAL_S,
                wait_max=WAIT_MAX_S,
            )
        )


class _Unproved(StorageUnavailable):
    """The store holds something else than what was sent."""

    def __init__(self, key: str, size_bytes: int, expected_bytes: int) -> None:
        super().__init__(
            f"{key!r} arrived with another checksum: {size_bytes} of {expected_bytes} bytes"
        )


@dataclass(frozen=True)
class _Digest:
    """What one pass over a file tells: its SHA-256 and the ETag that S3 gives it."""

    size_bytes: int
    sha256: str
    etag: str

    @classmethod
    def of(cls, path: Path) -> "_Digest":
        sha256 = hashlib.sha256()
        parts: list[bytes] = []
        size = 0
        with path.open("rb") as file:
            while part := file.read(PART_BYTES):
                sha256.update(part)
                parts.append(hashlib.md5(part, usedforsecurity=False).digest())
                size += len(part)
        if size < PART_BYTES:
            etag = (parts or [hashlib.md5(b"", usedforsecurity=False).digest()])[0].hex()
        else:
            whole = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
            etag = f"{whole}-{len(parts)}"
        return cls(size, sha256.hexdigest(), etag)


def _client(session: Any, endpoint_url: str | None) -> Any:
    return session.client(
        "s3",
        endpoint_url=endpoint_url,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"} if endpoint_url else {},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=NUM_THREADS,
            retries={"total_max_attempts": QUICK_TRIES, "mode": "standard"},
            # Stores other than AWS differ in which checksum trailers they read. Ours is stricter.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    """boto's errors as ours, sorted by whether trying again may help."""
    try:
        with _sorted_out(key):
            yield
    except ObjectMissing:
        raise  # an answer, not a failure
    except StorageError as error:
        STORE_ERRORS.labels(type(error).__name__.lstrip("_")).inc()
        raise


@contextlib.contextmanager
def _sorted_out(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _sorted(error, key) from error
    except Boto3Error as error:
        # upload_file wraps the ClientError in a text and keeps it only as context.
        inner = error.__context__
        if isinstance(inner, ClientError):
            raise _sorted(inner, key) from error
        raise StorageUnavailable(f"{key!r}: {error}") from error
    except BotoCoreError as error:
        raise StorageUnavailable(f"{key!r}: {error}") from error


def _sorted(error: ClientError, key: str) -> StorageError:
    code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
    if code in _MISSING_CODES:
        return ObjectMissing(key)
    retried = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    if client_error and status not in retried and code not in _TRANSIENT_CODES:
        return StorageRefused(f"{key!r}: {status} {code}")
    return StorageUnavailable(f"{key!r}: {status} {code}")


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
