"""Chest X-ray sets from any source in one schema: `load_cxr_dataset(source, path, **options)`.

A source is one module, `sources()` lists them. `PERTURBATIONS` alter decoded images, to see what
a model keeps without its shortcuts.
"""

from datasets_scripts.labels import label_key
from datasets_scripts.leaks import LeakError, check_leaks, describe, regroup
from datasets_scripts.perturb import PERTURBATIONS
from datasets_scripts.pixels import fingerprint, open_row, original_shapes, read_pixels
from datasets_scripts.registry import (
    age_range,
    facts,
    load_cxr_dataset,
    people_of,
    source_options,
    sources,
)
from datasets_scripts.schema import class_names, content_hashes, label_sets, unknown_sets

__all__ = [
    "LeakError",
    "PERTURBATIONS",
    "age_range",
    "check_leaks",
    "class_names",
    "content_hashes",
    "describe",
    "facts",
    "fingerprint",
    "label_key",
    "label_sets",
    "load_cxr_dataset",
    "open_row",
    "original_shapes",
    "people_of",
    "read_pixels",
    "regroup",
    "source_options",
    "sources",
    "unknown_sets",
]
