"""The pixel cache: decoded once, never half-written, unreadable images counted and named."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPO
from datasets_trees import write_classes, write_image
from PIL import Image, UnidentifiedImageError

from datasets_scripts import fingerprint, load_cxr_dataset, read_pixels
from datasets_scripts.hashes import hash_images
from datasets_scripts.pixels import stored_rows

SIZE = 16


def grey(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L").resize((SIZE, SIZE))).astype(np.uint16) * 257


def read(row):
    return grey(row["image"]["path"]), ()


def refuse(row):
    raise AssertionError("a second call must decode nothing")


@pytest.fixture
def part(tmp_path):
    """60 images of one split, as files."""
    write_classes(tmp_path / "set" / "test", a=30, b=30)
    return load_cxr_dataset("folder", tmp_path / "set")["test"]


def test_every_image_is_a_row_in_order_and_is_decoded_once(part, tmp_path):
    calls = []

    def counted(row):
        calls.append(row["image"]["path"])
        return read(row)

    cache = tmp_path / "cache" / "test"
    pixels, kept, _ = read_pixels(part, counted, SIZE, cache, num_workers=3)
    assert (pixels.shape, pixels.dtype, kept.dtype) == ((60, SIZE, SIZE), np.uint16, np.int64)
    assert len(calls) == len(set(calls)) == 60
    assert kept.tolist() == list(range(60))
    for row, path in enumerate(sorted(calls)):
        assert (pixels[row] == grey(path)).all()
    again, kept_again, _ = read_pixels(part, refuse, SIZE, cache)
    assert np.array_equal(again, pixels) and (kept_again == kept).all()
    with pytest.raises(TypeError, match="does not support item assignment"):
        again[0] = 0


@pytest.mark.parametrize("fine", [None, 0, 59])
def test_8_bits_are_kept_where_they_lose_nothing(part, tmp_path, fine):
    def one_fine(row):
        pixels = read(row)[0]
        if fine is not None and row["image_id"] == part["image_id"][fine]:
            pixels[3, 4] += 1
        return pixels, ()

    cache = tmp_path / "cache"
    written = read_pixels(part, one_fine, SIZE, cache).pixels
    expected = np.stack([grey(row["image"]["path"]) for row in stored_rows(part)])
    if fine is not None:
        expected[fine, 3, 4] += 1
    for pixels in (written, read_pixels(part, refuse, SIZE, cache).pixels):
        assert np.array_equal(pixels, expected) and pixels[[5, 2]].dtype == np.uint16
        assert np.array_equal(pixels[[5, 2]], expected[[5, 2]])
    assert cache.stat().st_size == 60 * SIZE * SIZE * (1 if fine is None else 2)


def test_embedded_images_are_read_from_their_bytes(tmp_path):
    phantoms = load_cxr_dataset("phantom", num_train=4, num_validation=2, num_test=2, image_size=32)

    def from_bytes(row):
        assert row["image"]["bytes"].startswith(b"\x89PNG")
        return np.full((SIZE, SIZE), len(row["image"]["bytes"]), np.uint16), ()

    pixels, _, _ = read_pixels(phantoms["train"], from_bytes, SIZE, tmp_path / "cache")
    assert len(np.unique(pixels)) > 1


def test_unreadable_images_are_left_out_named_and_limited(part, tmp_path, caplog):
    files = sorted((tmp_path / "set").rglob("*.png"))
    files[3].write_text("not an image")
    files[7].write_bytes(b"")
    files[9].write_bytes(files[9].read_bytes()[:300])
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="3 of 60 images cannot be read.*more than the 1.0% allow"):
        read_pixels(part, read, SIZE, cache)
    assert not list(tmp_path.glob("cache*"))
    pixels, kept, _ = read_pixels(part, read, SIZE, cache, max_unreadable=0.05)
    assert kept.tolist() == [row for row in range(60) if row not in (3, 7, 9)]
    assert pixels.shape == (57, SIZE, SIZE) and (pixels[3] == grey(files[4])).all()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for name in (3, 7, 9):
        assert files[name].name in record.getMessage()
    _, kept_again, _ = read_pixels(part, refuse, SIZE, cache, max_unreadable=0.05)
    assert (kept_again == kept).all()


def test_ten_unreadable_images_are_named_of_many(part, tmp_path):
    def broken(row):
        raise UnidentifiedImageError("no image")

    with pytest.raises(ValueError, match="60 of 60 images cannot be read") as caught:
        read_pixels(part, broken, SIZE, tmp_path / "cache", max_unreadable=1.0)
    assert str(caught.value).count("no image") == 10 and "and 50 more" in str(caught.value)


def test_what_was_noticed_is_counted_by_kind_and_kept_with_the_pixels(part, tmp_path):
    def noticing(row):
        number = int(row["image_id"].partition("-")[2].partition(".")[0])
        cut = f"A frame was cut: of 1,000 x {number} pixels, 3.5 are left."
        return read(row)[0], [cut, "Dark.", "Dark."] if number < 7 else []

    expected = {"A frame was cut: of N x N pixels, N are left.": 14, "Dark.": 14}
    assert read_pixels(part, noticing, SIZE, tmp_path / "cache").warnings == expected
    assert read_pixels(part, refuse, SIZE, tmp_path / "cache").warnings == expected


def test_a_cache_of_other_images_is_written_again(part, tmp_path, caplog):
    cache = tmp_path / "cache"
    read_pixels(part, read, SIZE, cache)
    pixels, _, _ = read_pixels(part.select(range(20)), read, SIZE, cache)
    assert len(pixels) == 20 and "does not belong to these 20 images" in caplog.text


def test_a_half_written_cache_is_never_used(part, tmp_path):
    cache = tmp_path / "cache"

    def killed(row):
        if row["image_id"].endswith("b-20.png"):
            raise KeyboardInterrupt
        return read(row)

    with pytest.raises(KeyboardInterrupt):
        read_pixels(part, killed, SIZE, cache)
    assert not list(tmp_path.glob("cache*"))
    pixels, _, _ = read_pixels(part, read, SIZE, cache)
    whole = np.array(pixels)
    cache.write_bytes(cache.read_bytes()[:-100])
    pixels, _, _ = read_pixels(part, read, SIZE, cache)
    assert (pixels == whole).all()


@pytest.mark.parametrize("content", [None, b"", b'{"images": 60, "left_o', b"\xff\xfe"])
def test_a_cache_without_whole_facts_is_written_again(content, part, tmp_path):
    cache = tmp_path / "cache"
    whole = np.array(read_pixels(part, read, SIZE, cache).pixels)
    facts = cache.with_name("cache.json")
    facts.unlink() if content is None else facts.write_bytes(content)
    assert (read_pixels(part, read, SIZE, cache).pixels == whole).all()
    assert (read_pixels(part, refuse, SIZE, cache).pixels == whole).all()


def test_of_two_processes_with_one_cache_one_decodes(part, tmp_path):
    code = f"""
import sys, time
sys.path[:0] = [{str(REPO)!r}, {str(REPO / "tests")!r}]
from test_datasets_pixels import *
part = load_cxr_dataset("folder", {str(tmp_path / "set")!r})["test"]
def slow(row):
    time.sleep(0.02)
    print(row["image_id"], flush=True)
    return read(row)
pixels = read_pixels(part, slow, SIZE, {str(tmp_path / "cache")!r}, num_workers=1).pixels
assert (pixels[:].reshape(60, -1).max(axis=1) > 0).all()
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    decoded = "".join(process.communicate(timeout=120)[0] for process in both).split()
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(decoded) == sorted(part["image_id"])


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(part, tmp_path):
    old, fresh = tmp_path / "a.u16.0f.partial", tmp_path / "b.u16.1e.partial"
    for leftover in (old, fresh):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    read_pixels(part, read, SIZE, tmp_path / "cache")
    assert not old.exists() and fresh.exists()


def test_a_mistake_in_read_is_not_taken_for_a_bad_image(part, tmp_path):
    with pytest.raises(TypeError, match=r"read gave uint8 \(16, 16\), not uint16 \(16, 16\)"):
        read_pixels(part, lambda row: (np.zeros((16, 16), np.uint8), ()), SIZE, tmp_path / "cache")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, run_python):
    write_classes(tmp_path / "set" / "test", a=30, b=30)
    result = run_python(
        f"""
import resource, signal, numpy as np
from datasets_scripts import load_cxr_dataset, read_pixels
part = load_cxr_dataset("folder", {str(tmp_path / "set")!r})["test"]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
black = np.zeros((128, 128), np.uint16)
try:
    read_pixels(part, lambda row: (black, ()), 128, {str(tmp_path / "cache")!r})
except OSError as error:
    print("said:", error)
"""
    )
    assert re.search(
        r"said: could not write the pixel cache .*cache of 2 MB \(File too large\): free space or",
        result.stdout,
    ), result.stderr
    assert not list(tmp_path.glob("cache*"))


def test_an_unwritable_place_is_one_sentence(part, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write the pixel cache .*file/x of 0 MB"):
        read_pixels(part, read, SIZE, tmp_path / "file" / "x")


def test_the_fingerprint_follows_the_images(part, tmp_path):
    first = fingerprint(part)
    assert re.fullmatch("[0-9a-f]{32}", first) and fingerprint(part) == first
    assert fingerprint(part.select(range(59))) != first
    assert fingerprint(part.select([1, 0, *range(2, 60)])) != first
    renamed = part.map(lambda row: {"image_id": "x" + row["image_id"]})
    assert fingerprint(renamed) != first
    path = next((tmp_path / "set").rglob("*.png"))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(part) != first
    first, (hashed,) = fingerprint(part), hash_images([str(path)])
    other = bytearray(path.read_bytes())
    other[-20] ^= 1
    path.write_bytes(other)  # under the same size, and then the same time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(part) != first
    assert hash_images([str(path)]) != [hashed]
    write_image(path, seed=12345, size=60)
    changed = fingerprint(part)
    shutil.rmtree(tmp_path / "set")
    assert changed != first
    with pytest.raises(FileNotFoundError):
        fingerprint(part)
