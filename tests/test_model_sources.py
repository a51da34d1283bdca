"""Which files a model is loaded from: a folder, or a Hub model, one commit of it; no pickles."""

import pytest
import torch
import transformers
from space_server import save_tiny

from modeling import load_model

SHOW = """
import sys
from modeling import load_model
from prediction.version import model_version

first, second, missing = sys.argv[1:]
for name in (f"org/tiny@{first}", f"org/tiny@{second}", "org/tiny"):
    model, processor = load_model(name)
    print(processor.size["height"], float(model.network.classifier.bias[0]), model_version(name))
try:
    load_model(f"org/tiny@{missing}")
except OSError as error:
    print(error)
"""


def test_a_commit_of_a_hub_model_is_loaded_by_its_name(hub, tmp_path, run_python):
    folder, commits = save_tiny(tmp_path), []
    model, processor = load_model(str(folder))
    for number in (1, 2):
        torch.nn.init.constant_(model.network.classifier.bias, number)
        model.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        commits.append(hub.add_files("org/tiny", files))
    run = run_python(["-c", SHOW, *commits, 40 * "0"], env=hub.env)
    first, second, newest, problem = run.stdout.splitlines()
    assert [line.split()[1] for line in (first, second, newest)] == ["1.0", "2.0", "2.0"]
    versions = [line.split()[2] for line in (first, second, newest)]
    assert versions[0] != versions[1] == versions[2]
    assert all(version.startswith("org/tiny@") for version in versions)
    assert 40 * "0" in problem and problem.endswith(".")


ENCODERS = """
import sys
from embedding.encoders import load_encoder

for name in sys.argv[1:]:
    encoder = load_encoder(name)
    print(encoder.revision, float(next(encoder.network.parameters()).detach().flatten()[0]))
"""


def test_an_encoder_of_a_commit_is_loaded_by_its_name(hub, tmp_path, run_python):
    own, vit = save_tiny(tmp_path), tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16,
    )  # fmt: skip
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(vit)
    made = {"own": (own, load_model(str(own))[0]), "vit": (vit, transformers.ViTModel(config))}
    names, expected = [], []
    for kind, (folder, model) in made.items():
        for number in (1.0, 2.0):
            torch.nn.init.constant_(next(model.parameters()), number)
            model.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
            commit = hub.add_files(f"org/{kind}", files)
            names.append(f"org/{kind}@{commit}")
            expected.append(f"{commit} {number}")
    run = run_python(["-c", ENCODERS, *names], env=hub.env)
    assert run.stdout.splitlines() == expected


def test_pickled_weights_are_not_loaded(tmp_path):
    folder = save_tiny(tmp_path)
    model, _ = load_model(str(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_model(str(folder))
