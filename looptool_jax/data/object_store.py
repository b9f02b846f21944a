"""Google Cloud Storage behind fsspec: credentials, patience with outages, writes with a precondition, clear errors.

Where STORAGE_EMULATOR_HOST names a server, as Google's own clients read it, everything goes there without credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import fsspec
from gcsfs.core import GCSFileSystem
from gcsfs.retry import RETRIABLE_EXCEPTIONS, HttpError, errs
from google.auth.exceptions import GoogleAuthError

PATIENCE = 90.0  # seconds after which a request that keeps failing is given up; gcsfs's own retries come on top
PAUSE = 5.0
SILENCE = 60.0  # seconds without an answer after which a connection counts as broken
LONGEST = 600.0  # seconds of one request, of at most 50 MiB

_log = logging.getLogger(__name__)


class GoogleStore(GCSFileSystem):
    """`gs://` as this program uses it.

    Listings are never cached, as other processes write too. Every object is put with the sha256 of its bytes in its
    metadata, so that a manifest is checked without reading the objects back, and the store's checksum of what arrived
    is compared. A request that fails because the store is busy or away is made again for some minutes. A connection
    that says nothing or takes nothing, as one does whose other end is gone, counts as one that broke.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__(
            token="anon" if emulator() else "google_default", use_listings_cache=False,
            requests_timeout=aiohttp.ClientTimeout(total=LONGEST, sock_connect=SILENCE, sock_read=SILENCE),
        )  # fmt: skip

    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        while True:
            try:
                return await super()._request(*args, **kwargs)
            except Exception as error:
                if not _passes(error) or time.monotonic() - started > PATIENCE:
                    raise
                _log.warning("%s does not answer (%s); trying again", self._location, _short(error))
                await asyncio.sleep(PAUSE)

    async def _pipe_file(self, path: str, data: bytes, **kwargs: Any) -> Any:
        kwargs["metadata"] = {"sha256": hashlib.sha256(data).hexdigest()}
        kwargs["fixed_key_metadata"] = {"cache_control": "no-store"}  # public buckets would serve old bytes for an hour
        return await super()._pipe_file(path, data, consistency="md5", **kwargs)

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> Any:
        with open(lpath, "rb") as file:
            kwargs["metadata"] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        return await super()._put_file(lpath, rpath, consistency="md5", **kwargs)

    def current(self, path: str, timeout: float | None = None) -> tuple[bytes, int] | None:
        """An object's bytes and generation; None where there is none. Raises TimeoutError after `timeout` seconds."""
        try:
            headers, data = self.call("GET", self.url(path), timeout=timeout)
        except FileNotFoundError:
            return None
        return data, int(headers["X-Goog-Generation"])

    def age(self, path: str) -> float | None:
        """How many seconds ago an object was put, by the store's own clock; None: there is none."""
        bucket, key, _ = self.split_path(path)
        try:
            headers, about = self.call("GET", "b/{}/o/{}", bucket, key)
        except FileNotFoundError:
            return None
        put = datetime.fromisoformat(json.loads(about)["updated"])
        return (parsedate_to_datetime(headers["Date"]) - put).total_seconds()

    def replace(self, path: str, data: bytes, generation: int, timeout: float | None = None) -> int | None:
        """Put an object if its generation is still this one (0: if there is none); the new generation, or None.

        `data` must be unlike that of any other writer: it tells a put whose answer was lost from another's.
        Raises TimeoutError where a request takes more than `timeout` seconds; it may still be carried out.
        """
        bucket, key, _ = self.split_path(path)
        about = json.dumps({"name": key, "cacheControl": "no-store"}).encode()
        body = b"--=\nContent-Type: application/json\n\n%s\n--=\nContent-Type: application/json\n\n%s\n--=--"
        try:
            answer = self.call(
                "POST", f"{self._location}/upload/storage/v1/b/{bucket}/o", uploadType="multipart",
                ifGenerationMatch=str(generation), headers={"Content-Type": 'multipart/related; boundary="="'},
                data=body % (about, data), json_out=True, timeout=timeout,
            )  # fmt: skip
            return int(answer["generation"])
        except FileExistsError:
            found = self.current(path, timeout)
            return found[1] if found is not None and found[0] == data else None

    def delete(self, path: str, generation: int) -> None:
        """Delete an object if its generation is still this one."""
        bucket, key, _ = self.split_path(path)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=str(generation))


def emulator() -> str:
    """The address of the emulator to be used instead of Google's servers, or nothing."""
    address = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if address in ("", "default"):
        return ""
    return address if "://" in address else f"http://{address}"


def register() -> None:
    """Make fsspec, and what builds on it, open `gs://` with GoogleStore."""
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, GoogleStore, clobber=True)


def register_for_orbax() -> None:
    """Make Orbax reach `gs://` as everything else here does: its folders go through fsspec, its arrays through
    TensorStore, which has variables of its own for an emulator and for silent connections."""
    register()
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", f"{SILENCE:.0f}")
    if emulator():
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator())
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")


def reason(url: str, error: BaseException) -> str:
    """Why something could not be done with `url`, and the remedy, on one line."""
    bucket = "/".join(url.split("/")[:3])
    text = _short(error)
    if isinstance(error, GoogleAuthError) or (isinstance(error, HttpError) and error.code in (401, "401")):
        return (
            f"no Google Cloud credentials are accepted here ({text}): run `gcloud auth application-default login`, or "
            "name a key file in GOOGLE_APPLICATION_CREDENTIALS"
        )
    if text.startswith("Forbidden") or (isinstance(error, HttpError) and error.code in (403, "403")):
        return f"this account lacks the permission ({text}): give it the role Storage Object User on {bucket}"
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket}: create it, or choose another address"
    if _passes(error):
        return f"the store does not answer ({text}): give the same command again when it does, and it continues"
    return f"{type(error).__name__}: {text}"


def _passes(error: BaseException) -> bool:
    """Whether trying again may help: the store is busy or away, or the connection broke."""
    if isinstance(error, HttpError):
        return error.code in errs
    return isinstance(error, (*RETRIABLE_EXCEPTIONS, TimeoutError)) and not isinstance(error, GoogleAuthError)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
