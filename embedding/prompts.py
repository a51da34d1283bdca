"""Findings without training: an X-ray's embedding against those of sentences about it.

Radford et al. 2021 (CLIP), Tiu et al. 2022 (CheXzero: a softmax over "finding" and "no finding"),
Xu et al. 2023 (ELIXR: the best of an image's tokens).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from embedding.encoders import OPEN_CLIP
from modeling.factory import split_commit
from modeling.pretrained import first_line

KINDS = ("present", "absent")


@dataclass
class Prompts:
    """What a YAML file of prompts says.

    Attributes:
        findings: {class: (sentences for it, sentences against it)}.
        lower: whether the encoder wants lower case.
        vectors: a .npz file of the sentences' embeddings, named by their numbers in the order of
            the file; None where the encoder has a text tower.
    """

    findings: dict[str, tuple[list[str], list[str]]]
    lower: bool
    vectors: Path | None


def read_prompts(path: str | Path, classes: list[str]) -> Prompts:
    """Reads a file of prompts.

    Args:
        path: YAML: `findings`, {class: {present: [...], absent: [...]}}; and, if need be, `lower:
            true` and `vectors: FILE.npz`, beside it.
        classes: those that need prompts: every finding, or class 1 of two.

    Raises:
        ValueError: it is no such file, or a class has no prompts.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {first_line(error)}.") from error
    found = content.get("findings") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no findings, a mapping of classes to present and absent.")
    if missing := [name for name in classes if name not in found]:
        raise ValueError(f"{path} has no prompts for {missing[0]}; it has {', '.join(found)}.")
    pairs = {}
    for name in classes:
        sentences = [found[name].get(kind) for kind in KINDS]
        if not all(isinstance(kind, list) and kind for kind in sentences):
            raise ValueError(f"{path} needs lists present and absent of sentences for {name}.")
        pairs[name] = tuple([str(text) for text in kind] for kind in sentences)
    vectors = content.get("vectors")
    return Prompts(pairs, bool(content.get("lower")), vectors and path.parent / vectors)


class ZeroShot:
    """Logits of embeddings by prompts: the encoder's scale times (for it - against it).

    Attributes:
        texts: float (K, 2, D) of length 1, for and against each class.
        scale: what similarities are multiplied by.
        pair: whether there are two classes, of which the prompts are of class 1.
    """

    def __init__(self, texts: np.ndarray, scale: float, pair: bool) -> None:
        self.texts, self.scale, self.pair = texts, scale, pair

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Logits, float64 (N, K), of vectors (N, T, D).

        Raises:
            ValueError: another width.
        """
        if vectors.shape[-1] != self.texts.shape[-1]:
            raise ValueError(
                f"the images have {vectors.shape[-1]} numbers, the prompts {self.texts.shape[-1]}: "
                "use embeddings of the space that is shared with text."
            )
        alike = np.einsum("ntd,kpd->ntkp", unit(vectors), self.texts).max(axis=1)
        margins = self.scale * (alike[..., 0] - alike[..., 1])
        return np.column_stack([np.zeros(len(margins)), margins]) if self.pair else margins


def unit(vectors: np.ndarray) -> np.ndarray:
    """At length 1, in float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def zero_shot(prompts: Prompts, encoder: str, pair: bool) -> ZeroShot:
    """The head that prompts make.

    Several sentences of a kind count as the mean of their unit vectors.

    Args:
        prompts: see `read_prompts`.
        encoder: that of the embeddings, see `load_encoder`; loaded for its text tower.
        pair: see `ZeroShot`.

    Raises:
        ValueError: an encoder without a text tower, or a file without the prompts' vectors.
        OSError: it cannot be loaded.
    """
    flat = [text for kinds in prompts.findings.values() for kind in kinds for text in kind]
    flat = [text.lower() if prompts.lower else text for text in flat]
    if prompts.vectors is not None:
        vectors, scale = _stored(prompts.vectors, len(flat)), 1.0
    elif encoder.startswith(OPEN_CLIP):
        vectors, scale = _open_clip(encoder.removeprefix(OPEN_CLIP), flat)
    else:
        vectors, scale = _transformers(encoder, flat)
    rows, place = iter(unit(vectors)), []
    for kinds in prompts.findings.values():
        place.append([unit(np.mean([next(rows) for _ in kind], axis=0)) for kind in kinds])
    return ZeroShot(np.array(place), scale, pair)


def _stored(path: Path, count: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        missing = [str(number) for number in range(count) if str(number) not in arrays]
        if missing:
            raise ValueError(f"{path} has no array {missing[0]}; each prompt needs one, from 0.")
        return np.stack([arrays[str(number)].reshape(-1) for number in range(count)])


@torch.no_grad()
def _transformers(encoder: str, texts: list[str]) -> tuple[np.ndarray, float]:
    source, revision = split_commit(encoder)
    model = AutoModel.from_pretrained(source, revision=revision).eval()
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{encoder} has no text tower: prompts need an encoder with one.")
    tokens = AutoTokenizer.from_pretrained(source, revision=revision)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    taken = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    found = model.get_text_features(**taken)
    vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
    return vectors.numpy(), model.logit_scale.exp().item()


@torch.no_grad()
def _open_clip(name: str, texts: list[str]) -> tuple[np.ndarray, float]:
    import open_clip

    model = open_clip.create_model(name).eval()
    vectors = model.encode_text(open_clip.get_tokenizer(name)(texts))
    return vectors.numpy(), model.logit_scale.exp().item()
