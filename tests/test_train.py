"""train.py as a user runs it: in processes of its own, to the end, killed, resumed, pushed."""

import csv
import hmac
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save

from datasets_scripts import load_cxr_dataset
from evaluation.calibration import apply_operation, fit_operation
from evaluation.metrics import compute_metrics
from evaluation.predictions import read_predictions
from modeling import create_model, load_model
from training import publish
from training.data import PixelDataset
from training.inference import make_loader

REPO = Path(__file__).parent.parent
DATA = ["num_train=96", "num_validation=32", "num_test=33", "image_size=64"]
PHANTOM = ["--dataset", "phantom", "--dataset_options", *DATA, "--image_size", "64"]
FLAGS = [
    *PHANTOM,
    *("--model_options", "block_config=[2,2]", "growth_rate=8", "dropout=0.2"),
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "8"),
    *("--class_weights", "balanced", "--ema_decay", "0.9", "--checkpointing_steps", "5"),
]
# families that a DenseNet's folder needs no code of
OTHERS = tuple(
    f"{name}_cxr.py"
    for name in ("baseline", "conformer", "detection", "exported", "small_vit", "timm")
)
FIGURES = ("training_curves", "confusion_matrix", "roc")
LAUNCH = ["-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_cpu_threads_per_process=1"]


# ----------------------------------------------------------------------------------- the run folder


def test_a_run_ends_with_model_predictions_metrics_figures_and_card(finished):
    folder, _, result = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("checkpoints/")}
    assert names == {
        *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
        *(path.name for path in (REPO / "modeling").glob("*_cxr.py") if path.name not in OTHERS),
        *("predictions_validation.csv", "predictions_test.csv", "metrics.json", "history.csv"),
        *("training_args.json", "dataset.json", ".salt"),
        *(f"figures/{name}.png" for name in FIGURES),
        *(f"figures/{name}.svg" for name in FIGURES),
    }
    for figure in (folder / "figures").glob("*.png"):
        with Image.open(figure) as image:
            assert min(image.size) > 300
    assert "images/s" in result.stderr
    assert "test           33      33        33" in result.stderr  # the table of splits


def test_metrics_and_card_are_those_of_the_predictions_file(finished):
    folder, _, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions = read_predictions(folder / "predictions_test.csv")
    assert metrics["uncalibrated_test"] == compute_metrics(predictions, seed=42)
    operation = fit_operation(read_predictions(folder / "predictions_validation.csv"))
    operated = apply_operation(predictions, operation)
    assert metrics["test"] == compute_metrics(operated, seed=42)
    assert metrics["test"]["n"] == 33
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in operation} == operation
    model, _ = load_model(str(folder))
    assert math.isfinite(config["outlier_threshold"]) and model.outlier_detector is not None
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert metrics["test"]["auroc"]["value"] in [result.metric_value for result in results]


def assert_predictions_are_the_saved_models(folder):
    options = {key: int(value) for key, value in (pair.split("=") for pair in DATA)}
    dataset = load_cxr_dataset("phantom", **options)["test"]
    model, processor = create_model(str(folder), ["NORMAL", "OPACITY"])
    with torch.no_grad():
        logits = model.eval()(processor(list(dataset["image"])).pixel_values).logits
    predictions = read_predictions(folder / "predictions_test.csv")
    assert predictions.image_id.tolist() == list(dataset["image_id"])
    assert predictions.labels.tolist() == list(dataset["label"])
    np.testing.assert_allclose(predictions.logits, logits.numpy(), atol=1e-5)


def test_predictions_are_what_the_saved_model_says_of_the_image_files(finished):
    assert_predictions_are_the_saved_models(finished[0])


def test_nothing_that_is_pushed_names_a_path_of_this_machine(finished):
    folder, hub, _ = finished
    for name in hub.files("org/cxr-densenet121"):
        if name.endswith((".json", ".md", ".csv", ".py")):
            text = hub.read("org/cxr-densenet121", name).decode()
            assert str(folder.parent) not in text, name
            assert str(Path.home()) not in text, name


def test_the_best_epoch_is_the_one_of_highest_validation_auroc(finished):
    folder, _, _ = finished
    with open(folder / "history.csv") as file:
        history = list(csv.DictReader(file))
    metrics = json.loads((folder / "metrics.json").read_text())
    aurocs = [float(row["validation_auroc"]) for row in history]
    assert len(aurocs) == 2
    assert aurocs[metrics["best_epoch"] - 1] == max(aurocs)
    assert metrics["validation"]["auroc"]["value"] == pytest.approx(max(aurocs), abs=1e-12)


# ---------------------------------------------------------------------------------- kill and resume


def test_a_killed_run_resumes_to_the_same_bits(finished, train, tmp_path):
    folder = tmp_path / "killed"
    flags = [*FLAGS, "--output_dir", folder]
    command = [sys.executable, "train.py", *map(str, flags), "--cache_dir", str(tmp_path / "cache")]
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.DEVNULL)
    checkpoint = folder / "checkpoints" / "step_00000005"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((checkpoint / "progress.json").read_text())["batch"] == 5  # of 12
    assert not (folder / "model.safetensors").exists()
    half_written = folder / "checkpoints" / ".partial_00000099"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"half")

    refused = train(*flags)
    assert refused.returncode != 0
    assert "holds a run already" in refused.stderr.splitlines()[-1]
    other = train(*flags, "--resume_from_checkpoint", "--learning_rate", "0.1")
    assert other.returncode != 0
    assert "learning_rate is 0.1, but" in other.stderr.splitlines()[-1]
    result = train(*flags, "--resume_from_checkpoint")
    assert result.returncode == 0, result.stderr
    unbroken = finished[0]
    for name in ("model.safetensors", "predictions_test.csv", "predictions_validation.csv"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    for name, state in load_file(unbroken / "model.safetensors").items():
        assert torch.isfinite(state).all(), name

    def history(run):
        with open(run / "history.csv") as file:
            rows = list(csv.DictReader(file))
        return [
            {key: row[key] for key in row if key not in ("seconds", "images_per_second")}
            for row in rows
        ]

    assert history(folder) == history(unbroken)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_at_a_checkpoint_loses_nothing(train, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", disk], check=True)
    try:
        folder = disk / "run"  # a checkpoint of the baseline takes 5 to 6 MB, and two are kept
        flags = [*PHANTOM, "--model", "baseline", "--num_train_epochs", "2"]
        flags += ["--checkpointing_steps", "1", "--output_dir", folder]
        result = train(*flags)
        assert result.returncode != 0
        last = result.stderr.splitlines()[-1]
        assert last.startswith("train.py: error: the checkpoint of step 3")
        assert "No space left" in last or "unexpected pos" in last  # safetensors', torch.save's
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["step_00000001", "step_00000002"]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        resumed = train(*flags, "--resume_from_checkpoint")
        assert resumed.returncode == 0, resumed.stderr
        assert (folder / "model.safetensors").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------------------------ two processes


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def test_two_processes_count_each_test_image_exactly_once(train, tmp_path):
    folder = tmp_path / "two"
    env = {"ACCELERATE_USE_CPU": "true"}
    result = train(*FLAGS, "--output_dir", folder, launch=TORCHRUN, env=env)
    assert result.returncode == 0, result.stderr
    assert_predictions_are_the_saved_models(folder)
    assert load_model(str(folder))[0].outlier_detector is not None  # the first process's alone
    predictions = read_predictions(folder / "predictions_test.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["n"] == 33
    assert metrics["device"] == f"2 x cpu on {os.cpu_count()} cores"
    assert metrics["uncalibrated_test"] == compute_metrics(predictions, seed=42)


def test_processes_that_do_not_know_of_each_other_are_refused(train, tmp_path):
    result = train(*FLAGS, "--output_dir", tmp_path / "run", launch=TORCHRUN)
    assert result.returncode != 0
    assert "ACCELERATE_USE_CPU=true" in result.stderr
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ the Hub

LOAD = """
import json, sys
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline

model = AutoModel.from_pretrained("org/cxr-densenet121", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("org/cxr-densenet121", trust_remote_code=True)
pixel_values = processor(sys.argv[1], return_tensors="pt")["pixel_values"]
with torch.no_grad():
    logits = model(pixel_values).logits
classify = pipeline("image-classification", "org/cxr-densenet121", trust_remote_code=True)
print(json.dumps([logits.tolist(), classify(sys.argv[1])]))
"""


def test_a_pushed_model_loads_by_its_id_with_an_empty_cache(finished, run_python, tmp_path):
    folder, hub, _ = finished
    script, image = tmp_path / "load.py", tmp_path / "x.png"
    script.write_text(LOAD)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80), np.uint8)).save(image)
    env = {**hub.env, "HF_HOME": str(tmp_path / "empty")}
    result = run_python([script, image], env=env, isolated=True)
    assert result.returncode == 0, result.stderr
    logits, scores = json.loads(result.stdout.splitlines()[-1])
    model, processor = load_model(str(folder))
    with torch.no_grad():
        expected = model(processor(image).pixel_values)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-6)
    best = expected.probabilities.argmax().item()
    assert scores[0]["label"] == model.config.id2label[best]
    assert scores[0]["score"] == pytest.approx(expected.probabilities[0, best].item(), abs=1e-6)


def test_a_push_holds_everything_but_the_checkpoints(finished):
    folder, hub, _ = finished
    pushed = {name for name in hub.files("org/cxr-densenet121") if name != ".gitattributes"}
    local = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert pushed == {name for name in local if not name.startswith(("checkpoints/", "."))}
    card = hub.read("org/cxr-densenet121", "README.md").decode()
    assert 'from_pretrained("org/cxr-densenet121"' in card


def test_a_push_hides_the_names_of_images_and_patients_and_changes_nothing_else(finished):
    folder, hub, result = finished
    said = (
        "org/cxr-densenet121 is public: pushed will be the model, its card and figures, and label"
    )
    assert said in result.stderr and "under salted hashes for image and patient." in result.stderr
    for split in ("validation", "test"):
        own = read_predictions(folder / f"predictions_{split}.csv")
        pushed = hub.read("org/cxr-densenet121", f"predictions_{split}.csv")
        (folder / "pushed.csv").write_bytes(pushed)
        public = read_predictions(folder / "pushed.csv")
        (folder / "pushed.csv").unlink()
        assert not {*own.image_id, *own.patient_id} & {*public.image_id, *public.patient_id}
        assert len({*zip(own.patient_id, public.patient_id)}) == len({*own.patient_id})
        np.testing.assert_array_equal(public.logits, own.logits)
        np.testing.assert_array_equal(public.labels, own.labels)
    everything = b"".join(
        hub.read("org/cxr-densenet121", name)
        for name in hub.files("org/cxr-densenet121")
        if not name.endswith(".safetensors")
    )
    assert not [name for name in own.image_id if name.encode() in everything]


def test_what_else_lies_in_the_folder_is_not_pushed(tmp_path, monkeypatch):
    pushed = []

    def create_commit(self, repo_id, operations, commit_message):
        pushed.extend(operations)
        return SimpleNamespace(commit_url="")

    monkeypatch.setattr(publish.HfApi, "create_commit", create_commit)
    (tmp_path / "report").mkdir()
    table = "image_id,patient_id,label,logit_A,logit_B,split\nDOE_1.png,DOE,A,1.0,2.0,test\n"
    for name in ("predictions_test.csv", "predictions_test.csv.bak", "report/predictions.csv"):
        (tmp_path / name).write_text(table)
    for name in ("README.md", "hparams.yml", "notes.csv"):
        (tmp_path / name).write_text("DOE")
    (tmp_path / ".salt").write_text("")  # of a full disk
    publish.push_run(tmp_path, "org/x", publish_ids=False)
    assert [one.path_in_repo for one in pushed] == ["README.md", "predictions_test.csv"]
    content = pushed[1].path_or_fileobj
    assert b"DOE" not in content
    assert hmac.new(b"", b"DOE", "sha256").hexdigest()[:16].encode() not in content
    again = [*pushed]
    publish.push_run(tmp_path, "org/x", publish_ids=False)
    assert pushed[len(again) + 1].path_or_fileobj == content


def test_a_private_push_to_a_public_repository_is_refused(finished, run_python):
    _, hub, _ = finished
    code = """
import logging
from training.publish import check_hub
logging.basicConfig(level=logging.INFO, format="%(message)s")
check_hub("org/secret", True, True)
try:
    check_hub("org/cxr-densenet121", True, False)
except ValueError as error:
    print(error)
"""
    result = run_python(code, env=hub.env, cwd=REPO)
    assert result.stdout == (
        "org/cxr-densenet121 is public, against --hub_private; change that on the Hub, or name "
        "another --hub_model_id.\n"
    )
    assert "org/secret is private: " in result.stderr
    assert "under the names of image and patient." in result.stderr


def test_a_dropped_push_keeps_the_model_and_the_same_command_pushes_again(
    finished, train, new_hub, tmp_path
):
    folder, _, _ = finished
    hub = new_hub(tmp_path / "hub")
    again = tmp_path / "again"
    subprocess.run(["cp", "-r", folder, again], check=True)
    flags = [*FLAGS, "--output_dir", again, "--resume_from_checkpoint", "--push_to_hub"]
    flags += ["--hub_model_id", "org/again"]
    env = {**hub.env, "HF_HUB_DISABLE_XET": "1"}
    hub.drop_next("POST", "/api/models/org/again/commit", 100)
    dropped = train(*flags, env=env)
    assert dropped.returncode != 0
    assert "the upload to org/again broke off" in dropped.stderr.splitlines()[-1]
    assert "--resume_from_checkpoint" in dropped.stderr.splitlines()[-1]
    assert set(hub.files("org/again")) <= {".gitattributes"}
    pushed = train(*flags, env=env)
    assert pushed.returncode == 0, pushed.stderr
    assert hub.read("org/again", "model.safetensors") == (folder / "model.safetensors").read_bytes()


def test_a_wrong_token_stops_before_the_training(train, new_hub, tmp_path):
    hub = new_hub(tmp_path / "hub")
    flags = [*FLAGS, "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", "org/x"]
    result = train(*flags, env={**hub.env, "HF_TOKEN": "hf_wrong"})
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("train.py: error: cannot push to org/x")
    assert "epoch" not in result.stderr


def test_pretrained_weights_come_from_the_hub_with_one_channel(new_hub, run_python, tmp_path):
    hub = new_hub(tmp_path / "hub")
    torch.manual_seed(0)
    weights = timm.create_model("densenet121", num_classes=1000).state_dict()
    hub.add_files("timm/densenet121.ra_in1k", {"model.safetensors": save(weights)})
    code = (
        "import torch, sys; from modeling import create_model; "
        "model, _ = create_model('densenet121', ['A', 'B'], 64, pretrained=True); "
        "torch.save(model.network.state_dict(), sys.stdout.buffer)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.env},
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    loaded = torch.load(io.BytesIO(result.stdout))
    first = loaded["features.conv0.weight"]
    torch.testing.assert_close(first, weights["features.conv0.weight"].sum(1, keepdim=True))
    name = "features.denseblock3.denselayer7.conv2.weight"
    assert torch.equal(loaded[name], weights[name])


# -------------------------------------------------------------------------------- other ways to run


def test_fine_tuning_a_saved_run_starts_from_its_weights(finished, train, tmp_path):
    flags = [*PHANTOM, "--model", finished[0], "--num_train_epochs", "2", "--keep", "last"]
    flags += ["--learning_rate", "0", "--output_dir", tmp_path / "tuned"]
    result = train(*flags, launch=[*LAUNCH, "--num_processes=2"])
    assert result.returncode == 0, result.stderr
    # Accelerate's launcher starts one process on CPUs, which the log says.
    assert "torchrun --nproc_per_node 2" in result.stderr
    metrics = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert metrics["device"] == f"1 x cpu on {os.cpu_count()} cores"
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    for name, value in load_file(finished[0] / "model.safetensors").items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(tuned[name], value), name
    # The epochs are alike: the first would be the best.
    assert metrics["best_epoch"] == 2


def test_flags_from_yaml_are_checked_like_typed_ones(train, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "dataset_options: {num_train: 24, num_validation: 8, num_test: 8, image_size: 64}\n"
        "image_size: 64\nnum_train_epochs: 5\nmodel: baseline\n"
        "model_options: {hidden_sizes: [4, 8]}\nloss: focal\n"
    )
    folder = tmp_path / "run"
    result = train("--config", recipe, "--num_train_epochs", "1", "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    args = json.loads((folder / "training_args.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert args["num_train_epochs"] == 1  # the command line wins
    assert config["hidden_sizes"] == [4, 8]
    assert config["loss"] == "focal"
    recipe.write_text("epochs: 3\n")
    result = train("--config", recipe, "--output_dir", tmp_path / "other")
    assert result.returncode != 0
    assert "--epochs" in result.stderr.splitlines()[-1]


def test_a_multi_label_set_trains_to_the_end(train, tmp_path):
    rng = np.random.default_rng(0)
    rows = ["file,patient,split,labels"]
    kinds = ["", "Effusion", "Mass", "Effusion|Mass"]
    for index in range(80):
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(tmp_path / f"{index}.png")
        split = ("train", "train", "validation", "test")[index // 20]
        labels = kinds[index % 4] + ("|Hernia" if index == 3 else "")  # of training alone
        rows.append(f"{index}.png,p{index},{split},{labels}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    flags = ["--dataset", tmp_path / "all.csv", "--model", "baseline"]
    flags += ["--model_options", "hidden_sizes=[4,8]", "--outlier_detector", "none"]
    flags += ["--image_size", "64", "--num_train_epochs", "1", "--class_weights", "balanced"]
    result = train(*flags, "--output_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "lacks images with or without Hernia: the AUROC that chooses" in result.stderr
    predictions = read_predictions(tmp_path / "run" / "predictions_test.csv")
    assert predictions.multi_label
    assert predictions.class_names == ("Effusion", "Hernia", "Mass")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["thresholds"][1] == 0.5 and config["outlier_threshold"] is None
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    aurocs = {name: c["auroc"]["value"] for name, c in metrics["validation"]["classes"].items()}
    assert aurocs["Hernia"] is None
    with open(tmp_path / "run" / "history.csv") as file:
        (row,) = csv.DictReader(file)
    chosen_by = (aurocs["Effusion"] + aurocs["Mass"]) / 2
    assert float(row["validation_auroc"]) == pytest.approx(chosen_by, abs=1e-9)


@pytest.mark.parametrize(
    ("images", "batch_size", "training", "evaluation"),
    [(9, 4, [4, 4], [4, 4, 1]), (8, 4, [4, 4], [4, 4]), (10, 4, [4, 4, 2], [4, 4, 2])],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_leaves_out_a_last_batch_of_one(
    images, batch_size, training, evaluation, weighted
):
    columns = {"image_id": list("abcdefghij"), "patient_id": list("abcdefghij")}
    columns |= {"label": [0, 1] * 5, "weight": [1.0, 2.0] * 5, "source": ["x"] * 10}
    split = Dataset.from_dict({name: values[:images] for name, values in columns.items()})
    split = split.cast_column("label", ClassLabel(names=["A", "B"]))
    split = split if weighted else split.remove_columns("weight")
    pixels = PixelDataset(split, np.zeros((images, 32, 32), np.uint16))
    for seed, sizes in ((0, training), (None, evaluation)):
        loader = make_loader(pixels, batch_size, seed)
        assert [len(batch["index"]) for batch in loader] == sizes
        assert len(loader) == len(sizes)


def test_a_single_image_at_the_end_of_an_epoch_ends_no_training(train, tmp_path):
    data = ["num_train=9", "num_validation=8", "num_test=8", "image_size=64"]
    flags = ["--dataset", "phantom", "--dataset_options", *data, "--image_size", "32"]
    flags += ["--model", "densenet121", "--per_device_train_batch_size", "4"]
    result = train(*flags, "--num_train_epochs", "1", "--output_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_real_x_rays_train_for_an_epoch(train, cxr_data, tmp_path):
    folder = tmp_path / "run"
    flags = ["--dataset", cxr_data / "chest_xray", "--model", "baseline", "--image_size", "64"]
    flags += ["--max_train_samples", "300", "--max_eval_samples", "100", "--num_train_epochs", "2"]
    result = train(*flags, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    assert "5,824" in result.stderr  # unique images, the paper's number
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["n"] == 100
    assert metrics["test"]["auroc"]["value"] > 0.7
    data = json.loads((folder / "dataset.json").read_text())
    assert data["source"] == "kermany"
