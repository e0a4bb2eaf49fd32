"""What goes wrong between here and the Hub, in sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from corral.checkpoints.cache import explain_disk_error
from corral.checkpoints.names import HubName, did_you_mean
from corral.errors import ResolveError


class HubOutOfReach(ResolveError):
    """The Hub gave no usable answer; `reason` says why, in a few words."""

    def __init__(self, wanted: HubName, endpoint: str, reason: str) -> None:
        self.reason = f"the Hub at {endpoint} is out of reach ({reason})"
        super().__init__(
            f"{wanted} is not complete in the cache and {self.reason}: check the network or HF_ENDPOINT; "
            "models that are in the cache can still be used."
        )


@contextmanager
def hub_errors(wanted: HubName, endpoint: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises inside the block into a ResolveError with one clear sentence."""
    try:
        yield
    except ResolveError:
        raise
    except Exception as error:
        explained = explain(error, wanted, endpoint)
        if explained is None:
            raise
        raise explained from error


def explain(error: BaseException, wanted: HubName, endpoint: str) -> ResolveError | None:
    """The sentence for an error of `huggingface_hub`; None for what is no failure of the Hub or the disk."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case OfflineModeIsEnabled():
            return HubOutOfReach(wanted, endpoint, "HF_HUB_OFFLINE is set")
        case LocalEntryNotFoundError() if error.__cause__ is not None:
            return explain(error.__cause__, wanted, endpoint)
        case GatedRepoError():
            return _gated(wanted, endpoint)
        case RepositoryNotFoundError():
            return _missing_repository(wanted, endpoint)
        case RevisionNotFoundError():
            return ResolveError(
                f"{wanted.repo_id} has no revision {wanted.branch!r} on the Hub at {endpoint}."
            )
        case EntryNotFoundError():
            return ResolveError(f"The Hub at {endpoint} lacks a file of {wanted.repo_id} that it lists.")
        case FileMetadataError():
            return HubOutOfReach(wanted, endpoint, "what answers there is not a Hub")
        case HfHubHTTPError():
            return _status(error.response.status_code, wanted, endpoint)
        case RuntimeError():  # hf_xet's way of saying that a transfer failed
            return explain_disk_error(error, wanted.repo_id) or _broken_off(error, wanted, endpoint)
    # The bases of HfHubHTTPError are OSError and the root of whichever HTTP library huggingface_hub uses.
    if isinstance(error, HfHubHTTPError.__bases__):
        path = getattr(error, "filename", None) or wanted.repo_id
        return explain_disk_error(error, path) or _broken_off(error, wanted, endpoint)
    return None


def _gated(wanted: HubName, endpoint: str) -> ResolveError:
    page = f"{endpoint}/{wanted.repo_id}"
    if os.environ.get("HF_TOKEN"):
        return ResolveError(
            f"{wanted.repo_id} is gated and the account of HF_TOKEN has no access to it: accept its licence "
            f"at {page} with that account and wait until access is granted."
        )
    return ResolveError(
        f"{wanted.repo_id} is gated: accept its licence at {page}, then set HF_TOKEN to an access token of "
        "the same account."
    )


def _missing_repository(wanted: HubName, endpoint: str) -> ResolveError:
    return ResolveError(
        f"There is no model {wanted.repo_id!r} on the Hub at {endpoint}, or it is private and HF_TOKEN "
        f"gives no access to it.{did_you_mean(wanted.repo_id)}"
    )


def _status(status: int, wanted: HubName, endpoint: str) -> ResolveError:
    if status == 401:
        return ResolveError(
            f"The Hub at {endpoint} refuses the access token: HF_TOKEN, or the saved login, is wrong or "
            "expired."
        )
    if status == 403:
        return ResolveError(f"The Hub at {endpoint} does not allow this account to read {wanted.repo_id}.")
    if status == 429:
        return ResolveError(
            f"The Hub at {endpoint} has had too many requests from here: wait, or set HF_TOKEN for a "
            "higher limit."
        )
    return HubOutOfReach(wanted, endpoint, f"it answers with HTTP status {status}")


def _broken_off(error: BaseException, wanted: HubName, endpoint: str) -> ResolveError:
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(r"^\[Errno -?\d+\] ", "", words)
    return HubOutOfReach(wanted, endpoint, words if len(words) <= 120 else f"{words[:117]}...")
