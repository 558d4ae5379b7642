"""Folders to and from the Hugging Face hub."""

from pathlib import Path

from limbeck.errors import LimbeckError, require


def download(repo: str, files: tuple[str, ...]) -> Path:
    """Fetch some files of a repository into the hub's cache, nothing else of it.

    Args:
        repo: ``user/repo``, or ``user/repo@revision`` (a branch, tag or commit).
        files: Names of the files.

    Returns:
        The local folder that holds them.

    Raises:
        LimbeckError: huggingface_hub is not installed, or the repository cannot be fetched.
    """
    hub = require("huggingface_hub", extra="hub")
    name, _, revision = repo.partition("@")
    try:
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    # The hub raises errors of its own, of its HTTP library, of the file system and of its name check.
    except Exception as error:
        raise LimbeckError(f"cannot fetch hf://{repo}: {_first_line(error)}") from error


def upload(folder: Path, repo: str, private: bool) -> str:
    """Put the files of a folder into a model repository, which is made if there is none.

    Returns:
        The web address of the commit.

    Raises:
        LimbeckError: huggingface_hub is not installed, or the hub refuses (no login, no right, no
            connection).
    """
    hub = require("huggingface_hub", extra="hub")
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Save a limbeck model"))
    except Exception as error:
        raise LimbeckError(f"cannot push to hf://{repo}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
