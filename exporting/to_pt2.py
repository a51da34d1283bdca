"""The graph as torch.export writes it: a .pt2 file that needs torch, but no code of ours."""

from pathlib import Path

import torch

from exporting.graph import ExportGraph, export_program


def write_pt2(graph: ExportGraph, metadata: dict[str, str], file: Path, batches: None) -> None:
    """Writes one file.

    Args:
        graph: what to write.
        metadata: of the file, by `exported_cxr.METADATA`; the names of the outputs are added.
        file: ends in .pt2.
        batches: None, as there is no int8.

    Raises:
        ValueError: the network cannot be exported.
    """
    metadata = metadata | {"cxr_outputs": " ".join(graph.outputs)}
    torch.export.save(export_program(graph), file, extra_files=metadata)
