"""How long a set of many images takes once they are hashed: `python benchmarks/many_images.py`.

Makes folders like ChestX-ray14's, of 5,000 and of 112,120 distinct tiny images, and loads, checks
and describes each in a process of its own. A line a set: seconds to hash and load it for the first
time, then to load, check for leaks and split again once hashed, and the most memory that this took.
The exit code is 1 where the larger set takes two minutes or more. Takes some minutes.

    --keep FOLDER    makes the images there and leaves them, for a second run
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts import check_leaks, load_cxr_dataset, regroup
from datasets_scripts.chestxray14 import FINDINGS

COUNTS = (5_000, 112_120)
PER_PATIENT = 4
SIDE = 8  # pixels
LIMIT = 120  # seconds, of the larger set
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)


def make(folder: Path, count: int) -> None:
    """A folder as it is downloaded; a file's pixels write its number."""
    rng = np.random.default_rng(0)
    labels = rng.random((count, len(FINDINGS))) < 0.05
    lines, names = [HEADER], []
    for number in range(count):
        patient, follow_up = divmod(number, PER_PATIENT)
        name = f"{patient + 1:08d}_{follow_up:03d}.png"
        place = folder / f"images_{1 + number * 12 // count:03d}" / "images"
        pixels = np.frombuffer(number.to_bytes(SIDE * SIDE, "little"), np.uint8)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(SIDE, SIDE)).save(place / name)
        found = "|".join(np.array(FINDINGS)[labels[number]]) or "No Finding"
        lines.append(f"{name},{found},{follow_up},{patient + 1},{20 + patient % 60},F,PA")
        names.append(name)
    cut = count * 3 // 4 // PER_PATIENT * PER_PATIENT
    (folder / "train_val_list.txt").write_text("\n".join(names[:cut]))
    (folder / "test_list.txt").write_text("\n".join(names[cut:]))
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines))


def measure(folder: str) -> None:
    """Prints seconds to load, check and split again, and the process's peak of memory in MB."""
    seconds = []
    started = time.perf_counter()
    dataset = load_cxr_dataset("chestxray14", folder)
    seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    check_leaks(dataset)
    seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    regroup(dataset)
    seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(*seconds, memory)


def run(folder: Path) -> list[float]:
    """What `measure` prints, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> int:
    """Prints a line a set; 1 if the larger one takes too long, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        for count in COUNTS:
            folder = root / str(count)
            if not (folder / "Data_Entry_2017.csv").is_file():
                make(folder, count)
            first = run(folder)
            load, check, split, memory = run(folder)
            total = load + check + split
            print(
                f"{count:7,} images: {first[0]:5.1f} s at first; hashed {total:5.1f} s "
                f"(load {load:.1f}, check {check:.1f}, split {split:.1f}), {memory:,.0f} MB",
                flush=True,
            )
    return int(total >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
