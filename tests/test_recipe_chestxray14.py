"""The floor on ChestX-ray14: what labels that hang on the view or on grey values alone give."""

import gzip
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from evaluation.metrics import compute_metrics
from evaluation.predictions import read_predictions_by_model
from modeling.convert import CHEXNET_FINDINGS
from recipes.chestxray14 import floor, gains, published, results, shrink

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """200 patients with an image each: Mass is the view, Hernia a bright image, the rest chance."""
    folder = tmp_path_factory.mktemp("chestxray14")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    table, split = [HEADER], ["file,image_index,labels,repository,split"]
    lists = {"train_val_list.txt": [], "test_list.txt": []}
    for number in range(200):
        name, ap, bright = f"{number:08}_000", number % 2, number // 2 % 2
        others = [f for f in CHEXNET_FINDINGS if f not in ("Mass", "Hernia") and rng.random() < 0.3]
        labels = "|".join([*others, *["Mass"] * ap, *["Hernia"] * bright]) or "No Finding"
        age, view = rng.integers(20, 80), "AP" if ap else "PA"
        table.append(f"{name}.png,{labels},0,{number},{age},{'MF'[number % 3 > 1]},{view}")
        lists["test_list.txt" if number % 8 < 4 else "train_val_list.txt"].append(f"{name}.png\n")
        if number < 80:
            grey = rng.integers(0, 60, (40, 40)) + 120 * bright
            Image.fromarray(grey.astype(np.uint8)).save(folder / "images" / f"{name}.png")
            part = "test" if number < 40 else "train"
            split.append(f"images/{name}.png,{name}.png,{labels},jrzech,{part}")
    (folder / floor.TABLE).write_text("\n".join(table) + "\n")
    (folder / "split.csv").write_text("\n".join(split) + "\n")
    for name, images in lists.items():
        (folder / name).write_text("".join(images))
    for part, images in (("train", lists["test_list.txt"]), ("test", lists["train_val_list.txt"])):
        with gzip.open(folder / f"arnoweng_{part}_list.txt.gz", "wt") as file:
            file.write("".join(f"images_001/{line.strip()}{' 0' * 14}\n" for line in images[:90]))
    return folder


def test_each_floor_knows_what_it_sees_and_is_tested_apart(data, tmp_path, monkeypatch, capsys):
    flags = [str(data), str(tmp_path / "out"), "--num_resamples", "20"]
    monkeypatch.setattr(sys, "argv", ["floor", *flags])
    floor.main()
    scores = json.loads((tmp_path / "out" / "floor.json").read_text())
    assert [entry["n"] for entry in scores.values()] == [100, 100, 90, 40, 40, 40]
    for name, entry in scores.items():
        sees, blind = ("Hernia", "Mass") if name.startswith("grey") else ("Mass", "Hernia")
        assert entry["auroc"][sees]["value"] > 0.85, name
        if entry["auroc"][blind]["value"] is not None:
            assert entry["auroc"][blind]["value"] < 0.8, name
        assert 0.4 < entry["mean_auroc"]["value"] < 0.7, name
    assert capsys.readouterr().out.strip() == (tmp_path / "out" / "floor.md").read_text().strip()
    ours = read_predictions_by_model(tmp_path / "out" / "floor_predictions.csv")
    assert list(ours) == [name for name in scores if name.endswith("our test")]
    images = sorted(f"{number:08}_000.png" for number in range(40))
    assert all(part.image_id.tolist() == images for part in ours.values())


def test_what_is_shrunk_tells_no_repository_by_size(tmp_path):
    data, output = tmp_path / "data", tmp_path / "out"
    (data / "images").mkdir(parents=True)
    rows = [
        ("small", "Mass", 64, "kcr", "train"),
        ("sharp", "Pneumonia", 384, "muhammedtalo", "train"),
        ("bright", "No Finding", 384, "muhammedtalo", "train"),
        ("same", "Pneumonia", 384, "muhammedtalo", "test"),
        ("asked", "No Finding", 384, "jrzech", "test"),
        ("left", "Mass", 64, "kcr", "unused"),
    ]
    lines = ["file,image_index,labels,pixels,repository,split"]
    for name, labels, side, repository, part in rows:
        lines.append(f"images/{name}.jpg,{name}.png,{labels},{side},{repository},{part}")
        # A ramp, and in the sharp images lines that only an average over pixels takes out.
        grey = np.arange(side * side).reshape(side, side) * 191.0 // side**2 + 32
        grey += (side > 64) * 32 * (np.arange(side) % 2 * 2 - 1)
        image = Image.fromarray(grey.astype(np.uint8))
        image.save(data / "images" / f"{name}.jpg", quality=96 if side == 64 else 90)
    (data / "split.csv").write_text("\n".join(lines) + "\n")
    (data / "test_list.txt").write_text("asked.png\n")
    left = shrink.shrink(data, output)
    assert left["image_index"].tolist() == ["small.png", "sharp.png", "asked.png"]
    assert (output / "split.csv").read_text() == left.to_csv(index=False)
    assert (output / "test_list.txt").read_text() == "asked.png\n"
    files = sorted((output / "images").iterdir())
    assert [file.stem for file in files] == ["asked", "sharp", "small"]
    opened = [Image.open(file) for file in files]
    assert {image.size for image in opened} == {(64, 64)} and set(left["pixels"]) == {"64"}
    assert all(image.quantization == opened[-1].quantization for image in opened)
    pixels = [np.asarray(image, int) for image in opened]
    assert max(abs(image - pixels[-1]).max() for image in pixels) <= 4
    assert files[-1].read_bytes() == (data / "images" / "small.jpg").read_bytes()
    (data / "split.csv").write_text("file,labels\n")
    with pytest.raises(ValueError, match="has no column pixels"):
        shrink.shrink(data, output)


def test_a_table_without_images_of_the_official_lists_is_refused(data, tmp_path):
    whole = floor.read_table(data)
    assert (whole["official"] == "test").sum() == 100
    lines = (data / floor.TABLE).read_text().splitlines()
    for file in data.iterdir():
        if file.suffix in (".txt", ".gz"):
            shutil.copy(file, tmp_path)
    (tmp_path / floor.TABLE).write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="does not list 00000199_000.png; give the whole table."):
        floor.read_table(tmp_path)


def test_a_models_gain_over_the_floors_is_that_of_the_same_images(data, monkeypatch):
    floors = floor.floors(data)
    floors = {name: floor.by_image(floors[name]) for name in gains.FLOORS}
    same = floors[gains.METADATA]
    view = np.where(np.arange(40) % 2, "AP", "PA")
    same = replace(same, extra={"view": view})
    oracle = replace(same, logits=np.where(same.labels, 1.0, -1.0))
    monkeypatch.setattr("recipes.seeds.NUM_RESAMPLES", 50)
    found = gains.measure({"same": [same], "oracle": [oracle], "mixed": [same, oracle]}, floors)
    assert (found["n"], found["pa"]) == (40, 20)
    assert found["arms"]["same"]["gains"][gains.METADATA]["value"] == 0
    mean = found["arms"]["same"]["auroc"]["value"]
    assert mean == pytest.approx(compute_metrics(same, 0)["auroc"]["value"])
    assert found["arms"]["mixed"]["auroc"]["value"] == pytest.approx((1 + mean) / 2)
    best = found["arms"]["oracle"]
    assert best["auroc"]["value"] == best["pa"]["value"] == 1
    assert best["gains"][gains.METADATA]["value"] == pytest.approx(1 - mean)


def test_a_run_is_shown_by_finding_at_its_operating_point(data, monkeypatch):
    monkeypatch.setattr(gains, "NUM_RESAMPLES", 50)
    shown = floor.floors(data)[gains.METADATA]
    operation = {"calibration": None, "thresholds": [0.5] * 14, "abstention": None}
    found = gains.by_finding(shown, operation | {"prevalence": None})
    assert list(found) == list(CHEXNET_FINDINGS)
    mass = found["Mass"]
    assert mass["n"] == 20 and mass["prevalence"] == 0.5
    assert set(mass) == {"n", "prevalence", *gains.METRICS}
    decided = shown.logits[:, CHEXNET_FINDINGS.index("Mass")] >= 0
    present = shown.labels[:, CHEXNET_FINDINGS.index("Mass")].astype(bool)
    assert mass["sensitivity"]["value"] == decided[present].mean()
    assert mass["specificity"]["value"] == 1 - decided[~present].mean()


def test_the_verdict_takes_only_intervals_that_exclude_0():
    entries = [(0.1, 0.02, 0.18), (0.05, -0.01, 0.11), (-0.1, -0.2, -0.01)]
    found = [dict(zip(("value", "low", "high"), entry)) for entry in entries]
    assert results.verdict("lite", dict(zip("abc", found))) == (
        "`lite`, chosen on validation, is above a (+0.100 [+0.020, +0.180]), and cannot be told "
        "from b (+0.050 [-0.010, +0.110]), and is below c (-0.100 [-0.200, -0.010])."
    )


def test_gains_need_the_view(data):
    floors = {name: floor.by_image(own) for name, own in floor.floors(data).items()}
    with pytest.raises(ValueError, match="no column view; validate.py writes it of this set."):
        gains.measure({"a": [floors[gains.METADATA]]}, floors)


def test_what_was_published_agrees_with_its_own_findings():
    for split, content in published.read_published().items():
        assert content["images"] > 20_000 and content["about"].endswith(".")
        for model in content["models"]:
            assert model["source"]
            found = model.get("findings", {})
            assert set(found) <= set(CHEXNET_FINDINGS)
            if len(found) == 14:  # the READMEs round their means, one of them down
                assert np.mean(list(found.values())) == pytest.approx(model["mean"], abs=0.0012)
            assert split == "chexnet" or "arnoweng" not in model["name"]


def measured(n):
    entry = {"value": 0.7, "low": 0.6, "high": 0.8}
    classes = {name: {"auroc": entry} for name in CHEXNET_FINDINGS}
    return {"n": n, "auroc": entry | {"value": 0.75}, "classes": classes}


def test_figures_of_two_splits_are_never_mixed():
    table = published.comparison_table("chexnet", {"ours": measured(22_433)})
    head, _, mean, *rows = (
        [cell.strip() for cell in line.split("|")] for line in table.split("\n")
    )
    others = ["CheXNet", "arnoweng", "zoogzog", "jrzech", "as surveyed"]
    assert head[1:-1] == ["Finding", *others, "ours"]
    assert mean[1:-1] == ["Mean", "0.841", "0.847", "0.851", "0.838", "", "0.750 [0.600, 0.800]"]
    assert [row[1] for row in rows] == list(CHEXNET_FINDINGS)
    official = published.comparison_table("official", {})
    assert "EVA-X-B" in official and "arnoweng" not in official
    with pytest.raises(ValueError, match="ours was measured on 22,433 images; the official split"):
        published.comparison_table("official", {"ours": measured(22_433)})
    with pytest.raises(ValueError, match="'kermany' is no split of published.yaml; it has chexnet"):
        published.comparison_table("kermany", {})


def test_the_section_has_what_was_measured_on_each_split(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["published", str(REPO / "results" / "chestxray14")])
    published.main()
    chexnets, official = capsys.readouterr().out.split("## Published on ")[1:]
    # The reproduction's own figure, from its scores and with an interval.
    assert "0.838 [" in chexnets and "view, sex, age" in chexnets
    assert "view, sex, age, follow-up" in official and "0.838" not in official
