"""From a name to a model and its image processor."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from .configuration_cxr import FITTED, CxrConfig, spelled_alike
from .detection_cxr import CxrDetector
from .exported_cxr import is_exported
from .image_processing_cxr import CxrImageProcessor
from .modeling_cxr import PRESETS, REGISTRY, CxrClassifier, CxrPreTrainedModel
from .pretrained import first_line, load_imagenet
from .segmentation_cxr import CxrLungSegmenter

# Every file that travels is read, so that a new family is known by its file alone.
for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _module.name.endswith("_cxr"):
        importlib.import_module(f".{_module.name}", __package__)
# Here and not in `register`, which travels: one saved folder's code would load another's weights.
for _model in dict.fromkeys(REGISTRY.values()):  # a family may have several names
    AutoConfig.register(_model.config_class.model_type, _model.config_class)
    getattr(transformers, _model.auto_model).register(_model.config_class, _model)


def _classifiers() -> dict[str, type[CxrClassifier]]:
    return {
        name: model for name, model in sorted(REGISTRY.items()) if issubclass(model, CxrClassifier)
    }


def create_model(
    name: str,
    class_names: list[str],
    image_size: int | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> tuple[CxrClassifier, CxrImageProcessor]:
    """Makes a model with a head for `class_names`, and the processor that feeds it.

    Args:
        name: of a family ("baseline", "densenet121", ...), any timm name, or a folder, Hub id or
            id@commit of a model saved by this project, whose heads follow the classes, see
            `from_pretrained`.
        class_names: in the order of the label indices.
        image_size: side of the input, pixels; None is 224, or the saved model's own.
        pretrained: start from ImageNet weights, True for timm's of that name on the Hub, or a file
            or folder that holds them; the first convolution is adapted to `num_channels`.
        options: fields of the configuration, such as `num_channels`, `loss` or `block_config`.

    Raises:
        ValueError: an unknown name (near names are suggested) or option, or no pretrained weights
            exist for the model.
        OSError: the Hub cannot be reached or lacks what was asked for, or a file cannot be read.
    """
    options["id2label"] = dict(enumerate(class_names))
    options["label2id"] = {name: index for index, name in enumerate(class_names)}
    _refuse_file(name)
    if Path(name).is_dir() or "/" in name:
        if pretrained:
            raise ValueError(f"--pretrained is for network names; {name} has weights of its own.")
        return _adapt_model(name, image_size, options)
    options["image_size"] = 224 if image_size is None else image_size
    families = _classifiers()
    if name not in families and timm.is_model(name):
        name, options["architecture"] = "timm", name
    if name not in families:
        near = difflib.get_close_matches(name, [*families, *timm.list_models()], n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists more."
        raise ValueError(
            f"model {name!r} is unknown; it can be {', '.join(families)}, a timm name, a folder "
            f"or a Hub id; {hint}"
        )
    config_class = families[name].config_class
    _check_options(config_class, options)
    config = config_class(**PRESETS[name] | options)
    model = families[name](config)
    statistics = load_imagenet(model, pretrained) if pretrained else {}
    return model, CxrImageProcessor(config.image_size, config.num_channels, **statistics)


def _check_options(config_class: type[CxrConfig], options: dict[str, Any]) -> None:
    known = {"id2label", "label2id"}
    for owner in (owner for owner in config_class.__mro__ if issubclass(owner, CxrConfig)):
        known |= set(inspect.signature(owner.__init__).parameters) - {"self", "kwargs"}
    for option in options:
        if option not in known:
            raise ValueError(
                f"{config_class.model_type} has no option {option!r}; it has "
                f"{', '.join(sorted(known))}."
            )


def split_commit(name: str) -> tuple[str, str]:
    """A folder or a Hub id, and the commit, branch or tag that follows it after an @; else "main".

    The two are what `from_pretrained` and `cached_file` take as the model and its `revision`.
    """
    if Path(name).is_dir():
        return name, "main"
    model_id, _, revision = name.partition("@")
    return model_id, revision or "main"


def load_model(name: str) -> tuple[CxrClassifier, CxrImageProcessor]:
    """A model saved by this project as it is, in evaluation mode, and the processor that feeds it.

    Args:
        name: a folder, a Hub id or id@commit; its weights are safetensors.

    Raises:
        ValueError: another kind of model, or one without this project's image processor.
        OSError: there is no such model, its weights are damaged, or the Hub cannot be reached.
    """
    return _load(name, _classifiers(), "classifier")


def load_segmenter(name: str) -> tuple[CxrLungSegmenter, CxrImageProcessor]:
    """A lung segmenter saved by this project, in evaluation mode, and the processor that feeds it.

    Args:
        name: a folder, a Hub id or id@commit.

    Raises:
        ValueError, OSError: see `load_model`.
    """
    return _load(name, {"lungs": CxrLungSegmenter}, "lung segmenter")


def load_detector(name: str) -> tuple[CxrDetector, CxrImageProcessor]:
    """A detector saved by this project, in evaluation mode, and the processor that feeds it.

    Args:
        name: a folder, a Hub id or id@commit.

    Raises:
        ValueError, OSError: see `load_model`.
    """
    return _load(name, {"detector": CxrDetector}, "detector")


def _load(
    name: str, families: dict[str, type[CxrPreTrainedModel]], kind: str
) -> tuple[CxrPreTrainedModel, CxrImageProcessor]:
    _refuse_file(name)
    model_class, config = _load_config(name, families, kind)
    with _loading_weights(name):
        source, revision = split_commit(name)
        model = model_class.from_pretrained(
            source, config=config, revision=revision, use_safetensors=True
        ).eval()
    return model, _load_processor(name)


def _refuse_file(name: str) -> None:
    if Path(name).is_file():
        if is_exported(name):
            raise ValueError(f"{name} is an exported model; give the model that it was made of.")
        raise ValueError(
            f"{name} is a file, not the folder of a model; convert a CheXNet checkpoint first: "
            f"python -m modeling.convert chexnet {name} OUT, and give OUT."
        )
    if name.startswith("xrv:"):
        raise ValueError(
            f"{name} is TorchXRayVision's; convert it first: python -m modeling.convert xrv "
            f"{name.removeprefix('xrv:')} OUT, and give OUT."
        )


@contextmanager
def _loading_weights(name: str) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"the weights of {name} are damaged ({first_line(error)}).") from error


def _load_config(
    name: str, families: dict[str, type[CxrPreTrainedModel]], kind: str
) -> tuple[type[CxrPreTrainedModel], PretrainedConfig]:
    """The class and the configuration of a saved model of some families, which `kind` names."""
    source, revision = split_commit(name)
    try:
        stored, _ = PretrainedConfig.get_config_dict(source, revision=revision)
        if not stored:
            raise FileNotFoundError("there is no config.json")
    except (OSError, ValueError) as error:
        if getattr(error, "filename", None) and not Path(name).exists():
            raise OSError(
                f"the Hub's cache {error.filename} cannot be written ({error.strerror}); set "
                "HF_HOME to a folder that can."
            ) from error
        raise OSError(
            f"model {name!r} is neither a folder with a saved model nor a Hub id that can be "
            f"reached ({first_line(error)})."
        ) from error
    types = {model.config_class.model_type: model for model in families.values()}
    model_type = stored.get("model_type")
    if model_type not in types:
        raise ValueError(
            f"{name} holds a {model_type!r} model; it takes a {kind} saved by this project"
            f"{', or a timm name' if kind == 'classifier' else ''}."
        )
    model_class = types[model_type]
    return model_class, model_class.config_class.from_pretrained(source, revision=revision)


def _load_processor(name: str) -> CxrImageProcessor:
    try:
        source, revision = split_commit(name)
        return CxrImageProcessor.from_pretrained(source, revision=revision)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} has no image processor of this project ({first_line(error)})."
        ) from error


def _adapt_model(
    name: str, image_size: int | None, options: dict[str, Any]
) -> tuple[CxrClassifier, CxrImageProcessor]:
    model_class, config = _load_config(name, _classifiers(), "classifier")
    if image_size is not None:
        options["image_size"] = image_size
    _check_options(type(config), options)
    if options.get("num_channels", config.num_channels) != config.num_channels:
        raise ValueError(
            f"num_channels is {options['num_channels']}, but {name} was trained with "
            f"{config.num_channels}; leave it out."
        )
    # What was fitted to the old model's scores and images says nothing of the new one's.
    same_classes = spelled_alike(config.label2id) == spelled_alike(options["label2id"])
    kept = ("class_weights", "focal_alpha") if same_classes else ()
    config.update(dict.fromkeys(field for field in FITTED if field not in kept))
    config = type(config).from_dict(config.to_dict() | options)
    with _loading_weights(name):
        source, revision = split_commit(name)
        model, loading = model_class.from_pretrained(
            source,
            config=config,
            revision=revision,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    fresh = {key for key, *_ in loading["mismatched_keys"]} | set(loading["missing_keys"])
    body = sorted(fresh - model.head_keys())
    if body:
        raise ValueError(
            f"{name} has no fitting weights for {', '.join(body[:3])}; leave out the options that "
            "change the network's shape."
        )
    processor = _load_processor(name)
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
    return model, processor
