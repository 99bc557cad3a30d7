"""Push a verified folder to the Hub as one commit: weights, code and card arrive together or not at all.

The clean room comes first; what fails there leaves the Hub untouched, without so much as a new repository. The commit
also removes files that the folder no longer holds, so a revision is exactly the folder, but for what a trainer keeps
there to resume a run. Whatever goes wrong on the way
is told in one sentence with its remedy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from .cards import name_repository
from .clean_room import verify
from .static_checks import WORKING_FILES


class PublishError(OSError):
    """The Hub could not be reached or refused; the revision that was there is untouched."""


def push_repository(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    verify_first: bool = True,
) -> CommitInfo:
    """Publish a folder.

    The folder's card is made to name `repo_id` before it is checked.

    Args:
        directory: a folder from `export_repository` or `export_preset`, or an adapter's.
        repo_id: "owner/name"; made if it does not exist.
        private: whether a repository that is made now is private.
        revision: branch to commit to, made if it does not exist; the default branch when left out.
        commit_message: first line of the commit.
        create_pr: open a pull request instead of committing.
        token: the one of `hf auth login` or `HF_TOKEN` when left out.
        verify_first: run the clean room before anything is sent.

    Returns:
        The commit.

    Raises:
        CleanRoomError: the folder is not fit to publish; nothing was sent.
        PublishError: the Hub refused or was not reached; its old revision is untouched.
        ValueError: no card, or a `repo_id` without an owner.
    """
    directory = Path(directory).resolve()
    name_repository(directory / "README.md", repo_id)
    if verify_first:
        verify(directory)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _explained(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            revision=revision,
            commit_message=commit_message or "Weights, code and card",
            create_pr=create_pr,
            delete_patterns="*",
            ignore_patterns=list(WORKING_FILES),
        )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the Hub or the network answers into one sentence with its remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PublishError(
            "Nothing was sent: HF_HUB_OFFLINE is set. Unset it and run the same command again."
        ) from error
    except HfHubHTTPError as error:
        remedy = _remedy(error.response.status_code, repo_id, error.server_message)
        raise PublishError(f"{repo_id} was not published: {remedy}") from error
    except HTTPError as error:
        raise PublishError(
            f"{repo_id} was not published: the connection to the Hub was lost ({type(error).__name__}). The old "
            "revision is untouched; run the same command again, files already sent are not sent twice."
        ) from error


def _remedy(status: int, repo_id: str, server_message: str | None) -> str:
    owner = repo_id.split("/")[0]
    if status == 401:
        return "the Hub does not accept the token (401). Log in with `hf auth login`, or set HF_TOKEN to a valid token."
    if status == 403:
        return f"the token may not write to {owner!r} (403). Use a token with write access there, or another owner."
    if status == 404:
        return (
            "the Hub does not find the repository or the revision (404). Check its name and that the token may see it."
        )
    if status == 409:
        return "somebody else changed it at the same time (409). Look at the new revision, then run the command again."
    if status == 429 or status >= 500:
        return (
            f"the Hub could not take it ({status}). The old revision is untouched; run the same command again, files "
            "already sent are not sent twice."
        )
    return f"the Hub refused the request ({status}: {server_message}). The old revision is untouched."
