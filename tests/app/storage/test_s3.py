"""S3 that fails (`spec/reliability.md` R10) and presigned URLs that are tampered with (T7)."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import pytest

from app.storage.errors import ObjectDamaged, ObjectMissing, StorageRefused, StorageUnavailable
from app.storage.s3 import PART_BYTES, S3Account, S3Storage
from app.storage.signing import UrlSigner
from app.storage.sigv4 import presigned_holds
from tests.app.storage.conftest import EXPIRY_S
from tests.app.storage.proxy import Fault, Proxy, running_proxy

MakeFile = Callable[[bytes], Path]
KEY = "outputs/1/lora.safetensors"


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with running_proxy(s3_endpoint) as proxy:
        yield proxy


Reach = Callable[[float], S3Storage]


@pytest.fixture
def reach(s3: S3Storage, s3_account: S3Account, signer: UrlSigner, proxy: Proxy) -> Reach:
    """The bucket of ``s3`` through the proxy, with this patience in seconds."""
    account = dataclasses.replace(s3_account, endpoint_url=proxy.url)

    def make(patience_s: float) -> S3Storage:
        return S3Storage(account, signer, url_expiry_s=EXPIRY_S, patience_s=patience_s)

    return make


@pytest.fixture
def through_proxy(reach: Reach) -> S3Storage:
    return reach(20)


@pytest.fixture
def client(s3_account: S3Account) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3_account.endpoint_url,
        region_name=s3_account.region,
        aws_access_key_id=s3_account.access_key_id,
        aws_secret_access_key=s3_account.secret_access_key,
    )


def is_part_2(method: str, path: str) -> bool:
    return method == "PUT" and "partNumber=2" in path


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(Fault("503", times=4), id="down for a while"),
            pytest.param(Fault("reset", is_part_2), id="part 2 is reset"),
            pytest.param(Fault("503", is_part_2, times=4), id="part 2 gets 503"),
            pytest.param(Fault("corrupt", is_part_2), id="part 2 arrives damaged"),
            pytest.param(Fault("wrong etag", is_part_2), id="part 2 gets another etag"),
            pytest.param(
                Fault("503", lambda method, path: method == "HEAD", times=4), id="proof gets 503"
            ),
            pytest.param(
                Fault("wrong etag", lambda method, path: method == "HEAD"), id="foreign etag"
            ),
        ],
    )
    def test_upload_succeeds_once(
        self,
        through_proxy: S3Storage,
        proxy: Proxy,
        client: Any,
        s3_account: S3Account,
        file: MakeFile,
        tmp_path: Path,
        fault: Fault,
    ) -> None:
        content = b"\x01\x02\x03" * (PART_BYTES * 2 // 3)
        proxy.faults = [dataclasses.replace(fault)]
        through_proxy.put_file(KEY, file(content))
        assert proxy.faults[0].times == 0, "the fault did not happen"

        through_proxy.fetch(KEY, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
        through_proxy.sweep(older_than_s=0)
        assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_account.bucket)

    def test_what_never_arrives_whole_is_not_stored(
        self, s3: S3Storage, reach: Reach, proxy: Proxy, file: MakeFile
    ) -> None:
        proxy.faults = [Fault("corrupt", lambda method, path: method == "PUT", times=1000)]
        with pytest.raises(StorageUnavailable, match="another checksum"):
            reach(1).put_file(KEY, file(b"weights"))
        assert s3.stat(KEY) is None

    def test_gives_up_when_patience_ends(self, reach: Reach, proxy: Proxy, file: MakeFile) -> None:
        proxy.faults = [Fault("503", times=10_000)]
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            reach(1).put_file(KEY, file(b"weights"))
        assert time.monotonic() - started < 15

    def test_changed_in_the_store(
        self, s3: S3Storage, client: Any, s3_account: S3Account, file: MakeFile, tmp_path: Path
    ) -> None:
        stored = s3.put_file(KEY, file(b"weights"))
        client.put_object(
            Bucket=s3_account.bucket,
            Key=KEY,
            Body=b"WEIGHTS",
            Metadata={"sha256": stored.sha256},
        )
        with pytest.raises(ObjectDamaged):
            s3.fetch(KEY, tmp_path / "back")
        assert list(tmp_path.glob("back*")) == []

    def test_no_such_bucket_is_not_tried_again(
        self, s3_account: S3Account, signer: UrlSigner, file: MakeFile
    ) -> None:
        account = dataclasses.replace(s3_account, bucket="nobody-made-this-one")
        storage = S3Storage(account, signer, url_expiry_s=EXPIRY_S, patience_s=600)
        with pytest.raises(StorageRefused, match="NoSuchBucket"):
            storage.put_file(KEY, file(b"weights"))

    def test_sweep_aborts_what_nobody_finishes(
        self, s3: S3Storage, client: Any, s3_account: S3Account
    ) -> None:
        begun = client.create_multipart_upload(Bucket=s3_account.bucket, Key=KEY)
        client.upload_part(
            Bucket=s3_account.bucket,
            Key=KEY,
            UploadId=begun["UploadId"],
            PartNumber=1,
            Body=b"half",
        )
        assert s3.sweep(older_than_s=3600) == 1  # the test server dates every upload to 2010
        assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_account.bucket)

    def test_a_bucket_is_made_once(self, s3: S3Storage) -> None:
        s3.prepare()


class TestPresignedUrls:
    @pytest.fixture
    def url(
        self,
        s3: S3Storage,
        through_proxy: S3Storage,
        proxy: Proxy,
        s3_account: S3Account,
        file: MakeFile,
    ) -> str:
        assert s3_account.access_key_id is not None
        assert s3_account.secret_access_key is not None
        s3.put_file(KEY, file(b"weights"), content_type="text/html")
        s3.put_file("outputs/2/lora.safetensors", file(b"another's"))
        proxy.keys = (s3_account.access_key_id, s3_account.secret_access_key)
        return through_proxy.signed_url(KEY, file_name='my "lora".safetensors')

    def test_reads_its_key(self, url: str) -> None:
        answer = httpx.get(url, trust_env=False)
        assert (answer.status_code, answer.content) == (200, b"weights")
        disposition = answer.headers["content-disposition"]
        assert disposition == 'attachment; filename="my_lora_.safetensors"'
        assert answer.headers["content-type"] == "application/octet-stream"
        part = httpx.get(url, headers={"range": "bytes=1-2"}, trust_env=False)
        assert (part.status_code, part.content) == (206, b"ei")

    @pytest.mark.parametrize(
        ("method", "change"),
        [
            pytest.param("GET", lambda url: url.replace("/1/", "/2/"), id="other key"),
            pytest.param("PUT", lambda url: url, id="other method"),
            pytest.param("DELETE", lambda url: url, id="delete"),
            pytest.param("GET", lambda url: url.replace("attachment", "inline"), id="inline"),
            pytest.param(
                "GET", lambda url: url.replace("Expires=3600", "Expires=360000"), id="longer"
            ),
            pytest.param(
                "GET", lambda url: url.replace(f"/{KEY}", "") + "&list-type=2", id="list bucket"
            ),
            pytest.param("GET", lambda url: url.partition("?")[0], id="unsigned"),
        ],
    )
    def test_nothing_else(self, url: str, method: str, change: Callable[[str], str]) -> None:
        assert httpx.request(method, change(url), trust_env=False).status_code == 403

    def test_past_its_expiry(self, url: str, s3_account: S3Account) -> None:
        assert s3_account.access_key_id is not None
        assert s3_account.secret_access_key is not None
        for later, holds in ((0, True), (EXPIRY_S - 60, True), (EXPIRY_S + 60, False)):
            assert (
                presigned_holds(
                    url,
                    method="GET",
                    access_key=s3_account.access_key_id,
                    secret_key=s3_account.secret_access_key,
                    now=lambda later=later: time.time() + later,
                )
                is holds
            )

    def test_own_url_needs_no_download(self, url: str, through_proxy: S3Storage) -> None:
        assert through_proxy.key_of_own_url(url) == KEY
        assert through_proxy.key_of_own_url(url.replace("/1/", "/2/")) is None
        assert through_proxy.key_of_own_url(url.partition("?")[0]) is None

    def test_public_endpoint(self, s3_account: S3Account, signer: UrlSigner) -> None:
        account = dataclasses.replace(s3_account, public_endpoint_url="https://files.example.org")
        storage = S3Storage(account, signer, url_expiry_s=EXPIRY_S, patience_s=0)
        url = storage.signed_url(KEY)
        assert urlsplit(url).netloc == "files.example.org"
        assert storage.key_of_own_url(url) == KEY


def test_missing_while_reading(s3: S3Storage) -> None:
    with pytest.raises(ObjectMissing):
        next(s3.open_range("not/there", 5, 5))
