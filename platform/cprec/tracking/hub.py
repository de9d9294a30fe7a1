"""Pushes an exported model to a repository on a model hub, with Hugging Face's client.

The client takes the token from HF_TOKEN or from its login, and the hub from HF_ENDPOINT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from cluster.errors import RecipeError, RunError
from cprec.tracking.lineage import HUB_ID


def require_hub(repository: str) -> None:
    """Checks that a repository can be named so, and that the hub knows this user.

    Raises:
        RecipeError: The name is not OWNER/NAME.
        RunError: There is no token, no network, or the hub refuses the token.
    """
    if not HUB_ID.fullmatch(repository):
        raise RecipeError(f"--push {repository}: no repository on a hub; give OWNER/NAME")
    with _refused(repository):
        HfApi().whoami()
        HfApi().repo_exists(repository)  # refuses names that no repository can have, too


def push(directory: Path, repository: str) -> str:
    """Uploads a directory as one commit of a repository.

    A repository that is not there is created, private.

    Args:
        directory: What is uploaded.
        repository: OWNER/NAME.

    Returns:
        The address of the commit.

    Raises:
        RunError: The hub refuses, or cannot be reached. Nothing of the commit is visible then.
    """
    api = HfApi()
    with _refused(repository):
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Export of cprec"
        )
    return str(commit.commit_url)


@contextmanager
def _refused(repository: str) -> Iterator[None]:
    """Raises what keeps the client from pushing as the user's error."""
    where, hub = f"--push {repository}", HfApi().endpoint
    try:
        yield
    except HFValidationError as error:
        raise RecipeError(f"{where}: give OWNER/NAME ({error})") from None
    except LocalTokenNotFoundError:
        raise RunError(
            f"{where}: no token for {hub}; set HF_TOKEN, or log in with `hf auth login`"
        ) from None
    except OfflineModeIsEnabled:
        raise RunError(f"{where}: HF_HUB_OFFLINE is set; unset it to push") from None
    except HfHubHTTPError as error:
        raise RunError(
            f"{where}: {hub} refused ({' '.join(str(error).split())}); see whether the token may "
            "write there"
        ) from None
    except (httpx2.TransportError, ConnectionError) as error:
        raise RunError(
            f"{where}: {hub} cannot be reached ({type(error).__name__}: {error}); push from a "
            "machine with a network, or name another hub by HF_ENDPOINT"
        ) from None
