"""The graph as OpenVINO IR, in float32 or int8: an .xml file and the weights beside it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import nncf
import numpy as np
import openvino
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from exporting.graph import ExportGraph, export_program
from modeling.exported_cxr import INPUT


def write_openvino(
    graph: ExportGraph,
    metadata: dict[str, str],
    file: Path,
    batches: Iterator[np.ndarray] | None,
) -> None:
    """Writes the IR, by openvino's own frontend of PyTorch; in int8, by NNCF.

    Args:
        graph: what to write.
        metadata: of the file, by `exported_cxr.METADATA`.
        file: ends in .xml; the weights go to .bin.
        batches: float32 (B, C, H, W), images to take the ranges of int8 from; None for float32.

    Raises:
        ValueError: the network cannot be exported.
    """
    model = openvino.convert_model(export_program(graph))
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, graph.outputs):
        output.get_tensor().set_names({name})
    if batches is not None:
        model = _quantize(model, list(batches))
    for key, text in metadata.items():
        model.set_rt_info(text, key)
    openvino.save_model(model, file, compress_to_fp16=False)


def _quantize(model: openvino.Model, batches: list[np.ndarray]) -> openvino.Model:
    """In int8, as `to_onnx` chooses layers and ranges, with NNCF's bias correction.

    Neither what the logits are not made of is quantized (the outlier detector's threshold is a
    point on a scale of its own, and heatmaps divide by small numbers) nor the first layer and the
    heads: in the shipped DenseNet-121 they make more than half of the error.
    """
    result = model.output("logits").get_node()
    network = _names_before(result)
    kept = {op.get_friendly_name() for op in model.get_ops()} - network
    kept |= {
        reader.get_node().get_friendly_name()
        for reader in model.input(0).get_target_inputs()
        if reader.get_node().get_friendly_name() in network
    }
    kept |= _names_before(result, through=("Result", "Add")) & {
        op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul"
    }
    nncf.set_log_level(logging.WARNING)  # it lists every layer
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(sorted(kept), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # Processors without VNNI add two products in 16 bits: 8-bit weights would overflow.
            overflow_fix=nncf.OverflowFix.ENABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )


def _names_before(node: openvino.Node, through: tuple[str, ...] | None = None) -> set[str]:
    """Names of a node and of all that it is computed from, or that are next to types `through`."""
    found, left = set(), [node]
    while left:
        node = left.pop()
        if node.get_friendly_name() in found:
            continue
        found.add(node.get_friendly_name())
        if through is None or node.get_type_name() in through:
            left += [value.get_source_output().get_node() for value in node.inputs()]
    return found
