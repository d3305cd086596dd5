"""The S3 file system of pyarrow, set up from the usual AWS settings, and its errors in words that help.

pyarrow finds credentials, session tokens and profiles itself. It does not read the endpoint from the environment, so
endpoint, scheme, region, CA bundle and the limit of retries are read here, where the AWS tools read them too.
This module knows nothing of files on disk.
"""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from celr_ray.errors import ConfigError

_DEFAULT_ATTEMPTS = 4
_CONNECT_TIMEOUT_S = 5
_REQUEST_TIMEOUT_S = 10
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
_WRONG_KEY = ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "EXPIRED_TOKEN")
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the object store is and how patiently it is asked.

    Attributes:
        endpoint: `host:port` of a store that is not AWS; None = AWS.
        scheme: `https` or `http`.
        region: None = not set.
        ca_bundle: file with the certificates to trust; empty = the system's.
        max_attempts: how often a request is sent before it counts as failed.
    """

    endpoint: str | None
    scheme: str
    region: str | None
    ca_bundle: str
    max_attempts: int


def read_settings() -> S3Settings:
    """Read the AWS settings: the environment first, then the profile's section of the AWS config file.

    Raises:
        ConfigError: an endpoint is no http or https URL, or AWS_MAX_ATTEMPTS is no positive number.
    """
    profile = _read_profile()
    url = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    region = _first("AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
    endpoint, scheme = _split_endpoint(url) if url else (None, "https")
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(_DEFAULT_ATTEMPTS)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"AWS_MAX_ATTEMPTS is {text!r}; it must be a whole number from 1 on")
    return S3Settings(endpoint, scheme, region, os.environ.get("AWS_CA_BUNDLE", ""), int(text))


def _first(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _read_profile() -> dict[str, str]:
    """Return the section of the chosen profile in the AWS config file; empty if there is none."""
    name = _first("AWS_PROFILE", "AWS_DEFAULT_PROFILE") or "default"
    path = os.path.expanduser(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except configparser.Error as error:
        raise ConfigError(f"cannot read the AWS config file {path}: {error}") from error
    section = name if name == "default" else f"profile {name}"
    return dict(parser[section]) if parser.has_section(section) else {}


def _split_endpoint(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or "@" in parts.netloc:
        raise ConfigError(f"AWS_ENDPOINT_URL is {url!r}; it must be http://HOST:PORT or https://HOST:PORT, no more")
    return parts.netloc, parts.scheme


def open_s3(bucket: str) -> pafs.S3FileSystem:
    """Return the file system that leads to a bucket; equal settings share one.

    It pickles without credentials: another process takes those of its own environment.

    Raises:
        ConfigError: a setting is wrong.
        OSError: no region is set and AWS does not tell the bucket's.
    """
    settings = read_settings()
    region = settings.region or ("us-east-1" if settings.endpoint else _ask_region(bucket))
    return _open(settings, region, tuple(os.environ.get(name) for name in _CREDENTIALS))


@lru_cache(maxsize=64)
def _ask_region(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


@lru_cache(maxsize=16)
def _open(settings: S3Settings, region: str, credentials: tuple[str | None, ...]) -> pafs.S3FileSystem:
    """Make the file system; `credentials` only tells settings apart, pyarrow reads them itself.

    With `allow_delayed_open` an object of up to 10 MiB is one PUT.
    """
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=settings.endpoint,
        scheme=settings.scheme,
        tls_ca_file_path=settings.ca_bundle or None,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=settings.max_attempts),
        allow_delayed_open=True,
    )


def explain(error: OSError, bucket: str) -> str:
    """Say what an error of the S3 file system means and what to do; its own words if it is an unknown one."""
    match = _AWS_ERROR.search(str(error))
    code, status = match.groups() if match else ("", None)
    settings = read_settings()
    where = f"{settings.scheme}://{settings.endpoint}" if settings.endpoint else "AWS"
    detail = str(error).rsplit("operation: ", 1)[-1].rsplit("Details: ", 1)[-1].rstrip(". ")
    if code == "NETWORK_CONNECTION":
        return (
            f"the object store at {where} does not answer ({detail}). Check AWS_ENDPOINT_URL and the network, "
            "then give the same command again"
        )
    if code == "NO_SUCH_BUCKET":
        return f"there is no bucket {bucket!r} at {where}. Create it, or correct the name or AWS_ENDPOINT_URL"
    if code in _WRONG_KEY:
        return (
            f"the key is wrong or has expired ({code.lower()} at {where}). Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE"
        )
    if code == "ACCESS_DENIED" or status == "403":
        return (
            f"access denied by {where}. The key is missing or wrong, or has no right to list, read or write in the "
            f"bucket {bucket!r}. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if status in ("301", "307", "400") and "HeadObject" in str(error):
        return f"the bucket {bucket!r} may be in another region: set AWS_REGION ({error})"
    return str(error)
