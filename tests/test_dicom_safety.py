"""DICOM files that are refused, hostile, damaged or hold secrets, and packages that are missing."""

import io
import logging
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dicom_files import as_chest, code, data_set, dicom, lut, nested, written
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from modeling.dicom_cxr import is_dicom, read_dicom

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # every 12-bit value once
EIGHT = (RAMP % 256).astype(np.uint8)
FILES = (
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "MR_small_implicit.dcm",
)
# Where a secret is written, and the VR that the element has: CS, DA, TM, DT, DS.
SECRETS = {
    0x00080005: "CS",
    0x00100030: "DA",
    0x00080030: "TM",
    0x0008002A: "DT",
    0x00101030: "DS",
}


def cut_lut():
    item = lut(0, [0, 65535], 16)
    item.LUTDescriptor = [2, 0]
    return item


REFUSED = {
    "hand": (dicom(EIGHT, BodyPartExamined="HAND"), "the body part is 'HAND'"),
    "hands": (dicom(EIGHT, BodyPartExamined="HANDS"), "the body part is 'HANDS'"),
    "gallbladder": (dicom(EIGHT, BodyPartExamined="GALLBLADDER"), "part is 'GALLBLADDER'"),
    "thoracic spine": (dicom(EIGHT, BodyPartExamined="THORACICSPINE"), "'THORACICSPINE'"),
    "spine in another language": (dicom(EIGHT, BodyPartExamined="COLUMNA TORACICA"), "is 'SPINE'"),
    "hand in a phrase": (dicom(EIGHT, BodyPartExamined="HAND SMITH"), "the body part is 'HAND';"),
    "region": (
        dicom(EIGHT, BodyPartExamined="", AnatomicRegionSequence=[code("Knee joint")]),
        "the body part is 'Knee';",
    ),
    "no pixels": (dicom(EIGHT, PixelData=b""), "no pixel data"),
    "short pixels": (dicom(EIGHT, Rows=65), "4,096 bytes, of the 4,160 needed"),
    "short frames": (dicom(EIGHT, NumberOfFrames=9), "of the 36,864 needed"),
    "too small": (dicom(EIGHT[:8]), "8 pixels is too small"),
    "claims more than there may be": (dicom(EIGHT, Rows=60000, Columns=60000), "too large"),
    "32 bits": (dicom(RAMP.astype(np.uint32)), "BitsAllocated is 32"),
    "photometric": (dicom(EIGHT, PhotometricInterpretation="HSV"), "is 'HSV'; it can be MONO"),
    "slope": (dicom(RAMP, 12, RescaleSlope=0, RescaleIntercept=1), "RescaleSlope"),
    "width": (dicom(RAMP, 12, WindowCenter=9, WindowWidth=0.5), "WindowWidth 0.5"),
    "look-up table": (
        dicom(RAMP, 12, ModalityLUTSequence=[cut_lut()]),
        "LUTDescriptor is damaged",
    ),
    "nested": (nested(17), "no pixel data"),
    "nested 5,000 deep": (nested(5000), "more than 10,000 sequences and items"),
    "nested without end": (nested(5000)[:9000], "it is truncated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_chest_x_ray_or_damaged_is_refused_in_one_sentence(case):
    content, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_dicom(content, "x.dcm")
    assert str(caught.value).startswith("x.dcm: ") and str(caught.value).endswith(".")


def test_a_jpeg_frame_of_many_scans_is_refused():
    file = io.BytesIO()
    Image.fromarray(EIGHT).save(file, "JPEG", progressive=True)
    frame, end = file.getvalue()[:-2], file.getvalue()[-2:]
    scan = frame[frame.rindex(b"\xff\xda") :]
    ds = data_set(EIGHT, PixelData=encapsulate([frame + scan * 50 + end], has_bot=False))
    ds["PixelData"].is_undefined_length = True
    assert read_dicom(written(ds, JPEGBaseline8Bit), "x").pixels.shape == (64, 64)
    ds.PixelData = encapsulate([frame + scan * 200 + end], has_bot=False)
    with pytest.raises(ValueError, match="pixels are damaged, or coded oddly.$"):
        read_dicom(written(ds, JPEGBaseline8Bit), "x")


def test_threads_may_begin_with_dicom_at_once(run_python, tmp_path):
    (tmp_path / "x.dcm").write_bytes(dicom(EIGHT))
    code = f"""
import random, time
from concurrent.futures import ThreadPoolExecutor
from modeling.dicom_cxr import read_dicom
content = open({str(tmp_path / "x.dcm")!r}, "rb").read()
def read(_):
    time.sleep(0.2 * random.random())
    return read_dicom(content, "x").pixels.shape
with ThreadPoolExecutor(8) as pool:
    print(set(pool.map(read, range(16))))
"""
    for _ in range(3):
        result = run_python(code)
        assert result.stdout.strip() == "{(64, 64)}", result.stderr


@pytest.mark.parametrize("uid", ["1.2.840.113619.5.2", "1.2.3.4", RLELossless])
def test_uncompressed_pixels_are_read_only_where_the_syntax_says_how(uid):
    """Those of the first, GE's, are big-endian."""
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    content = dicom(RAMP, 12).replace(syntax, uid.encode().ljust(len(syntax), b"\0"))
    with pytest.raises(ValueError, match="^x: its pixels are uncompressed, which its transfer"):
        read_dicom(content, "x")
    without = dicom(RAMP, 12).replace(syntax, bytes(len(syntax)))
    np.testing.assert_array_equal(
        read_dicom(without, "x").pixels, read_dicom(dicom(RAMP, 12), "x").pixels
    )


def test_a_deflated_bomb_is_refused_before_it_unfolds(monkeypatch):
    monkeypatch.setattr("modeling.dicom_header_cxr.MAX_INFLATED", 2**20)
    content = written(data_set(EIGHT), DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(2**22)) + packer.flush()
    with pytest.raises(ValueError, match="is cut or inflates to more than 1,048,576 bytes"):
        read_dicom(content[:start] + bomb, "x")


def secretive(ds):
    """Writes a secret into elements of every kind of text, also where none belongs."""
    ds.PatientName, ds.PatientID, ds.AccessionNumber = "SECRET^ONE", "SECRET", "SECRET"
    ds.InstitutionAddress, ds.PatientComments = "SECRET", "SECRET"
    ds.ReferencedImageSequence = [code("SECRET")]
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ReferencedImageSequence[0].is_undefined_length_sequence_item = True
    for holder in (ds, ds.ReferencedImageSequence[0]):
        for tag, vr in SECRETS.items():
            holder.add_new(tag, "LO", "SECRET")
            holder[tag].VR = vr
    return ds


def test_nothing_that_identifies_a_person_is_shown_or_logged(caplog, recwarn):
    files = [dicom(EIGHT, PatientName="SECRET^ONE", PatientID="SECRET")]
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless):
        ds = data_set(EIGHT)
        written(ds)  # which gives it the file meta group that `compress` needs
        if syntax != ExplicitVRLittleEndian:
            compress(ds, syntax)
        whole = written(secretive(ds), syntax)
        assert whole.count(b"SECRET") > 2 * len(SECRETS)
        # As if the character set were as long as most of the header.
        longer = whole.replace(b"\x08\0\x05\0CS\x06\0", b"\x08\0\x05\0CS\xff\0")
        assert longer != whole
        files += [whole, longer, whole[:-99], whole.replace(b"DX", b"CT")]
    for keyword in ("Modality", "BodyPartExamined", "PhotometricInterpretation", "PatientAge"):
        ds = data_set(EIGHT)
        ds.add_new(keyword, "LO", "JANE SECRET")
        files.append(written(ds))
    caplog.clear()  # of what pydicom said in writing them
    recwarn.clear()
    warnings.simplefilter("always")
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "pydicom")
    said = []
    for file in files:
        try:
            said += read_dicom(file, "x").warnings
        except ValueError as error:
            said.append(str(error))
    assert len(said) == 13
    heard = [record.getMessage() for record in caplog.records]
    heard += [str(warning.message) for warning in recwarn.list]
    assert "SECRET" not in " ".join(said + heard)


def test_a_missing_decoder_is_named():
    content = as_chest("MR_small_jpeg_ls_lossless.dcm")
    code = (
        "import sys; sys.modules['pylibjpeg'] = None\n"
        "from modeling.dicom_cxr import read_dicom\n"
        "read_dicom(sys.stdin.buffer.read(), 'x')"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True)
    assert b"JPEG-LS compressed; pip install pydicom pylibjpeg pylibjpeg-libjpeg." in ran.stderr


def test_a_missing_pydicom_is_named(monkeypatch):
    content = dicom(EIGHT)
    monkeypatch.setitem(sys.modules, "pydicom.filereader", None)
    assert is_dicom(content)
    with pytest.raises(ValueError, match="^x: it is a DICOM file; pip install pydicom.$"):
        read_dicom(content, "x")


def test_threads_read_the_same_pixels():
    files = [as_chest(name) for name in FILES]
    alone = [read_dicom(file, "x").pixels for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: read_dicom(file, "x").pixels, files * 8))
    for index, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[index % len(files)])


def test_damaged_files_raise_nothing_but_a_sentence():
    files = [as_chest(name) for name in FILES]
    files.append(dicom(RAMP, 12, VOILUTSequence=[lut(0, [0, 100, 1023], 10)], RescaleSlope=1))
    rng = random.Random(0)
    refused = 0
    for _ in range(1000):
        content = bytearray(rng.choice(files))
        content = content[: rng.randrange(132, len(content))] if rng.random() < 0.2 else content
        for _ in range(rng.choice((1, 4, 16))):
            content[rng.randrange(min(len(content), rng.choice((600, 3000, 10**6))))] = (
                rng.randrange(256)
            )
        try:
            assert read_dicom(bytes(content), "x").pixels.dtype == np.uint16
        except ValueError as error:
            assert str(error).startswith("x: ")
            refused += 1
    assert 100 < refused < 1000
