"""The models that MODEL_ID names: loading, asking, versions and cards.

A model answers through the code stored beside its weights, so this folder needs nothing else.
"""

import copy
import hashlib
import importlib
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

HERE = Path(__file__).resolve().parent
SHIPPED = ("cxr-densenet121", "cxr-baseline")
SLOW = "score_cam"  # a forward pass a channel
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
FIGURE = re.compile(r"figures/[\w-]+\.png")


class Classifier:
    """A model and its image processor.

    Attributes:
        classes: their names, in the model's order.
        finding: class 1 of two exclusive ones, what such a model looks for; None for other models.
        version: name, @, and the first 12 hex digits of the SHA-256 of configuration, preprocessing
            and weights, as in `predict.py`'s table.

    Args:
        model_id: a Hub id or a folder that `save_pretrained` wrote; its own code is run.
        name: what to call it.

    Raises:
        ValueError: there is no such model, it cannot be loaded, or it is of another kind.
    """

    def __init__(self, model_id: str, name: str) -> None:
        self.model_id, self.name = model_id, name
        self.is_folder = Path(model_id).is_dir()
        if Path(model_id).is_file():
            raise ValueError(
                f"MODEL_ID {model_id!r} is a file, not the folder of a model; convert a CheXNet "
                f"checkpoint first: python -m modeling.convert chexnet {model_id} OUT, and give "
                "OUT."
            )
        try:
            self.model = AutoModelForImageClassification.from_pretrained(
                model_id, trust_remote_code=True
            )
            self.processor = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=True)
        except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
            problem = "is not a folder and cannot be loaded from the Hub"
            if self.is_folder:
                problem = "cannot be loaded"
            reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
            raise ValueError(f"MODEL_ID {model_id!r} {problem}: {reason}.") from error
        if not (hasattr(self.model, "assess") and hasattr(self.processor, "heat_layer")):
            raise ValueError(
                f"MODEL_ID {model_id!r} is not one of this project's chest X-ray models, or one "
                "saved before they could assess an image; save it again."
            )
        self.model.eval()
        self.config = self.model.config
        self.classes = [self.config.id2label[index] for index in range(self.config.num_labels)]
        binary = len(self.classes) == 2 and not self.config.is_multi_label
        self.finding = self.classes[1] if binary else None
        content = b"".join(Path(cached_file(model_id, file)).read_bytes() for file in MODEL_FILES)
        self.version = f"{name}@{hashlib.sha256(content).hexdigest()[:12]}"
        # The function that predict.py makes its rows by lies beside the model's code.
        package = type(self.model).__module__.rpartition(".")[0]
        self._table_row = importlib.import_module(f"{package}.answers_cxr").table_row
        # A forward pass uses every core, and a heatmap hooks the model: one at a time.
        self._lock = threading.Lock()
        self._warm_up()

    def _warm_up(self) -> None:
        side = 2 * self.config.image_size
        image = self.processor.open(np.tile(np.linspace(0, 1, side), (side, 1)))
        self.model.assess([image], self.processor, method="grad_cam")

    @property
    def revision(self) -> str:
        """The Hub's commit, or the hash of a folder's files: 12 hex digits."""
        if self.is_folder:
            return self.version.rpartition("@")[2]
        return extract_commit_hash(cached_file(self.model_id, "config.json"), None)[:12]

    @property
    def hub_url(self) -> str | None:
        """The card's page on the Hub."""
        return None if self.is_folder else f"https://huggingface.co/{self.model_id}"

    def assess(self, image: Any, target: str | None = None, method: str | None = None) -> Any:
        """What the model says of an image, its `CxrAnswer`.

        Args:
            image: a `CxrImage`, as `processor.open` gives it.
            target: class to explain; None for the most probable one.
            method: of the heatmap, or None for none.

        Raises:
            ValueError: no such class or method.
        """
        with self._lock:
            if method != SLOW:
                return self.model.assess([image], self.processor, target, method)[0]
            model = copy.deepcopy(self.model)  # its hooks are in nobody's way
        return model.assess([image], self.processor, target, method)[0]

    def decision(self, assessment: Any) -> str:
        """What the model decided, for a reader; empty where it refused.

        Of a finding it is said whether the model flags it: a class below the operating point may
        still be the more probable one.
        """
        if assessment.refusal:
            return ""
        if self.finding is None:
            parts = [", ".join(assessment.decided)]
            if assessment.uncertain:
                parts.append(f"uncertain: {', '.join(assessment.uncertain)}")
            return "; ".join(filter(None, parts)) or "None of its classes"
        if assessment.uncertain:
            return "Uncertain"
        flagged = "Flagged" if self.finding in assessment.decided else "Not flagged"
        return f"{flagged} as {self.finding}"

    def row(self, name: str, assessment: Any = None, error: str | None = None) -> dict:
        """The row that `predict.py` writes for a file, of an assessment or of an error."""
        return self._table_row(name, assessment, error, self.classes) | {"model": self.version}

    def card(self) -> tuple[str, dict[str, bytes]]:
        """The model's card without its front matter, and the figures it shows.

        Returns:
            Markdown, and {path in the card: a PNG's bytes}; nothing outside the model's figures/
            is read. An empty card where the model has none.
        """
        path = self._file("README.md")
        if path is None:
            return "", {}
        text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        names = set(re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text))
        files = {name: self._file(name) for name in names if FIGURE.fullmatch(name)}
        return text, {name: file.read_bytes() for name, file in files.items() if file}

    def _file(self, name: str) -> Path | None:
        if self.is_folder:
            path = Path(self.model_id, name)
            return path if path.is_file() else None
        found = cached_file(
            self.model_id,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None


def load_classifiers(model_ids: str) -> dict[str, Classifier]:
    """Loads the models named in a comma-separated list.

    Returns:
        {name: classifier}; a folder goes by its last part, so that no server path is shown.

    Raises:
        ValueError: nothing is named, two models go by one name, or `Classifier` cannot load one.
    """
    ids = [model_id.strip() for model_id in model_ids.split(",") if model_id.strip()]
    if not ids:
        raise ValueError(
            "MODEL_ID is not set and no model lies beside this folder; give it a Hub id "
            "(org/cxr-densenet121) or a model folder, or several separated by commas."
        )
    names = [Path(one).resolve().name if Path(one).is_dir() else one for one in ids]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"MODEL_ID has two models called {name!r}; rename one of them.")
    return {name: Classifier(model_id, name) for model_id, name in zip(ids, names)}


def default_model_ids() -> str:
    """MODEL_ID, else the models shipped beside this folder, else those in README.md's head."""
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"]
    shipped = [HERE.parent / "checkpoints" / name for name in SHIPPED]
    found = [str(folder) for folder in shipped if (folder / "model.safetensors").is_file()]
    if not found and (HERE / "README.md").is_file():
        found = (metadata_load(HERE / "README.md") or {}).get("models", [])
    return ",".join(found)
