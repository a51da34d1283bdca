"""From a name to a network that turns an X-ray into a vector.

The file is opened as everywhere in this project; what then happens to its pixels is the encoder's
own preprocessing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PretrainedConfig
from transformers.utils import cached_file, extract_commit_hash

from modeling import load_model
from modeling.factory import split_commit
from modeling.image_cxr import FULL_SCALE, CxrImage
from modeling.modeling_cxr import REGISTRY
from modeling.pretrained import first_line

Shape = tuple[float, float] | None
TIMM, OPEN_CLIP = "timm:", "open_clip:"


@dataclass
class Encoder:
    """A network in evaluation mode, and what feeds it.

    Attributes:
        name: as given.
        revision: the commit of the Hub that it came from; None where `name` says all.
        pooling: how one vector comes of its features.
        network: takes a batch (B, C, H, W) of what `prepare` gives.
        prepare: an X-ray, and its height and width before it was stretched or None, to float32
            (C, H, W).
        embed: the network's batch to float (B, D).
        correct: how images are read, see `modeling.reading_cxr.open_image`.
    """

    name: str
    revision: str | None
    pooling: str
    network: nn.Module
    prepare: Callable[[CxrImage, Shape], torch.Tensor]
    embed: Callable[[torch.Tensor], torch.Tensor]
    correct: bool = True

    @torch.no_grad()
    def __call__(self, prepared: list[torch.Tensor]) -> np.ndarray:
        """Vectors of what `prepare` gave: float32 (B, D).

        Raises:
            ValueError: the network gives something else than a finite vector an image.
        """
        device = next(self.network.parameters()).device
        batch = torch.stack(prepared).to(device)
        vectors = self.embed(batch).float().cpu().numpy()
        if vectors.ndim != 2 or len(vectors) != len(batch) or not np.isfinite(vectors).all():
            raise ValueError(
                f"{self.name} gives {vectors.shape} for {len(batch)} images, or values that are "
                "not finite; a vector an image is needed."
            )
        return vectors


def load_encoder(name: str) -> Encoder:
    """Loads an encoder from a folder or the Hub.

    Args:
        name: a folder, Hub id or id@commit of a model of this project or of any vision model of
            transformers, or one with a vision tower; timm:NAME, as timm:hf-hub:ORG/NAME@COMMIT;
            open_clip:NAME, as open_clip:hf-hub:ORG/NAME.

    Raises:
        ValueError: it is no vision model.
        OSError: it cannot be found or reached.
        ImportError: open_clip is not installed.
    """
    if name.startswith(TIMM):
        return _timm(name)
    if name.startswith(OPEN_CLIP):
        return _open_clip(name)
    source, revision = split_commit(name)
    try:
        stored, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(
            f"encoder {name!r} is neither a folder with a saved model nor a Hub id that can be "
            f"reached ({first_line(error)})."
        ) from error
    types = {model.config_class.model_type for model in REGISTRY.values()}
    return _own(name) if stored.get("model_type") in types else _transformers(name)


def grey_image(image: CxrImage, shape: Shape) -> Image.Image:
    """The X-ray as foreign encoders take pictures: 8 bits, its grey in three channels.

    One that was stretched gets its proportions back, its height kept.
    """
    scaled = (image.pixels.astype(np.uint32) * 255 + FULL_SCALE // 2) // FULL_SCALE
    picture = Image.fromarray(scaled.astype(np.uint8))
    if shape is not None:
        width = max(1, round(picture.height * shape[1] / shape[0]))
        picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    return picture.convert("RGB")


def _commit(name: str) -> str | None:
    """Of the Hub's files in the cache; None for a folder."""
    source, revision = split_commit(name)
    return extract_commit_hash(cached_file(source, "config.json", revision=revision), None)


def _own(name: str) -> Encoder:
    model, processor = load_model(name)

    def prepare(image: CxrImage, shape: Shape) -> torch.Tensor:
        image, shape = processor.focus(image, shape)
        return processor.normalize(processor.prepare(image.pixels, shape)[None])[0]

    pooling = "features before the head"
    return Encoder(name, _commit(name), pooling, model, prepare, model.embed, processor.correct)


def _transformers(name: str) -> Encoder:
    source, revision = split_commit(name)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        if hasattr(config, "mask_ratio"):
            config.mask_ratio = 0.0  # a masked autoencoder is to see the whole image
        network = AutoModel.from_pretrained(source, config=config, revision=revision).eval()
        processor = AutoImageProcessor.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder {name!r} cannot be used ({first_line(error)}); it takes a vision model with "
            "an image processor."
        ) from error
    sees = "pixel_values" in (network.main_input_name, *getattr(network, "input_names", ()))
    projects = hasattr(network, "get_image_features")
    if not sees and not projects:
        raise ValueError(
            f"encoder {name!r} takes {network.main_input_name}: it has no vision tower; give a "
            "vision model."
        )

    def prepare(image: CxrImage, shape: Shape) -> torch.Tensor:
        return processor(grey_image(image, shape), return_tensors="pt")["pixel_values"][0]

    if projects:
        pooling = "image features in the space shared with text"

        def embed(pixel_values: torch.Tensor) -> torch.Tensor:
            found = network.get_image_features(pixel_values=pixel_values)
            return found if isinstance(found, torch.Tensor) else found.pooler_output

    else:
        pooling = "pooler_output, or the first token of last_hidden_state where there is none"

        def embed(pixel_values: torch.Tensor) -> torch.Tensor:
            output = network(pixel_values=pixel_values)
            pooled = getattr(output, "pooler_output", None)
            return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    return Encoder(name, _commit(name), pooling, network, prepare, embed)


def _timm(name: str) -> Encoder:
    try:
        network = timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=0).eval()
    except (RuntimeError, OSError) as error:
        raise OSError(f"encoder {name!r} cannot be loaded ({first_line(error)}).") from error
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**settings, is_training=False)

    def prepare(image: CxrImage, shape: Shape) -> torch.Tensor:
        return transform(grey_image(image, shape))

    return Encoder(name, None, "timm's own, before the head", network, prepare, network)


def _open_clip(name: str) -> Encoder:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"encoder {name!r} needs the package open_clip_torch: pip install it first."
        ) from error
    network, _, transform = open_clip.create_model_and_transforms(name.removeprefix(OPEN_CLIP))

    def prepare(image: CxrImage, shape: Shape) -> torch.Tensor:
        return transform(grey_image(image, shape))

    pooling = "image features in the space shared with text"
    return Encoder(name, None, pooling, network.eval(), prepare, network.encode_image)
