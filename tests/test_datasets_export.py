"""`python -m datasets_scripts.SOURCE`: Parquet that `load_dataset` reads with the same features."""

import shutil
import subprocess
import sys

import pytest
import yaml
from datasets import Image, load_dataset
from datasets_trees import write_classes, write_kermany

from datasets_scripts import describe, load_cxr_dataset, sources
from datasets_scripts.cli import main, make_parser


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
    assert [row["boxes"] for row in made["test"]] == [row["boxes"] for row in read["test"]]
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
    assert ("--label_map" in text) == (source in ("folder", "hub", "manifest"))


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
    code = "import sys, datasets_scripts; print({'torch', 'modeling', 'timm'} & set(sys.modules))"
    result = run_python(code)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr
