"""Data sets of TorchXRayVision's classes, as objects."""

import numpy as np
import pandas as pd
import pytest

from datasets_scripts import class_names, label_sets, load_cxr_dataset, open_row, unknown_sets
from datasets_scripts.pixels import stored_rows

xrv = pytest.importorskip("torchxrayvision")


class Ward_Dataset(xrv.datasets.Dataset):  # noqa: N801 - as the package names its own
    """Sixty images of thirty patients, as the package's classes hold theirs."""

    def __init__(self, **changes):
        super().__init__()
        rng = np.random.default_rng(0)
        self.pathologies = ["Mass", "Lung Opacity"]
        self.labels = rng.integers(0, 2, (60, 2)).astype(np.float32)
        self.labels[::5, 1] = np.nan
        self.csv = pd.DataFrame(
            {
                "patientid": np.repeat(np.arange(30), 2),
                "view": ["PA", None] * 30,
                "age_years": [40.0, np.nan] * 30,
                "sex_male": [True, False] * 30,
                "sex_female": [False, True] * 30,
            }
        )
        self.images = rng.integers(0, 256, (60, 40, 48)).astype(np.uint8)
        self.scale = 255
        vars(self).update(changes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        image = xrv.utils.normalize(self.images[row], 255, reshape=True)
        return {"img": image * 255 / self.scale, "lab": self.labels[row], "idx": row}


def test_labels_unknown_cells_patients_and_pixels_are_kept():
    source = Ward_Dataset()
    dataset = load_cxr_dataset(source, seed=1)
    assert set(dataset) == {"train", "validation", "test"}
    owners = [set(split["patient_id"]) for split in dataset.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 30
    seen = 0
    for split in dataset.values():
        assert class_names(split) == source.pathologies
        stored = stored_rows(split)
        for row, present, unknown in zip(stored, label_sets(split), unknown_sets(split)):
            number = int(row["image_id"].rpartition("-")[2])
            cells = source.labels[number]
            assert present == tuple(np.flatnonzero(cells == 1))
            assert unknown == tuple(np.flatnonzero(np.isnan(cells)))
            assert row["patient_id"] == str(number // 2)
            assert (row["view"], row["sex"]) == (("PA", "M") if number % 2 == 0 else (None, "F"))
            assert row["age"] == (40 if number % 2 == 0 else None)
            image, _ = open_row(row, correct=False)
            np.testing.assert_array_equal(image.pixels // 257, source.images[number])
            seen += 1
    assert seen == 60


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": np.zeros((60, 3))}, {}, r"labels of shape \(60, 3\) for 60 rows and 2"),
        ({"labels": np.full((60, 2), -1.0)}, {}, "labels other than 1, 0 and NaN: map them"),
        ({"csv": pd.DataFrame({"view": ["PA"] * 60})}, {}, "no column patientid"),
        ({"scale": 100}, {}, "image 0 of Ward_Dataset has .* grey image from -1024 to 1024"),
        ({}, {"folds": 3}, "unknown option 'folds' of dataset Ward_Dataset: it takes label_map"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, options, message):
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset(Ward_Dataset(**changes), **options)
