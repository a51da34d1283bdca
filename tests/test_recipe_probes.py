"""Data efficiency: more labelled patients tell more, of vectors that tell anything."""

import sys

import numpy as np
import pytest

from embedding.table import KEYS, settle, write_part
from recipes.probes import efficiency


def write_embeddings(folder, signal):
    """Two images a patient, 60 patients to learn from and 40 to be scored on."""
    rng = np.random.default_rng(0)
    facts = dict.fromkeys(KEYS) | {"tokens": 1, "classes": ["NORMAL", "PNEUMONIA"]}
    settle(folder, facts | {"task": "single_label"})
    for split, patients in (("train", 60), ("validation", 40)):
        rows, vectors = [], rng.normal(size=(2 * patients, 1, 16)).astype(np.float32)
        for k in range(2 * patients):
            name = ["NORMAL", "PNEUMONIA"][k // 2 % 2]
            rows.append(
                {
                    "image_id": f"{split}{k}",
                    "patient_id": f"{split}-p{k // 2}",
                    "labels": [name],
                    "unknown": [],
                }
            )
            vectors[k, 0, :4] += signal * (k // 2 % 2)
        write_part(folder / f"{split}-00000.parquet", rows, vectors)


def test_auroc_against_the_number_of_patients(tmp_path, monkeypatch, capsys):
    write_embeddings(tmp_path / "a", 1.0)
    write_embeddings(tmp_path / "b", 0.0)
    monkeypatch.setattr(efficiency, "DRAWS", 4)
    out = tmp_path / "out"
    encoders = [f"{name}={tmp_path / name}" for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["efficiency", str(out), *encoders])
    efficiency.main()
    found = efficiency.summarize(out)
    assert {n: len(values) for n, values in found["a"].items()} == {8: 4, 16: 4, 32: 4, 60: 1}
    assert found["a"][8].mean() < found["a"][60][0]
    assert found["a"][60][0] > 0.8
    assert 0.3 < found["b"][60][0] < 0.7
    assert (out / "efficiency.png").stat().st_size > 10_000
    lines = (out / "efficiency.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["a", "b"]


def test_a_folder_without_a_split_is_refused(tmp_path):
    write_embeddings(tmp_path, 1.0)
    (tmp_path / "validation-00000.parquet").unlink()
    with pytest.raises(ValueError, match="has no validation split; embed a set that has one."):
        efficiency.draw_all("a", str(tmp_path))
