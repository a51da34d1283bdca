"""validate.py --rescore SCORES --labels TABLE: published scores under their source's labels."""

import gzip
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import validate
from training.rescoring import join_scores

TABLE = """Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position
00000001_000.png,Cardiomegaly|Emphysema,1,57,M,PA
00000001_001.png,No Finding,1,58,M,AP
00000002_000.png,Pleural_Thickening,2,80,F,PA
00000003_000.png,No Finding,3,21,F,PA
"""
SCORES = """Image,prob_Cardiomegaly,prob_Pleural Thickening
images/00000003_000.jpg,0.1,0
images/00000001_000.jpg,0.9,0.25
images/00000002_000.jpg,0.5,1
"""
CLASSES = """name,label,patient,split
a.png,NORMAL,p1,test
b.png,PNEUMONIA,p1,test
c.png,PNEUMONIA,p2,train
"""
# Of the reproduction itself, in the paper's order of findings; see the data's README.
PUBLISHED = (
    *(0.8180, 0.9090, 0.8827, 0.7156, 0.8377, 0.7756, 0.7617),
    *(0.8776, 0.8002, 0.8945, 0.9316, 0.8251, 0.7889, 0.9175),
)


@pytest.fixture
def join(tmp_path):
    """`join(scores, table, split="all")`: `join_scores` of two texts."""

    def run(scores, table, split="all"):
        (tmp_path / "table.csv").write_text(table)
        with gzip.open(tmp_path / "scores.csv.gz", "wt") as file:
            file.write(scores)
        return join_scores(tmp_path / "scores.csv.gz", str(tmp_path / "table.csv"), split)

    return run


def test_scores_meet_labels_patients_and_subgroups_by_the_images_name(join):
    found = join(SCORES, TABLE)
    assert found.multi_label and found.class_names == ("Cardiomegaly", "Pleural_Thickening")
    assert [name.split("/")[1][:8] for name in found.image_id] == [
        "00000003",
        "00000001",
        "00000002",
    ]
    assert found.patient_id.tolist() == ["3", "1", "2"]
    assert found.labels.tolist() == [[False, False], [True, False], [False, True]]
    np.testing.assert_allclose(
        found.probabilities, [[0.1, 0], [0.9, 0.25], [0.5, 1]], rtol=0, atol=1e-12
    )
    assert np.isfinite(found.logits).all()
    assert {name: cells.tolist() for name, cells in found.extra.items()} == {
        "view": ["PA", "PA", "PA"],
        "age": ["21", "57", "80"],
        "sex": ["F", "M", "F"],
    }


@pytest.mark.parametrize(
    ("column", "cells", "logits"),
    [
        ("logit_Mass", ("-1", "0.5"), (-1, 0.5)),
        ("logit_Mass", ("0.25", "0.5"), (0.25, 0.5)),
        ("Mass", ("-1", "0.5"), (-1, 0.5)),
        ("Mass", ("0.5", "0.75"), (0, np.log(3))),
        ("prob_Mass", ("0.5", "0.75"), (0, np.log(3))),
    ],
)
def test_probabilities_and_logits_are_told_apart(join, column, cells, logits):
    scores = f"image,{column}\na,{cells[0]}\nb,{cells[1]}\n"
    found = join(scores, "image,labels\na,Mass|Nodule\nb,Nodule\n")
    np.testing.assert_allclose(found.logits[:, 0], logits, atol=1e-12)


def test_one_score_is_that_of_the_finding_of_two_classes(join):
    for column in ("prediction", "prob_PNEUMONIA"):
        found = join(f"id,{column}\nb,0.8\na,0.4\nc,0.9\n", CLASSES, "test")
        assert not found.multi_label and found.class_names == ("NORMAL", "PNEUMONIA")
        assert found.labels.tolist() == [1, 0] and found.patient_id.tolist() == ["p1", "p1"]
        np.testing.assert_allclose(found.probabilities[:, 1], [0.8, 0.4])


@pytest.mark.parametrize(
    ("scores", "table", "sentence"),
    [
        ("id,prediction\nz.png,1\n", CLASSES, "does not list 1 of the 1 images .*'z.png'"),
        (
            "id,prob_Edema\na,1\n",
            CLASSES,
            "scores 'Edema', of which .* says nothing; it speaks of N",
        ),
        ("id,prediction\na,1\n", TABLE.replace("00000001_000.png", "a.png"), "does not name the"),
        ("id,prediction\na,high\n", CLASSES, "scores 'a' with 'high' as prediction; a finite"),
        ("id,prediction\na,\n", CLASSES, "scores 'a' with '' as prediction; a finite number"),
        ("id,prob_PNEUMONIA\na,2\n", CLASSES, "scores of 2 to 2, but calls them probabilities"),
        ("id,note\na,2\n", CLASSES, "has no column of scores"),
        ("prediction\n0.5\n", CLASSES, "has no column of the images, as image_id"),
        ("id,prediction\na,1\na,1\n", CLASSES, "image id 'a' appears 2 times"),
        ("id,prediction\na,1\n", CLASSES + "a.jpg,NORMAL,p,test\n", "has the image 'a' twice"),
        ("id,prediction\na,1\n", "image,patient\na,p\n", "has no column of the labels"),
        ("id,prediction\nc,1\n", CLASSES, "in the split 'test', but in train; choose"),
        ("id,prediction,score\na,1,1\n", CLASSES, "has two columns like 'score'"),
    ],
)
def test_what_cannot_be_joined_is_refused(join, scores, table, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        join(scores, table, "test")
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "content", [b"id,prediction\na,1\n", gzip.compress(b"id,a\n" * 99, mtime=0)[:-9]]
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, content):
    (tmp_path / "table.csv").write_text(CLASSES)
    (tmp_path / "scores.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match="scores.csv.gz is no CSV file in UTF-8"):
        join_scores(tmp_path / "scores.csv.gz", str(tmp_path / "table.csv"), "all")


def test_names_of_kermanys_images_say_their_labels(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text(
        "image_name,ground_truth,prediction\n"
        "test/NORMAL/NORMAL-1110860-0001.jpeg,0,0.1\n"
        "test_embedded/pneumonia/VIRUS-397009-0001.npz,1,0.7\n"
        "test/PNEUMONIA/person1_virus_6.jpeg,1,0.3\n"
        "train/PNEUMONIA/BACTERIA-1135262-0003.jpeg,1,0.9\n"
    )
    found = join_scores(file, "kermany", "test")
    assert found.class_names == ("NORMAL", "PNEUMONIA") and found.labels.tolist() == [0, 1, 1]
    assert found.patient_id.tolist() == ["NORMAL-1110860", "VIRUS-397009", "person1_virus"]
    assert found.extra["subtype"].tolist() == ["normal", "virus", "virus"]
    file.write_text("image_name,prediction\nNORMAL-1-0001.jpeg,0.1\n")
    with pytest.raises(ValueError, match="'NORMAL-1-0001.jpeg', which is not named like"):
        join_scores(file, "kermany", "test")


def test_a_report_is_made_of_scores_and_labels(tmp_path, no_accelerator):
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "peer.csv").write_text(SCORES)
    flags = ["--rescore", tmp_path / "peer.csv", "--labels", tmp_path / "table.csv"]
    flags += ["--output_dir", tmp_path / "report", "--num_resamples", "20"]
    validate.main(list(map(str, flags)))
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["title"] == "Scores of peer.csv by the labels of table.csv"
    assert report["models"]["peer"]["metrics"]["auroc"]["value"] == 1
    assert (report["dataset"]["n"], report["dataset"]["patients"]) == (3, 3)
    # As any predictions file, it can be scored again.
    again = ["--rescore", tmp_path / "report" / "predictions.csv", "--num_resamples", "20"]
    validate.main(list(map(str, [*again, "--output_dir", tmp_path / "again"])))
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == report


def test_labels_without_scores_are_refused(capsys):
    with pytest.raises(SystemExit):
        validate.parse_args(["--model", "m", "--labels", "t.csv"])
    assert "--labels goes with --rescore" in capsys.readouterr().err


def test_a_published_chexnet_has_its_published_aurocs(cxr_data):
    folder = cxr_data / "chestxray14"
    scores = folder / "reproduce_chexnet_predictions.csv.gz"
    found = join_scores(scores, str(folder / "Data_Entry_2017_v2020.csv"), "test")
    assert found.labels.shape == (22_433, 14)
    aurocs = [roc_auc_score(found.labels[:, k], found.logits[:, k]) for k in range(14)]
    assert [round(auroc, 4) for auroc in aurocs] == list(PUBLISHED)
    assert round(np.mean(aurocs), 4) == 0.8383


@pytest.mark.parametrize(("peer", "n", "auroc"), [("elixr", 624, 0.9706), ("kad", 623, 0.9499)])
def test_published_zero_shot_models_have_their_published_auroc(cxr_data, peer, n, auroc):
    scores = cxr_data / "kermany_extra" / "zeroshot_peers" / f"{peer}.csv"
    found = join_scores(scores, "kermany", "test")
    assert len(found.labels) == n
    assert round(roc_auc_score(found.labels, found.log_odds[:, 1]), 4) == auroc
