"""Every network through every contract of a saved model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from modeling import (
    CxrBaselineConfig,
    CxrBaselineForImageClassification,
    CxrDenseNetConfig,
    CxrDenseNetForImageClassification,
    CxrTimmConfig,
    CxrTimmForImageClassification,
    create_model,
)
from modeling.heatmap_cxr import CAM_METHODS
from modeling.modeling_cxr import REGISTRY

SIZE = 96
CLASSES = ["NORMAL", "PNEUMONIA"]
REDUCED = {"block_config": [2, 2], "growth_rate": 8}
MODELS = {
    "baseline": {},
    "densenet121": {},
    "densenet121 reduced": REDUCED,
    "resnet18": {},
    "resnet50": {},
    "efficientnet_b0": {},
    "inception_v3": {},
    "vit_tiny_patch16_224": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {},
}
CONVOLUTIONS = list(MODELS)[:7]
Norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)


def make(name, class_names=CLASSES, **options):
    torch.manual_seed(0)
    options = {"image_size": SIZE, **MODELS.get(name, {}), **options}
    model, processor = create_model(name.split()[0], class_names, **options)
    return model.eval(), processor


def batch(model, count=2):
    size, channels = model.config.image_size, model.config.num_channels
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------ saved model folders

FRESH_PROCESS = """
import json, sys
import torch
from transformers import (AutoConfig, AutoImageProcessor, AutoModel,
    AutoModelForImageClassification, pipeline)

results = {}
for folder in sys.argv[1:]:
    pixel_values = torch.load(folder + "/input.pt")
    trust = {"trust_remote_code": True}
    with torch.no_grad():
        results[folder] = {
            "AutoModel": AutoModel.from_pretrained(folder, **trust)(pixel_values).logits.tolist(),
            "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained(
                folder, **trust)(pixel_values).logits.tolist(),
            "AutoConfig": AutoConfig.from_pretrained(folder, **trust).id2label[1],
            "AutoImageProcessor": AutoImageProcessor.from_pretrained(folder, **trust)(
                folder + "/x.png")["pixel_values"].flatten().tolist(),
            "pipeline": pipeline("image-classification", model=folder, **trust)(folder + "/x.png"),
        }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every model saved, with an input and a 16-bit image beside it."""
    folders = {}
    image = np.random.default_rng(0).integers(0, 65536, (120, 90), dtype=np.uint16)
    for name in MODELS:
        model, processor = make(name)
        folder = tmp_path_factory.mktemp("saved") / name.replace(" ", "_")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        torch.save(batch(model), folder / "input.pt")
        Image.fromarray(image).save(folder / "x.png")
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def fresh(saved, tmp_path_factory, run_python):
    script = tmp_path_factory.mktemp("fresh") / "load.py"
    script.write_text(FRESH_PROCESS)
    result = run_python([script, *saved.values()], isolated=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_process_without_this_checkout_loads_it_every_way(name, saved, fresh):
    loaded, folder = fresh[str(saved[name])], saved[name]
    model, processor = make(name)
    with torch.no_grad():
        expected = model(batch(model)).logits
        pixel_values = processor(folder / "x.png").pixel_values
        probabilities = model.probabilities(model(pixel_values).logits)[0]
    for road in ("AutoModel", "AutoModelForImageClassification"):
        torch.testing.assert_close(torch.tensor(loaded[road]), expected, rtol=1e-6, atol=1e-6)
    assert loaded["AutoConfig"] == "PNEUMONIA"
    assert torch.equal(torch.tensor(loaded["AutoImageProcessor"]), pixel_values.flatten())
    scores = {row["label"]: row["score"] for row in loaded["pipeline"]}
    assert scores["NORMAL"] == pytest.approx(probabilities[0].item(), abs=1e-6)
    assert scores["PNEUMONIA"] == pytest.approx(probabilities[1].item(), abs=1e-6)


def test_a_saved_folder_holds_safetensors_code_and_no_pickle(saved):
    code = {path.name for path in (Path(__file__).parents[1] / "modeling").glob("*_cxr.py")}
    code -= {f"{family.__module__.split('.')[-1]}.py" for family in REGISTRY.values()}
    code -= {"exported_cxr.py"}  # beside exported files alone
    code |= {"segmentation_cxr.py"}  # what a processor finds lungs with
    for name, folder in saved.items():
        names = {path.name for path in folder.iterdir()} - {"input.pt", "x.png"}
        family = {"baseline": "baseline_cxr.py", "densenet121": "densenet_cxr.py"}
        names.remove(family.get(name.split()[0], "timm_cxr.py"))
        assert names == code | {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_importing_modeling_stays_light(run_python):
    code = "import sys, modeling; print({'gradio', 'datasets', 'sklearn'} & set(sys.modules))"
    result = run_python(code)
    assert result.stdout.strip() == "set()", result.stderr


# ------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("problem", ["single", "multi"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_on_both_kinds_of_problem(name, problem):
    classes = ["A", "B", "C"]
    model, _ = make(name, classes, problem_type=f"{problem}_label_classification")
    model.train()
    inputs = batch(model, 4)
    labels = torch.tensor([0, 1, 2, 1])
    if problem == "multi":
        labels = F.one_hot(labels, 3).float()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    losses = []
    for _ in range(3):
        output = model(inputs, labels)
        assert output.logits.shape == (4, 3)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]


def test_parameter_counts_are_those_stated():
    for model_class, config in (
        (CxrBaselineForImageClassification, CxrBaselineConfig()),
        (CxrDenseNetForImageClassification, CxrDenseNetConfig()),
    ):
        stated = f"{model_class(config).num_parameters():,} parameters"
        assert stated in model_class.__doc__


def test_probabilities_are_softmax_or_sigmoid():
    logits = torch.tensor([[0.0, math.log(3)]])
    single, _ = make("baseline")
    multi, _ = make("baseline", problem_type="multi_label_classification")
    torch.testing.assert_close(single.probabilities(logits), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(multi.probabilities(logits), torch.tensor([[0.5, 0.75]]))


def test_a_tuple_on_request():
    model, _ = make("baseline")
    inputs = batch(model)
    loss, logits, probabilities = model(inputs, torch.tensor([0, 1]), return_dict=False)
    assert loss.shape == ()
    assert logits.shape == probabilities.shape == (2, 2)
    assert len(model(inputs, return_dict=False)) == 2


def test_wrong_channels_and_labels_are_named():
    model, _ = make("baseline")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 96, 96\); this model takes \(batch, 1,"):
        model(torch.zeros(2, 3, 96, 96))
    with pytest.raises(ValueError, match=r"labels has shape \(2, 2\)"):
        model(batch(model), torch.zeros(2, 2))


# ----------------------------------------------------------------------------------------- Grad-CAM


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_comes_with_the_logits_at_the_inputs_size(name):
    model, _ = make(name)
    inputs = batch(model)
    with torch.no_grad():
        expected = model(inputs).logits
    output = model.explain(inputs)
    heatmaps = output.heatmaps
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    assert heatmaps.shape == (2, *inputs.shape[2:])
    assert heatmaps.dtype == torch.float32
    assert heatmaps.min() >= 0
    # Scaled to its own extremes; all zero where no place speaks for the class.
    for highest in torch.cat([heatmaps, model.grad_cam(inputs, [0, 1])]).amax((1, 2)).tolist():
        assert highest == 0 or 0.999 < highest <= 1


class Tapped(torch.nn.Module):
    """A network with a layer to hook between its features and its head."""

    def __init__(self, network):
        super().__init__()
        self.network, self.tap = network, torch.nn.Identity()

    def forward(self, pixel_values):
        return self.network.forward_head(self.tap(self.network.forward_features(pixel_values)))


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "grad_cam") for name in CONVOLUTIONS]
    + [("densenet121 reduced", method) for method in CAM_METHODS],
)
def test_heatmaps_are_those_of_the_grad_cam_library(name, method):
    model, _ = make(name)
    inputs, tapped = batch(model), Tapped(model.network)
    with getattr(pytorch_grad_cam, CAM_METHODS[method])(tapped, [tapped.tap]) as cam:
        for target in (0, 1):
            expected = cam(inputs, [ClassifierOutputTarget(target)] * 2)
            heatmaps = model.explain(inputs, target, method).heatmaps
            np.testing.assert_allclose(heatmaps.numpy(), expected, atol=1e-4)


def test_a_transformers_grad_cam_is_the_gradient_times_the_patch_tokens():
    model, _ = make("vit_tiny_patch16_224")
    inputs = batch(model)
    captured = {}

    def keep(module, args, output):
        output.retain_grad()
        captured["tokens"] = output

    handle = model.network.blocks[-1].norm1.register_forward_hook(keep)
    model(inputs).logits[:, 1].sum().backward()
    handle.remove()
    tokens, gradient = captured["tokens"][:, 1:], captured["tokens"].grad[:, 1:]  # no class token
    weights = gradient.mean(1, keepdim=True)
    cam = (weights * tokens).sum(2).clamp(min=0).reshape(2, 1, 6, 6)
    cam = F.interpolate(cam, (SIZE, SIZE), mode="bilinear").detach()[:, 0]
    cam = (cam - cam.amin((1, 2), keepdim=True)) / (cam.amax((1, 2), keepdim=True) + 1e-7)
    heatmaps = model.grad_cam(inputs, 1)
    low = F.interpolate(heatmaps[:, None], (6, 6), mode="area")
    expected = F.interpolate(cam[:, None], (6, 6), mode="area")
    assert torch.corrcoef(torch.stack([low.flatten(), expected.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("name", ["densenet121 reduced", "vit_tiny_patch16_224"])
def test_a_target_is_one_class_or_one_an_image(name):
    model, _ = make(name)
    inputs = batch(model)
    first, second = model.grad_cam(inputs, 0), model.grad_cam(inputs, 1)
    assert not torch.allclose(first, second)
    mixed = model.grad_cam(inputs, [0, 1])
    torch.testing.assert_close(mixed, torch.stack([first[0], second[1]]))
    predicted = model(inputs).logits.argmax(1)
    torch.testing.assert_close(model.grad_cam(inputs), model.grad_cam(inputs, predicted))
    torch.testing.assert_close(model.grad_cam(inputs, CLASSES[1]), second)
    with pytest.raises(ValueError, match="'x' is not a class of this model; choose NORMAL, PNEUM"):
        model.grad_cam(inputs, "x")
    with pytest.raises(ValueError, match="it takes class indices, whole numbers."):
        model.grad_cam(inputs, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="target is 2; the classes are 0 to 1"):
        model.grad_cam(inputs, 2)
    with pytest.raises(ValueError, match="3 targets for 2 images"):
        model.grad_cam(inputs, [0, 1, 0])


@pytest.mark.parametrize("name", ["densenet121 reduced", "vit_tiny_patch16_224"])
def test_explaining_leaves_the_model_as_it_was(name):
    model, _ = make(name)
    inputs = batch(model)
    expected = model.grad_cam(inputs, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(inputs, torch.tensor([0, 1])).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, Norms))
    frozen.eval()
    model.requires_grad_(False)
    with torch.inference_mode():
        heatmaps = model.grad_cam(inputs, 1)
    assert model.training
    assert not frozen.training
    torch.testing.assert_close(heatmaps, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients):
        assert torch.equal(parameter.grad, gradient)


# ------------------------------------------------------------------------------------ create_model


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match="'resnet81' is unknown.*did you mean.*resnet18"):
        make("resnet81")
    with pytest.raises(ValueError, match="'densenet21' is unknown.*densenet121"):
        make("densenet21")
    with pytest.raises(ValueError, match="timm does not know"):
        CxrTimmForImageClassification(CxrTimmConfig(architecture="resnet81"))


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match="no option 'depth'; it has .*hidden_sizes"):
        make("baseline", depth=3)


def test_fine_tuning_replaces_the_head_where_the_classes_differ(saved):
    source, _ = make("densenet121 reduced")
    same, _ = create_model(str(saved["densenet121 reduced"]), CLASSES)
    other, processor = create_model(
        str(saved["densenet121 reduced"]), ["A", "B", "C"], loss="focal"
    )
    inputs = batch(source)
    torch.testing.assert_close(same.eval()(inputs).logits, source(inputs).logits)
    assert other(inputs).logits.shape == (2, 3)
    assert other.config.id2label == {0: "A", 1: "B", 2: "C"}
    assert other.config.loss == "focal"
    assert processor.size == {"height": SIZE, "width": SIZE}
    body = source.network.features.state_dict()
    for key, value in other.network.features.state_dict().items():
        assert torch.equal(value, body[key]), key
    assert other.network.classifier.weight.abs().max() > 0


def test_a_swapped_order_of_classes_keeps_what_the_head_learned(saved):
    source, _ = make("baseline")
    swapped, _ = create_model(str(saved["baseline"]), CLASSES[::-1])
    inputs = batch(source)
    torch.testing.assert_close(swapped.eval()(inputs).logits, source(inputs).logits.flip(1))


def test_options_that_a_saved_model_cannot_follow_are_refused(saved):
    with pytest.raises(ValueError, match="has no fitting weights for network.pos_embed"):
        create_model(str(saved["vit_tiny_patch16_224"]), CLASSES, image_size=64)
    with pytest.raises(ValueError, match="has no fitting weights for network.features"):
        create_model(str(saved["densenet121 reduced"]), CLASSES, growth_rate=4)
    with pytest.raises(ValueError, match="num_channels is 3, but .* was trained with 1"):
        create_model(str(saved["baseline"]), CLASSES, num_channels=3)


def test_a_network_with_another_kind_of_head_is_refused():
    with pytest.raises(ValueError, match="'levit_128s', whose head is not a linear layer"):
        create_model("levit_128s", CLASSES)


def test_a_family_without_imagenet_weights_says_so():
    with pytest.raises(ValueError, match="cxr-baseline has no pretrained weights; leave out"):
        create_model("baseline", CLASSES, pretrained=True)


def test_a_folder_without_a_model_and_a_foreign_model_are_named(tmp_path):
    with pytest.raises(OSError, match="neither a folder with a saved model nor a Hub id"):
        create_model(str(tmp_path), CLASSES)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ValueError, match="holds a 'resnet' model"):
        create_model(str(tmp_path), CLASSES)
