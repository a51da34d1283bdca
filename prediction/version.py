"""Which model gave a prediction."""

import hashlib
from pathlib import Path

from transformers.utils import cached_file

from modeling.factory import split_commit

MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def model_version(source: str) -> str:
    """A model's folder name or Hub id, @, and the first 12 hex digits of a hash of its files.

    The hash is the SHA-256 of its configuration, preprocessing and weights.

    Args:
        source: the folder, Hub id or id@commit that the model was loaded from.

    Raises:
        OSError: a file is gone.
    """
    digest = hashlib.sha256()
    source, commit = split_commit(source)
    for file in MODEL_FILES:
        digest.update(Path(cached_file(source, file, revision=commit)).read_bytes())
    name = Path(source).resolve().name if Path(source).is_dir() else source
    return f"{name}@{digest.hexdigest()[:12]}"
