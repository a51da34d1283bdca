"""Studies of arms with a few seeds: what is compared with what, and what the pages say."""

import csv
import json

import numpy as np
import pytest

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions, write_predictions_by_model
from modeling import create_model
from recipes.architectures import results as architectures
from recipes.architectures.speed import measure
from recipes.lungs import windows
from recipes.seeds import compare_arms, heat_in_lungs, measure_seeds, read_arms

N = 160


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    for module in ("recipes.seeds", "recipes.lungs.windows", "recipes.architectures.results"):
        monkeypatch.setattr(f"{module}.NUM_RESAMPLES", 60)


def made(strength: float, seed: int, split: str = "validation") -> Predictions:
    """Two images a patient, ranked the better the stronger."""
    labels = np.arange(N) // 2 % 2
    noise = np.random.default_rng(seed).normal(size=N)
    margin = strength * (2 * labels - 1) + noise
    return Predictions(
        np.array([f"{k}.png" for k in range(N)]),
        np.array([f"p{k // 2}" for k in range(N)]),
        labels,
        np.stack([np.zeros(N), margin], 1),
        ("NORMAL", "PNEUMONIA"),
        split,
        False,
    )


def write(path, strengths, seeds=(42,)):
    models = {f"{arm}-{seed}": made(s, seed) for arm, s in strengths.items() for seed in seeds}
    write_predictions_by_model(path, models)


def write_heat(path, arms, seed):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "model", "energy_in_lungs", "lung_area"])
        for arm, energy in arms.items():
            for k in range(N):
                writer.writerow([f"{k}.png", f"p{k // 2}", f"{arm}-{seed}", energy, 0.3])


def test_arms_are_means_over_seeds_and_gains_are_paired(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path / f"set-{seed}.csv", {"a": 0.2, "b": 1.0, "c": 0.2}, seeds=(seed,))
    arms = read_arms(*(tmp_path / f"set-{seed}.csv" for seed in (1, 2, 3)))
    found = compare_arms(arms, {"b": "a", "c": "a"})
    one_by_one = [compute_metrics(run, 0)["auroc"]["value"] for run in arms["b"]]
    assert found["b"]["seeds"] == pytest.approx(one_by_one)
    assert found["b"]["value"] == pytest.approx(np.mean(one_by_one))
    assert found["b"]["gain"]["low"] > 0
    # The same images ranked alike: paired, there is no spread at all.
    assert found["c"]["gain"]["value"] == 0
    assert found["c"]["gain"]["reason"] == "every resample gives the same value"
    assert "gain" not in found["a"]
    measured = measure_seeds(arms["a"])
    assert len(measured.seeds) == 3 and measured.resampled.std() > 0.01


def test_heat_is_compared_image_by_image(tmp_path):
    files = [tmp_path / f"heat-{seed}.csv" for seed in (1, 2)]
    write_heat(files[0], {"a": 0.4, "b": 0.6}, 1)
    write_heat(files[1], {"a": 0.5, "b": ""}, 2)
    found = heat_in_lungs(files[:1], "a")
    assert found["b"]["energy"]["value"] == pytest.approx(0.6)
    assert found["b"]["gain"]["value"] == pytest.approx(0.2)
    assert found["a"]["area"]["value"] == pytest.approx(0.3)
    assert heat_in_lungs(files, "a")["b"]["energy"]["value"] is None


def test_the_winner_of_the_windows_is_of_the_held_out_mean_and_alone_on_the_tests(tmp_path):
    strengths = dict.fromkeys(windows.ARMS, 0.5)
    for seed in windows.SEEDS:
        for name in windows.SETS:
            best = "clahe" if name in ("shift", "adults") else "mask"
            strong = {**strengths, best: 1.2}
            write(tmp_path / f"{name}-{seed}.csv", strong, seeds=(seed,))
        write_heat(tmp_path / f"validation-heat-{seed}.csv", dict.fromkeys(strengths, 0.4), seed)
    windows.main(tmp_path)
    assert (tmp_path / "winner.txt").read_text() == "clahe\n"
    page = (tmp_path / "windows.md").read_text()
    assert "first is `clahe`." in page and "Sensitivity" not in page
    for name in windows.TESTS:
        for seed in windows.SEEDS:
            write(tmp_path / f"{name}-{seed}.csv", {"clahe": 1.0}, seeds=(seed,))
    windows.main(tmp_path)
    page = (tmp_path / "windows.md").read_text()
    assert page.count("| actualmed |") == 3
    kept = json.loads((tmp_path / "windows.json").read_text())
    assert kept["auroc"]["adults"]["clahe"]["gain"]["low"] > 0


def test_architectures_are_ranked_tested_and_judged(tmp_path):
    strengths = {"densenet121": 0.8, "baseline": 0.8, "small_vit": 0.2, "vit_without_spt": 0.9}
    for name in architectures.SETS:
        write(tmp_path / f"{name}.csv", strengths, seeds=(42, 43))
    write_heat(tmp_path / "validation-heat.csv", strengths, 42)
    speed = {"parameters": 7e6, "macs": 5e8, "train": 10.0, "predict": 40.0}
    speeds = {"threads": 2, "models": dict.fromkeys(strengths, speed)}
    (tmp_path / "speed.json").write_text(json.dumps(speeds))
    run = tmp_path / "runs" / "densenet121-42"
    run.mkdir(parents=True)
    arguments = {"image_size": 96, "num_train_epochs": 4}
    (run / "training_args.json").write_text(json.dumps(arguments))
    architectures.main(tmp_path)
    page = (tmp_path / "architectures.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rows[0] == "vit_without_spt" and rows[-1] == "small_vit"
    assert "`small_vit` above `vit_without_spt` is reversed: validation" in page
    assert "`densenet121` above `baseline` cannot be told" in page
    p = json.loads((tmp_path / "architectures.json").read_text())["p"]
    assert p["small_vit"] < 0.01 and p["baseline"] == 1


def test_holm_multiplies_by_what_is_left_and_never_falls():
    arms = {name: [made(s, 1)] for name, s in [("densenet121", 0.8), ("x", 0.1), ("y", 0.5)]}
    both, alone = architectures.p_values(arms), {}
    for name in ("x", "y"):
        alone |= architectures.p_values({key: arms[key] for key in ("densenet121", name)})
    low, high = sorted(alone, key=alone.get)
    assert both[low] == pytest.approx(2 * alone[low])
    assert both[high] == pytest.approx(max(alone[high], both[low]))


def test_speeds_count_known_weights_and_multiplications(tmp_path):
    for name, widths in (("small-1", [4, 4]), ("large-1", [32, 64])):
        model, processor = create_model("baseline", ["A", "B"], 32, hidden_sizes=widths)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    found = measure({name: str(tmp_path / f"{name}-1") for name in ("small", "large")})
    assert min(found["small"]["predict"], found["small"]["train"]) > 0
    reference = create_model("baseline", ["A", "B"], 32, hidden_sizes=[4, 4])[0]
    assert found["small"]["parameters"] == sum(w.numel() for w in reference.network.parameters())
    assert found["large"]["macs"] > 10 * found["small"]["macs"] > 0
