"""The contract of a model family, for each in the registry and for one that is dropped in."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPO
from transformers import AutoModel

from modeling import create_model, load_model
from modeling.modeling_cxr import PRESETS, REGISTRY, CxrClassifier

SIZE = 64
CLASSES = ["A", "B", "C"]
NARROW = {"embed_dim": 48, "num_heads": 3, "depth": 3}
SMALL = {
    "densenet121": {"block_config": [2, 2], "growth_rate": 8},
    "conformer_tiny": NARROW,
    "conformer_small": NARROW,
    "conformer_mini": NARROW,
}
CLASSIFIERS = [name for name in REGISTRY if issubclass(REGISTRY[name], CxrClassifier)]
# timm's network with two heads beside timm's default
NETWORKS = [*CLASSIFIERS, "deit_tiny_distilled_patch16_224"]


def make(name, class_names=CLASSES, **options):
    torch.manual_seed(0)
    options = {"image_size": SIZE, **SMALL.get(name, {}), **options}
    model, processor = create_model(name, class_names, **options)
    return model.eval(), processor


def batch(model, count=2):
    size, channels = model.config.image_size, model.config.num_channels
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_the_contract(name, monkeypatch):
    model, _ = make(name)
    network, inputs = model.network, batch(model)
    with torch.no_grad():
        features = network.forward_features(inputs)
        logits = network.forward_head(features)
        assert logits.shape == (2, 3)
        torch.testing.assert_close(network(inputs), logits)

        embeddings = model.embed(inputs.double())
        assert embeddings.dtype == torch.float32
        width = getattr(network, "head_hidden_size", None) or network.num_features
        assert embeddings.shape == (2, width)
        torch.testing.assert_close(embeddings, network.forward_head(features, pre_logits=True))
        assert not torch.allclose(*embeddings)

    calls = []
    forward_head = network.forward_head
    monkeypatch.setattr(
        network, "forward_head", lambda *args, **kwargs: calls.append(1) or forward_head(*args)
    )
    output = model.explain(inputs)
    assert len(calls) == 1
    assert not output.logits.requires_grad and not output.heatmaps.requires_grad
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    assert output.heatmaps.shape == (2, SIZE, SIZE)
    # no place may speak for one class, but some place for one of them
    assert max(model.grad_cam(inputs, target).max() for target in range(3)) > 0.999

    state = model.state_dict()
    assert model.head_keys() < set(state)
    assert all(head.out_features == 3 for head in model.heads)
    for key in model.head_keys():  # these are all the heads: without them nothing is left
        state[key].zero_()
    with torch.no_grad():
        assert not model(inputs).logits.any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_exported_for_any_number_of_images(name):
    model, _ = make(name)
    count = {0: torch.export.Dim("count")}
    program = torch.export.export(model.network, (batch(model),), dynamic_shapes=(count,))
    inputs = batch(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(inputs), model(inputs).logits)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_saved_loaded_and_fine_tuned_on_other_classes(name, tmp_path):
    model, processor = make(name)
    with torch.no_grad():
        model.train()(batch(model, 8))  # statistics that are not all 0 and 1
        for head in model.heads:
            head.weight.normal_()
    inputs, model = batch(model), model.eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        for loaded in (
            load_model(str(tmp_path))[0],
            AutoModel.from_pretrained(tmp_path, trust_remote_code=True),
            create_model(str(tmp_path), CLASSES)[0].eval(),
        ):
            assert torch.equal(loaded(inputs).logits, model(inputs).logits)
        # other names for as many classes, and another number of classes
        for class_names in (["A", "C", "D"], ["A", "B"]):
            tuned, _ = create_model(str(tmp_path), class_names)
            assert tuned.eval()(inputs).logits.shape == (2, len(class_names))
            torch.testing.assert_close(tuned.embed(inputs), model.embed(inputs))
            for old, new in zip(model.heads, tuned.heads, strict=True):
                assert new.out_features == len(class_names)
                assert not torch.isin(new.weight, old.weight).any()
                assert new.weight.any()


FRESH_PROCESS = """
import json, sys
import torch, transformers

found = {}
for folder in sys.argv[1:]:
    config = json.load(open(folder + "/config.json"))
    for name in ("AutoModel", sorted(config["auto_map"])[-1]):
        auto = getattr(transformers, name)
        model = auto.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            output = model(torch.load(folder + "/input.pt"))
        found.setdefault(folder, []).append(output[0].flatten().tolist())
print(json.dumps(found))
"""


def test_each_family_travels_with_its_code(tmp_path, run_python):
    """Models of any task: what they share is that a saved folder answers where it is alone."""
    expected = {}
    for name, model_class in REGISTRY.items():
        config = model_class.config_class(image_size=SIZE, **PRESETS[name] | SMALL.get(name, {}))
        model, folder = model_class(config).eval(), tmp_path / name
        model.save_pretrained(folder)
        torch.save(batch(model), folder / "input.pt")
        with torch.no_grad():
            expected[str(folder)] = model(batch(model))[0].flatten()
        others = {f"{other.__module__.split('.')[-1]}.py" for other in REGISTRY.values()}
        # The image processor of any model may find lungs.
        others -= {f"{model_class.__module__.split('.')[-1]}.py", "segmentation_cxr.py"}
        assert not others & {path.name for path in folder.iterdir()}
        assert set(json.loads((folder / "config.json").read_text())["auto_map"]) == {
            *("AutoConfig", "AutoModel", model_class.auto_model),
        }
    script = tmp_path / "load.py"
    script.write_text(FRESH_PROCESS)
    result = run_python([script, *expected], isolated=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for folder, values in expected.items():
        for given in found[folder]:
            torch.testing.assert_close(torch.tensor(given), values, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------ one file more

HYBRID = '''
"""Convolutions and a transformer side by side, each with a head; their logits are summed."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_cxr import CxrConfig
from .modeling_cxr import CxrClassifier, register


class HybridConfig(CxrConfig):
    model_type = "test-hybrid"

    def __init__(self, width=16, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class Hybrid(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(config.num_channels, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU(True)
        )
        self.attention = nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True)
        self.convolution_head = nn.Linear(width, config.num_labels)
        self.token_head = nn.Linear(width, config.num_labels)
        self.num_features = 2 * width

    def forward_features(self, pixel_values):
        maps = self.convolutions(pixel_values)
        return maps, self.attention(F.avg_pool2d(maps, 4).flatten(2).mT)

    def forward_head(self, features, pre_logits=False):
        maps, tokens = features
        maps, tokens = maps.mean((2, 3)), tokens.mean(1)
        if pre_logits:
            return torch.cat([maps, tokens], 1)
        return self.convolution_head(maps) + self.token_head(tokens)

    def get_classifier(self):
        return self.convolution_head, self.token_head

    def forward(self, pixel_values):
        return self.forward_head(self.forward_features(pixel_values))


@register("hybrid")
class HybridForImageClassification(CxrClassifier):
    config_class = HybridConfig

    def __init__(self, config):
        super().__init__(config)
        self.network = Hybrid(config)
        self.post_init()

    @property
    def map_layer(self):
        return self.network.convolutions
'''

SEGMENTER = '''
"""A model of another task."""

from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput

from .modeling_cxr import CxrPreTrainedModel, register


class MaskConfig(PretrainedConfig):
    model_type = "test-mask"

    def __init__(self, image_size=224, num_channels=1, **kwargs):
        self.image_size, self.num_channels = image_size, num_channels
        super().__init__(**kwargs)


@register("mask")
class MaskForSemanticSegmentation(CxrPreTrainedModel):
    config_class = MaskConfig
    auto_model = "AutoModelForSemanticSegmentation"

    def __init__(self, config):
        super().__init__(config)
        self.network = nn.Conv2d(config.num_channels, 2, 3, padding=1)
        self.post_init()

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.network(pixel_values))
'''

OTHER_TASK = """
from modeling import create_model, load_model
from modeling.modeling_cxr import REGISTRY

REGISTRY["mask"](REGISTRY["mask"].config_class()).save_pretrained("saved")
for ask in (lambda: create_model("mask", ["A", "B"]), lambda: load_model("saved")):
    try:
        ask()
    except ValueError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A folder with modeling/ and two files more in it."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(
        REPO / "modeling", folder / "modeling", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "modeling" / "hybrid_cxr.py").write_text(HYBRID)
    (folder / "modeling" / "mask_cxr.py").write_text(SEGMENTER)
    return folder


def test_a_new_family_is_one_file(grown, run_python):
    """A network with two heads and a segmenter keep the contract as soon as they are there."""
    chosen = "hybrid or (travels and not one_file)"
    args = ["-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__), "-k", chosen]
    result = run_python(args, cwd=grown, env={"PYTHONPATH": grown})
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout


def test_a_model_of_another_task_is_no_classifier(grown, run_python):
    result = run_python(OTHER_TASK, cwd=grown, env={"PYTHONPATH": grown})
    assert result.returncode == 0, result.stderr
    made, loaded = result.stdout.splitlines()
    known = made.split("it can be ")[1].split(", a timm name")[0].split(", ")
    assert made.startswith("model 'mask' is unknown; ") and "mask" not in known
    assert {"baseline", "densenet121", "hybrid", "timm"} <= set(known)
    assert loaded.startswith("saved holds a 'test-mask' model; it takes a classifier")
    config = json.loads((grown / "saved" / "config.json").read_text())
    assert not {"thresholds", "class_weights", "image-classification"} & set(
        json.dumps(config).split('"')
    )
