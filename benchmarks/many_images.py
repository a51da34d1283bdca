"""How long a set of many images takes once they are hashed: `python benchmarks/many_images.py`.

Makes folders like ChestX-ray14's, of 5,000 and of 112,120 distinct tiny images. A line a set:
seconds to hash and load it for the first time; once hashed, to load it, to check it for leaks and
to split it again, and the most memory that this took; then the same of train.py from its start to
its first step, which does all of that, decodes the images and draws a batch, and of train.py once
more, now that the decoded images are kept. Each is a process of its own. The exit code is 1 where
the last of these takes two minutes or more for the larger set. Takes some minutes.

    --keep FOLDER    makes the images there and leaves them, for a second run
"""

import argparse
import re
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
SIDE = 32  # pixels, the least that is read as an X-ray
LIMIT = 120  # seconds, of the larger set
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)


def make(folder: Path, count: int) -> None:
    """A folder as it is downloaded, each image a checkerboard of its own greys."""
    rng = np.random.default_rng(0)
    labels = rng.random((count, len(FINDINGS))) < 0.05
    lines, names = [HEADER], []
    for number in range(count):
        patient, follow_up = divmod(number, PER_PATIENT)
        name = f"{patient + 1:08d}_{follow_up:03d}.png"
        place = folder / f"images_{1 + number * 12 // count:03d}" / "images"
        greys = np.frombuffer(rng.bytes(16), np.uint8).reshape(4, 4)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(greys.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)).save(place / name)
        found = "|".join(np.array(FINDINGS)[labels[number]]) or "No Finding"
        lines.append(f"{name},{found},{follow_up},{patient + 1},{20 + patient % 60},F,PA")
        names.append(name)
    cut = count * 3 // 4 // PER_PATIENT * PER_PATIENT
    (folder / "train_val_list.txt").write_text("\n".join(names[:cut]))
    (folder / "test_list.txt").write_text("\n".join(names[cut:]))
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines))


def peak_memory() -> float:
    """The most memory that this process held, MB; Linux alone. Its parent's is not counted."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(folder: str) -> None:
    """Prints seconds to load, check and split again, and the process's peak memory in MB."""
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
    print(*seconds, peak_memory())


def first_step(folder: str) -> None:
    """Prints seconds of train.py up to its first step, and the process's peak memory in MB."""
    started = time.perf_counter()
    import torch  # seconds that count here, and not in `measure`

    import train

    class FirstStep(Exception):
        pass

    def stop(*_: object) -> None:
        raise FirstStep

    torch.optim.AdamW.step = stop
    with tempfile.TemporaryDirectory() as place:
        flags = f"--dataset chestxray14 --dataset_path {folder} --regroup --model baseline"
        flags += f" --image_size {SIDE} --output_dir {place} --cache_dir {folder}.cache"
        try:
            train.main(flags.split())
        except FirstStep:
            seconds = time.perf_counter() - started
    print(seconds, peak_memory())


def run(what: str, folder: Path) -> list[float]:
    """What `measure` or `first_step` prints, in a process of its own."""
    command = [sys.executable, __file__, what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def main() -> int:
    """Prints a line a set; 1 if the larger one takes too long, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--first_step", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for folder, function in ((given.measure, measure), (given.first_step, first_step)):
        if folder:
            function(folder)
            return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        for count in COUNTS:
            folder = root / str(count)
            if not (folder / "Data_Entry_2017.csv").is_file():
                make(folder, count)
            first = run("--measure", folder)
            load, check, split, memory = run("--measure", folder)
            decoding, _ = run("--first_step", folder)
            seconds, peak = run("--first_step", folder)
            print(
                f"{count:7,} images: {first[0]:5.1f} s at first; hashed "
                f"load {load:.1f}, check {check:.1f}, split {split:.1f} s, {memory:,.0f} MB; "
                f"train.py to its first step {decoding:.1f} s, once decoded {seconds:.1f} s, "
                f"{peak:,.0f} MB",
                flush=True,
            )
    return int(seconds >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
