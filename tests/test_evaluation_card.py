"""The model card and the results table say what a run's files say."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_folders import NAMES, make_run

from evaluation.metrics import METRIC_NAMES, compute_metrics, format_metric
from evaluation.pages.model_card import write_model_card
from evaluation.predictions import read_predictions, write_predictions
from evaluation.table import main, replace_block, results_table

ROOT = Path(__file__).parent.parent


def test_the_hubs_parser_reads_the_numbers_back(tmp_path):
    files = make_run(tmp_path / "cxr-densenet121")
    path = write_model_card(tmp_path / "cxr-densenet121", repo_id="org/cxr-densenet121")
    card = ModelCard.load(path)
    assert path == tmp_path / "cxr-densenet121" / "README.md"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.model_name == "cxr-densenet121"
    read = {result.metric_name: result.metric_value for result in card.data.eval_results}
    test = files["metrics"]["test"]
    assert read == {title: test[key]["value"] for key, title in METRIC_NAMES.items()}
    assert {result.dataset_type for result in card.data.eval_results} == {"kermany"}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}


def test_the_text_holds_what_a_reader_needs(tmp_path):
    files = make_run(tmp_path / "run")
    text = write_model_card(tmp_path / "run", repo_id="org/name").read_text()
    for split in ("validation", "test"):
        for key in METRIC_NAMES:
            assert format_metric(files["metrics"][split][key]) in text
    squeezed = " ".join(text.split())
    normal = files["dataset"]["splits"]["test"]["classes"]["NORMAL"]
    for part in (
        'AutoModel.from_pretrained("org/name", trust_remote_code=True)',
        'pipeline("image-classification", model="org/name", trust_remote_code=True)',
        "Research only, not a medical device",
        "PNEUMONIA counts as positive",
        f"| test | 120 | 119 | 33 | {normal} ({normal / 120:.1%}) |",
        "1,234,567 parameters, 15.1 minutes on cpu; the weights are those of epoch 4",
        "| `learning_rate` | 0.0005 |",
        "| `note` | a\\|b |",
        "128 x 128",
        "Nothing is recorded of where these images come from",
        "The run scored the test split at its end, and chose nothing by it.",
        "nothing in them warns",
        "MODEL_ID=org/name python app.py",
        "Decision | the class with the largest probability",
        "| 12a | How the data were divided |",
    ):
        assert part in squeezed, part
    assert "](figures/roc.png)" in text
    assert "confusion_matrix.png" not in text  # this run has no such figure
    assert not any(word in text for word in ("None", "nan", str(tmp_path)))
    assert "External validation and shortcuts" not in text  # nor has it evidence
    assert "class_weights" not in text and "| 13 " not in text
    assert "| 6a |" not in text  # nothing is known of any centre
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)


def test_what_was_fitted_on_validation_is_stated(tmp_path):
    files = make_run(tmp_path)
    calibration = {"method": "temperature", "temperature": 1.234, "n": 80}
    calibration["log_loss"] = {"identity": 0.3142, "temperature": 0.2718}
    operation = {
        "calibration": calibration,
        "thresholds": [0.4235],
        "abstention": [[0.3, 0.6125]],
        "prevalence": [0.257, 0.743],
    }
    raw = compute_metrics(read_predictions(tmp_path / "predictions_validation.csv"), 20)
    metrics = files["metrics"] | {"uncalibrated_test": raw}
    ppv = metrics["validation"]["ppv_at_prevalence"]["0.1"]
    fixed = {"value": 0.31, "low": 0.25, "high": 0.375}
    metrics["test"]["ppv_at_prevalence"] = {"0.1": fixed}
    (tmp_path / "config.json").write_text(json.dumps(files["config"] | operation))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = " ".join(write_model_card(tmp_path).read_text().split())
    for part in (
        "**Decision rule:** a probability of at least 0.423 for PNEUMONIA; PNEUMONIA counts as",
        "| Calibration | temperature scaling, T = 1.234 |",
        "| Abstention | a probability of 0.300 to 0.613 for PNEUMONIA |",
        "| Share in validation | PNEUMONIA 74.3% |",
        "80 validation images: identity 0.3142, temperature 0.2718.",
        "model.probabilities(logits) # calibrated",
        "model.probabilities(logits, prevalence=[0.9, 0.1]) # where 10 % have PNEUMONIA",
        "Calibration, decision thresholds and abstention were fitted on it.",
        f"| PPV where 10% have it | {format_metric(ppv)} | 0.310 [0.250, 0.375] |",
    ):
        assert part in text, part
    for key in ("brier", "ece", "log_loss"):
        after = files["metrics"]["test"][key]
        row = f"| {METRIC_NAMES[key]} | {format_metric(raw[key])} | {format_metric(after)} |"
        assert row in text


def test_evidence_is_a_table_and_a_fall_is_said(tmp_path):
    files = make_run(tmp_path)
    auroc = files["metrics"]["test"]["auroc"]
    near = {"value": auroc["value"] - 0.001, "low": auroc["low"], "high": auroc["high"]}
    evidence = [
        {
            "name": "adults <x|y>",
            "n": 1234,
            "patients": 1000,
            "metrics": {"auroc": {"value": 0.51, "low": 0.48, "high": 0.54}},
            "note": "Another hospital.",
        },
        {"name": "no borders", "n": 120, "patients": 60, "metrics": {"auroc": near}},
        {"name": "same", "n": 120, "patients": 60, "metrics": {"auroc": auroc}},
        {
            "name": "sick only",
            "n": 9,
            "patients": 9,
            "metrics": {"auroc": {"value": None, "reason": "needs images with and without X"}},
        },
    ]
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    text = write_model_card(tmp_path).read_text()
    section = text.split("## External validation and shortcuts")[1].split("## Limitations")[0]
    squeezed = " ".join(section.split())
    stated = f"{auroc['value']:.3f}"
    for part in (
        f"| test split | 120 | {files['metrics']['test']['patients']} | {format_metric(auroc)} |",
        "| adults &lt;x\\|y> | 1,234 | 1,000 | 0.510 [0.480, 0.540] | - | - | - | - |",
        f"- adults &lt;x|y>: AUROC falls by {auroc['value'] - 0.51:.3f}, from {stated} to 0.510; "
        "the two intervals do not overlap. Another hospital.",
        f"- no borders: AUROC falls by 0.001, from {stated} to {near['value']:.3f}; the two "
        "intervals overlap.",
        "| sick only | 9 | 9 | undefined (note 1) |",
        "Note 1: needs images with and without X.",
    ):
        assert part in squeezed, part
    assert "- same" not in section
    (tmp_path / "evidence.json").write_text('[{"name": "x"}]')
    with pytest.raises(ValueError, match=r"evidence\.json lacks n, patients, metrics"):
        write_model_card(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "base_model"),
    [
        ({"model": "densenet121", "pretrained": False}, None),
        ({"model": "densenet121", "pretrained": True}, None),  # which weights, its name leaves open
        ({"model": "resnet18.a1_in1k", "pretrained": True}, "timm/resnet18.a1_in1k"),
        ({"model": "resnet18.a1_in1k", "pretrained": False}, None),
        ({"model": "org/cxr-densenet121"}, "org/cxr-densenet121"),
        ({"model": "my-folder"}, None),
    ],
)
def test_the_base_model_is_what_the_arguments_tell(tmp_path, arguments, base_model):
    make_run(tmp_path)
    (tmp_path / "training_args.json").write_text(json.dumps(arguments))
    card = ModelCard.load(write_model_card(tmp_path))
    assert card.data.base_model == base_model
    assert ("timm's ImageNet weights" in card.text) is arguments.get("pretrained", False)


def test_what_is_known_of_the_data_comes_from_its_facts(tmp_path):
    files = make_run(tmp_path)
    facts = {
        "title": "Ward_7 *X-rays*",
        "citation": "Doe et al. 2020",
        "licence": "CC BY 4.0",
        "population": "frontal X-rays of children",
        "limits": ["One centre.", "Labels are read off reports."],
        "out_of_scope": "Adults.",
    }
    noticed = {"negative": 3, "cut a frame": 1024}
    dataset = files["dataset"] | {"facts": facts, "warnings": noticed}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    text = write_model_card(tmp_path).read_text()
    data = text.split("## Data")[1].split("## Protocol")[0]
    for line in (
        "- **Title:** Ward_7 \\*X-rays\\*",
        "- **Citation:** Doe et al. 2020",
        "- **Licence:** CC BY 4.0",
        "- **Population:** frontal X-rays of children",
        "- negative: 3",
        "- cut a frame: 1,024",
    ):
        assert f"{line}\n" in data
    limits = text.split("## Limitations")[1].split("## Reporting")[0]
    assert "\n- One centre.\n- Labels are read off reports.\n- " in limits
    assert "\n- Adults.\n- " in text.split("Out of scope:")[1].split("## Use")[0]
    assert "| 6a   | Setting, number and place of the centres" in text
    assert "Nothing is recorded" not in text


@pytest.mark.parametrize("threshold", [None, -1.25])
def test_a_card_speaks_of_the_outlier_detector_that_the_model_has(tmp_path, threshold):
    files = make_run(tmp_path)
    config = files["config"] | {"outlier_threshold": threshold, "age_range": [1, 5]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = write_model_card(tmp_path).read_text()
    assert ("nothing in them warns" in text) is (threshold is None)
    assert ("`outlier_score` above -1.25" in text) is (threshold is not None)
    assert "People younger than 1 or older than 5 years" in text


def test_a_run_that_skipped_the_test_split_has_a_card_of_validation_alone(tmp_path):
    files = make_run(tmp_path)
    metrics = {key: value for key, value in files["metrics"].items() if key != "test"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    evidence = [{"name": "ward", "n": 9, "patients": 9, "metrics": {"auroc": {"value": 0.5}}}]
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    card = ModelCard.load(write_model_card(tmp_path))
    assert card.data.eval_results is None
    assert "The run left the test split alone." in card.text
    assert "scored the test split" not in card.text and "predictions_test" not in card.text
    assert f"| {format_metric(metrics['validation']['auroc'])} |" in card.text
    assert "| ward   |   9 |        9 | 0.500 |" in card.text


def test_results_and_figures_stand_first_and_the_arguments_are_folded(tmp_path):
    make_run(tmp_path)
    text = write_model_card(tmp_path).read_text()
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert titles[:2] == ["Results", "Figures"]
    folded = text.split("<details>\n<summary>Arguments of the run</summary>\n\n")[1]
    assert "`learning_rate`" in folded.split("\n\n</details>")[0]
    assert "`learning_rate`" not in text.split("<details>")[0]


def test_phantoms_make_no_claim_on_patients(tmp_path):
    make_run(tmp_path, source="phantom", dataset="phantom")
    text = write_model_card(tmp_path).read_text()
    assert "TRIPOD" not in text and "paediatric" not in text


def test_the_folder_is_named_where_there_is_no_repository(tmp_path):
    make_run(tmp_path / "my-run", source="folder", dataset="ward")
    text = write_model_card(tmp_path / "my-run").read_text()
    assert 'from_pretrained("my-run"' in text


def test_a_hub_data_set_is_linked(tmp_path):
    repo_id = "keremberke/chest-xray-classification"
    make_run(tmp_path, source=repo_id, dataset=repo_id)  # as the hub source names its rows
    assert ModelCard.load(write_model_card(tmp_path)).data.datasets == [repo_id]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_card_of_more_classes_has_a_row_each(tmp_path, multi_label):
    names = ["Mass", "Nodule", "Edema"]
    files = make_run(tmp_path, names, multi_label, "folder", "ward")
    path = write_model_card(tmp_path)
    test = files["metrics"]["test"]
    for name in names:
        entry = test["classes"][name]
        keys = ("auroc", "auprc", "f1", "sensitivity", "specificity")
        row = " | ".join(format_metric(entry[key]) for key in keys)
        squeezed = " ".join(path.read_text().split())
        assert f"| {name} | {entry['n']} | {entry['prevalence']:.3f} | {row} |" in squeezed
    read = {r.metric_type: r.metric_value for r in ModelCard.load(path).data.eval_results}
    assert read["roc_auc"] == test["auroc"]["value"]
    assert ("accuracy" in read) is not multi_label
    assert ("probability above 0.5" in path.read_text()) is multi_label


def test_undefined_metrics_stay_out_of_the_index(tmp_path):
    files = make_run(tmp_path)
    path = tmp_path / "p.csv"
    write_predictions(path, [1, 2], [1, 2], [1, 1], [[0, 1], [1, 0]], NAMES, "test")
    metrics = files["metrics"] | {"test": compute_metrics(read_predictions(path), 20)}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    card = ModelCard.load(write_model_card(tmp_path))
    assert "AUROC" not in {result.metric_name for result in card.data.eval_results}
    assert "undefined (note 1)" in card.text
    assert "Note 1: needs images with and without PNEUMONIA." in card.text
    assert "undefined" in results_table([tmp_path])


def test_a_run_that_lacks_a_file_or_a_key_gets_a_sentence(tmp_path):
    make_run(tmp_path)
    (tmp_path / "metrics.json").write_text('{"test": {}}')
    with pytest.raises(ValueError, match=r"metrics\.json lacks validation, best_epoch"):
        write_model_card(tmp_path)
    (tmp_path / "metrics.json").write_text('{"test": ')
    with pytest.raises(ValueError, match=r"metrics\.json is not JSON"):
        write_model_card(tmp_path)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        write_model_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_the_table_is_aligned_markdown(tmp_path):
    files = make_run(tmp_path / "cxr-baseline")
    make_run(tmp_path / "cxr-densenet121")
    lines = results_table([tmp_path / "cxr-baseline", tmp_path / "cxr-densenet121"]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    test = files["metrics"]["test"]
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    shares = [f"{test[key]['value']:.3f}" for key in ("accuracy", "sensitivity", "specificity")]
    auroc = format_metric(test["auroc"])
    assert cells == ["cxr-baseline", "1,234,567", auroc, *shares, "120", "905"]


def test_the_table_of_a_multi_label_run_leaves_cells_open(tmp_path):
    make_run(tmp_path / "run", ["Mass", "Nodule"], multi_label=True)
    cells = [cell.strip() for cell in results_table([tmp_path / "run"]).splitlines()[2].split("|")]
    assert cells[4:7] == ["-", "-", "-"]


def test_the_command_rewrites_only_its_block(tmp_path, capsys):
    make_run(tmp_path / "run")
    readme = tmp_path / "README.md"
    start, end = "<!-- results:demo:start -->", "<!-- results:demo:end -->"
    other = "<!-- results:real:start -->\nkeep\n<!-- results:real:end -->\n"
    readme.write_text(f"# Title\n\n{start}\nold\n{end}\n\n{other}")
    main(["--readme", str(readme), "--block", "demo", str(tmp_path / "run")])
    table = results_table([tmp_path / "run"])
    expected = f"# Title\n\n{start}\n{table}\n{end}\n\n{other}"
    assert readme.read_text() == expected
    main(["--readme", str(readme), "--block", "demo", str(tmp_path / "run")])
    assert readme.read_text() == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nothing", "needs one line <!-- results:demo:start -->"),
        ("<!-- results:demo:end -->\n<!-- results:demo:start -->", "swap the two lines"),
    ],
)
def test_a_readme_without_the_block_is_left_alone(tmp_path, text, sentence):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        replace_block(readme, "demo", "table")
    assert readme.read_text() == text


def test_the_command_line_prints_the_table_or_fails_with_one_sentence(tmp_path):
    make_run(tmp_path / "run")
    command = [sys.executable, "-m", "evaluation.table"]
    done = subprocess.run(
        [*command, tmp_path / "run"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == results_table([tmp_path / "run"]) + "\n"
    done = subprocess.run(
        [*command, tmp_path], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path} has no metrics.json")
    assert done.stderr.count("\n") == 1
