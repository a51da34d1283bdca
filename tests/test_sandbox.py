"""Files that are read in processes of their own: the same pixels, and an end to what has none."""

import contextlib
import io
import os
import re
import signal
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from dicom_files import dicom
from jpeg_files import scans
from PIL import Image
from tiff_files import tiles

from modeling import sandbox_cxr
from modeling.reading_cxr import open_image
from modeling.sandbox_cxr import WAITING, Limits, Sandbox


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def noise(seed=0, dtype=np.uint8, shape=(90, 120)):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


def fractions(order="<", kind=5, big=False):
    """A TIFF with a tag of 1,001 fractions."""
    head = struct.pack(f"{order}2sH", b"II" if order == "<" else b"MM", 43 if big else 42)
    if big:
        head += struct.pack(f"{order}HHQQ", 8, 0, 16, 1)
        return head + struct.pack(f"{order}HHQQ", 282, kind, 1001, 0) + bytes(9000)
    head += struct.pack(f"{order}IH", 8, 1)
    return head + struct.pack(f"{order}HHII", 282, kind, 1001, 0) + bytes(9000)


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(limits=Limits(seconds=2, memory=2**29))
    yield sandbox
    sandbox.close()


FILES = {
    "png": encoded(noise()),
    "deep": encoded(noise(1, np.uint16)),
    "colour": encoded(noise(2, shape=(90, 120, 3)), "JPEG"),
    "jpeg2000": encoded(noise(3), "JPEG2000"),
    "dicom": dicom(noise(4, np.uint16), PatientAge="042Y", ViewPosition="LL"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_reads_as_it_does_without(sandbox, content):
    expected, image = open_image(content), sandbox.open(content)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert image[1:] == expected[1:]


@pytest.mark.parametrize(
    "content", [b"", b"text", FILES["png"][:200], dicom(noise(), Modality="MR"), bytes(1000)]
)
def test_what_is_refused_is_refused_in_the_same_words(sandbox, content):
    with pytest.raises(ValueError) as expected:
        open_image(content)
    with pytest.raises(ValueError) as refused:
        sandbox.open(content)
    assert str(refused.value) == str(expected.value)


def test_a_path_is_read_and_named(sandbox, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(FILES["png"])
    np.testing.assert_array_equal(sandbox.open(path).pixels, open_image(path).pixels)
    path.write_bytes(b"text")
    for read in (open_image, sandbox.open):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not an image file"):
            read(path)
        with pytest.raises(FileNotFoundError, match="gone.png: no such file"):
            read(tmp_path / "gone.png")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [5, 10])
@pytest.mark.parametrize("big", [False, True])
def test_a_tag_of_many_fractions_is_refused_at_once(order, kind, big):
    with pytest.raises(ValueError, match="a tag of over 1,000 fractions, takes too long"):
        open_image(fractions(order, kind, big))
    with pytest.raises(ValueError, match="damaged|not an image"):  # for another reason
        open_image(fractions(order, 4, big))


def test_a_tiff_of_too_many_parts_is_refused_at_once():
    with pytest.raises(ValueError, match="over 40,000 strips or tiles"):
        open_image(tiles(201))
    assert open_image(tiles(150)).pixels.shape == (150, 150)


def test_a_file_without_end_is_given_up_in_time(sandbox):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"takes more than 2 seconds to read.*\.$"):
        sandbox.open(scans(7900))
    assert time.monotonic() - began < 2 * WAITING
    sandbox.open(FILES["png"])


def test_time_is_counted_by_a_core_and_on_a_clock(sandbox, monkeypatch):
    """A reader that others keep waiting has longer; one that waits for ever has not."""
    monkeypatch.setattr(sandbox_cxr, "GRACE", 0.5)
    reading = ThreadPoolExecutor(1).submit(sandbox.open, scans(3000), Limits(seconds=2))
    reader = busy()
    reader.suspend()
    time.sleep(2.5)
    reader.resume()
    assert reading.result().pixels.shape == (3000, 3000)

    reading = ThreadPoolExecutor(1).submit(sandbox.open, scans(3000), Limits(seconds=0.3))
    reader = busy()
    reader.suspend()
    with pytest.raises(ValueError, match=r"takes more than 0.3 seconds to read"):
        reading.result()
    reader.resume()


def test_a_reader_that_dies_late_is_not_said_to_be_slow(sandbox):
    reading = ThreadPoolExecutor(1).submit(sandbox.open, scans(4000), Limits(seconds=1))
    reader = busy()
    reader.suspend()
    time.sleep(1.5)
    reader.kill()
    with pytest.raises(ValueError, match=r"damaged image file \(its decoder ended\)\.$"):
        reading.result()


def test_a_reader_that_is_to_leave_the_cores_to_others_does(sandbox):
    patient = ThreadPoolExecutor(1).submit(sandbox.open, scans(3000), Limits(niceness=15))
    assert busy().nice() == 15
    patient.result()
    usual = ThreadPoolExecutor(1).submit(sandbox.open, scans(3000))
    assert busy().nice() == 0
    usual.result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_file_that_takes_too_much_memory_is_given_up():
    sandbox = Sandbox(limits=Limits(memory=250 * 2**20))
    large = encoded(np.zeros((6000, 6000, 3), np.uint8))
    with pytest.raises(ValueError, match=r"memory .*\.$"):
        sandbox.open(large)
    sandbox.open(FILES["png"])
    sandbox.close()


def test_each_thread_gets_its_own_file(sandbox):
    contents = [encoded(noise(seed)) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(sandbox.open, contents))
    for content, image in zip(contents, images, strict=True):
        np.testing.assert_array_equal(image.pixels, open_image(content).pixels)


def processes():
    """Those that read; one that has ended may stay listed until it is asked for."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess):
            if "sandbox_cxr" in " ".join(process.cmdline()):
                found.append(process)
    return found


def busy():
    """The one reader that reads."""
    time.sleep(0.15)  # by then it has its file
    while True:
        found = [one for one in processes() if one.status() == psutil.STATUS_RUNNING]
        if found:
            return found[0]
        time.sleep(0.02)


def test_killed_processes_are_replaced_without_a_word(sandbox):
    sandbox.open(FILES["png"])
    for process in processes():
        os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs([process], timeout=1)
        assert sandbox.open(FILES["png"]).pixels.shape == (90, 120)


def test_the_processes_know_no_secret_and_no_torch(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    before = {process.pid for process in processes()}
    sandbox = Sandbox()  # not the processor's, which another test may have started
    sandbox.open(FILES["png"])
    started = [process for process in processes() if process.pid not in before]
    assert len(started) == 2  # the one that forks, and a reader
    for process in started:
        assert "HF_TOKEN" not in process.environ()
        assert not any("torch" in part.path for part in process.memory_maps())
    sandbox.close()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
