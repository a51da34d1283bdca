"""The trainings of a recipe, one after the other, on one GPU or on the CPU, from a packed data set.

    python -m recipes.gpu.run runs/gpu/pack recipes/gpu/gpu.yaml OUT STATE --minutes 8.5

Everything lies on the device, so that the loader is never the limit. Needs torch, timm,
transformers, safetensors, scikit-learn, NumPy, Pillow and PyYAML alone. Stopped at any moment, the
same command goes on from the folder STATE. What comes back, renewed every minute:

    OUT/NAME.safetensors    best weights of a run, float16, with its configuration
    OUT/logits.npz          logits of the validation and held-out images, an array a run
    OUT/log.jsonl           a line a minute and run: step, losses, AUROC of each source, images/s
"""

import argparse
import io
import json
import os
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    get_cosine_schedule_with_warmup,
)

from modeling import CxrImageProcessor, create_model
from modeling.modeling_cxr import CxrClassifier
from training.augmentation import augment
from training.averaging import weight_average
from training.distillation import Teachers, student_loss
from training.half import half_state
from training.seeds import mix_seed

CLASSES = ["NORMAL", "PNEUMONIA"]
UNLABELLED = -1
SAVE_SECONDS = 60

# ------------------------------------------------------------------------------------------- recipe

# What a run may set, and what it is where it does not.
DEFAULTS = {
    "model_options": {},
    "pretrained": None,  # the weights travel as MODEL.safetensors
    "seed": 42,
    "image_size": 224,
    "num_channels": 1,
    "geometry": "crop",
    "hold_out": None,  # a hospital: none of its images is trained on, all are scored
    "teachers": [],  # names of earlier runs
    "unlabelled": False,  # draw unlabelled images too; only teachers say something of them
    "images": 60_000,  # drawn in all, by weight
    "batch_size": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup": 0.1,  # share of the steps
    "label_smoothing": 0.05,  # some labels are wrong
    "ema_decay": 0.995,
    "distill_weight": 0.7,
    "distill_temperature": 2.0,
    "evaluations": 4,  # the best is kept
    "max_held_out": 500,  # training images of a class of a held-out hospital that are scored, too
    "keep": True,  # the weights come back; else they stay in STATE, for students
    # Other hospitals differ by more than patients do.
    "max_rotation": 15,
    "max_scale": 0.25,
    "max_stretch": 0.3,
    "max_shift": 0.12,
    "max_contrast": 0.6,
    "max_blur": 0.6,
}


def read_recipe(path: Path) -> list[argparse.Namespace]:
    """The runs of a YAML file, in order, with `defaults` of the file and of this module.

    Raises:
        ValueError: an option that no run has, two runs of one name, or an unknown teacher.
    """
    content = yaml.safe_load(path.read_text())
    runs, names = [], []
    for run in content["runs"]:
        options = dict(ChainMap(run, content.get("defaults", {}), DEFAULTS))
        unknown = set(options) - {*DEFAULTS, "name", "model"}
        if unknown:
            raise ValueError(f"{path}: {run['name']} has the unknown option {min(unknown)!r}.")
        if run["name"] in names:
            raise ValueError(f"{path}: two runs are called {run['name']}.")
        missing = [name for name in options["teachers"] if name not in names]
        if missing:
            raise ValueError(f"{path}: no run before {run['name']} is called {missing[0]}.")
        names.append(run["name"])
        runs.append(argparse.Namespace(**options))
    return runs


# --------------------------------------------------------------------------------------------- data


class Pack:
    """A packed data set: `images`, uint8 (N, S, S) on the device, beside NumPy columns (N,)."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as content:
            columns = {name: content[name] for name in content.files}
        self.blobs, self.ends = columns.pop("blobs"), columns.pop("sizes").cumsum()
        self.shapes = list(zip(columns["original_height"], columns["original_width"]))
        self.image, self.patient = columns["image"], columns["patient"]
        self.hospital = columns["hospital"]  # "" for unlabelled images
        self.split, self.weight = columns["split"], columns["weight"]
        index = {"": UNLABELLED, **{name: k for k, name in enumerate(CLASSES)}}
        self.labels = np.array([index[label] for label in columns["label"]])
        self.frame = None

    def decode(self, processor: CxrImageProcessor, device: torch.device | str) -> None:
        """Makes `images` as the processor would; once for runs of one size and geometry."""
        frame = (processor.size["height"], processor.geometry)
        if self.frame == frame:
            return

        def read(row: int) -> np.ndarray:
            first = self.ends[row - 1] if row else 0
            stored = Image.open(io.BytesIO(self.blobs[first : self.ends[row]]))
            grey = np.asarray(stored.convert("L"), np.uint16) * 257
            return (processor.resize(grey, self.shapes[row]) // 257).astype(np.uint8)

        with ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(read, range(len(self.ends)))))
        self.images, self.frame = torch.from_numpy(images).to(device), frame


# ------------------------------------------------------------------------------------- model, files


def save_run(
    path: Path,
    model: CxrClassifier,
    processor: CxrImageProcessor,
    run: argparse.Namespace,
    told: dict[str, Any],
) -> None:
    """Best weights in float16, with all that `load_run` needs, written whole or not at all."""
    metadata = {
        "config": json.dumps(model.config.to_dict()),
        "processor": json.dumps(processor.to_dict()),
        "run": json.dumps({**vars(run), **told}),
    }
    weights = {key: value.cpu().contiguous() for key, value in half_state(model).items()}
    save_file(weights, f"{path}.partial", metadata)
    os.replace(f"{path}.partial", path)


def load_run(path: Path) -> tuple[CxrClassifier, CxrImageProcessor, dict[str, Any]]:
    """The model of a run, its processor, and what its recipe and log said."""
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = AutoConfig.for_model(**metadata["config"])
    model = AutoModelForImageClassification.from_config(config).eval()
    model.load_state_dict(weights)
    return model, CxrImageProcessor.from_dict(metadata["processor"]), metadata["run"]


# ----------------------------------------------------------------------------------------- training


@torch.no_grad()
def predict(
    network: torch.nn.Module,
    pack: Pack,
    rows: np.ndarray,
    processor: CxrImageProcessor,
    amp: Callable[[], torch.autocast],
) -> np.ndarray:
    """Logits, float32 (len(rows), 2)."""
    network.eval()
    logits = []
    for part in np.array_split(rows, max(1, len(rows) // 128)):
        pixel_values = processor.normalize(pack.images[part].float() / 255)
        with amp():
            output = network(pixel_values.contiguous(memory_format=torch.channels_last))
        logits.append(output.float().cpu().numpy())
    return np.concatenate(logits)


def score(logits: np.ndarray, pack: Pack, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """AUROC and balanced log loss of each hospital among the rows."""
    scores = {}
    for hospital in np.unique(pack.hospital[rows]):
        inside = pack.hospital[rows] == hospital
        labels = pack.labels[rows][inside]
        margin = (logits[:, 1] - logits[:, 0])[inside]
        losses = np.logaddexp(0, np.where(labels == 1, -margin, margin))
        scores[str(hospital)] = {
            "auroc": float(roc_auc_score(labels, margin)),
            "loss": float(np.mean([losses[labels == k].mean() for k in (0, 1)])),
        }
    return scores


def find_run(name: str, folders: Iterable[Path]) -> Path:
    """The weights of an earlier run in the first folder that has them.

    Raises:
        OSError: none has.
    """
    for folder in folders:
        if (folder / f"{name}.safetensors").exists():
            return folder / f"{name}.safetensors"
    raise FileNotFoundError(
        f"the weights of the teacher {name} are in none of {', '.join(map(str, folders))}; remove "
        f"{name}.done there to train it again."
    )


def train_run(  # noqa: PLR0915 - flat on purpose: a training is read from top to bottom
    run: argparse.Namespace,
    pack: Pack,
    weights: Path,
    out: Path,
    state: Path,
    device: torch.device,
    deadline: float,
) -> bool:
    """Trains one run, or goes on with it; False where the time was up before its end.

    Args:
        run: of `read_recipe`.
        pack: what it draws from and is scored on.
        weights: ImageNet weights, a safetensors file, for a run that is `pretrained`.
        out: folder for weights, logits and log.
        state: folder to go on from.
        device: where all is computed.
        deadline: when to stop, seconds of `time.monotonic`.
    """
    # Model
    torch.manual_seed(run.seed)
    options = {**run.model_options, "num_channels": run.num_channels}
    options |= {"label_smoothing": run.label_smoothing}
    pretrained = str(weights) if run.pretrained else False
    model, processor = create_model(run.model, CLASSES, run.image_size, pretrained, **options)
    processor.geometry = run.geometry
    if processor.equalize or processor.windowed:
        raise ValueError(f"{run.model} sees images that a pack does not hold; train.py trains it.")
    pack.decode(processor, device)
    model.to(device, memory_format=torch.channels_last)
    average = weight_average(model, run.ema_decay)
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, run.learning_rate, weight_decay=run.weight_decay)
    steps = run.images // run.batch_size
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(run.warmup * steps), steps)
    teachers = None
    if run.teachers:
        models = {name: load_run(find_run(name, (out, state)))[:2] for name in run.teachers}
        teachers = Teachers(models, processor, model.config, device)

    def amp() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    # Rows
    held_out = pack.hospital == run.hold_out
    drawn = (pack.split == "train") & ~held_out
    if run.unlabelled:
        drawn |= pack.split == "unlabelled"
    drawn = np.flatnonzero(drawn)
    scored = pack.split == "validation"
    shuffled = np.random.default_rng(0).permutation(len(scored))
    for label in range(len(CLASSES)):
        unseen = held_out & ~scored & (pack.labels == label)
        scored[shuffled[unseen[shuffled]][: run.max_held_out]] = True
    scored = np.flatnonzero(scored)
    draw_weights = torch.from_numpy(pack.weight[drawn]).double()
    labels = torch.from_numpy(pack.labels).to(device)

    # State
    path = state / f"{run.name}.pt"
    parts = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    progress = {"step": 0, "best": None}
    if path.exists():
        stored = torch.load(path, map_location=device, weights_only=True)
        progress = stored.pop("progress")
        for name, part in stored.items():
            parts[name].load_state_dict(part)

    def save() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**states, "progress": progress}, f"{path}.partial")
        os.replace(f"{path}.partial", path)

    def log(**values: Any) -> None:
        line = {"run": run.name, "step": progress["step"], "steps": steps, **values}
        print(json.dumps(line), flush=True)
        with open(out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    # Loop
    since, losses = time.monotonic(), []
    due = {round(steps * (k + 1) / run.evaluations) for k in range(run.evaluations)}
    while progress["step"] < steps:
        # A seed for every step, so that a resumed run draws what an unbroken one draws.
        torch.manual_seed(mix_seed(run.seed, progress["step"]))
        picks = torch.multinomial(draw_weights, run.batch_size, replacement=True).numpy()
        rows = torch.from_numpy(drawn[picks]).to(device)
        images = augment(pack.images[rows].float() / 255, run)
        model.train()
        pixel_values = processor.normalize(images).contiguous(memory_format=torch.channels_last)
        with amp():
            targets = teachers(images, run.distill_temperature) if teachers else None
            heads = model.head_logits(pixel_values)
        loss = student_loss(
            [logits.float() for logits in heads],
            labels[rows],
            model.config,
            targets,
            run.distill_weight,
            run.distill_temperature,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
        progress["step"] += 1
        losses.append(loss.detach())
        now = time.monotonic()
        last = now > deadline
        if not (last or now - since > SAVE_SECONDS or progress["step"] in due):
            continue
        told = {"train_loss": torch.stack(losses).mean().item()}  # waits for the device
        seconds = time.monotonic() - since
        told["images_per_second"] = len(losses) * run.batch_size / seconds
        if progress["step"] in due:
            logits = predict(average.module.network, pack, scored, processor, amp)
            told["validation"] = score(logits, pack, scored)
            learnt = [v["loss"] for name, v in told["validation"].items() if name != run.hold_out]
            told["criterion"] = float(np.mean(learnt))
            if progress["best"] is None or told["criterion"] <= progress["best"]["criterion"]:
                progress["best"] = {**told, "step": progress["step"], "steps": steps}
                file = (out if run.keep else state) / f"{run.name}.safetensors"
                save_run(file, average.module, processor, run, progress["best"])
                write_logits(out / "logits.npz", run.name, pack.image[scored], logits)
        log(**told)
        save()
        if last and progress["step"] < steps:
            return False
        since, losses = time.monotonic(), []
    return True


def write_logits(path: Path, name: str, image: np.ndarray, logits: np.ndarray) -> None:
    """Adds a run's arrays `NAME/image` and `NAME/logits` to the file."""
    arrays = {}
    if path.exists():
        with np.load(path) as stored:
            arrays = dict(stored)
    arrays |= {f"{name}/image": image, f"{name}/logits": logits.astype(np.float32)}
    partial = path.with_name("partial.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, path)


def main() -> None:
    """Trains the runs that are not done, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path, help="folder of pack.py")
    parser.add_argument("recipe", type=Path, help="YAML file of runs")
    parser.add_argument("out", type=Path, help="folder for weights, logits and log")
    parser.add_argument("state", type=Path, help="folder to go on from, large")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)
    try:
        for folder in (options.out, options.state):
            folder.mkdir(parents=True, exist_ok=True)
        runs = read_recipe(options.recipe)
        pack = Pack(options.pack / "images.npz")
        for run in runs:
            done = options.state / f"{run.name}.done"
            if done.exists():
                continue
            weights = options.pack / f"{run.model}.safetensors"
            if not train_run(run, pack, weights, options.out, options.state, device, deadline):
                print(f"Time is up in {run.name}; the same command goes on.")
                break
            done.touch()
            (options.state / f"{run.name}.pt").unlink()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
