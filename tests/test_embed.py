"""Embeddings: of the project's models, of other libraries' tiny ones, of files that others made."""

import json
import logging
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models import save_for_hf
from transformers import AutoImageProcessor

import embed
import probe
from datasets_scripts import load_cxr_dataset, open_row
from datasets_scripts.pixels import stored_rows
from embedding.encoders import grey_image, load_encoder
from embedding.precomputed import _example, read_precomputed
from embedding.prompts import ZeroShot, read_prompts, zero_shot
from embedding.table import Embeddings, read_embeddings
from evaluation.predictions import read_predictions
from modeling import create_model, load_model

pytestmark = pytest.mark.usefixtures("no_accelerator")
BASELINE = "checkpoints/cxr-baseline"
COUNTS = ("num_train=40", "num_validation=12", "num_test=20", "image_size=48")
PHANTOM = ["--dataset", "phantom", "--dataset_options", *COUNTS]


def phantoms():
    return load_cxr_dataset("phantom", num_train=40, num_validation=12, num_test=20, image_size=48)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The phantoms' embeddings by the shipped baseline, in parts of 16 images."""
    folder = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "PART", 16)
        embed.main(["--encoder", BASELINE, *PHANTOM, "--output_dir", str(folder)])
    return folder


def test_a_models_embeddings_are_what_it_embeds(embedded):
    facts, splits = read_embeddings(embedded)
    assert (facts["own"], facts["classes"]) == (True, ["NORMAL", "OPACITY"])
    assert {name: len(split.vectors) for name, split in splits.items()} == {
        "train": 40,
        "validation": 12,
        "test": 20,
    }
    model, processor = load_model(BASELINE)
    test = phantoms()["test"]
    with torch.no_grad():
        expected = model.embed(processor(list(test["image"]))["pixel_values"]).numpy()
    np.testing.assert_allclose(splits["test"].vectors[:, 0], expected, atol=1e-5)
    assert splits["test"].image_id.tolist() == test["image_id"][:]
    assert splits["test"].labels.argmax(1).tolist() == test["label"][:]


def test_a_run_that_was_stopped_goes_on(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 16)
    for file in embedded.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train-00001.parquet").unlink()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    embed.main(["--encoder", BASELINE, *PHANTOM, "--output_dir", str(tmp_path)])
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    once, again = (read_embeddings(folder)[1]["train"].vectors for folder in (embedded, tmp_path))
    np.testing.assert_allclose(once, again, atol=1e-6)


def test_another_encoders_folder_is_refused(embedded):
    flags = ["--encoder", "checkpoints/cxr-densenet121", *PHANTOM, "--output_dir", str(embedded)]
    with pytest.raises(ValueError, match=r"another run \(encoder, weights differ\); name another"):
        embed.main(flags)


def save_vit(folder):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return 32


def save_mae(folder):
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=64,
    )  # fmt: skip
    transformers.ViTMAEModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return 32


def save_dinov2(folder):
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return 32


def save_convnext(folder):
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1])
    transformers.ConvNextModel(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return 40


def _towers(config_class):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 64}
    text = {**small, "vocab_size": 99, "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 8}
    return config_class(text_config=text, vision_config=vision)


def save_clip(folder):
    config = _towers(transformers.CLIPConfig)
    config.projection_dim = 24
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return 24


def save_siglip(folder):
    transformers.SiglipModel(_towers(transformers.SiglipConfig)).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return 32


FOREIGN = [save_vit, save_mae, save_dinov2, save_convnext, save_clip, save_siglip]


@pytest.mark.parametrize("correct", [True, False])
def test_a_framed_image_is_embedded_as_the_model_reads_it(correct, tmp_path):
    model, processor = create_model("baseline", ["A", "B"], 64, hidden_sizes=[4, 4])
    processor.correct = correct
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    framed = np.pad(np.asarray(phantoms()["test"][0]["image"]), 12)
    file = tmp_path / "framed.png"
    Image.fromarray(framed).save(file)
    assert (processor.open(framed).pixels.shape == framed.shape) == (not correct)
    rows = [{"image": {"bytes": None, "path": str(file)}, "image_id": "framed.png"}]
    with ThreadPoolExecutor(1) as pool:
        encoder = load_encoder(str(tmp_path / "model"))
        _, vectors, problems = embed.embed_part(encoder, rows, 1, pool)
    with torch.no_grad():
        expected = model.eval().embed(processor(framed).pixel_values)
    assert not problems
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


@pytest.mark.parametrize("save", FOREIGN, ids=lambda save: save.__name__)
def test_other_librarys_networks_embed(save, tmp_path):
    width = save(tmp_path)
    encoder = load_encoder(str(tmp_path))
    row = stored_rows(phantoms()["test"])[0]
    image, shape = open_row(row)
    prepared = encoder.prepare(image, shape)
    picture = Image.fromarray((image.pixels // 257).astype(np.uint8)).convert("RGB")
    own = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")
    torch.testing.assert_close(prepared, own["pixel_values"][0], atol=0.03, rtol=0)
    once, again = encoder([prepared, prepared]), encoder([prepared])
    assert once.shape == (2, width) and once.dtype == np.float32
    # nothing masked at random, nothing dropped
    np.testing.assert_allclose(once[0], again[0], atol=1e-5)


def test_a_timm_network_embeds(tmp_path):
    network = timm.create_model("resnet10t", num_classes=3)
    save_for_hf(
        network, tmp_path, {"pretrained_cfg": {**network.pretrained_cfg, "input_size": (3, 64, 64)}}
    )
    encoder = load_encoder(f"timm:local-dir:{tmp_path}")
    image, shape = open_row(stored_rows(phantoms()["test"])[0])
    prepared = encoder.prepare(image, shape)
    assert prepared.shape == (3, 64, 64)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network.eval()(prepared[None])
    np.testing.assert_allclose(encoder([prepared]), expected, atol=1e-5)


def test_a_text_model_has_no_vision_tower(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vision model"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("/nowhere/at-all", OSError, "neither a folder with a saved model nor a Hub id"),
        ("timm:no_such_net", OSError, "encoder 'timm:no_such_net' cannot be loaded"),
        ("open_clip:ViT-B-32", ImportError, "needs the package open_clip_torch"),
    ],
)
def test_what_is_no_encoder_is_refused(name, error, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        load_encoder(name)


def test_an_x_ray_that_was_stretched_gets_its_proportions_back():
    image, _ = open_row(stored_rows(phantoms()["test"])[0])
    assert grey_image(image, None).size == (48, 48)
    assert grey_image(image, (100, 150)).size == (72, 48)


# ----------------------------------------------------------------------------- what others embedded


def field(number, content):
    length, size = len(content), b""
    while True:
        length, low = length >> 7, length & 127
        size += bytes([low | (128 if length else 0)])
        if not length:
            return bytes([number << 3 | 2]) + size + content


def tfrecord(name, vector):
    feature = {
        b"image/id": field(1, field(1, name.encode())),
        b"embedding": field(2, field(1, np.asarray(vector, "<f4").tobytes())),
    }
    entries = [field(1, field(1, key) + field(2, value)) for key, value in feature.items()]
    record = field(1, b"".join(entries))
    return struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4)


def test_an_example_is_read_as_tensorflows_guide_prints_it():
    # https://www.tensorflow.org/tutorials/load_data/tfrecord: 0, 4, "goat", 0.9876
    record = (
        b"\nR\n\x14\n\x08feature2\x12\x08\n\x06\n\x04goat\n\x14\n\x08feature3\x12\x08\x12\x06\n\x04"
        b"[\xd3|?\n\x11\n\x08feature0\x12\x05\x1a\x03\n\x01\x00\n\x11\n\x08feature1\x12\x05\x1a\x03"
        b"\n\x01\x04"
    )
    found = _example(memoryview(record))
    assert found["feature2"] == b"goat"
    assert found["feature3"] == pytest.approx([0.9876])


def test_version_1_of_cxr_foundation_is_joined_by_name(tmp_path):
    names = [name for split in phantoms().values() for name in split["image_id"]]
    vectors = np.random.default_rng(0).normal(size=(len(names), 1376)).astype(np.float32)
    for part in range(2):
        chosen = list(zip(names, vectors))[part::2]
        records = [tfrecord(name.replace(".png", ".dcm"), vector) for name, vector in chosen]
        (tmp_path / f"embeddings.tfrecord-0000{part}-of-00002").write_bytes(b"".join(records))
    out = tmp_path / "out"
    embed.main(["--precomputed", str(tmp_path), *PHANTOM, "--output_dir", str(out)])
    _, splits = read_embeddings(out)
    found = {
        image: vector
        for split in splits.values()
        for image, vector in zip(split.image_id, split.vectors)
    }
    assert len(found) == len(names) == 72
    for name, vector in zip(names, vectors):
        np.testing.assert_array_equal(found[name], vector[None])


@pytest.mark.parametrize(
    ("arrays", "shape"),
    [
        ({"img_emb": (32, 768)}, (32, 768)),
        ({"general_img_emb": (1, 32, 768), "all_contrastive_img_emb": (1, 32, 128)}, (32, 128)),
        ({"contrastive_img_emb": (128,)}, (1, 128)),
    ],
)
def test_version_2_is_a_file_an_image(arrays, shape, tmp_path):
    made = {name: np.random.default_rng(0).normal(size=size) for name, size in arrays.items()}
    np.savez(tmp_path / "chest_1.npz", **made)
    ((name, tokens),) = read_precomputed(tmp_path)
    assert name == "chest_1"
    np.testing.assert_allclose(tokens, list(made.values())[-1].reshape(shape), atol=1e-6)


def test_parquet_is_read(tmp_path):
    table = pa.table({"image_id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [(name, vector.tolist()) for name, vector in read_precomputed(tmp_path)] == [
        ("a", [[1, 2]]),
        ("b", [[3, 4]]),
    ]


def damage(folder, what):
    if what == "cut":
        (folder / "a.tfrecord").write_bytes(tfrecord("a", [1, 2, 3])[:-9])
    elif what == "noise":
        (folder / "a.tfrecord").write_bytes(bytes(range(200)))
    elif what == "other arrays":
        np.savez(folder / "a.npz", pixels=np.zeros(3))
    elif what == "no zip":
        (folder / "a.npz").write_bytes(b"PK\3\4 no zip")
    elif what == "no parquet":
        (folder / "a.parquet").write_bytes(b"PAR1")
    elif what == "mixed":
        (folder / "a.tfrecord").write_bytes(tfrecord("a", [1, 2, 3]) + tfrecord("b", [1, 2]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "holds no .tfrecord, .npz or .parquet file."),
        ("cut", "record without image/id and embedding, or is cut off."),
        ("noise", "record without image/id and embedding, or is cut off."),
        ("other arrays", "has pixels; one of all_contrastive_img_emb"),
        ("no zip", "is no .npz file of arrays."),
        ("no parquet", "is no Parquet file with the columns image_id and embedding."),
        ("mixed", "gives b 1 x 2 numbers, others before it 1 x 3 numbers"),
    ],
)
def test_a_damaged_file_is_one_sentence(what, message, tmp_path):
    damage(tmp_path, what)
    with pytest.raises(ValueError, match=message):
        list(read_precomputed(tmp_path))


def test_names_that_match_nothing_are_refused(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(tfrecord("elsewhere", [1, 2]))
    flags = ["--precomputed", str(tmp_path / "a.tfrecord"), *PHANTOM]
    with pytest.raises(ValueError, match="none of the 1 names in .* is an image of the set, as "):
        embed.main([*flags, "--output_dir", str(tmp_path / "out")])


# ------------------------------------------------------------------------------------------- probes


def test_a_probe_on_a_model_of_ours_is_that_model_with_another_head(embedded, tmp_path, caplog):
    caplog.set_level(logging.INFO, "probe")
    probe.main(["--embeddings", str(embedded), "--output_dir", str(tmp_path / "run")])
    model, processor = load_model(str(tmp_path / "run"))
    test = phantoms()["test"]
    with torch.no_grad():
        logits = model(processor(list(test["image"]))["pixel_values"]).logits.numpy()
    stored = read_predictions(tmp_path / "run" / "predictions_test.csv")
    np.testing.assert_allclose(logits, stored.logits, atol=1e-3)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"Test AUROC {metrics['test']['auroc']['value']:.3f}" in caplog.text
    assert model.config.thresholds is not None
    body = load_model(BASELINE)[0].network.state_dict()
    same = {name for name, w in model.network.state_dict().items() if torch.equal(w, body[name])}
    assert set(body) - same == {name.removeprefix("network.") for name in model.head_keys()}


@pytest.mark.parametrize("head", ["logistic", "mlp"])
def test_a_head_learns_what_the_vectors_tell_and_leaves_unknown_cells_aside(head):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    labels = vectors[:, :2] > 0
    unknown = np.zeros_like(labels)
    unknown[:200, 1] = True
    labels[:200, 1] = False  # as for any unknown cell
    patients = np.repeat([f"p{k}" for k in range(100)], 4)
    names = np.array([f"i{k}" for k in range(400)])
    train = Embeddings(names, patients, labels, unknown, vectors[:, None])
    new = rng.normal(size=(300, 8)).astype(np.float32)
    told = probe.HEADS[head](train, ["A", "B"], True, 0)(new[:, None])
    assert ((told > 0) == (new[:, :2] > 0)).mean(axis=0).min() > 0.85


# ----------------------------------------------------------------------------------------- prompts


def save_tokenizer(folder):
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in words[2:]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    tokenizer.save_pretrained(folder)
    return vocabulary


@pytest.fixture
def tiny_clip(tmp_path):
    folder = tmp_path / "clip"
    torch.manual_seed(0)
    save_clip(folder)
    save_tokenizer(folder)
    return folder


def write_prompts(folder, **more):
    content = {"findings": {"OPACITY": {"present": ["opac"], "absent": ["clear"]}}, **more}
    (folder / "prompts.yaml").write_text(json.dumps(content))
    return str(folder / "prompts.yaml")


def test_prompts_give_the_models_own_logits(tiny_clip, tmp_path):
    out, run = tmp_path / "out", tmp_path / "run"
    embed.main(["--encoder", str(tiny_clip), *PHANTOM, "--output_dir", str(out)])
    prompts = write_prompts(tmp_path)
    probe.main(["--embeddings", str(out), "--zero_shot", prompts, "--output_dir", str(run)])
    stored = read_predictions(run / "predictions_test.csv")
    model = transformers.CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tiny_clip)(
        ["opac", "clear"], padding=True, return_tensors="pt"
    )
    encoder = load_encoder(str(tiny_clip))
    rows = stored_rows(phantoms()["test"])
    pixels = torch.stack([encoder.prepare(*open_row(row)) for row in rows])
    with torch.no_grad():
        own = model(**tokens, pixel_values=pixels).logits_per_image
    expected = (own[:, 0] - own[:, 1]).numpy()
    np.testing.assert_allclose(stored.logits[:, 1] - stored.logits[:, 0], expected, atol=1e-4)


def test_the_best_of_an_images_tokens_counts():
    texts = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    vectors = np.array([[[0.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(ZeroShot(texts, 2.0, True)(vectors), [[0, 0], [0, -2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "has no findings, a mapping"),
        ("{", "is no YAML"),
        ("findings: {Mass: {present: [a], absent: [b]}}", "no prompts for OPACITY; it has Mass"),
        ("findings: {OPACITY: {present: a}}", "needs lists present and absent of sentences"),
    ],
)
def test_a_file_of_other_prompts_is_refused(content, message, tmp_path):
    (tmp_path / "prompts.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "prompts.yaml", ["OPACITY"])


def test_prompts_need_a_text_tower(tmp_path):
    save_vit(tmp_path)
    prompts = read_prompts(write_prompts(tmp_path), ["OPACITY"])
    with pytest.raises(ValueError, match="no text tower: prompts need an encoder with one."):
        zero_shot(prompts, str(tmp_path), True)


def test_stored_vectors_of_prompts_need_no_text_tower(tmp_path):
    np.savez(tmp_path / "texts.npz", **{"0": np.array([3.0, 0]), "1": np.array([0, 4.0])})
    prompts = read_prompts(write_prompts(tmp_path, vectors="texts.npz"), ["OPACITY"])
    head = zero_shot(prompts, "elixr", True)
    np.testing.assert_allclose(head.texts, [[[1, 0], [0, 1]]])
    with pytest.raises(ValueError, match="the images have 3 numbers, the prompts 2"):
        head(np.ones((1, 1, 3), np.float32))


def test_patients_are_drawn_whole(embedded):
    _, splits = read_embeddings(embedded)
    some = probe.some_patients(splits["train"], 7, 0)
    assert len(np.unique(some.patient_id)) == 7
    other = probe.some_patients(splits["train"], 7, 1)
    assert set(some.patient_id) != set(other.patient_id)


def test_a_class_without_training_images_is_refused(embedded):
    _, splits = read_embeddings(embedded)
    train = splits["train"].take(np.flatnonzero(splits["train"].labels[:, 0]))
    with pytest.raises(ValueError, match="no training image is of the class OPACITY."):
        probe.HEADS["logistic"](train, ["NORMAL", "OPACITY"], False, 0)


def test_a_folder_without_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no embeddings.json; embed.py makes such folders."):
        probe.main(["--embeddings", str(tmp_path), "--output_dir", str(tmp_path / "run")])
