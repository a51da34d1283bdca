"""`python -m datasets_scripts.SOURCE`: Parquet that `load_dataset` reads with the same features."""

import shutil
import subprocess
import sys

import pytest
import yaml
from datasets import Image, load_dataset
from datasets_trees import write_classes, write_image, write_kermany
from PIL import EpsImagePlugin
from PIL import Image as PillowImage

import datasets_scripts
from datasets_scripts import (
    age_range,
    class_names,
    describe,
    facts,
    load_cxr_dataset,
    registry,
    source_options,
    sources,
)
from datasets_scripts.cli import main, make_parser
from training.data import summarize


def stored(part):
    """(bytes, image_id) of each row, from the file where the image is a path."""
    for row in part.cast_column("image", Image(decode=False)):
        image = row["image"]
        content = image["bytes"] if image["bytes"] is not None else open(image["path"], "rb").read()
        yield content, row["image_id"]


def test_kermany_round_trip(tmp_path, capsys):
    root = write_kermany(tmp_path / "chest_xray")
    main("kermany", [str(root), "--output", str(tmp_path / "out"), "--seed", "7"])
    assert "train" in capsys.readouterr().out
    dataset = load_cxr_dataset("kermany", root, seed=7)
    shutil.move(root, tmp_path / "gone")
    for loaded in (load_dataset(str(tmp_path / "out")), load_cxr_dataset(str(tmp_path / "out"))):
        assert list(loaded) == ["train", "validation", "test"]
        for split, part in loaded.items():
            assert part.features == dataset[split].features
            assert part.select_columns(["label", "image_id", "patient_id", "source", "subtype"])[
                :
            ] == {
                column: dataset[split][column][:]
                for column in ("label", "image_id", "patient_id", "source", "subtype")
            }
            for content, name in stored(part):
                (file,) = (tmp_path / "gone").rglob(name)
                assert content == file.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and "10.17632/rscbjbr9sj" in card
    assert [split["num_examples"] for split in front["dataset_info"]["splits"]] == [
        len(dataset[split]) for split in ("train", "validation", "test")
    ]
    table = describe(load_cxr_dataset(str(tmp_path / "out")))
    assert table in card and "No patient and no identical image" in card


def test_phantom_round_trip_keeps_masks_and_boxes(tmp_path):
    options = {"num_train": 6, "num_validation": 2, "num_test": 4, "image_size": 32}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main("phantom", [*flags, "--output", str(tmp_path / "out")])
    made, read = load_cxr_dataset("phantom", **options), load_cxr_dataset(str(tmp_path / "out"))
    assert made["test"].features == read["test"].features
    assert made["test"]["objects"][:] == read["test"]["objects"][:]
    for before, after in zip(made["test"], read["test"]):
        assert before["image"].tobytes() == after["image"].tobytes()
        assert before["lung_mask"].tobytes() == after["lung_mask"].tobytes()


def test_multi_label_round_trip(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    rows = [f"{c}/{c}-{i:02d}.png,{('a', 'b', 'a|b', '')[i % 4]}" for c in "ab" for i in range(20)]
    (root / "metadata.csv").write_text("\n".join(["file_name,labels", *rows]))
    main("folder", [str(root), "--output", str(tmp_path / "out")])
    made, read = load_cxr_dataset("folder", root), load_cxr_dataset(str(tmp_path / "out"))
    for split in made:
        assert made[split].features == read[split].features
        assert made[split]["labels"][:] == read[split]["labels"][:]
    assert "license:" not in (tmp_path / "out" / "README.md").read_text()


def test_unreadable_images_are_left_out_of_an_export_or_stop_it(tmp_path, capsys):
    root = write_classes(tmp_path / "set", a=100, b=100)
    (root / "a" / "a-00.png").write_text("not an image")
    with pytest.raises(SystemExit, match="error: 1 of .* images cannot be read .a-00.png: "):
        main("folder", [str(root), "--output", str(tmp_path / "out"), "--max_unreadable", "0.001"])
    assert not list(tmp_path.glob("*out*"))
    main("folder", [str(root), "--output", str(tmp_path / "out"), "--max_unreadable", "0.1"])
    read = load_cxr_dataset(str(tmp_path / "out"))
    assert sum(map(len, read.values())) == 199


def test_an_eps_file_under_another_name_starts_no_ghostscript(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append(1) or broken())
    root = write_classes(tmp_path / "set", a=100, b=100)
    eps = root / "a" / "a-00.png"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError), PillowImage.open(eps) as opened:  # Pillow alone would start it
        opened.load()
    assert started.pop() and not started
    main("folder", [str(root), "--output", str(tmp_path / "out"), "--max_unreadable", "0.1"])
    assert sum(map(len, load_cxr_dataset(str(tmp_path / "out")).values())) == 199
    assert not started


def broken():
    raise OSError("Ghostscript was started")


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit, match="error: output .*/out exists and is not an empty folder"):
        main("folder", [str(root), "--output", str(tmp_path / "out")])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    main("folder", [str(root), "--output", str(tmp_path / "out")])
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3


def test_a_failed_export_leaves_nothing(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: could not write .*file/out .Not a directory"):
        main("folder", [str(root), "--output", str(tmp_path / "file" / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]


def test_a_leak_stops_an_export_and_regroup_repairs_it(tmp_path):
    for index, split in enumerate(("train", "valid", "test")):
        write_classes(tmp_path / "set" / split, a=12, b=12)
        for file in (tmp_path / "set" / split).rglob("*.png"):
            if int(file.stem[-2:]) % 3 != index and int(file.stem[-2:]) > 1:
                file.unlink()
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit, match="identical images stand in more than one split.*regroup"):
        main("folder", [str(tmp_path / "set"), "--output", out])
    main("folder", [str(tmp_path / "set"), "--output", out, "--regroup"])
    assert set(load_cxr_dataset(out)) == {"train", "validation", "test"}


@pytest.mark.parametrize("source", sources())
def test_help_explains_every_option(source):
    text = make_parser(source).format_help()
    assert all(action.help for action in make_parser(source)._actions)
    for flag in ("--output", "--push_to_hub", "--private", "--regroup"):
        assert flag in text
    assert ("--label_map" in text) == (source not in ("kermany", "parquet", "phantom"))


def test_the_command_line_in_its_own_process(tmp_path):
    command = [sys.executable, "-m", "datasets_scripts.kermany"]
    root = write_kermany(tmp_path / "chest_xray", train=6)
    done = subprocess.run([*command, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"INFO: {root}: class 1, the finding, is PNEUMONIA: NORMAL names the absence of a finding."
        "\n"
    )
    assert done.stdout.splitlines()[0].split()[:4] == ["split", "files", "unique", "patients"]
    wrong = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


def test_importing_the_package_needs_no_model_library(run_python):
    libraries = {"torch", "timm", "transformers"}
    code = f"import sys, datasets_scripts; print({libraries} & set(sys.modules))"
    result = run_python(code)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


NEW_SOURCE = '''
"""Two folders of a hospital."""

from pathlib import Path

from datasets_scripts.schema import Source, assemble

SOURCE = Source(
    name="clinic",
    title="X-rays of the clinic",
    path_help="the export of the clinic",
    citation="Doe, 2020",
    licence="cc0-1.0",
    population="adults of one clinic",
    limits=("One machine.",),
    ages=(18.0, 90.0),
    hub_ids=("org/clinic-copy",),
)


def recognise(path):
    return (path / "clinic.txt").is_file()


def load(path, *, least: int = 0, **options):
    """The X-rays of an export.

    Args:
        path: of the export.
        least: number of the first image
        **options: of `assemble`.
    """
    records = [
        {
            "image": str(file),
            "label": file.stem.split("-")[0],
            "name": file.name,
            "path": file.name,
            "split": None,
            "patient_id": file.stem,
            "source": SOURCE.name,
            "ward": "A",
        }
        for file in sorted(Path(path).glob("*.png"))
        if int(file.stem.split("-")[1]) >= least
    ]
    return assemble(records, str(path), **options)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)
'''


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    """An export of a source that is one file more in the package."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "clinic.py").write_text(NEW_SOURCE)
    monkeypatch.setattr(
        datasets_scripts, "__path__", [*datasets_scripts.__path__, str(tmp_path / "modules")]
    )
    registry.modules.cache_clear()
    root = tmp_path / "export"
    for index in range(40):
        write_image(root / f"{('ill', 'healthy')[index % 2]}-{index}.png", index)
    (root / "clinic.txt").write_text("")
    yield root
    registry.modules.cache_clear()
    sys.modules.pop("datasets_scripts.clinic", None)


def test_a_new_source_is_one_file(clinic, tmp_path, capsys):
    assert "clinic" in sources()
    dataset = load_cxr_dataset(str(clinic), least=20)
    assert {split: len(part) for split, part in dataset.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert class_names(dataset["train"]) == ["healthy", "ill"]
    assert dataset["test"][0]["ward"] == "A" and age_range(dataset["train"]) == [18.0, 90.0]
    summary = summarize(dataset, "export")
    assert summary["facts"] == facts(dataset)
    assert summary["facts"]["limits"] == ["One machine."]
    assert "clinic, folder, hub, " in str(pytest.raises(ValueError, load_cxr_dataset, "no").value)

    flags = [str(clinic), "--least", "10", "--positive", "healthy"]
    main("clinic", [*flags, "--output", str(tmp_path / "out")])
    assert describe(load_cxr_dataset(str(tmp_path / "out"))) in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Source: X-rays of the clinic. Doe, 2020." in card and "license: cc0-1.0" in card
    assert "number of the first image" in make_parser("clinic").format_help()
    with pytest.raises(SystemExit, match="no does not exist: clinic reads the export of the"):
        main("clinic", [str(tmp_path / "no")])


def test_a_new_source_is_a_command(clinic, tmp_path, run_python):
    code = f"""
import datasets_scripts, runpy, sys
datasets_scripts.__path__.append({str(tmp_path / "modules")!r})
sys.argv = ["clinic", {str(clinic)!r}]
runpy.run_module("datasets_scripts.clinic", run_name="__main__", alter_sys=True)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["total", "40"]


@pytest.mark.parametrize("source", sorted(sources()))
def test_every_source_says_what_it_is(source):
    about = sources()[source]
    assert about.name == source and about.title
    assert all(meaning for _, _, meaning in source_options(source).values())
    assert (about.ages is None) or about.ages[0] < about.ages[1]
    assert all(text.endswith(".") for text in (*about.limits, *about.out_of_scope))
