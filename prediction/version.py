"""Which model gave a prediction."""

import hashlib
import json
from pathlib import Path

from transformers.utils import cached_file

from modeling.exported_cxr import is_exported
from modeling.factory import split_commit
from modeling.lungs_cxr import LUNGS_FILE

MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def model_version(source: str) -> str:
    """A model's folder name or Hub id, @, and the first 12 hex digits of a hash of its files.

    The hash is the SHA-256 of its configuration, preprocessing and weights, those of a lung
    segmenter too; of an exported model, whose name is its file's, of that file, and of OpenVINO's
    weights beside it.

    Args:
        source: the folder, Hub id or id@commit that the model was loaded from, or its file.

    Raises:
        OSError: a file is gone.
    """
    digest = hashlib.sha256()
    if is_exported(source):
        for file in filter(Path.is_file, (Path(source), Path(source).with_suffix(".bin"))):
            digest.update(file.read_bytes())
        return f"{Path(source).name}@{digest.hexdigest()[:12]}"
    source, commit = split_commit(source)
    preprocessor = cached_file(source, MODEL_FILES[1], revision=commit)
    windowed = {"crop", "mask"} & set(json.loads(Path(preprocessor).read_text("utf-8")))
    for file in (*MODEL_FILES, LUNGS_FILE) if windowed else MODEL_FILES:
        digest.update(Path(cached_file(source, file, revision=commit)).read_bytes())
    name = Path(source).resolve().name if Path(source).is_dir() else source
    return f"{name}@{digest.hexdigest()[:12]}"
