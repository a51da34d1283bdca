"""The lung study's page and card say what its tables say."""

import json

from evaluation.segmentation import (
    COLUMNS,
    read_segmentation,
    summarize_segmentation,
    write_segmentation,
)
from recipes.lungs.results import SETS, write_results


def test_page_and_card_are_those_of_the_tables(tmp_path):
    results, model = tmp_path / "results", tmp_path / "cxr-lungs"
    results.mkdir()
    model.mkdir()
    for k, name in enumerate(SETS):
        rows = [
            {"image_id": f"{row}.png", "patient_id": str(row), **dict.fromkeys(COLUMNS, value)}
            for row, value in enumerate((0.5 + k / 10, 0.7 + k / 10))
        ]
        write_segmentation(results / f"{name}.csv", rows)
    split = {"images": 2, "patients": 2}
    metrics = {"num_parameters": 1234, "train_seconds": 60, "device": "1 x cpu", "best_epoch": 2}
    metrics |= {"shifted_dice": 0.912, "unshifted_dice": 0.934}
    for part in ("validation", "test"):
        rows = read_segmentation(results / f"kermany_{part}.csv")
        metrics[part] = summarize_segmentation(rows)
    contents = {
        "metrics": metrics,
        "config": {"image_size": 128, "model_type": "cxr-lungs"},
        "training_args": {"seed": 42},
        "dataset": {"source": "kermany", "name": "chest_xray", "splits": {"train": split}},
    }
    for name, content in contents.items():
        (model / f"{name}.json").write_text(json.dumps(content))
    write_results(results, model)

    found = json.loads((results / "metrics.json").read_text())
    assert list(found) == list(SETS)
    page, card = (results / "lungs.md").read_text(), (model / "README.md").read_text()
    for k, name in enumerate(SETS):
        mean = 0.6 + k / 10
        assert abs(found[name]["whole"]["dice"]["value"] - mean) < 1e-9
        assert SETS[name][0] in page and f"{mean:.3f} [" in page
    assert "0.912, against 0.934" in page
    assert SETS["openist"][0] in card and "0.800 [" in card
