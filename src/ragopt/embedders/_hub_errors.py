"""What ``huggingface_hub`` raises, in sentences."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ragopt._imports import require
from ragopt.embedders.hub_cache import cache_folder, is_whole, snapshot
from ragopt.errors import BackendUnavailable, InvalidInput, RagoptError, StorageError

_EXTRA = "transformers"
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def explained(model: str, revision: str | None) -> Iterator[None]:
    errors = require("huggingface_hub.errors", _EXTRA)
    # The HTTP client is another one in each version; this one is made from the base of its errors.
    *_, transport = (
        kind
        for kind in errors.HfHubHTTPError.__mro__
        if kind.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
    )
    try:
        yield
    except RagoptError:
        raise
    except (OSError, ValueError, RuntimeError, transport) as error:
        raise _sentence(error, model, revision, transport) from error


def _sentence(
    error: BaseException, model: str, revision: str | None, transport: type[BaseException]
) -> RagoptError:
    errors = require("huggingface_hub.errors", _EXTRA)
    endpoint = require("huggingface_hub.constants", _EXTRA).ENDPOINT
    server = urlsplit(endpoint).netloc.rpartition("@")[2] or endpoint  # without a password
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _sentence(error.__cause__, model, revision, transport)
    if isinstance(error, errors.HFValidationError):
        return InvalidInput(
            f"{model!r} is no model id.", fix="Name it as the hub does, such as BAAI/bge-m3."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return BackendUnavailable(
            f"The hub is not asked for {model}, since HF_HUB_OFFLINE is set.",
            fix=f"Unset it to fetch the model. {_copy_here(model, revision)}",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return StorageError(
            f"{model} is not open to you.",
            fix="Accept its terms on its page on the hub, and pass the token of your account in "
            "HF_TOKEN, or log in with: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return StorageError(
            f"{model} has no revision {revision or 'main'!r}.", fix="Name a branch, tag or commit."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return StorageError(
            f"{server} has no model {model}, or it is private.",
            fix="Check its spelling. For a private one pass a token in HF_TOKEN, or log in with: "
            "hf auth login",
        )
    if status == 401:
        return StorageError(
            f"{server} asks for a token for {model}, or refused yours.",
            fix="Pass a valid one in HF_TOKEN, or log in with: hf auth login",
        )
    if status is not None:
        return BackendUnavailable(
            f"{server} answered with status {status}.",
            fix="Try again later: files that are complete are kept.",
        )
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk of {cache_folder()} is full.",
            fix="Make room, or name a folder on another disk in HF_HOME. Run it again then: files "
            "that are complete are kept.",
        )
    if number in _CANNOT_WRITE:
        return StorageError(
            f"The model cache {cache_folder()} cannot be written ({error}).",
            fix="Check its rights, or name another folder in HF_HOME.",
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, (transport, ConnectionError, TimeoutError)):
        return BackendUnavailable(
            f"{server} cannot be reached: {first}.",
            fix=f"Check the network and the proxy, and run it again: files that are complete are "
            f"kept. {_copy_here(model, revision)}",
        )
    return StorageError(
        f"{model} could not be fetched: {first}.",
        fix="Run it again: files that are complete are kept.",
    )


def _copy_here(model: str, revision: str | None) -> str:
    path = snapshot(model, revision)
    if path is None or not is_whole(path):
        return "Or copy the model's folder from another machine and pass its path as the model."
    return f"The copy of it in {path} can be used as it is."
