"""The lung study's page and card say what its tables say."""

import json

import pytest

from evaluation.segmentation import (
    COLUMNS,
    read_segmentation,
    summarize_segmentation,
    write_segmentation,
)
from recipes.lungs import heat
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
    assert "V7 Labs" in card and "CC BY 4.0" in card
    assert SETS["openist"][0] in card and "0.800 [" in card


def heat_table(path, rows):
    lines = [",".join(heat.COLUMNS)]
    lines += [f"{k}.png,{k},{','.join(map(str, row))}" for k, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def test_a_share_that_tells_errors_has_an_auroc_of_one_and_images_without_lungs_do_not_count(
    tmp_path,
):
    rows = [(0, 1.0 + k, 0.8 + k / 100, 0.3) for k in range(10)]  # right, with their heat inside
    rows += [(1, 1.5 + k, 0.2 + k / 100, 0.3) for k in range(5)]  # wrong, with it outside
    rows += [(1, 0.1, "", "")]
    for name in heat.SETS:
        heat_table(tmp_path / f"{name}.csv", rows)
    heat.report(tmp_path)
    found = json.loads((tmp_path / "heat.json").read_text())["heat_openist"]
    assert (found["n"], found["errors"], found["without"]) == (15, 5, 1)
    assert found["heat_in_lungs_auroc"]["value"] == found["gain_auroc"]["value"] == 1
    # of 50 pairs of a wrong and a right decision, the wrong one is the less certain in 9 + ... + 5
    assert found["certainty_auroc"]["value"] == 35 / 50
    assert found["lung_area"]["value"] == pytest.approx(0.3)
    page = (tmp_path / "heat.md").read_text()
    assert "| OpenIST" in page and "1.000" in page
