"""The model card, generated from a run's files: no number in it is typed."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from evaluation.metrics import METRIC_NAMES, format_metric
from evaluation.predictions import write_text
from evaluation.table import markdown_table, read_json

# The Hub's ids of the metrics that it knows under another name.
HUB_METRICS = {"auroc": "roc_auc", "sensitivity": "recall", "ppv": "precision"}
FIGURES = {
    "training_curves.png": "Training curves",
    "confusion_matrix.png": "Confusion matrix",
    "roc.png": "ROC curve with its bootstrap band",
}
# Copies of the Kermany images on the Hub.
KERMANY_IDS = ("keremberke/chest-xray-classification", "hf-vision/chest-xray-pneumonia")
LIMITATIONS = {
    "kermany": """\
- All images come from one paediatric centre (Guangzhou), from children aged 1 to 5: nothing here \
says how the model does on adults, in other hospitals or with other machines.
- Labels are what experts read in the image, and some are wrong; a third expert checked the \
official test images only.
- The classes also differ in image size, aspect ratio, exposure and corner markers; a model can \
score well on such shortcuts.
""",
    "phantom": """\
- The images are synthetic phantoms: the numbers show that the code works and say nothing about \
real X-rays.
""",
}
GENERAL_LIMITATIONS = """\
- Probabilities are as the network gives them and follow the share of each class in the training \
data; PPV and NPV hold at the prevalence of the test split only.
- The model knows only the classes above; any other finding is given to one of them, or missed.
- A heatmap shows where a score comes from, not that the reason is medical."""


def write_model_card(run_dir: str | Path, repo_id: str | None = None) -> Path:
    """Write `run_dir/README.md` from the run's config, training_args, metrics and dataset .json.

    Args:
        run_dir: the model folder; figures found in its `figures/` are embedded.
        repo_id: Hub id that the loading example names; None names the folder.

    Returns:
        The path of the card, which `huggingface_hub.ModelCard.load` parses: its `eval_results` are
        the values of metrics.json.

    Raises:
        ValueError: a file that is not JSON, or that lacks a key.
        OSError: a file is missing, or the card cannot be written.
    """
    run_dir = Path(run_dir)
    config, arguments, metrics, dataset = (
        read_json(run_dir / f"{name}.json", keys)
        for name, keys in (
            ("config", ("id2label", "model_type", "image_size")),
            ("training_args", ()),
            ("metrics", ("validation", "test", "best_epoch", "train_seconds", "num_parameters")),
            ("dataset", ("source", "name", "splits")),
        )
    )
    source = "kermany" if dataset["name"] in KERMANY_IDS else dataset["source"]
    name = repo_id or run_dir.resolve().name
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "chest-x-ray", "medical-imaging", config["model_type"]],
        datasets=[dataset["name"]] if "/" in dataset["source"] else None,
        model_name=name.split("/")[-1],
        eval_results=_eval_results(metrics["test"], dataset),
    )
    body = "\n\n".join(
        [
            _introduction(name, config, dataset, metrics["test"]),
            _usage(name),
            _data(dataset),
            _training(arguments, metrics),
            _results(metrics),
            _figures(run_dir),
            f"## Limitations\n\n{LIMITATIONS.get(source, '')}{GENERAL_LIMITATIONS}",
        ]
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    write_text(run_dir / "README.md", str(card))
    return run_dir / "README.md"


def _eval_results(test: dict, dataset: dict) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset["name"] if "/" in dataset["source"] else dataset["source"],
            dataset_name=dataset["name"],
            dataset_split="test",
            metric_type=HUB_METRICS.get(metric, metric),
            metric_name=metric_name,
            metric_value=test[metric]["value"],
        )
        for metric, metric_name in METRIC_NAMES.items()
        if metric in test and test[metric]["value"] is not None
    ]
    return results or None  # a model-index without results does not parse


def _introduction(name: str, config: dict, dataset: dict, test: dict) -> str:
    channels = "grey" if config.get("num_channels", 1) == 1 else "three-channel"
    rule = "each class whose probability exceeds 0.5"
    if test["task"] != "multi_label":
        rule = "the class with the largest probability, the one that the pipeline names first"
        if test["task"] == "binary":
            rule += f"; {test['positive_class']} counts as positive"
    classes = ", ".join(config["id2label"].values())
    return f"""# {name.split("/")[-1]}

A chest X-ray classifier (`{config["model_type"]}`, {channels} input of {config["image_size"]} x \
{config["image_size"]} pixels) for the classes {classes}, trained on {dataset["name"]}. Its \
Grad-CAM heatmap is a method of the model.

**Research only, not a medical device.** Do not use it for diagnosis, triage or any decision about \
a patient.

**Decision rule:** {rule}."""


def _usage(name: str) -> str:
    return f"""## Use

```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
logits = model(**processor("chest.png", return_tensors="pt")).logits
```

Probabilities are `model.probabilities(logits)`; `model.explain(pixel_values)` gives logits and \
heatmaps together.

```python
from transformers import pipeline

pipeline("image-classification", model="{name}", trust_remote_code=True)("chest.png")
```"""


def _data(dataset: dict) -> str:
    splits = dataset["splits"]
    classes = list(next(iter(splits.values()))["classes"])
    header = ["Split", "Images", "Unique images", "Patients", *classes]
    rows = []
    for split, counts in splits.items():
        row = [split, *(str(counts[key]) for key in ("images", "unique_images", "patients"))]
        for name in classes:
            count = counts["classes"][name]
            row.append(f"{count} ({count / counts['images']:.1%})")
        rows.append(row)
    return f"""## Data

{dataset["name"]} (source `{dataset["source"]}`), images and prevalence of each class:

{markdown_table(header, rows)}

No patient and no identical file is in two splits: training stops where its leak check finds one. \
The epoch was chosen on the validation split; this run scored the test split once, at its end."""


def _training(arguments: dict, metrics: dict) -> str:
    rows = [[f"`{key}`", _plain(value)] for key, value in arguments.items()]
    device = f" on {metrics['device']}" if "device" in metrics else ""
    return f"""## Training

{metrics["num_parameters"]:,} parameters, {metrics["train_seconds"] / 60:.1f} minutes{device}; \
the weights are those of epoch {metrics["best_epoch"]}, the best on validation AUROC.

{markdown_table(["Argument", "Value"], rows, left=2)}"""


def _results(metrics: dict) -> str:
    validation, test = metrics["validation"], metrics["test"]
    header = ["Metric", "Validation", "Test"]
    size = [["Images", str(validation["n"]), str(test["n"])]]
    size.append(["Patients", str(validation["patients"]), str(test["patients"])])
    macro = "" if test["task"] == "binary" else " (macro)"
    rows = []
    for key, title in METRIC_NAMES.items():
        if key in test:
            title += macro if key == "auroc" else ""
            rows.append([title, format_metric(validation[key]), format_metric(test[key])])
    text = f"""## Results

Value and 95 % interval, from a bootstrap of {test["num_resamples"]} resamples of patients. \
`predictions_validation.csv` and `predictions_test.csv` hold every logit, so that all of it can be \
computed again. In small samples the ECE and its interval err upward.

{markdown_table(header, size + rows)}"""
    if "classes" not in test:
        return text
    keys = ("auroc", "sensitivity", "specificity")
    header = ["Class (test)", "Images", *(METRIC_NAMES[key] for key in keys)]
    rows = [
        [name, str(entry["tp"] + entry["fn"]), *(format_metric(entry[key]) for key in keys)]
        for name, entry in test["classes"].items()
    ]
    return f"{text}\n\n{markdown_table(header, rows)}"


def _figures(run_dir: Path) -> str:
    found = [
        f"![{title}](figures/{file})"
        for file, title in FIGURES.items()
        if (run_dir / "figures" / file).is_file()
    ]
    return "\n\n".join(["## Figures", *(found or ["This run has none."])])


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
