"""A model that export.py wrote, answering as the model itself; neither torch nor transformers.

    model, processor = load_exported("cxr-densenet121.onnx")
    (answer,) = model.assess([processor.open("chest.png")], processor)

An .onnx file is run by onnxruntime, an OpenVINO .xml with its .bin by openvino; a .pt2, which
torch.export wrote, needs torch after all.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .answers_cxr import CxrAnswer, answers, class_names
from .image_cxr import CxrImage
from .preparation_cxr import CxrPreparation, CxrSettings
from .preprocessing_cxr import normalize

INPUT = "pixel_values"
# What a file says of itself beside its network, each a text.
METADATA = ("cxr_config", "cxr_preprocessor", "cxr_model")
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class ExportedClassifier:
    """An exported classifier: `assess` is that of `CxrClassifier`.

    Attributes:
        config: the fields of the model's config.json.
        classes: names, in the order of the logits.
        is_multi_label: whether each class is told by itself.
        heatmap_methods: of `assess`; none where Grad-CAM has no closed form in the network.
        source: name and version of the model that was exported.

    Args:
        run: what `run` does.
        metadata: the texts of `METADATA`.
        outputs: names, see `run`.
    """

    def __init__(self, run: Run, metadata: Mapping[str, str], outputs: Sequence[str]) -> None:
        self._run = run
        self.config = json.loads(metadata["cxr_config"])
        self.classes = class_names(self.config)
        self.is_multi_label = self.config.get("problem_type") == "multi_label_classification"
        self.source = metadata["cxr_model"]
        self.heatmap_methods = ("grad_cam",) if "heatmap" in outputs else ()

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """The network's outputs.

        Args:
            pixel_values: float32 (B, C, H, W), as `preprocessing_cxr.normalize` gives them.

        Returns:
            `logits` and `probabilities`, float32 (B, K); what there is of `heatmap`, float32
            (B, K, H, W) in [0, 1], the Grad-CAM of each class, and `outlier_score`, float32 (B,).
        """
        return self._run(np.ascontiguousarray(pixel_values, np.float32))

    def assess(
        self,
        images: Sequence[CxrImage],
        processor: CxrPreparation,
        target: str | None = None,
        method: str | None = None,
        ten_crop: bool = False,
    ) -> list[CxrAnswer]:
        """What the model says of X-rays, in words and numbers that can be shown.

        Args:
            images: as `processor.open` gives them.
            processor: of `load_exported`, or the model's own.
            target: the class that the heatmaps explain; None for the most probable one.
            method: of the heatmaps, one of `heatmap_methods`; None gives none.
            ten_crop: not in an exported model.

        Returns:
            One answer an image.

        Raises:
            ValueError: no images; no such class or method; `ten_crop`.
        """
        if not len(images):
            raise ValueError("there are no images; give one or more.")
        if ten_crop:
            raise ValueError("an exported model has no ten crops; use the model that it is of.")
        if target is not None and target not in self.classes:
            raise ValueError(
                f"{target!r} is not a class of this model; choose {', '.join(self.classes)}."
            )
        if method is not None and method not in self.heatmap_methods:
            has = "grad_cam alone" if self.heatmap_methods else "no heatmaps"
            raise ValueError(f"method is {method!r}; this exported model has {has}.")
        pixels = np.stack([processor.prepare(image.pixels) for image in images])
        outputs = self.run(normalize(pixels, processor.image_mean, processor.image_std))
        heatmaps = outputs.pop("heatmap", None)
        if method is not None:
            explained = (
                outputs["logits"].argmax(1) if target is None else self.classes.index(target)
            )
            outputs["heatmaps"] = heatmaps[np.arange(len(images)), explained]
        return answers(outputs, images, self.config, target)


def is_exported(name: str | os.PathLike) -> bool:
    """Whether this is the path of a file that export.py writes, by its suffix."""
    return Path(name).suffix in _OPENERS


def load_exported(file: str | os.PathLike) -> tuple[ExportedClassifier, CxrSettings]:
    """An exported model, and the processor that feeds it.

    Args:
        file: .onnx, .xml or .pt2, written by export.py.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of these, damaged, or not written by export.py.
        ImportError: the package that runs it is missing.
    """
    file = Path(file)
    if not is_exported(file):
        raise ValueError(f"{file} is no exported model; it ends in {' or '.join(_OPENERS)}.")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a file that export.py wrote.")
    try:
        run, metadata, outputs = _OPENERS[file.suffix](str(file))
    except ImportError as error:
        package = error.name or "onnxruntime"
        raise ImportError(f"{file} is run by {package}: pip install {package}.") from error
    except Exception as error:  # each runtime has exceptions of its own
        raise ValueError(f"{file} is damaged ({str(error).strip().splitlines()[0]}).") from error
    missing = [key for key in METADATA if key not in metadata]
    if missing:
        raise ValueError(
            f"{file} does not say {missing[0]}, as it was not written by export.py; export the "
            "model with that."
        )
    settings = json.loads(metadata["cxr_preprocessor"])
    return ExportedClassifier(run, metadata, outputs), CxrSettings(settings)


# ------------------------------------------------------------------------------------ the runtimes


def _open_onnx(file: str) -> tuple[Run, dict[str, str], list[str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    outputs = [output.name for output in session.get_outputs()]

    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, {INPUT: pixel_values})))

    return run, session.get_modelmeta().custom_metadata_map, outputs


def _open_openvino(file: str) -> tuple[Run, dict[str, str], list[str]]:
    import openvino

    model = openvino.Core().read_model(file)
    # Some processors would else compute in half precision.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = [output.get_any_name() for output in model.outputs]

    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, compiled(pixel_values).values()))

    known = [key for key in METADATA if model.has_rt_info(key)]
    return run, {key: model.get_rt_info(key).astype(str) for key in known}, outputs


def _open_program(file: str) -> tuple[Run, dict[str, str], list[str]]:
    import torch

    metadata = dict.fromkeys((*METADATA, "cxr_outputs"), "")
    network = torch.export.load(file, extra_files=metadata).module()
    outputs = metadata["cxr_outputs"].split()

    @torch.no_grad()
    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        found = network(torch.from_numpy(pixel_values))
        return {name: tensor.numpy() for name, tensor in zip(outputs, found)}

    return run, {key: text for key, text in metadata.items() if text}, outputs


_OPENERS = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_program}
