"""Where the registry is, whether it is there, and MLflow opened without noise; its errors in one form."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celr_ray.errors import PolicyError

__all__ = ["SQLITE", "check_place", "find_registry", "import_client", "store_errors"]

SQLITE = "sqlite:///"
_CHECK_S = 10.0


def find_registry(registry: str | None) -> str:
    """Return the tracking URI that a user means.

    Args:
        registry: an URI (`sqlite:///FILE`, `http://…`, `postgresql://…`), a file `*.db`, or a folder; None =
            MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder, which is MLflow's own default.
    """
    text = registry or os.environ.get("MLFLOW_TRACKING_URI") or "mlflow.db"
    if text.startswith(SQLITE):
        return f"{SQLITE}{os.path.abspath(text.removeprefix('sqlite:///'))}"
    if ":" in text.split("/", 1)[0] or text == "databricks":
        return text
    path = os.path.abspath(os.path.expanduser(text))
    return f"{SQLITE}{path if path.endswith('.db') else os.path.join(path, 'mlflow.db')}"


def check_place(uri: str, *, create: bool) -> None:
    """Check that there is a registry, before MLflow makes one or waits for one for minutes.

    Args:
        uri: from `find_registry`.
        create: an embedded one may be made.

    Raises:
        PolicyError: there is none, or it does not answer.
    """
    if uri.startswith(SQLITE):
        _check_file(uri.removeprefix(SQLITE), create=create)
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)


def _check_file(path: str, *, create: bool) -> None:
    if os.path.isfile(path):
        with open(path, "rb") as source:
            head = source.read(16)
        if head and head != b"SQLite format 3\0":
            raise PolicyError(f"{path} is no registry: not an SQLite file")
        return
    if not create:
        raise PolicyError(
            f"no registry at {path}. Name one with --registry or MLFLOW_TRACKING_URI; celr-ray train-cortex --name "
            "makes one"
        )
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise PolicyError(f"cannot make the registry {path}: {error}") from error


def _check_server(uri: str) -> None:
    """Ask a server for a sign of life: MLflow's own client would try for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_CHECK_S):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is told by the calls
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"no MLflow server answers at {uri}: {error}. Check --registry or MLFLOW_TRACKING_URI"
        ) from None


def import_client() -> Any:
    """Return MLflow's client class, without telemetry and notices.

    Raises:
        PolicyError: MLflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise PolicyError(f"the registry needs MLflow: pip install 'celr-ray[tracking]' ({error})") from error
    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


@contextmanager
def store_errors(uri: str, what: str) -> Iterator[None]:
    """Turn what MLflow or its database raises into one error that names the registry."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:500]
        raise PolicyError(f"cannot {what} the registry {uri}: {reason}") from error
