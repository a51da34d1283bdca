"""The graph as OpenVINO IR, in float32 or int8: an .xml file and the weights beside it."""

from collections.abc import Iterator
from pathlib import Path

import nncf
import numpy as np
import openvino

from exporting.graph import ExportGraph, export_program
from modeling.exported_cxr import INPUT


def write_openvino(
    graph: ExportGraph,
    metadata: dict[str, str],
    file: Path,
    batches: Iterator[np.ndarray] | None,
) -> None:
    """Writes the IR, by openvino's own frontend of PyTorch; in int8, by NNCF's defaults.

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
        # The outlier detector's threshold is a point on a scale of its own, and heatmaps divide by
        # small numbers: what the logits are not made of stays as it is.
        network = _before(model.output("logits").get_node())
        others = [op.get_friendly_name() for op in model.get_ops()]
        others = nncf.IgnoredScope([name for name in others if name not in network], validate=False)
        images = nncf.Dataset(list(batches))
        model = nncf.quantize(model, images, subset_size=images.get_length(), ignored_scope=others)
    for key, text in metadata.items():
        model.set_rt_info(text, key)
    openvino.save_model(model, file, compress_to_fp16=False)


def _before(node: openvino.Node) -> set[str]:
    """Names of a node and of all that it is computed from."""
    found, left = set(), [node]
    while left:
        node = left.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            left += [value.get_source_output().get_node() for value in node.inputs()]
    return found
