"""The card of a lung segmenter, generated from a run's files: no number in it is typed."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from evaluation.pages.markdown import Notes, escape, table
from evaluation.pages.model_card_text import arguments_of, items, source_of_data
from evaluation.pages.wording import NOTICE
from evaluation.predictions import write_text
from evaluation.segmentation import MEASURES, PARTS
from evaluation.table import read_json

EVIDENCE = "evidence.json"


def write_lung_card(run_dir: str | Path, repo_id: str) -> Path:
    """Write `run_dir/README.md` from the run's config, training_args, metrics and dataset .json.

    Optional are `masks` in dataset.json, who drew them and under what licence, and evidence.json, a
    list of `{"name", "note", "metrics"}`: the segmenter on other images, `metrics` as
    `evaluation.segmentation.summarize_segmentation` gives them.

    Args:
        run_dir: the model folder.
        repo_id: what the loading example names.

    Raises:
        ValueError: a file that is not JSON, or that lacks a key.
        OSError: a file is missing, or the card cannot be written.
    """
    run_dir = Path(run_dir)
    config, arguments, metrics, dataset = (
        read_json(run_dir / f"{name}.json", keys, "train_lungs.py")
        for name, keys in (
            ("config", ("image_size", "model_type")),
            ("training_args", ()),
            ("metrics", ("validation", "shifted_dice", "best_epoch", "num_parameters")),
            ("dataset", ("source", "name", "splits")),
        )
    )
    evidence = []
    if (run_dir / EVIDENCE).is_file():
        evidence = read_json(
            run_dir / EVIDENCE, ("name", "note", "metrics"), "recipes.lungs.results", many=True
        )
    facts, name = dataset.get("facts") or {}, repo_id.split("/")[-1]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "chest-x-ray", "medical-imaging", config["model_type"]],
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
        f"Lungs in chest X-rays: a U-Net (`{config['model_type']}`, {metrics['num_parameters']:,} "
        f"parameters, grey input of {config['image_size']} x {config['image_size']} pixels) that "
        "gives one mask for both lungs, trained on lung masks of "
        f"{escape(dataset['name'])}.",
        f"**{NOTICE}**",
        "## Results",
        segmentation_table(sets),
        "Mean over images and 95 % interval of a bootstrap over patients; masks are compared at "
        "the image's own size, and distances are pixels of it. The epoch was chosen on validation "
        "images under a random exposure, crop, rotation and blur: Dice "
        f"{metrics['shifted_dice']:.3f} there, {metrics['unshifted_dice']:.3f} without these, both "
        "at the network's size.",
        "\n".join(f"- {escape(entry['name'])}: {entry['note']}" for entry in evidence),
        _usage(repo_id),
        "## Data",
        source_of_data(facts),
        f"Lung masks: {escape(dataset['masks'])}" if dataset.get("masks") else "",
        table(["Split", "Images with masks", "Patients"], counts),
        "## Limitations",
        f"{items(facts.get('limits'))}"
        "- A mask follows what those who drew the training masks called lung; of Kermany's images "
        "also the lung behind the heart. Lungs that pneumonia has made white were drawn by guess, "
        "and are found by guess.\n"
        "- It gives a mask for anything: an image that is no chest X-ray may get one, too.",
        "## Training, hardware and time",
        f"{metrics['train_seconds'] / 60:.1f} minutes on {metrics['device']}; the weights are "
        f"those of epoch {metrics['best_epoch']}.",
        arguments_of(rows),
    ]
    body = "\n\n".join(part for part in parts if part)
    write_text(run_dir / "README.md", str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))
    return run_dir / "README.md"


def segmentation_table(sets: dict[str, dict]) -> str:
    """A row a measure and part, a column a set.

    Args:
        sets: {title: `summarize_segmentation`'s answer}.
    """
    notes = Notes()
    rows = [
        ["Images", "", *(str(found["whole"]["dice"]["n"]) for found in sets.values())],
        *(
            [part_title, title, *(notes.cell(found[part][measure]) for found in sets.values())]
            for part, part_title in PARTS.items()
            for measure, title in MEASURES.items()
        ),
    ]
    return table(["Part", "Measure", *sets], rows, left=2, notes=notes)


def _usage(repo_id: str) -> str:
    return f"""## Use

```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
image = processor.open("chest.png")
masks = model.segment(processor(image.pixels).pixel_values, largest=2)  # float (1, H, W) in [0, 1]
lungs = processor.restore(masks[0], *image.pixels.shape) > 0.5  # in the image's own frame
```"""
