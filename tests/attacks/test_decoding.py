"""Small files that keep a decoder busy or make it take memory, sent to a live Space."""

import functools
import io
import os
import signal
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from dicom_files import data_set, dicom, written
from jpeg_files import scans
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit
from tiff_files import tiff, tiles

from attacks.visitors import answer, connect, send, unnoticed
from datasets_scripts.phantom import generate

pytestmark = pytest.mark.slow

SIDE = 5650  # 31.9 million pixels, just below what is allowed


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or Image.new("L", (64, 64))).save(file, kind, **options)
    return file.getvalue()


def deflated_elements():
    """200 kB of deflated DICOM: 17.5 million empty elements."""
    whole = written(data_set(np.zeros((64, 64), np.uint8)), DeflatedExplicitVRLittleEndian)
    start = whole.index(b"\x02\x00\x10\x00UI")
    start += 8 + struct.unpack("<H", whole[start + 6 : start + 8])[0]
    empty = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(packer.compress(empty * 500_000) for _ in range(35)) + packer.flush()
    # The length of the file meta group is that of the file before.
    return whole[:start] + packed


def fragments():
    """A DICOM file of half a million empty fragments."""
    ds = data_set(np.zeros((64, 64), np.uint8))
    ds.PixelData = encapsulate([encoded("JPEG")], has_bot=False)
    ds["PixelData"].is_undefined_length = True
    content = written(ds, JPEGBaseline8Bit)
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    return content[:end] + b"\xfe\xff\x00\xe0\0\0\0\0" * 500_000 + content[end:]


def run_length_bmp():
    """32 kB of RLE8 BMP: 62 million pixels, a line after the other left empty."""
    palette = bytes(1024)
    lines = b"\x00\x00" * SIDE + b"\x00\x01"
    offset = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(lines), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(lines), 1, 1, 256, 0)
    return head + info + palette + lines


def odd_pgm():
    """A PGM whose brightest value is 254, which Pillow scales in Python."""
    return b"P5 5000 4000 254\n" + bytes(20_000_000)


def rationals():
    """A TIFF with a tag of 4 million fractions."""
    count = 4_000_000
    start = 8 + 2 + 9 * 12 + 4
    return tiff(
        [
            (256, 4, 1, 64),
            (257, 4, 1, 64),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, start),
            (278, 4, 1, 64),
            (279, 4, 1, 64 * 64),
            (282, 5, count, start),
        ],
        struct.pack("<II", 1, 3) * count,
    )


def flooded_jpeg(marker):
    """A JPEG with 20 MB of empty segments before its frame."""
    whole = encoded("JPEG")
    return whole[:2] + struct.pack(">HH", marker, 2) * 5_000_000 + whole[2:]


@functools.cache
def x_ray():
    """One that a model answers for, as large as is allowed."""
    return Image.fromarray(generate(0, size=512).image).resize((SIDE, SIDE))


FILES = {
    "dicom-elements": deflated_elements,
    "dicom-fragments": fragments,
    "bmp-run-lengths": run_length_bmp,
    "pgm-odd-maximum": odd_pgm,
    "tiff-tiles": lambda: tiles(1000),
    "tiff-fractions": rationals,
    "jpeg-comments": lambda: flooded_jpeg(0xFFFE),
    "jpeg-segments": lambda: flooded_jpeg(0xFFED),
    "jpeg-scans": lambda: scans(SIDE),
    "png-too-large": lambda: encoded("PNG", Image.new("1", (30_000, 30_000))),
}
LARGE = {
    "png": lambda: encoded("PNG", x_ray().convert("RGBA"), compress_level=1),
    "jpeg": lambda: encoded("JPEG", x_ray().convert("RGB"), progressive=True),
    "jpeg2000": lambda: encoded("JPEG2000", x_ray(), irreversible=True),
    "dicom": lambda: dicom(np.asarray(x_ray()).astype(np.uint16) << 4),
}


@pytest.mark.parametrize("name", FILES)
def test_no_file_takes_long_or_keeps_others_waiting(served, http, question, name):
    file = send(http, FILES[name]())
    with unnoticed(served, question):
        event, given = answer(http, "predict", file, "tiny")
    print(name, event, given)
    assert event == "complete" or given["error"].endswith(".")


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_files_are_answered_within_the_same_limits(served, http, question, name):
    file = send(http, LARGE[name]())
    with unnoticed(served, question):
        event, given = answer(http, "predict", file, "tiny")
    assert event == "complete" and given[0]["probabilities"], given


@pytest.mark.parametrize(("count", "side"), [(2, SIDE), (8, 4000), (8, 2500)])
def test_many_addresses_keep_nobody_waiting(served, question, count, side):
    """Each sends what a quick reader does not end, or just ends; two of them in all lanes."""
    jobs = [(number, "predict", ["tiny"]) for number in range(count)]
    jobs += [(number, "heatmap", ["tiny", "NORMAL", "grad_cam"]) for number in range(2)]
    jobs += [(number, "predict_batch", ["tiny"]) for number in range(2)]
    content, most_memory = scans(side), 2000  # of all readers together

    def attack(job):
        number, endpoint, others = job
        with connect(served, f"8.8.{count}.{number}") as http:
            file = send(http, content)
            return answer(http, endpoint, [file] if endpoint == "predict_batch" else file, *others)

    with unnoticed(served, question, most_memory, most_time=100):
        with ThreadPoolExecutor(len(jobs)) as pool:
            given = list(pool.map(attack, jobs))
    assert {event for event, _ in given} == {"complete"}, given


def test_a_batch_of_slow_files_keeps_nobody_waiting(served, http, question):
    files = [send(http, scans(SIDE)), send(http, question.content)]
    with unnoticed(served, question):
        event, (rows, _) = answer(http, "predict_batch", files, "tiny")
    assert event == "complete" and [row["status"] for row in rows] == ["ok", "ok"]


def test_a_killed_reader_is_replaced(served, http, question):
    """Each visitor after it gets an answer, whichever of the readers is gone."""
    readers = [
        process
        for process in psutil.Process(served.process.pid).children(recursive=True)
        if "sandbox_cxr" in " ".join(process.cmdline())
    ]
    assert readers
    for process in readers:
        with unnoticed(served, question):
            os.kill(process.pid, signal.SIGKILL)
            psutil.wait_procs([process], timeout=10)
            event, (given, *_) = answer(http, "predict", send(http, question.content), "tiny")
            assert event == "complete" and given["probabilities"]
