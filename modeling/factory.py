"""From a name to a model and its image processor."""

import difflib
import inspect
from pathlib import Path

import timm
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_cxr import (
    OPERATION,
    CxrBaselineConfig,
    CxrConfig,
    CxrDenseNetConfig,
    CxrTimmConfig,
)
from .image_processing_cxr import CxrImageProcessor
from .modeling_cxr import (
    CxrBaselineForImageClassification,
    CxrDenseNetForImageClassification,
    CxrPreTrainedModel,
    CxrTimmForImageClassification,
)
from .pretrained import first_line, load_imagenet

FAMILIES = {
    CxrBaselineConfig: CxrBaselineForImageClassification,
    CxrDenseNetConfig: CxrDenseNetForImageClassification,
    CxrTimmConfig: CxrTimmForImageClassification,
}
NAMES = {"baseline": CxrBaselineConfig, "densenet121": CxrDenseNetConfig}

for _config, _model in FAMILIES.items():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)


def create_model(
    name: str,
    class_names: list[str],
    image_size: int | None = None,
    pretrained: bool | str = False,
    **options,
) -> tuple[CxrPreTrainedModel, CxrImageProcessor]:
    """Makes a model with a head for `class_names`, and the processor that feeds it.

    Args:
        name: "baseline", "densenet121", any timm name, or a folder or Hub id of a model saved by
            this project, whose head is replaced where its classes differ.
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
    if Path(name).is_dir() or "/" in name:
        if pretrained:
            raise ValueError(f"--pretrained is for network names; {name} has weights of its own.")
        return _load_model(name, image_size, options)
    options["image_size"] = 224 if image_size is None else image_size
    if name not in NAMES and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*NAMES, *timm.list_models()], n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists more."
        raise ValueError(
            f"model {name!r} is unknown; it can be {', '.join(NAMES)}, a timm name, a folder "
            f"or a Hub id; {hint}"
        )
    config_class = NAMES.get(name, CxrTimmConfig)
    if config_class is CxrTimmConfig:
        options["architecture"] = name
    _check_options(config_class, options)
    config = config_class(**options)
    model = FAMILIES[config_class](config)
    statistics = load_imagenet(model, name, pretrained) if pretrained else {}
    return model, CxrImageProcessor(config.image_size, config.num_channels, **statistics)


def _check_options(config_class, options):
    known = {"id2label", "label2id"}
    for owner in (config_class, CxrConfig):
        known |= set(inspect.signature(owner.__init__).parameters) - {"self", "kwargs"}
    for option in options:
        if option not in known:
            raise ValueError(
                f"{config_class.model_type} has no option {option!r}; it has "
                f"{', '.join(sorted(known))}."
            )


def load_model(name: str) -> tuple[CxrPreTrainedModel, CxrImageProcessor]:
    """A model saved by this project as it is, in evaluation mode, and the processor that feeds it.

    Args:
        name: a folder or Hub id.

    Raises:
        ValueError: another kind of model, or one without this project's image processor.
        OSError: there is no such model, its weights are damaged, or the Hub cannot be reached.
    """
    _load_config(name)
    try:
        model = AutoModelForImageClassification.from_pretrained(name).eval()
    except SafetensorError as error:
        raise OSError(f"the weights of {name} are damaged ({first_line(error)}).") from error
    return model, _load_processor(name)


def _load_config(name):
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, HFValidationError) as error:
        raise OSError(
            f"model {name!r} is neither a folder with a saved model nor a Hub id that can be "
            f"reached ({first_line(error)})."
        ) from error
    if type(config) not in FAMILIES:
        raise ValueError(
            f"{name} holds a {config.model_type!r} model; it takes one saved by this project, or a "
            "timm name."
        )
    return config


def _load_processor(name):
    try:
        return CxrImageProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} has no image processor of this project ({first_line(error)})."
        ) from error


def _load_model(name, image_size, options):
    config = _load_config(name)
    if image_size is not None:
        options["image_size"] = image_size
    _check_options(type(config), options)
    if options.get("num_channels", config.num_channels) != config.num_channels:
        raise ValueError(
            f"num_channels is {options['num_channels']}, but {name} was trained with "
            f"{config.num_channels}; leave it out."
        )
    # What was fitted to the old model's scores and images says nothing of the new one's.
    options = {**dict.fromkeys((*OPERATION, "outlier_threshold", "age_range")), **options}
    same_classes = config.id2label == options["id2label"]
    if not same_classes:
        options = {"class_weights": None, **options}
    for option, value in options.items():
        setattr(config, option, value)
    config = type(config).from_dict(config.to_dict())
    model, loading = AutoModelForImageClassification.from_pretrained(
        name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    head = model.network.get_classifier()
    head_name = next(name for name, module in model.named_modules() if module is head)
    fresh = {key for key, *_ in loading["mismatched_keys"]} | set(loading["missing_keys"])
    body = sorted(key for key in fresh if key.rpartition(".")[0] != head_name)
    if body:
        raise ValueError(
            f"{name} has no fitting weights for {', '.join(body[:3])}; leave out the options that "
            "change the network's shape."
        )
    if not same_classes:
        head.reset_parameters()
    processor = _load_processor(name)
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
    return model, processor
