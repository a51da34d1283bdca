"""validate.py --fit_on: the operating point of an imported model, from a split it has not seen."""

import json

import pytest
import torch
import torchvision
from test_datasets_chestxray14 import write_list, write_nih

import validate
from evaluation.calibration import NO_OPERATION, fit_operation
from evaluation.metrics import compute_metrics
from evaluation.predictions import read_predictions, read_predictions_by_model
from modeling import load_model
from modeling.convert import convert_chexnet

PATIENTS = 16


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """`case(*flags)`: validate.py on a converted network, random weights, of 12 training images."""
    folder = tmp_path_factory.mktemp("fit")
    root, names = write_nih(folder / "nih", patients=PATIENTS)
    trained, validation = names[:12], names[12:24]
    write_list(folder / "trained.txt", trained)
    write_list(root / "validation_list.txt", validation)
    torch.manual_seed(0)
    network = torchvision.models.densenet121(num_classes=14)
    torch.save(network.state_dict(), folder / "m.pth.tar")
    convert_chexnet(folder / "m.pth.tar", folder / "chexnet", [folder / "trained.txt"])

    def run(*flags):
        data = ["--dataset", "chestxray14", "--dataset_path", root, "--skip_heatmaps"]
        data += ["--dataset_options", "validation_list=validation_list.txt"]
        model = ["--model", folder / "chexnet", "--cache_dir", folder / "cache"]
        flags = [*model, *data, "--num_resamples", "20", *flags]
        validate.main(list(map(str, flags)))

    return run


def test_an_imported_model_gets_its_operating_point_from_a_split(
    case, tmp_path, no_accelerator, monkeypatch
):
    monkeypatch.setattr("evaluation.validation._draw", lambda *args: None)  # seconds a figure
    fitted = tmp_path / "fitted"
    rule = ["--threshold_rule", "f1", "--abstain_share", "0.2"]
    case("--output_dir", tmp_path / "out", "--fit_on", "validation", "--fitted_dir", fitted, *rule)
    config = load_model(str(fitted))[0].config
    operation = {name: getattr(config, name) for name in NO_OPERATION}
    predictions = read_predictions(fitted / "predictions_validation.csv")
    assert len(predictions.labels) == 12 and predictions.split == "validation"
    assert operation == fit_operation(predictions, "f1", abstain_share=0.2)
    assert len(operation["thresholds"]) == len(operation["abstention"]) == 14
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]["fitted"]
    assert report["operation"] == operation and report["metrics"]["n"] == 8
    raw = read_predictions_by_model(tmp_path / "out" / "predictions.csv")["fitted"]
    assert report["uncalibrated"] == compute_metrics(raw, 20)
    assert report["metrics"]["macro"]["log_loss"] != report["uncalibrated"]["macro"]["log_loss"]
    # It still knows what it was trained on.
    with pytest.raises(ValueError, match="was trained on patients of 12 of these 12 images"):
        case("--model", fitted, "--split", "train", "--output_dir", tmp_path / "again")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--fit_on", "train"], "was trained on patients of 12 of these 12 images, as 00000001_0"),
        (["--fit_on", "test"], "4 patients are in the splits 'test' and 'test', as 13; fit on pat"),
        (["--fit_on", "val"], "has no split 'val'; it has train, validation, test."),
    ],
)
def test_a_split_that_cannot_be_fitted_on_is_refused(
    case, tmp_path, no_accelerator, flags, sentence
):
    with pytest.raises(ValueError, match=sentence):
        case(*flags, "--fitted_dir", tmp_path / "fitted", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "fitted").exists()


def test_fitting_needs_a_folder_and_one_model(case, capsys):
    for flags, sentence in (
        (["--fit_on", "validation"], "--fit_on SPLIT and --fitted_dir FOLDER go together."),
        (["--fit_on", "v", "--fitted_dir", "f", "--model", "a", "b"], "--fit_on fits one --model."),
    ):
        with pytest.raises(SystemExit):
            case(*flags)
        assert sentence in capsys.readouterr().err
