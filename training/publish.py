"""The push of a finished run to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

# What the client raises for a refusal, a broken connection and a transfer that it gave up.
HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError, RuntimeError)


def check_hub(repo_id: str, private: bool) -> None:
    """Makes the repository before the training starts, so that no hour is lost to a wrong token.

    An existing repository is used as it is.

    Raises:
        OSError: the Hub is unreachable, or refuses the token or the name.
    """
    try:
        # create_repo alone is content without a token where the repository exists.
        HfApi().whoami()
        HfApi().create_repo(repo_id, private=private, exist_ok=True)
    except HUB_ERRORS as error:
        raise OSError(
            f"cannot push to {repo_id} ({_one_line(error)}); check the name, the connection and "
            "the token (hf auth login, or HF_TOKEN)."
        ) from error


def push_run(folder: Path, repo_id: str) -> str:
    """Uploads model, code, card, predictions and figures in one commit.

    Returns:
        The commit's URL.

    Raises:
        OSError: the upload broke off; the repository is then as it was.
    """
    try:
        commit = HfApi().upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            commit_message="Upload model, card and figures",
            ignore_patterns=["checkpoints/**", ".*"],
        )
    except HUB_ERRORS as error:
        raise OSError(
            f"the upload to {repo_id} broke off ({_one_line(error)}); the model is whole in "
            f"{folder}: run the same command again with --resume_from_checkpoint."
        ) from error
    return commit.commit_url


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
