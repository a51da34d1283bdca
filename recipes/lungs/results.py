"""What the tables of `recipes.lungs.measure` say, and the card of the segmenter that ships.

python -m recipes.lungs.results results/lungs checkpoints/cxr-lungs
"""

import json
import sys
from pathlib import Path

from evaluation.pages.lung_card import EVIDENCE, segmentation_table, write_lung_card
from evaluation.predictions import write_text
from evaluation.segmentation import read_segmentation, summarize_segmentation
from evaluation.table import read_json
from recipes.kermany.evidence import card_id

SETS = {
    "kermany_validation": (
        "Kermany, validation",
        "A patient-grouped tenth of the training images.",
    ),
    "kermany_test": ("Kermany, official test", "Scored once, at the end."),
    "openist": (
        "OpenIST, adults",
        "129 normal adults, none of which was learned or chosen from. Its masks leave the heart "
        "zone out, which those of Kermany's images do not: with both lungs no such segmenter can "
        "reach a Dice of 1, so the half with the patient's right lung is the one to read.",
    ),
}
MASKS = (
    "V7 Labs, COVID-19 X-ray data set, human-drawn annotations under CC BY 4.0, matched to the "
    "images' file names by size and shape."
)


def write_results(results: Path, model: Path) -> None:
    """Writes metrics.json and lungs.md from the tables, and completes the model's card.

    Args:
        results: folder with a table for each of `SETS`.
        model: folder of the segmenter.

    Raises:
        ValueError, OSError: a table or a file of the model is missing or damaged.
    """
    found = {
        name: summarize_segmentation(read_segmentation(results / f"{name}.csv")) for name in SETS
    }
    trained = read_json(model / "metrics.json", ("shifted_dice", "unshifted_dice"))
    write_text(results / "metrics.json", json.dumps(found, indent=2) + "\n")
    titles = {SETS[name][0]: metrics for name, metrics in found.items()}
    notes = "\n".join(f"- {title}: {note}" for title, note in SETS.values())
    page = f"""# Lung segmentation

{segmentation_table(titles)}

Mean over images and 95 % interval of a bootstrap over patients; masks are compared at the image's
own size, and distances are pixels of it.

{notes}

On validation images under a random exposure, crop, rotation and blur (`shift`) the Dice is
{trained["shifted_dice"]:.3f}, against {trained["unshifted_dice"]:.3f} without these, both at the
network's size.
"""
    write_text(results / "lungs.md", page)
    evidence = [
        {"name": SETS[name][0], "note": SETS[name][1], "metrics": found[name]}
        for name in SETS
        if not name.startswith("kermany")
    ]
    write_text(model / EVIDENCE, json.dumps(evidence, indent=2) + "\n")
    dataset = read_json(model / "dataset.json", ("splits",)) | {"masks": MASKS}
    write_text(model / "dataset.json", json.dumps(dataset, indent=2) + "\n")
    write_lung_card(model, card_id(model))


if __name__ == "__main__":
    try:
        write_results(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
