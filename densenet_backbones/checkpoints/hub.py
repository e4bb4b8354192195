"""Fetch the file of a model that is named on the Hugging Face Hub: ``hf-hub:OWNER/NAME``.

One file alone is fetched, `HUB_FILE`: safetensors can hold no program. Its size is asked for first.
"""

import re
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.hub_name import HUB, HUB_FILE, is_on_hub
from densenet_backbones.untrusted.limits import MAX_HUB_FILE

__all__ = ["HUB", "HUB_FILE", "is_on_hub", "locate_file"]

_NAME = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_SECONDS = 10.0  # that the Hub has for its first answer


def locate_file(path: str | Path) -> Path:
    """Return the path of a local file, which is downloaded if its name is one on the Hub.

    What was downloaded once is kept in huggingface_hub's own cache (``HF_HOME``) and used again:
    without a question where the revision is a commit, and where the Hub is out of reach.

    Args:
        path: A path, which is returned as it is, or ``hf-hub:OWNER/NAME``, perhaps with
            ``@REVISION``: a branch, a tag or a commit.

    Raises:
        CheckpointError: There is no such repository, revision or file, it is too large, or the Hub
            is out of reach and the file was never fetched.
    """
    if not is_on_hub(path):
        return Path(path)
    name = _NAME.fullmatch(Path(path).as_posix())
    if name is None:
        raise CheckpointError(f"{path}: write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    repo, revision = name["repo"], name["revision"]
    if revision and _COMMIT.fullmatch(revision):
        kept = try_to_load_from_cache(repo, HUB_FILE, revision=revision)
        if isinstance(kept, str):
            return Path(kept)
    try:
        return _fetch(str(path), repo, revision)
    except CheckpointError:
        raise
    except Exception as error:  # of the network, by types of several libraries
        try:
            return Path(hf_hub_download(repo, HUB_FILE, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError, OSError):
            raise CheckpointError(f"{path}: {_explain(error)}") from error


def _fetch(path: str, repo: str, revision: str | None) -> Path:
    """Download a repository's file as it is now, if it is not too large."""
    try:
        url = hf_hub_url(repo, HUB_FILE, revision=revision)
        facts = get_hf_file_metadata(url, token=get_token(), timeout=_SECONDS)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{path}: its owner gives it to those who asked for it; ask on its page, and run "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{path}: there is no such repository on the Hub, or it is private; check the name, or "
            "run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{path}: the repository has no revision {revision!r}; give a branch, tag or commit "
            "of its page, or leave it out"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{path}: the repository has no {HUB_FILE}; other files, which may hold programs, are "
            "not fetched"
        ) from error
    if facts.size is None or facts.size > MAX_HUB_FILE:
        size = "no size" if facts.size is None else f"{facts.size} bytes"
        raise CheckpointError(
            f"{path}: its {HUB_FILE} has {size}, and at most {MAX_HUB_FILE} bytes are fetched; "
            "download it yourself and give the file"
        )
    # By its name and not its commit: the cache then knows the name where the Hub is out of reach.
    return Path(hf_hub_download(repo, HUB_FILE, revision=revision))


def _explain(error: Exception) -> str:
    """Explain why the Hub gave no file, and the fix."""
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "it is not in the cache of this machine, and HF_HUB_OFFLINE forbids to fetch it; unset "
            "it, or give a file"
        )
    if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", None):
        return f"the Hub answers with HTTP status {error.response.status_code}; try again later"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"it is not in the cache of this machine, and the Hub cannot be reached ({reason}); check "
        "the network, or give a file"
    )
