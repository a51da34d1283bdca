"""validate.py as a user runs it: models of any folder, on any source, to a report and back."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image
from safetensors.torch import load_file
from test_train import DATA, FLAGS, LAUNCH, PHANTOM

from datasets_scripts.schema import make_features
from evaluation.calibration import apply_operation
from evaluation.metrics import compute_metrics, format_metric
from evaluation.pages.model_card import write_model_card
from evaluation.predictions import read_predictions, read_predictions_by_model
from modeling import create_model, load_model
from recipes.kermany.evidence import collect_evidence
from recipes.kermany.release import release
from recipes.results import write_results
from training.subject import check_fit

SMALL = ["--num_resamples", "200", "--gallery", "2", "--curves", "8"]


@pytest.fixture(scope="module")
def validate(run_python, tmp_path_factory):
    """`validate(*flags, launch=(), env=None)`: validate.py in a fresh process."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*flags, launch=(), env=None):
        args = [*launch, REPO / "validate.py", *flags]
        if "--rescore" not in flags:
            args += ["--cache_dir", cache]
        return run_python(args, env=env, cwd=REPO)

    return run


def save_model(folder, classes=("NORMAL", "OPACITY"), image_size=64, **options):
    torch.manual_seed(len(folder.name))
    if "block_config" not in options:
        options |= {"block_config": [2, 2], "growth_rate": 8}
    model, processor = create_model("densenet121", list(classes), image_size, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A run on phantoms, stored as float16, its operation fitted on altered validation images."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    flags = ["--half", "--operation_variant", "shift", "--threshold_rule", "f1"]
    result = train(*FLAGS, *flags, "--num_train_epochs", "1", "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def report(validate, trained, tmp_path_factory):
    """The report folder of the trained model beside an untrained one."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    other = save_model(tmp_path_factory.mktemp("models") / "untrained")
    result = validate("--model", trained, other, *PHANTOM[:-2], "--output_dir", folder, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_stored_in_half_is_half_the_size_and_is_what_was_scored(trained):
    stored = load_file(trained / "model.safetensors")
    assert all((value.dtype == torch.float16) == (value.ndim > 1) for value in stored.values())
    options = {key: int(value) for key, value in (pair.split("=") for pair in DATA)}
    assert options["num_test"] == len(read_predictions(trained / "predictions_test.csv").labels)
    fitted = read_predictions(trained / "predictions_operation.csv")
    plain = read_predictions(trained / "predictions_validation.csv")
    assert fitted.image_id.tolist() == plain.image_id.tolist()
    assert np.abs(fitted.logits - plain.logits).max() > 1e-3


def test_a_report_holds_predictions_metrics_figures_and_pages(report):
    names = {path.name for path in report.iterdir()}
    assert names == {
        *("predictions.csv", "context.json", "saliency.csv", "randomization.json", "metrics.json"),
        *("gallery", "gallery.json", "figures", "report.html", "report.md"),
    }
    assert len(list((report / "gallery").glob("*.jpg"))) == 2
    for name in ("roc", "pr", "reliability", "decision_curve", "scores_trained", "forest_trained"):
        assert (report / "figures" / f"{name}.svg").stat().st_size > 1000
    metrics = json.loads((report / "metrics.json").read_text())
    text = (report / "report.md").read_text()
    for model in ("trained", "untrained"):
        assert f"{metrics['models'][model]['metrics']['auroc']['value']:.3f}" in text


def test_the_logits_are_those_that_training_wrote_for_the_same_images(report, trained):
    after = read_predictions(trained / "predictions_test.csv")
    found = read_predictions_by_model(report / "predictions.csv")["trained"]
    assert found.image_id.tolist() == after.image_id.tolist()
    np.testing.assert_allclose(found.logits, after.logits, atol=1e-6)
    stated = json.loads((trained / "metrics.json").read_text())["test"]["auroc"]["value"]
    metrics = json.loads((report / "metrics.json").read_text())["models"]["trained"]["metrics"]
    assert metrics["auroc"]["value"] == pytest.approx(stated, abs=1e-9)


def test_metrics_are_at_the_operating_point_of_each_models_configuration(report, trained):
    config = json.loads((trained / "config.json").read_text())
    metrics = json.loads((report / "metrics.json").read_text())["models"]
    operation = metrics["trained"]["operation"]
    assert operation == {name: config[name] for name in operation}
    assert metrics["untrained"]["operation"] is None
    raw = read_predictions_by_model(report / "predictions.csv")["trained"]
    operated = compute_metrics(apply_operation(raw, operation), 200, 0)
    assert metrics["trained"]["metrics"] == operated
    assert metrics["trained"]["uncalibrated"] == compute_metrics(raw, 200, 0)
    assert set(metrics["trained"]["prevalence"]) == {"validation", "em", "true"}


def test_saliency_has_a_row_an_image_and_model_with_energy_and_some_curves(report):
    with open(report / "saliency.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 33
    # Some heatmaps are zero everywhere: there is nothing to delete in order, nor to compare.
    assert 0 < sum(row["deletion"] != "" for row in rows) <= 2 * 8
    assert all(0 < float(row["lung_area"]) < 0.6 for row in rows)
    stages = json.loads((report / "randomization.json").read_text())
    assert stages["trained"][0]["layers"] == "classifier"
    assert 0 < max(entries[0]["n"] for entries in stages.values()) <= 8


def test_a_report_is_rebuilt_from_its_files_alone(report, validate, tmp_path):
    # gallery.json without its X-rays, as results are passed on.
    kept = ("predictions.csv", "context.json", "saliency.csv", "randomization.json", "gallery.json")
    for name in kept:
        shutil.copyfile(report / name, tmp_path / name)
    again = tmp_path / "again"
    flags = ["--output_dir", again, "--num_resamples", "200"]
    result = validate("--rescore", tmp_path / "predictions.csv", *flags)
    assert result.returncode == 0, result.stderr
    assert (again / "metrics.json").read_text() == (report / "metrics.json").read_text()
    for name in ("roc.svg", "roc.png"):
        assert (again / "figures" / name).read_bytes() == (report / "figures" / name).read_bytes()


def test_a_predictions_file_alone_is_scored_as_it_is(trained, validate, tmp_path):
    shutil.copyfile(trained / "predictions_test.csv", tmp_path / "mine.csv")
    out = tmp_path / "out"
    flags = ["--rescore", tmp_path / "mine.csv", "--output_dir", out, "--num_resamples", "200"]
    result = validate(*flags)
    assert result.returncode == 0, result.stderr
    assert "no context.json" in result.stderr
    metrics = json.loads((out / "metrics.json").read_text())["models"]["predictions"]
    expected = compute_metrics(read_predictions(tmp_path / "mine.csv"), 200, 0)
    assert metrics["metrics"] == expected


def test_a_set_of_one_class_is_scored_with_reasons_where_nothing_can_be_said(validate, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "NORMAL").mkdir()
    with open(tmp_path / "set.csv", "w") as file:
        file.write("file,label,patient,view\n")
        for k in range(12):
            pixels = rng.integers(0, 255, (70, 64), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "NORMAL" / f"{k}.png")
            file.write(f"NORMAL/{k}.png,NORMAL,p{k // 2},{'PA' if k % 2 else 'AP'}\n")
    model, out = save_model(tmp_path / "model"), tmp_path / "out"
    flags = ["--dataset", tmp_path / "set.csv", "--output_dir", out, *SMALL]
    result = validate("--model", model, *flags, "--variant", "squashed")
    assert result.returncode == 0, result.stderr
    report = json.loads((out / "metrics.json").read_text())
    assert report["dataset"]["classes"] == {"NORMAL": 12, "OPACITY": 0}
    assert report["dataset"]["variant"] == "squashed"
    metrics = report["models"]["model"]["metrics"]
    assert metrics["auroc"]["value"] is None and "OPACITY" in metrics["auroc"]["reason"]
    assert metrics["specificity"]["value"] is not None
    for page in ("report.md", "report.html"):
        text = re.sub("base64,[A-Za-z0-9+/=]+", "", (out / page).read_text())
        assert "undefined" in text and "NaN" not in text and "nan," not in text


def test_two_processes_count_each_image_once(validate, report, trained, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--model", trained, *PHANTOM[:-2], "--output_dir", tmp_path, *SMALL]
    result = validate(*flags, launch=launch, env={"ACCELERATE_USE_CPU": "true"})
    assert result.returncode == 0, result.stderr
    one = read_predictions_by_model(report / "predictions.csv")["trained"]
    two = read_predictions(tmp_path / "predictions.csv")
    assert two.image_id.tolist() == one.image_id.tolist()
    np.testing.assert_allclose(two.logits, one.logits, atol=1e-5)


def test_validate_runs_under_accelerate_launch(validate, trained, tmp_path):
    flags = ["--model", trained, *PHANTOM[:-2], "--output_dir", tmp_path, "--skip_heatmaps"]
    result = validate(*flags, "--num_resamples", "50", launch=[*LAUNCH])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "saliency.csv").exists() and not (tmp_path / "gallery").exists()


@pytest.mark.parametrize(
    ("classes", "options", "flags", "sentence"),
    [
        (("A", "B"), {}, [], "the data's class 'NORMAL' is none of"),
        (
            ("NORMAL", "OPACITY"),
            {"problem_type": "multi_label_classification"},
            [],
            "but the data have one label an image",
        ),
        (
            ("NORMAL", "OPACITY"),
            {},
            ["--split", "holdout"],
            "has no split 'holdout'; it has train, validation",
        ),
        (("NORMAL", "OPACITY"), {}, ["--variant", "padded"], "original"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    validate, tmp_path, classes, options, flags, sentence
):
    model = save_model(tmp_path / "model", classes, **options)
    result = validate("--model", model, *PHANTOM[:-2], "--output_dir", tmp_path / "out", *flags)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("validate.py: error: ") and sentence in last
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_folder_without_this_projects_image_processor_is_refused(validate, tmp_path):
    model = save_model(tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    result = validate("--model", model, *PHANTOM[:-2], "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    assert "has no image processor of this project" in result.stderr.strip().splitlines()[-1]


def test_a_network_without_feature_maps_has_a_report_without_heatmaps(validate, tmp_path):
    model, processor = create_model("resmlp_12_224", ["NORMAL", "OPACITY"], 32)
    folder = tmp_path / ".blind"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    seeing = save_model(tmp_path / "seeing", image_size=32)
    flags = ["--dataset", "phantom", "--dataset_options", "num_train=8", "num_test=12"]
    for models in ([folder], [folder, seeing]):
        report = tmp_path / f"report{len(models)}"
        result = validate("--model", *models, *flags, "--output_dir", report, *SMALL)
        assert result.returncode == 0, result.stderr
        assert "No feature maps, and so no heatmaps, of .blind." in result.stderr
        assert (report / "report.html").exists()
        metrics = json.loads((report / "metrics.json").read_text())
        assert ".blind" in metrics["models"]
        assert (report / "saliency.csv").exists() == (seeing in models)
        assert (report / "gallery.json").exists() == (seeing in models)


def test_two_models_of_one_name_are_refused(validate, tmp_path):
    models = [save_model(tmp_path / name / "model") for name in ("a", "b")]
    result = validate("--model", *models, *PHANTOM[:-2], "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    assert "two models are called 'model'" in result.stderr


# --------------------------------------------------------------------------- pages from files


def test_the_results_page_is_made_of_the_runs_and_reports(report, trained, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "kermany"
    small = ("metrics.json", "training_args.json", "dataset.json")
    small += ("history.csv", "predictions_test.csv")
    for run in ("seeds/densenet121-1", "seeds/baseline-1", "search/strong", "leak/split-by-image"):
        (folder / run).mkdir(parents=True)
        for name in small:
            shutil.copyfile(trained / name, folder / run / name)
    shutil.copytree(report, folder / "reports" / "test")
    monkeypatch.chdir(tmp_path)
    write_results("results", "RESULTS.md")
    page = (tmp_path / "RESULTS.md").read_text()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert page.count(format_metric(metrics["test"]["auroc"])) == 3  # two seeds and the leak
    assert format_metric(metrics["operation"]["auroc"]) in page
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert len(linked) > 10
    assert all((tmp_path / path).is_file() for path in linked)
    assert "None" not in page and "nan" not in page


def test_release_takes_the_best_run_on_altered_validation_images(trained, tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run, auroc in zip(runs, (0.7, 0.8)):
        shutil.copytree(trained, run, ignore=shutil.ignore_patterns("checkpoints"))
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["operation"]["auroc"]["value"] = auroc
        metrics["test"]["auroc"]["value"] = 1 - auroc  # must not matter
        (run / "metrics.json").write_text(json.dumps(metrics))
    assert release(runs, tmp_path / "cxr-densenet121") == runs[1]
    load_model(str(tmp_path / "cxr-densenet121"))
    del metrics["operation"]
    (runs[0] / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="use --operation_variant"):
        release(runs, tmp_path / "other")


def test_a_report_becomes_evidence_on_the_models_card(report, trained, tmp_path):
    model = tmp_path / "trained"
    shutil.copytree(trained, model, ignore=shutil.ignore_patterns("checkpoints"))
    (entry,) = collect_evidence(model, [report])
    stated = json.loads((report / "metrics.json").read_text())["models"]["trained"]["metrics"]
    assert entry["name"] == "report" and entry["metrics"]["auroc"] == stated["auroc"]
    (model / "evidence.json").write_text(json.dumps([entry]))
    write_model_card(model, "org/trained")
    assert format_metric(stated["auroc"]) in (model / "README.md").read_text()
    with pytest.raises(ValueError, match="has no model 'other'"):
        collect_evidence(tmp_path / "other", [report])


@pytest.mark.parametrize(
    "given, hint",
    [
        (("abnormal", "ok"), "label_map={abnormal: ..., ok: ...}"),
        (("COVID", "healthy"), "label_map={COVID: ..., healthy: NORMAL}"),
        (("normal", "TB"), "label_map={NORMAL: NORMAL, TB: ...}"),
        (("COVID", "TB", "healthy"), "label_map={COVID: ..., TB: ..., healthy: ...}"),
    ],
)
def test_other_names_of_classes_are_paired_where_that_is_sure(given, hint):
    config = SimpleNamespace(
        image_size=64,
        num_channels=1,
        num_labels=2,
        id2label={0: "NORMAL", 1: "PNEUMONIA"},
        problem_type="single_label_classification",
    )
    processor = SimpleNamespace(size={"height": 64, "width": 64}, num_channels=1)
    split = SimpleNamespace(features=make_features(given))
    with pytest.raises(ValueError, match=f"none of m's: NORMAL, PNEUMONIA.*{re.escape(hint)}"):
        check_fit("m", config, processor, split)
