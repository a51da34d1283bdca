"""Published checkpoints of other projects, as models of this one.

    python -m modeling.convert chexnet model.pth.tar runs/chexnet --trained_on train_list.txt
    python -m modeling.convert xrv densenet121-res224-all runs/xrv

CheXNet (Rajpurkar et al. 2017, arXiv 1711.05225) is a DenseNet-121 with 14 findings; its weights
were never published, but those of re-implementations are: github.com/arnoweng/CheXNet,
github.com/zoogzog/chexnet, github.com/jrzech/reproduce-chexnet.

TorchXRayVision (Cohen et al. 2022, arXiv 2111.00595) has DenseNet-121s of several sets. Its package
downloads them and unpickles what it downloads, which can run code: that is its own doing and your
trust in it, as nothing here unpickles.
"""

import argparse
import gzip
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from .configuration_cxr import PROBLEM_TYPES
from .densenet_cxr import CxrDenseNetConfig, CxrDenseNetForImageClassification
from .image_processing_cxr import CxrImageProcessor
from .pretrained import read_weights

if TYPE_CHECKING:
    import torchxrayvision

# In the order of the outputs: that of the paper, which all three projects keep.
CHEXNET_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
FIRST_KEY = "features.conv0.weight"
TRAINED_ON = "trained_on.txt"


def convert_chexnet(
    checkpoint: str | Path, output: str | Path, trained_on: Sequence[str | Path] = ()
) -> None:
    """Writes the folder of a model whose logits are those of a CheXNet-like checkpoint.

    The state dict may lie under `state_dict`, its keys may have a prefix (`module.densenet121.`),
    torchvision's names before 0.2.1 (`norm.1`), and a head in a Sequential (`classifier.0`), as
    with a Sigmoid behind it; the logits are those before it. Every tensor must find its place, and
    every place its tensor.

    The processor does what those projects do: the shorter side to 256 pixels, the 224 of the
    centre, ImageNet's mean and deviation in three channels, no other correction.

    Args:
        checkpoint: what `torch.save` wrote of a state dict.
        output: the folder to make.
        trained_on: lists of the training images, a line an image that begins with its file name
            (.txt or .txt.gz); validate.py then refuses to judge the model on their patients.

    Raises:
        ValueError: a checkpoint of another network or whose pickle would run code, an empty list,
            or a folder with content.
        OSError: a file cannot be read or written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    _refuse_content(output)
    names = sorted({name for file in trained_on for name in read_image_list(Path(file))})
    config = CxrDenseNetConfig(
        num_channels=3,
        id2label=dict(enumerate(CHEXNET_FINDINGS)),
        problem_type=PROBLEM_TYPES[1],
    )
    model = CxrDenseNetForImageClassification(config)
    weights = _densenet_keys(read_weights(checkpoint), checkpoint)
    own = model.network.state_dict()
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):  # PyTorch before 0.4.1 did not count
            weights.setdefault(key, value)
    odd = sorted(own.keys() ^ weights.keys())
    if odd:
        raise ValueError(
            f"{checkpoint} does not fit DenseNet-121: {odd[0]} is "
            f"{'missing' if odd[0] in own else 'left over'} ({len(odd)} keys like it)."
        )
    for key, value in own.items():
        if weights[key].shape != value.shape:
            raise ValueError(
                f"{checkpoint} does not fit DenseNet-121 with 14 findings: {key} is "
                f"{tuple(weights[key].shape)}, not {tuple(value.shape)}."
            )
    model.network.load_state_dict(weights)
    processor = CxrImageProcessor(224, 3, geometry="inner_crop", correct=False)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)
    if names:
        (output / TRAINED_ON).write_text("".join(f"{name}\n" for name in names))


def convert_xrv(network: "torchxrayvision.models.DenseNet", output: str | Path) -> None:
    """Writes the folder of a model whose probabilities are those of a TorchXRayVision DenseNet.

    Its outputs without a name or an operating point were not trained and are left out. What it
    answers is scaled so that each operating point is 0.5: that becomes the calibration, and 0.5 the
    thresholds. The processor gives it what the package's images are: the square of the centre, one
    channel, from -1024 to 1024.

    Args:
        network: with `targets` and `op_threshs`.
        output: the folder to make.

    Raises:
        ValueError: a network without operating points, or a folder with content.
        OSError: a file cannot be written.
    """
    output = Path(output)
    _refuse_content(output)
    weights = dict(network.state_dict())
    points = weights.pop("op_threshs", None)
    if points is None:
        raise ValueError("the network has no operating points; take one with weights.")
    trained = [k for k, name in enumerate(network.targets) if name and not torch.isnan(points[k])]
    for key in ("classifier.weight", "classifier.bias"):
        weights[key] = weights[key][trained]
    config = CxrDenseNetConfig(
        num_channels=1,
        id2label={k: network.targets[index] for k, index in enumerate(trained)},
        problem_type=PROBLEM_TYPES[1],
        calibration={"method": "operating_point", "threshold": points[trained].tolist()},
        thresholds=[0.5] * len(trained),
    )
    model = CxrDenseNetForImageClassification(config)
    model.network.load_state_dict(weights)
    processor = CxrImageProcessor(224, 1, [0.5], [1 / 2048], geometry="crop", correct=False)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)


def load_xrv(name: str) -> "torchxrayvision.models.DenseNet":
    """A DenseNet by TorchXRayVision's name, downloaded and unpickled by that package.

    Raises:
        ValueError: it knows no such DenseNet.
        ImportError: the package is not installed.
    """
    try:
        from torchxrayvision.models import DenseNet, model_urls
    except ImportError as error:
        raise ImportError(
            "TorchXRayVision is not installed: pip install torchxrayvision first."
        ) from error
    known = sorted(known for known in model_urls if known.startswith("densenet121-"))
    if name not in known:
        raise ValueError(f"TorchXRayVision has no DenseNet {name!r}; it has {', '.join(known)}.")
    return DenseNet(weights=name)


def _refuse_content(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; name another folder, or remove it.")


def _densenet_keys(weights: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """The weights under the keys of torchvision's DenseNet, which are timm's."""
    first = [key for key in weights if key.endswith(FIRST_KEY)]
    if len(first) != 1:
        raise ValueError(f"{file} is no DenseNet: it has {len(first)} keys {FIRST_KEY}, not one.")
    prefix = first[0].removesuffix(FIRST_KEY)
    renamed = {}
    for key, value in weights.items():
        name = key.removeprefix(prefix)
        name = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
        name = re.sub(r"^classifier\.0\.", "classifier.", name)
        if name in renamed:
            raise ValueError(f"{file} holds {name} twice; a DenseNet has it once.")
        renamed[name] = value
    return renamed


def read_image_list(file: Path) -> list[str]:
    """The names of images, without folder and suffix, that the lines of a list begin with.

    Raises:
        ValueError: it has no line, or is no text.
        OSError: it cannot be read.
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            names = [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is no text; give a list of image names, a line each.") from error
    if not names:
        raise ValueError(f"{file} is empty; give a list of image names, a line each.")
    return names


def main(argv: list[str]) -> None:
    """Converts as the flags say."""
    parser = argparse.ArgumentParser(description="Make a model folder of a published checkpoint.")
    parser.add_argument("kind", choices=("chexnet", "xrv"), help="what the checkpoint is of")
    checkpoint = "chexnet: a file of torch.save; xrv: a name of TorchXRayVision's"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    parser.add_argument("output", metavar="OUT", help="the model folder to make")
    parser.add_argument(
        "--trained_on",
        nargs="+",
        default=[],
        metavar="LIST",
        help="image lists that it was trained on; chexnet only",
    )
    args = parser.parse_args(argv)
    if args.kind == "xrv":
        if args.trained_on:
            parser.error("--trained_on is for chexnet.")
        convert_xrv(load_xrv(args.checkpoint), args.output)
    else:
        convert_chexnet(args.checkpoint, args.output, args.trained_on)
    print(f"Written to {args.output}; use it with --model {args.output}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"modeling.convert: error: {error}")
