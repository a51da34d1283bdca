"""The training job at toy size: manifest, pack, runs stopped and resumed, what came back judged."""

import csv
import json
import sys
from collections import defaultdict

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from datasets_scripts import load_cxr_dataset
from modeling import CxrImageProcessor, create_model
from recipes.gpu import collect, manifest, pack, run

SIDE = 64
DEFAULTS = {
    "model": "baseline",
    "model_options": {"hidden_sizes": [4, 8]},
    "image_size": 32,
    "images": 64,
    "batch_size": 8,
    "learning_rate": 0.01,
    "evaluations": 2,
    "max_held_out": 10,
}
RUNS = [
    {"name": "teacher", "model": "test_efficientnet", "model_options": {}},
    {"name": "without-nih", "hold_out": "nih", "geometry": "squash"},
    {"name": "student", "teachers": ["teacher"], "unlabelled": True, "keep": False},
]


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The sets' folders as manifest.py reads them, of phantoms: 64 x 64 pixels."""
    root = tmp_path_factory.mktemp("data")
    options = {"num_train": 140, "num_validation": 4, "num_test": 4, "image_size": SIDE}
    phantoms = load_cxr_dataset("phantom", **options)["train"]
    images = {k: iter([row["image"] for row in phantoms if row["label"] == k]) for k in (0, 1)}

    def save(path, label):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        next(images[label]).save(root / path)

    sizes = []
    for split, count in (("train", 20), ("val", 1), ("test", 2)):
        for k in range(count):
            number = {"train": 100, "val": 200, "test": 300}[split] + k
            for label, name in ((0, f"IM-0{number}-0001"), (1, f"person{number}_virus_{k}")):
                folder = ("NORMAL", "PNEUMONIA")[label]
                save(f"chest_xray/{split}/{folder}/{name}.jpeg", label)
                size = {"name": f"{name}.jpeg", "orig_w": 120, "orig_h": 80, "lung_mask": ""}
                sizes.append(size)
    write_table(root / "kermany_extra" / "manifest.csv", sizes)
    (root / "kermany_extra" / "lung_masks").mkdir()

    rows = []
    kinds = [
        ("Pneumonia|Effusion", "384", "train"),
        ("Pneumonia", "384", "validation"),
        ("Pneumonia", "384", "test"),
        ("Pneumonia", "64", "train"),
        ("No Finding", "384", "train"),
        ("Pneumonia", "384", "unused"),
    ]
    for number, (labels, pixels, split) in enumerate(kinds * 3):
        file = f"images/{number:08d}_000.png"
        save(f"chestxray14/{file}", 1)
        row = {"file": file, "patient_id": number, "labels": labels, "age": "50", "sex": "F"}
        rows.append({**row, "view": "PA", "pixels": pixels, "split": split})
    write_table(root / "chestxray14" / "split.csv", rows)

    rows = []
    for folder, count in (("normal_rsna", 30), ("covid", 3), ("tuberculosis", 3)):
        for number in range(count):
            file = f"{folder}/{number}.png"
            save(f"adults/{file}", 0)
            rows.append({"file": file, "finding": folder, "source": "somewhere"})
    write_table(root / "adults" / "manifest.csv", rows)
    return root


def main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    """A folder with the manifest, the recipe and the pack."""
    folder = tmp_path_factory.mktemp("job")
    manifest.write_manifest(data, folder / "manifest.csv")
    weights = timm.create_model("test_efficientnet").state_dict()
    torch.save(weights, folder / "imagenet.pth")
    runs = [RUNS[0] | {"pretrained": str(folder / "imagenet.pth")}, *RUNS[1:]]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"defaults": DEFAULTS, "runs": runs}))
    pack.pack(data, folder / "manifest.csv", folder / "recipe.yaml", folder / "pack")
    return folder


def test_the_manifest_lists_what_may_be_trained_on_and_no_source_tells_the_label(job, data):
    with open(job / "manifest.csv") as file:
        rows = list(csv.DictReader(file))
    counts, mass = defaultdict(int), defaultdict(float)
    for row in rows:
        assert (data / row["file"]).is_file() and "test" not in row["file"].split("/")
        counts[row["split"], row["source"], row["label"]] += 1
        mass[row["split"], row["source"], row["label"]] += float(row["weight"])
    assert counts["train", "chestxray14", "PNEUMONIA"] == 3
    assert counts["validation", "chestxray14", "PNEUMONIA"] == 3
    assert counts["unlabelled", "covid", ""] == counts["unlabelled", "tuberculosis", ""] == 3
    assert counts["train", "rsna", "NORMAL"] + counts["validation", "rsna", "NORMAL"] == 30
    kermany = [counts[split, "kermany", "NORMAL"] for split in ("train", "validation")]
    assert sum(kermany) == 21 and min(kermany) >= 1
    assert sum(counts.values()) == 2 * 21 + 6 + 30 + 6
    normal = mass["train", "kermany", "NORMAL"], mass["train", "rsna", "NORMAL"]
    pneumonia = mass["train", "kermany", "PNEUMONIA"], mass["train", "chestxray14", "PNEUMONIA"]
    np.testing.assert_allclose(normal, pneumonia, rtol=1e-4)
    train = sum(normal) + sum(pneumonia)
    unlabelled = sum(value for key, value in mass.items() if key[0] == "unlabelled")
    assert unlabelled / train == pytest.approx(manifest.UNLABELLED_SHARE, rel=1e-4)
    dataset = load_cxr_dataset(str(job / "manifest.csv"), root=str(data))
    assert {name: len(part) for name, part in dataset.items()} == {
        "train": sum(n for (split, *_), n in counts.items() if split == "train"),
        "validation": sum(n for (split, *_), n in counts.items() if split == "validation"),
        "unlabelled": 6,
    }


def test_the_pack_holds_the_images_as_training_reads_them(job, data):
    packed = run.Pack(job / "pack" / "images.npz")
    row = packed.image.tolist().index("chest_xray/train/NORMAL/IM-0100-0001.jpeg")
    for geometry in ("pad", "crop", "squash"):
        processor = CxrImageProcessor(SIDE, geometry=geometry)
        packed.decode(processor, "cpu")
        wanted = processor.read(data / packed.image[row], shape=(80, 120)) / 257
        assert np.abs(packed.images[row].numpy() - wanted).mean() < 6  # of 255: WebP loses some
    assert (job / "pack" / "test_efficientnet.safetensors").is_file()


def test_a_pack_that_cannot_travel_is_refused(job, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "LIMIT_MIB", 0.01)
    with pytest.raises(ValueError, match="of the 0.01; lower MAX_LABELLED"):
        pack.pack(data, job / "manifest.csv", job / "recipe.yaml", tmp_path)


@pytest.fixture(scope="module")
def came_back(job):
    """What the runs leave when nothing stops them."""
    with pytest.MonkeyPatch.context() as patch:
        main(run, patch, job / "pack", job / "recipe.yaml", job / "out", job / "state")
    return job / "out"


def test_the_runs_bring_back_weights_logits_and_a_log(came_back, job):
    assert {path.name for path in came_back.iterdir()} == {
        *("teacher.safetensors", "without-nih.safetensors", "logits.npz", "log.jsonl")
    }
    lines = [json.loads(line) for line in (came_back / "log.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines if "validation" in line] == [
        name for name in ("teacher", "without-nih", "student") for _ in range(2)
    ]
    assert all(line["images_per_second"] > 0 for line in lines)
    packed = run.Pack(job / "pack" / "images.npz")
    logits = np.load(came_back / "logits.npz")
    scored = {name: set(logits[f"{name}/image"]) for name in ("teacher", "without-nih", "student")}
    validation = set(packed.image[packed.split == "validation"])
    assert scored["teacher"] == scored["student"] == validation
    held_out = set(packed.image[(packed.hospital == "nih") & (packed.split == "train")])
    assert validation < scored["without-nih"] <= validation | held_out
    model, processor, told = run.load_run(came_back / "without-nih.safetensors")
    assert (processor.geometry, told["hold_out"], told["steps"]) == ("squash", "nih", 8)
    packed.decode(processor, "cpu")
    rows = np.flatnonzero(np.isin(packed.image, logits["without-nih/image"]))
    with torch.no_grad():
        again = model(processor.normalize(packed.images[rows].float() / 255)).logits
    np.testing.assert_allclose(again, logits["without-nih/logits"], atol=0.02)  # float16 weights


def test_a_stopped_job_goes_on_to_the_same_logits(came_back, job, tmp_path, monkeypatch, capsys):
    arguments = (job / "pack", job / "recipe.yaml", tmp_path / "out", tmp_path / "state")
    for _ in range(4):
        main(run, monkeypatch, *arguments, "--minutes", "0")  # one step
        assert "the same command goes on" in capsys.readouterr().out
    main(run, monkeypatch, *arguments)
    whole, resumed = (np.load(out / "logits.npz") for out in (came_back, tmp_path / "out"))
    assert set(whole) == set(resumed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    one, other = (load_file(out / "teacher.safetensors") for out in (came_back, tmp_path / "out"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_came_back_is_judged_on_the_hospitals_validation_images(
    came_back, job, data, tmp_path, monkeypatch, capsys
):
    folders = (came_back, data, job / "manifest.csv", job / "pack", tmp_path / "results")
    main(collect, monkeypatch, *folders)
    table = capsys.readouterr().out
    assert table.strip() == (tmp_path / "results" / "runs.md").read_text().strip()
    row = next(line for line in table.splitlines() if "without-nih" in line).split("|")
    metrics = json.loads((tmp_path / "results" / "nih" / "metrics.json").read_text())
    auroc = metrics["models"]["without-nih"]["metrics"]["auroc"]
    assert row[-2].strip().startswith(f"({auroc['value']:.3f}") and "(" not in row[-3]
    model, _ = create_model(str(came_back / "models" / "teacher"), ["NORMAL", "PNEUMONIA"])
    assert model.config.architecture == "test_efficientnet"


@pytest.mark.parametrize(
    "runs, message",
    [
        ([{"name": "a", "model": "x", "imgaes": 3}], "a has the unknown option 'imgaes'"),
        ([{"name": "a", "model": "x"}] * 2, "two runs are called a"),
        ([{"name": "a", "model": "x", "teachers": ["b"]}], "no run before a is called b"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, runs, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"runs": runs}))
    with pytest.raises(ValueError, match=message):
        run.read_recipe(path)


def test_the_runs_need_nothing_that_a_bare_gpu_machine_lacks(run_python):
    code = """
import sys
for name in ("datasets", "evaluate", "gradio", "matplotlib", "pydicom", "pytorch_grad_cam"):
    sys.modules[name] = None  # an import of it fails
import recipes.gpu.run
"""
    result = run_python(code, cwd=run.__file__.rpartition("/recipes/")[0])
    assert result.returncode == 0, result.stderr
