"""The graph as ONNX, in float32 or int8."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  (torch.onnx works with it, and would miss it later)
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from exporting.graph import ExportGraph, export_program
from modeling.exported_cxr import INPUT

# What is between these, as the concatenations of a DenseNet, stays in float: onnxruntime's
# QLinearConcat of one input fails.
QUANTIZED = ("Conv", "MatMul")


def write_onnx(
    graph: ExportGraph,
    metadata: dict[str, str],
    file: Path,
    batches: Iterator[np.ndarray] | None,
) -> None:
    """Writes one file, weights included, by torch.onnx's exporter.

    Args:
        graph: what to write.
        metadata: of the file, by `exported_cxr.METADATA`.
        file: ends in .onnx.
        batches: float32 (B, C, H, W), images to take the ranges of int8 from; None for float32.

    Raises:
        ValueError: the network cannot be exported.
    """
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # of each of torchvision's operators that it lacks
    try:
        program = torch.onnx.export(
            export_program(graph),
            input_names=[INPUT],
            output_names=graph.outputs,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(
            f"a {graph.model.config.model_type} network of this configuration cannot be written as "
            f"ONNX ({str(error).strip().splitlines()[0]})."
        ) from error
    finally:
        noisy.setLevel(level)
    program.rename_axes({program.model.graph.inputs[0].shape[0]: "batch"})
    program.model.metadata_props.update(metadata)
    program.save(file, external_data=False)
    if batches is not None:
        _quantize(file, list(batches))


def _quantize(file: Path, batches: list[np.ndarray]) -> None:
    """Makes a file int8: weights by channel, activations by their range over images.

    Only layers with weights that the logits are computed by are quantized, and so not the outlier
    detector, whose threshold is a point on a scale of its own. The first layer and the heads, which
    are little of the work, stay in float: in the shipped DenseNet-121 that more than halves the
    error. The mean by which rounding still shifts the logits of the images is taken off again (bias
    correction, Nagel et al. 2019, section 4.2).
    """
    graph = onnx.load(file).graph
    weights, needed, layers = {weight.name for weight in graph.initializer}, {"logits"}, []
    for node in reversed(graph.node):  # each comes after what it reads
        if needed.isdisjoint(node.output):
            continue
        needed.update(node.input)
        weighted = node.op_type in QUANTIZED and weights.intersection(node.input)
        if weighted and INPUT not in node.input:
            layers.append(node.name)
    before = _mean_logits(file, batches)
    quant_pre_process(file, file, skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        file,
        file,
        _Batches(batches),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=layers,
        per_channel=True,
        # Processors without VNNI add two products in 16 bits: 8-bit weights would overflow them.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    _shift_logits(file, before - _mean_logits(file, batches))


def _mean_logits(file: Path, batches: list[np.ndarray]) -> np.ndarray:
    """float32 (K,), over the images."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {INPUT: one})[0] for one in batches]).mean(0)


def _shift_logits(file: Path, shift: np.ndarray) -> None:
    """Adds (K,) to the logits, and so to what is computed of them."""
    model = onnx.load(file)
    (place,) = (k for k, node in enumerate(model.graph.node) if "logits" in node.output)
    last = model.graph.node[place]
    last.output[list(last.output).index("logits")] = "logits_of_rounded"
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift, "logits_shift"))
    names = ["logits_of_rounded", "logits_shift"], ["logits"]
    model.graph.node.insert(place + 1, onnx.helper.make_node("Add", *names, name="shift_logits"))
    onnx.save(model, file)


class _Batches(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}
