"""The models that MODEL_ID names: loading, asking, versions and cards.

A model answers through the code stored beside its weights, so this folder needs nothing else.
"""

import contextvars
import copy
import hashlib
import importlib
import os
import re
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_grad_cam  # noqa: F401  (takes seconds, in which the first heatmap would stop all)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification

HERE = Path(__file__).resolve().parent
SHIPPED = ("cxr-densenet121", "cxr-baseline")
EXPORTED = (".onnx",)  # what export.py writes, with its code beside it
SLOW = "score_cam"  # a forward pass a channel
FITTED = ("calibration", "thresholds", "abstention")  # what the page says of an operating point
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
FIGURE = re.compile(r"figures/[\w-]+\.png")
LUNGS_FILE = "lungs.safetensors"  # of a model whose images are cut to the lungs, or masked
HUB_FILES = [*MODEL_FILES, LUNGS_FILE, "*.py", "README.md", "figures/*.png"]
# An ordinary X-ray is read in a fraction of this. What is more, or fails, is read `PATIENTLY`: with
# all the time and memory that a file may take, and with less right to the cores. The server, which
# answers all, has the most.
MAX_PIXELS = 32_000_000  # twice a detector's; films of 43 cm at 130 dots a cm
QUICK = {"seconds": 1.0, "memory": 5 * 2**26, "pixels": MAX_PIXELS, "niceness": 5}
PATIENT = {"seconds": 10.0, "memory": 2**29, "pixels": MAX_PIXELS, "niceness": 10}
PATIENTLY = contextvars.ContextVar("patiently", default=True)
PLACEHOLDER = re.compile(r"(org|ORG)/.*")  # of this project's own texts


class Unordinary(Exception):
    """A file that is not read quickly."""


class Classifier:
    """A model and its image processor.

    Attributes:
        classes: their names, in the model's order.
        finding: class 1 of two exclusive ones, what such a model looks for; None for other models.
        methods: of heatmaps that it has.
        version: name, @, and the first 12 hex digits of the SHA-256 of configuration, preprocessing
            and weights, as in `predict.py`'s table.

        revision: the Hub's commit, or the hash of a folder's files: 12 hex digits.
        hub_url: the card's page on the Hub, at that commit; None for a folder.

    Args:
        model_id: a Hub id, id@revision, a folder that `save_pretrained` wrote, or a file of
            export.py in its folder; the model's own code is run.

    Raises:
        ValueError: there is no such model, it cannot be loaded, or it is of another kind.
    """

    def __init__(self, model_id: str) -> None:
        self.name = name_of(model_id)
        is_folder, is_file = Path(model_id).is_dir(), Path(model_id).suffix in EXPORTED
        if Path(model_id).is_file() and not is_file:
            raise ValueError(
                f"MODEL_ID {model_id!r} is a file, not the folder of a model; convert a CheXNet "
                f"checkpoint first: python -m modeling.convert chexnet {model_id} OUT, and give "
                "OUT."
            )
        # All of the model comes from one commit, found once: while it serves, nothing asks the Hub.
        try:
            if is_file:
                self._folder, files = Path(model_id).parent, [Path(model_id)]
                self.model, self.processor = _load_exported(Path(model_id))
            else:
                self._folder = Path(model_id) if is_folder else _download(model_id)
                files = [self._folder / file for file in MODEL_FILES]
                files += self._folder.glob(LUNGS_FILE)
                self.model = AutoModelForImageClassification.from_pretrained(
                    self._folder, trust_remote_code=True, use_safetensors=True
                ).eval()
                self.processor = AutoImageProcessor.from_pretrained(
                    self._folder, trust_remote_code=True
                )
        except (
            HfHubHTTPError,
            ImportError,
            OSError,
            RuntimeError,
            ValueError,
            SafetensorError,
        ) as error:
            problem = "is not a folder and cannot be loaded from the Hub"
            if is_folder or is_file:
                problem = "cannot be loaded"
            reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
            raise ValueError(f"MODEL_ID {model_id!r} {problem}: {reason}.") from error
        if not (hasattr(self.model, "heatmap_methods") and hasattr(self.processor, "sandbox")):
            raise ValueError(
                f"MODEL_ID {model_id!r} is not one of this project's chest X-ray models, or one "
                "saved by an earlier version; save it again."
            )
        if is_file:
            self.classes, multi_label = self.model.classes, self.model.is_multi_label
            fitted = {name: self.model.config.get(name) for name in FITTED}
            self.config = SimpleNamespace(is_multi_label=multi_label, **fitted)
        else:
            self.config = self.model.config
            self.classes = [self.config.id2label[k] for k in range(self.config.num_labels)]
            multi_label = self.config.is_multi_label
        binary = len(self.classes) == 2 and not multi_label
        self.finding = self.classes[1] if binary else None
        self.methods = self.model.heatmap_methods
        content = b"".join(file.read_bytes() for file in files)
        digest = hashlib.sha256(content).hexdigest()[:12]
        self.version = f"{self.name}@{digest}"
        commit = self._folder.name  # a snapshot's folder is called by it
        is_local = is_folder or is_file
        self.revision = digest if is_local else commit[:12]
        self.hub_url = None if is_local else f"https://huggingface.co/{self.name}/tree/{commit}"
        # The function that predict.py makes its rows by lies beside the model's code.
        package = type(self.model).__module__.rpartition(".")[0]
        self._table_row = importlib.import_module(f"{package}.answers_cxr").table_row
        # A forward pass uses every core, and a heatmap hooks the model: one at a time.
        self._lock = threading.Lock()
        self._sandbox = self.processor.sandbox()
        self._warm_up()

    def _warm_up(self) -> None:
        side = 2 * self.processor.size["height"]
        image = self.processor.open(np.tile(np.linspace(0, 1, side), (side, 1)))
        self.model.assess([image], self.processor, method=next(iter(self.methods), None))

    def open(self, content: bytes) -> Any:
        """An upload as a `CxrImage`, read in a process of its own.

        Raises:
            ValueError: it cannot be read, or takes too much time or memory.
            Unordinary: the same, but `PATIENTLY` it might be read.
        """
        limits = self._sandbox.limits
        if PATIENTLY.get():
            return self._sandbox.open(content, limits._replace(**PATIENT))
        try:
            return self._sandbox.open(content, limits._replace(**QUICK))
        except ValueError:
            raise Unordinary from None

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
        path = self._folder / name
        return path if path.is_file() else None


def name_of(model_id: str) -> str:
    """What to call a model: a Hub id, or of a path, which is not shown, the last part."""
    if Path(model_id).is_dir() or Path(model_id).suffix in EXPORTED:
        return Path(model_id).resolve().name
    return model_id.partition("@")[0]


def _load_exported(file: Path) -> tuple[Any, Any]:
    """An exported model and its processor, by the code that export.py wrote beside it."""
    package = types.ModuleType(f"exported_{hashlib.sha256(bytes(file.resolve())).hexdigest()}")
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.exported_cxr").load_exported(file)


def _download(model_id: str) -> Path:
    """A Hub model's files, those of the commit that a revision (by default "main") is now.

    Without a connection it is the one downloaded last.
    """
    name, _, revision = model_id.partition("@")
    folder = snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES)
    return Path(folder)


def load_classifiers(model_ids: str) -> dict[str, Classifier]:
    """Loads the models named in a comma-separated list.

    Returns:
        {name: classifier}.

    Raises:
        ValueError: nothing is named, two models go by one name, one is a placeholder, or
            `Classifier` cannot load one.
    """
    ids = [model_id.strip() for model_id in model_ids.split(",") if model_id.strip()]
    if not ids:
        raise ValueError(
            "MODEL_ID is not set and no model lies beside this folder; give it a Hub id "
            "(org/cxr-densenet121) or a model folder, or several separated by commas."
        )
    names = [name_of(one) for one in ids]
    for model_id, name in zip(ids, names):
        if names.count(name) > 1:
            raise ValueError(f"MODEL_ID has two models called {name!r}; rename one of them.")
        if PLACEHOLDER.fullmatch(model_id) and not Path(model_id).is_dir():
            raise ValueError(
                f"MODEL_ID {model_id!r} is a placeholder; name your own model there, or under "
                "models: in README.md."
            )
    return {name: Classifier(model_id) for model_id, name in zip(ids, names)}


def default_model_ids() -> str:
    """MODEL_ID, else the models shipped beside this folder, else those in README.md's head."""
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"]
    shipped = [HERE.parent / "checkpoints" / name for name in SHIPPED]
    found = [str(folder) for folder in shipped if (folder / "model.safetensors").is_file()]
    if not found and (HERE / "README.md").is_file():
        found = (metadata_load(HERE / "README.md") or {}).get("models", [])
    return ",".join(found)
