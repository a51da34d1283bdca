"""ImageNet weights to start from: timm's on the Hub, or those in a file."""

import pickle
import re
from pathlib import Path

import timm
import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .modeling_cxr import CxrClassifier
from .timm_cxr import fixed_size

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_imagenet(model: CxrClassifier, pretrained: bool | str) -> dict[str, list[float]]:
    """Starts a network from ImageNet weights; its heads stay as they are.

    Args:
        model: of a family with a `timm_name`.
        pretrained: True for timm's weights on the Hub; or a file (safetensors, or what `torch.save`
            wrote of a state dict), or a folder with one such file, of a network with three
            channels. Its keys are timm's own; or, in what `torch.save` wrote, other names of the
            same tensors in the same order.

    Returns:
        `image_mean` and `image_std` that the weights were trained with, one value a channel.

    Raises:
        ValueError: the model has no such weights, or they do not fit tensor by tensor.
        OSError: the Hub cannot be reached, or the file cannot be read.
    """
    config, name = model.config, model.timm_name
    if name is None:
        raise ValueError(f"{config.model_type} has no pretrained weights; leave out --pretrained.")
    extra = fixed_size(name, config.image_size)
    overlay = None
    if pretrained is not True:
        file = find_weights(pretrained)
        overlay = {"state_dict": rename(read_weights(file), timm.create_model(name, **extra), file)}
    misfit = (
        f"the ImageNet weights of {name} do not fit this configuration; leave out the options that "
        "change its shape."
    )
    try:
        source = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            in_chans=config.num_channels,
            num_classes=0,
            **extra,
        )
    except RuntimeError as error:
        raise ValueError(f"no pretrained weights for {name} ({first_line(error)}).") from error
    except (OSError, HTTPError) as error:
        raise OSError(
            f"the ImageNet weights of {name} cannot be fetched ({first_line(error)}); connect to "
            "the Hub, name a file with --pretrained FILE, or leave it out."
        ) from error
    try:
        result = model.network.load_state_dict(source.state_dict(), strict=False)
    except RuntimeError as error:
        raise ValueError(misfit) from error
    heads = {key.removeprefix("network.") for key in model.head_keys()}
    if result.unexpected_keys or set(result.missing_keys) != heads:
        raise ValueError(misfit)
    statistics = {
        "image_mean": list(source.pretrained_cfg["mean"]),
        "image_std": list(source.pretrained_cfg["std"]),
    }
    if config.num_channels == 1:
        statistics = {key: [sum(values) / len(values)] for key, values in statistics.items()}
    return statistics


def find_weights(path: str) -> Path:
    """The file itself, or the one file of weights in a folder and its subfolders.

    Raises:
        OSError: nothing is there.
        ValueError: not one file of weights, but none or several.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of ImageNet weights.")
    if place.is_file():
        return place
    found = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:3]) or "none"
        raise ValueError(
            f"{path} holds {len(found)} files of weights ({names}); name one file, "
            f"{', '.join(SUFFIXES)}."
        )
    return found[0]


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file; nothing in it is executed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{file} is no state dict that can be read safely: loading its {code[1]} would run "
                "code; if you trust it, load it where that code is and save the network's "
                "state_dict() alone with torch.save."
            ) from error
        raise ValueError(
            f"{file} is no state dict that can be read safely ({first_line(error)})."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ValueError(f"{file} holds no state dict, a mapping of names to tensors.")
    return dict(content)


def rename(
    weights: dict[str, torch.Tensor], network: torch.nn.Module, file: Path
) -> dict[str, torch.Tensor]:
    """The weights under the network's own keys.

    Keys that differ are matched in order, which safetensors do not keep, and then every tensor must
    agree in shape and in the last part of its name.

    Raises:
        ValueError: a tensor is missing, left over, or another.
    """
    own = network.state_dict()
    if set(weights) == set(own):
        weights = {key: weights[key] for key in own}
    elif file.suffix == ".safetensors":
        odd = min(set(weights) ^ set(own))
        raise ValueError(
            f"{file} does not fit: {odd} is a key of one alone, and safetensors keep no order to "
            "match other keys by."
        )
    for (ours, value), (theirs, stored) in zip(own.items(), weights.items()):
        same_role = ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        if value.shape != stored.shape or not same_role:
            raise ValueError(
                f"{file} does not fit: {theirs} {tuple(stored.shape)} stands where "
                f"{ours} {tuple(value.shape)} is needed."
            )
    if len(weights) != len(own):
        raise ValueError(f"{file} does not fit: it holds {len(weights)} tensors, not {len(own)}.")
    return dict(zip(own, weights.values()))


def first_line(error: Exception) -> str:
    """The first line of an error's text, its type where there is none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
