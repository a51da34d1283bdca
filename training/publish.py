"""The push of a finished run to the Hub."""

import csv
import io
import logging
import secrets
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from datasets_scripts.hashes import pseudonym
from evaluation.predictions import write_text

logger = logging.getLogger(__name__)

SALT = ".salt"
# What `write_run` writes; whatever else lies in the folder is the user's own.
PUSHED = (
    *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    *("lungs.safetensors", "*_cxr.py"),
    *("predictions_*.csv", "metrics.json", "history.csv", "training_args.json", "dataset.json"),
    *("figures/*.png", "figures/*.svg"),
)

# What the client raises for a refusal, a broken connection and a transfer that it gave up.
HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError, RuntimeError)


def check_hub(repo_id: str, private: bool, publish_ids: bool | None = None) -> None:
    """Makes the repository before the training starts, so that no hour is lost to a wrong token.

    An existing repository is used as it is. The log says who will read what.

    Args:
        repo_id: org/name.
        private: whether it must be a private one.
        publish_ids: see `push_run`; None where the run has no predictions to push.

    Raises:
        ValueError: it is to be private and is there already as a public one.
        OSError: the Hub is unreachable, or refuses the token or the name.
    """
    try:
        # create_repo alone is content without a token where the repository exists.
        HfApi().whoami()
        HfApi().create_repo(repo_id, private=private or None, exist_ok=True)
        is_private = HfApi().repo_info(repo_id).private
    except HUB_ERRORS as error:
        raise OSError(
            f"cannot push to {repo_id} ({_one_line(error)}); check the name, the connection and "
            "the token (hf auth login, or HF_TOKEN)."
        ) from error
    if private and not is_private:
        raise ValueError(
            f"{repo_id} is public, against --hub_private; change that on the Hub, or name another "
            "--hub_model_id."
        )
    pushed = "the model and its card"
    if publish_ids is not None:
        ids = "the names of" if publish_ids else "salted hashes for"
        pushed = (
            "the model, its card and figures, and label and logits of each validation and test "
            f"image under {ids} image and patient"
        )
    logger.info(
        "%s is %s: pushed will be %s.", repo_id, "private" if is_private else "public", pushed
    )


def push_run(folder: Path, repo_id: str, publish_ids: bool) -> str:
    """Uploads model, code, card, predictions and figures in one commit, and nothing else.

    Args:
        folder: of the run.
        repo_id: org/name.
        publish_ids: whether the predictions keep the ids of images and patients, which are file
            names and may be those of people; else each is replaced by a hash under a salt that
            stays in the folder, as `.salt`, so that the same run pushed again has the same ones.

    Returns:
        The commit's URL.

    Raises:
        OSError: the upload broke off; the repository is then as it was.
    """
    salt = read_salt(folder / SALT)
    operations = []
    for path in sorted({path for pattern in PUSHED for path in folder.glob(pattern)}):
        content = path
        if path.match("predictions_*.csv") and not publish_ids:
            content = without_names(path.read_text("utf-8"), salt)
        operations.append(CommitOperationAdd(path.relative_to(folder).as_posix(), content))
    try:
        commit = HfApi().create_commit(
            repo_id, operations, commit_message="Upload model, card and figures"
        )
    except HUB_ERRORS as error:
        raise OSError(
            f"the upload to {repo_id} broke off ({_one_line(error)}); the model is whole in "
            f"{folder}: run the same command again with --resume_from_checkpoint."
        ) from error
    return commit.commit_url


def read_salt(path: Path) -> bytes:
    """The 32 random bytes of a file of 64 hex digits, which is made where there is none."""
    try:
        salt = bytes.fromhex(path.read_text("ascii"))
    except (FileNotFoundError, ValueError):
        salt = b""
    if len(salt) != 32:
        salt = secrets.token_bytes(32)
        write_text(path, salt.hex())
    return salt


def without_names(predictions: str, salt: bytes) -> bytes:
    """A CSV of predictions with `pseudonym`s for the ids of images and patients."""
    rows, text = csv.DictReader(io.StringIO(predictions)), io.StringIO()
    writer = csv.DictWriter(text, rows.fieldnames, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        ids = {column: pseudonym(row[column], salt) for column in ("image_id", "patient_id")}
        writer.writerow(row | ids)
    return text.getvalue().encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
