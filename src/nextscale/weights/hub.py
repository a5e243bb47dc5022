"""Files from the Hugging Face hub, with errors that say what was asked for."""

from __future__ import annotations

import re
from pathlib import Path

from nextscale.errors import ModelNotFoundError

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".json", ".zip")


def is_repo_id(name: str) -> bool:
    """Whether a name can be ``owner/name`` on the hub: dots are allowed, but no weight file's suffix."""
    return _REPO_ID.fullmatch(name) is not None and not name.lower().endswith(_FILE_SUFFIXES)


def download(repo: str, filename: str) -> Path:
    """A file of a hub repository, from the local cache or the network.

    Raises ModelNotFoundError if neither has it, naming the repository, the file and the reason.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(f"cannot get {filename} of {repo!r} from the hub: {reason}") from None
