"""Files from the Hugging Face hub, with errors that say what was asked for."""

from __future__ import annotations

from pathlib import Path

from nextscale.errors import ModelNotFoundError


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
