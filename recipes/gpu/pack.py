"""The images of a manifest and the ImageNet weights of the teachers, small enough to travel.

    python -m recipes.gpu.pack DATA runs/gpu/manifest.csv recipes/gpu/gpu.yaml runs/gpu/pack

writes `images.npz` (grey WebP files of 224 x 224 pixels in one array, beside their rows) and one
float16 safetensors file for each network that the recipe starts from ImageNet.
"""

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import timm
from PIL import Image
from safetensors.torch import save_file
from tqdm.auto import tqdm

from modeling import CxrImageProcessor
from modeling.pretrained import find_weights, read_weights, rename
from recipes.gpu.manifest import HOSPITALS
from recipes.gpu.run import read_recipe

SIDE = 224
QUALITY = 50  # of WebP: 2 kB an image
LIMIT_MIB = 38
# Labelled images of a source and class that travel, and unlabelled ones of a source, at most.
MAX_LABELLED, MAX_UNLABELLED = 4000, 1500


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """At most so many rows of each split, source and class, the same at every call.

    Their weights grow by as much as their number falls, so that a group's share of the draws stays.
    """
    groups = table.groupby(["split", "source", "label"], sort=False)
    limit = np.where(table["split"] == "unlabelled", MAX_UNLABELLED, MAX_LABELLED)
    table = table.assign(
        weight=table["weight"] * (groups["file"].transform("size") / limit).clip(lower=1)
    )
    shuffled = table.sample(frac=1, random_state=0)
    rank = shuffled.groupby(["split", "source", "label"]).cumcount().reindex(table.index)
    return table[rank < limit].reset_index(drop=True)


def encode(file: Path) -> bytes:
    """Reads an X-ray as training does, stretched to a square: its own shape is in the manifest."""
    processor = CxrImageProcessor(SIDE, geometry="squash")
    grey = (processor.read(file) / 257).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def pack(data: Path, manifest: Path, recipe: Path, output: Path) -> int:
    """Writes the folder; returns its size in bytes.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: ImageNet weights that do not fit, or more than 38 MiB in all.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = choose(pd.read_csv(manifest, keep_default_na=False, dtype={"label": str}))
    with ThreadPoolExecutor() as pool:
        files = pool.map(encode, [data / file for file in table["file"]])
        blobs = list(tqdm(files, total=len(table), desc="pack", unit="image"))
    columns = {
        name: table[name].to_numpy(str) for name in ("label", "patient", "split", "source", "view")
    }
    hospitals = {source: name for name, sources in HOSPITALS.items() for source in sources}
    columns["hospital"] = table["source"].map(hospitals).fillna("").to_numpy(str)
    for name in ("original_width", "original_height"):
        columns[name] = pd.to_numeric(table[name]).fillna(SIDE).to_numpy(np.int32)
    np.savez_compressed(
        output / "images.npz",
        blobs=np.frombuffer(b"".join(blobs), np.uint8),
        sizes=np.array([len(blob) for blob in blobs], np.int32),
        image=table["file"].to_numpy(str),
        weight=table["weight"].to_numpy(np.float32),
        **columns,
    )
    pack_weights(recipe, output)
    size = sum(file.stat().st_size for file in output.iterdir())
    if size > LIMIT_MIB * 2**20:
        raise ValueError(
            f"{output} takes {size / 2**20:.1f} MiB of the {LIMIT_MIB}; lower MAX_LABELLED, "
            "MAX_UNLABELLED or QUALITY in pack.py."
        )
    return size


def pack_weights(recipe: Path, output: Path) -> None:
    """Writes OUTPUT/MODEL.safetensors for each network that a run starts from ImageNet."""
    starts = {(run.model, run.pretrained) for run in read_recipe(recipe) if run.pretrained}
    for name, path in sorted(starts):
        file = find_weights(path)
        weights = rename(read_weights(file), timm.create_model(name), file)
        halves = {
            key: (value.half() if value.ndim > 1 else value).contiguous()
            for key, value in weights.items()
        }
        save_file(halves, output / f"{name}.safetensors")


def main() -> None:
    """Packs the data and prints the size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that the manifest's files are relative to")
    parser.add_argument("manifest", type=Path, help="CSV file of manifest.py")
    parser.add_argument("recipe", type=Path, help="YAML file of runs; says which weights travel")
    parser.add_argument("output", type=Path, help="folder for the pack; keep it out of git")
    options = parser.parse_args()
    try:
        size = pack(options.data, options.manifest, options.recipe, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
