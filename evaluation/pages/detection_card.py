"""The card of a detector, generated from a run's files: no number in it is typed."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from evaluation.pages.markdown import Notes, escape, table
from evaluation.pages.model_card_text import arguments_of, items, source_of_data
from evaluation.pages.wording import NOTICE
from evaluation.predictions import write_text
from evaluation.table import read_json

EVIDENCE = "evidence.json"


def write_detection_card(run_dir: str | Path, repo_id: str) -> Path:
    """Write `run_dir/README.md` from the run's config, training_args, metrics and dataset .json.

    Optional is evidence.json, a list of `{"name", "note", "metrics"}`: the detector on other
    images, `metrics` as `evaluation.detection.summarize_detection` gives them.

    Args:
        run_dir: the model folder.
        repo_id: what the loading example names.

    Raises:
        ValueError: a file that is not JSON, or that lacks a key.
        OSError: a file is missing, or the card cannot be written.
    """
    run_dir = Path(run_dir)
    config, arguments, metrics, dataset = (
        read_json(run_dir / f"{name}.json", keys, "train_detector.py")
        for name, keys in (
            ("config", ("architecture", "image_size", "id2label", "model_type", "threshold")),
            ("training_args", ()),
            ("metrics", ("validation", "best_epoch", "num_parameters")),
            ("dataset", ("source", "name", "splits")),
        )
    )
    evidence = []
    if (run_dir / EVIDENCE).is_file():
        keys = ("name", "note", "metrics")
        evidence = read_json(run_dir / EVIDENCE, keys, "recipes.boxes.results", many=True)
    facts, name = dataset.get("facts") or {}, repo_id.split("/")[-1]
    classes = ", ".join(config["id2label"].values())
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["object-detection", "chest-x-ray", "medical-imaging", config["model_type"]],
        model_name=name,
    )
    columns = {split: metrics[split] for split in ("validation", "test") if split in metrics}
    sets = {split.capitalize(): found for split, found in columns.items()}
    sets |= {entry["name"]: entry["metrics"] for entry in evidence}
    rows = [[f"`{key}`", str(value)] for key, value in arguments.items()]
    counts = [
        [split, str(entry["images"]), str(entry["patients"])]
        for split, entry in dataset["splits"].items()
    ]
    parts = [
        f"# {name}",
        f"Boxes around {escape(classes)} in chest X-rays: a Faster R-CNN with a feature pyramid on "
        f"`{config['architecture']}` ({metrics['num_parameters']:,} parameters, input of "
        f"{config['image_size']} x {config['image_size']} pixels), trained on boxes of "
        f"{escape(dataset['name'])}.",
        f"**{NOTICE}**",
        "## Results",
        detection_table(sets),
        "Values and 95 % intervals of a bootstrap over patients. AP: COCO's average precision, the "
        "mean over the IoUs .50 to .95 and that at one. RSNA: that challenge's score, TP / (TP + "
        "FP + FN) of an image, mean over the IoUs .40 to .75, of the boxes that score "
        f"{config['threshold']:.3f} or more, the threshold of the best such score on validation. "
        "FROC: mean sensitivity at 1/8 to 8 false positives an image, at IoU .4. Localised: true "
        "boxes that one so scored overlaps by more than that (Wang et al. 2017).",
        "\n".join(f"- {escape(entry['name'])}: {entry['note']}" for entry in evidence),
        _usage(repo_id),
        "## Data",
        source_of_data(facts),
        table(["Split", "Images", "Patients"], counts),
        "## Limitations",
        f"{items(facts.get('limits'))}"
        "- A box is as good as those it was trained on, which readers draw more or less widely.\n"
        "- It looks for the classes above alone, and may box something in anything: an image that "
        "is no chest X-ray may get boxes, too.",
        "## Training, hardware and time",
        f"{metrics['train_seconds'] / 60:.1f} minutes on {metrics['device']}; the weights are "
        f"those of epoch {metrics['best_epoch']}, the best by AP50 on validation.",
        arguments_of(rows),
    ]
    body = "\n\n".join(part for part in parts if part)
    write_text(run_dir / "README.md", str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))
    return run_dir / "README.md"


def detection_table(sets: dict[str, dict]) -> str:
    """A row a score, a column a set.

    Args:
        sets: {title: `summarize_detection`'s answer}.
    """
    notes = Notes()
    rows = [
        ["Images", *(str(found["images"]) for found in sets.values())],
        ["Boxes", *(str(found["boxes"]) for found in sets.values())],
    ]
    for title, path in {
        "AP": ("ap",),
        "AP at IoU .5": ("ap50",),
        "AP at IoU .4 (VinBigData)": ("ap40",),
        "RSNA": ("rsna",),
        "FROC": ("froc", "mean"),
        "Localised, IoU .5": ("localization", "iou", "0.5", "accuracy"),
        "Localised, IoBB .5": ("localization", "iobb", "0.5", "accuracy"),
        "False boxes an image, IoU .5": ("localization", "iou", "0.5", "false_positives"),
    }.items():
        cells = []
        for found in sets.values():
            for key in path:
                found = found[key]
            cells.append(notes.cell(found))
        rows.append([title, *cells])
    return table(["Score", *sets], rows, notes=notes)


def _usage(repo_id: str) -> str:
    return f"""## Use

```python
from transformers import pipeline

find = pipeline("object-detection", model="{repo_id}", trust_remote_code=True)
find("chest.png")  # [{{"score", "label", "box": {{"xmin", "ymin", "xmax", "ymax"}}}}, ...]
```

Boxes are in pixels of the file's image."""
