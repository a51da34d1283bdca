"""From a data set to decoded pixels: corrections, perturbations, what was noticed, the cache."""

import importlib.metadata
import json
import shutil

import numpy as np
import pytest
from datasets import DatasetDict
from dicom_files import dicom
from PIL import Image

from datasets_scripts import cli, load_cxr_dataset, perturb
from datasets_scripts.phantom import generate
from evaluation.predictions import read_predictions, read_predictions_by_model
from modeling import CxrImageProcessor
from training import data
from training.data import decode_splits, summarize

TINY = ["--model", "baseline", "--model_options", "hidden_sizes=[4,8]", "--image_size", "64"]


def write_films(folder, counts=(("train", 16), ("validation", 8), ("test", 8)), masks=True):
    """A CSV of DICOM files of 12 bits, with lung masks."""
    folder.mkdir(exist_ok=True)
    lines, number = ["file,label,split" + ",lung_mask" * masks], 0
    for split, count in counts:
        for _ in range(count):
            chest, number = generate(number, size=96), number + 1
            name = f"{split}{number}"
            (folder / f"{name}.dcm").write_bytes(dicom(chest.image.astype(np.uint16) * 16, 12))
            Image.fromarray(chest.lung_mask).save(folder / f"{name}.png")
            label = ("NORMAL", "OPACITY")[number % 2]
            lines.append(f"{name}.dcm,{label},{split}" + f",{name}.png" * masks)
    (folder / "films.csv").write_text("\n".join(lines))
    return folder / "films.csv"


@pytest.fixture
def films(tmp_path):
    return load_cxr_dataset(str(write_films(tmp_path / "films", (("test", 6),))))


def decode(dataset, cache, perturbation=None, seed=0, **options):
    parts = DatasetDict(dataset)
    processor = CxrImageProcessor(64, **options)
    return decode_splits(parts, processor, cache, 0.0, perturbation, seed)["test"]


def test_what_was_noticed_is_counted_logged_and_summarised(tmp_path, caplog):
    folder = tmp_path / "set" / "test"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            grey = generate(number + 10 * (label == "b"), size=96).image
            grey = 255 - grey if number == 0 else np.pad(grey, 9 + number, constant_values=255)
            Image.fromarray(grey).save(folder / label / f"{label}{number}.png")
    dataset = load_cxr_dataset("folder", tmp_path / "set")
    split = decode(dataset, tmp_path / "cache")
    negative = "The image looks like a negative (dark bones) and was inverted."
    frame = "A plain frame was cut away: of N x N pixels, N x N are left."
    assert split.warnings == {frame: 6, negative: 2}
    assert f"While reading test: 6 x {frame}; 2 x {negative}" in caplog.text
    assert decode(dataset, tmp_path / "cache").warnings == split.warnings
    as_is = decode(dataset, tmp_path / "cache", correct=False)
    assert as_is.warnings == {} and not np.array_equal(as_is.pixels, split.pixels)


def test_a_summary_holds_warnings_and_a_hash_of_the_images():
    phantoms = load_cxr_dataset("phantom", num_train=4, num_validation=2, num_test=2, image_size=32)
    found = summarize(phantoms, "phantom", {"train": {"Dark.": 3}})["splits"]
    assert found["train"]["warnings"] == {"Dark.": 3} and found["test"]["warnings"] == {}
    assert len({split["sha256"] for split in found.values()}) == 3
    phantoms["train"] = phantoms["train"].select([3, 1, 0, 2])
    again = summarize(phantoms, "phantom")["splits"]
    assert again["train"]["sha256"] == found["train"]["sha256"]


@pytest.mark.parametrize("name", perturb.PERTURBATIONS)
def test_dicom_files_are_decoded_under_every_perturbation_that_they_allow(name, films, tmp_path):
    if name in perturb.NEEDS_SIZE:
        with pytest.raises(ValueError, match="needs original_width"):
            decode(films, tmp_path, name)
        return
    plain, altered = decode(films, tmp_path), decode(films, tmp_path, name)
    assert altered.pixels.shape == plain.pixels.shape == (6, 64, 64)
    assert np.array_equal(altered.pixels, plain.pixels) == (name == "squashed")  # square already
    assert (np.asarray(plain.pixels) % 257).any()  # more than 8 bits


def test_rows_without_a_mask_are_left_out_and_masks_and_seeds_are_part_of_the_caches_name(
    films, tmp_path
):
    row = films["test"]["image_id"][0]
    cache = tmp_path / "cache"
    first = decode(films, cache, "only_lungs")
    assert len(decode(films, cache, "shift").pixels) == 6
    seeds = [decode(films, cache, "exposure", seed).pixels for seed in (0, 1)]
    assert not np.array_equal(*seeds)
    mask = (tmp_path / "films" / row).with_suffix(".png")
    Image.fromarray(~np.asarray(Image.open(mask))).save(mask)
    second = decode(films, cache, "only_lungs")
    assert not np.array_equal(first.pixels[0], second.pixels[0])
    assert np.array_equal(first.pixels[1:], second.pixels[1:])
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(mask)
    third = decode(films, cache, "only_lungs")
    assert row not in third.image_ids and len(third) == 5


def test_the_caches_name_follows_code_and_packages_but_no_comment(tmp_path, monkeypatch):
    source = shutil.copy(perturb.__file__, tmp_path / "perturb.py")
    monkeypatch.setattr(perturb, "__file__", str(source))
    digest = data.code_digest()
    text = source.read_text()
    source.write_text('"""Another docstring."""\n' + text.partition('"""\n')[2] + "\n# a comment\n")
    assert data.code_digest() == digest
    source.write_text(text.replace("BORDER = 0.10", "BORDER = 0.11"))
    assert data.code_digest() != digest
    found = data.versions(data.DECODERS)
    for package in ("numpy", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg"):
        assert found[package] == importlib.metadata.version(package)
    assert data.versions(("no-such-package",)) == {"no-such-package": None}


def test_training_and_validation_perturb_dicom_files(train, run_python, tmp_path):
    films = write_films(tmp_path / "films")
    run = tmp_path / "run"
    flags = ["--dataset", films, *TINY, "--num_train_epochs", "1", "--output_dir", run]
    result = train(*flags, "--operation_variant", "no_lungs", "--no_corrections")
    assert result.returncode == 0, result.stderr
    assert "not writable" not in result.stderr
    fitted = read_predictions(run / "predictions_operation.csv")
    plain = read_predictions(run / "predictions_validation.csv")
    assert fitted.image_id.tolist() == plain.image_id.tolist()
    assert np.abs(fitted.logits - plain.logits).max() > 1e-4
    assert json.loads((run / "preprocessor_config.json").read_text())["correct"] is False
    summary = json.loads((run / "dataset.json").read_text())["splits"]["train"]
    assert sum(summary["warnings"].values()) == 16  # no window

    for split, variant, seen in (("test", "shift", False), ("all", "only_lungs", True)):
        report = tmp_path / split
        flags = ["--model", run, "--dataset", films, "--split", split, "--variant", variant]
        flags += ["--num_resamples", "20", "--gallery", "2", "--curves", "2"]
        flags += ["--output_dir", report, "--cache_dir", tmp_path / "cache"]
        result = run_python([data.Path(__file__).parent.parent / "validate.py", *flags])
        assert result.returncode == 0, result.stderr
        found = read_predictions_by_model(report / "predictions.csv")["run"]
        assert len(found.image_id) == (8 if split == "test" else 32)
        assert ("learned from images of this split" in result.stderr) == seen
        title = json.loads((report / "context.json").read_text())["title"]
        assert ("with training images of run" in title) == seen
        assert len(list((report / "gallery").glob("*.jpg"))) > 0


def test_an_export_of_dicom_files_is_read_back(tmp_path, capsys):
    films = write_films(tmp_path / "films", (("test", 6), ("train", 6), ("validation", 4)))
    damaged = tmp_path / "films" / "test1.dcm"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    flags = [str(films), "--output", str(tmp_path / "out"), "--max_unreadable", "0.2"]
    cli.main("manifest", flags)
    source, copy = (load_cxr_dataset(str(path)) for path in (films, tmp_path / "out"))
    assert len(copy["test"]) == 5 and len(copy["train"]) == 6
    source["test"] = source["test"].select(range(1, 6))
    given, written = (decode(each, tmp_path / "cache", "no_lungs") for each in (source, copy))
    assert np.array_equal(given.pixels, written.pixels)
    assert given.warnings == written.warnings
