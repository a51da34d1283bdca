"""DICOM files: known pixels and warnings."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from dicom_files import as_chest, code, data_set, dicom, lut, pydicoms_file, written
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from evaluation.predictions import read_predictions
from modeling import CxrImageProcessor
from modeling.dicom_cxr import is_dicom, read_dicom

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # every 12-bit value once
EIGHT = (RAMP % 256).astype(np.uint8)
SIGNED = RAMP.astype(np.int16) - 2048
WINDOW = {"WindowCenter": 2048, "WindowWidth": 1024}
RGB = np.stack([EIGHT, EIGHT[::-1], 255 - EIGHT], -1)
LUMA = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)
NEGATIVE = {"PhotometricInterpretation": "MONOCHROME1"}
STEPS = [0] * 1024 + [100] * 1024 + [1000] * 1024 + [1023] * 1024
FLIPPED = lut(0, [65535 - 257 * level for level in range(256)], 16)


def palette(bits):
    """Red alone, from black to full: luma 0.299."""
    values = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, top in (("Red", 2**bits - 1), ("Green", 0), ("Blue", 0)):
        entries = np.linspace(0, top, 256).astype("<u2" if bits == 16 else "u1")
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        values[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    return values


# What the file is: its bytes, the stored value at a pixel, and what is expected there, 0..1.
CASES = {
    "8 bits, full range": (dicom(EIGHT), {0: 0, 1: 1 / 255, 255: 1}),
    "10 to 16 bits by their own range": (dicom(RAMP // 2 + 7, 16), {0: 0, 4095: 1}),
    "linear window": (
        # PS3.3 C.11.2.1.2.1: ((x - 2047.5) / 1023 + 0.5)
        dicom(RAMP, 12, **WINDOW),
        {1535: 0, 1536: 0, 1537: 1 / 1023, 2559: 1, 2048: (0.5 / 1023 + 0.5)},
    ),
    "exact window": (
        dicom(RAMP, 12, VOILUTFunction="LINEAR_EXACT", **WINDOW),
        {1536: 0, 2048: 0.5, 2560: 1, 1792: 0.25},
    ),
    "sigmoid": (
        dicom(RAMP, 12, VOILUTFunction="SIGMOID", **WINDOW),
        {2048: 0.5, 2304: 1 / (1 + np.exp(-1)), 0: 1 / (1 + np.exp(8))},
    ),
    "the first of several windows": (
        dicom(
            RAMP,
            12,
            WindowCenter=[2048, 9],
            WindowWidth=[1024, 9],
            VOILUTFunction="LINEAR_EXACT",
        ),
        {1536: 0, 1792: 0.25, 2560: 1},
    ),
    "window of width 1": (
        dicom(RAMP % 2 + 99, 12, WindowCenter=100, WindowWidth=1),
        {0: 0, 1: 1},
    ),
    "rescale before the window": (
        dicom(
            RAMP,
            12,
            RescaleSlope=2,
            RescaleIntercept=-1000,
            VOILUTFunction="LINEAR_EXACT",
            WindowCenter=0,
            WindowWidth=400,
        ),
        {400: 0, 450: 0.25, 500: 0.5, 600: 1},
    ),
    "negative slope": (dicom(RAMP, 12, RescaleSlope=-1, RescaleIntercept=0), {0: 1, 4095: 0}),
    "signed": (
        dicom(SIGNED, 12, VOILUTFunction="LINEAR_EXACT", WindowCenter=0, WindowWidth=2048),
        {0: 0, 1024: 0, 1536: 0.25, 2048: 0.5, 3072: 1},
    ),
    "VOI LUT before a window": (
        dicom(RAMP, 12, VOILUTSequence=[lut(0, STEPS, 10)], **WINDOW),
        {0: 0, 1024: 100 / 1023, 2048: 1000 / 1023, 4095: 1},
    ),
    "VOI LUT beyond its ends": (
        dicom(RAMP, 12, VOILUTSequence=[lut(1000, [5, 50, 255], 8)]),
        {0: 5 / 255, 1000: 5 / 255, 1001: 50 / 255, 1002: 1, 4095: 1},
    ),
    "Modality LUT": (
        dicom(
            RAMP,
            12,
            ModalityLUTSequence=[lut(0, STEPS, 10)],
            VOILUTFunction="LINEAR_EXACT",
            WindowCenter=500,
            WindowWidth=1000,
        ),
        {0: 0, 1024: 0.1, 2048: 1, 4095: 1},
    ),
    # Inverted before the window, 750 would be 4095 - 750, which is 0 by then.
    "MONOCHROME1 inverts after the window": (
        dicom(
            RAMP,
            12,
            VOILUTFunction="LINEAR_EXACT",
            WindowCenter=1000,
            WindowWidth=1000,
            **NEGATIVE,
        ),
        {0: 1, 500: 1, 750: 0.75, 1250: 0.25, 1500: 0, 4095: 0},
    ),
    "MONOCHROME1, 8 bits": (dicom(EIGHT, **NEGATIVE), {0: 1, 1: 254 / 255, 255: 0}),
    "MONOCHROME1 with INVERSE inverts once": (
        dicom(EIGHT, PresentationLUTShape="INVERSE", **NEGATIVE),
        {0: 1, 255: 0},
    ),
    "MONOCHROME2 with INVERSE": (dicom(EIGHT, PresentationLUTShape="INVERSE"), {0: 1, 255: 0}),
    "padding is black and outside the range": (
        dicom(RAMP, 12, PixelPaddingValue=0, PixelPaddingRangeLimit=1094, **NEGATIVE),
        {0: 0, 1094: 0, 1095: 1, 2595: 0.5, 4095: 0},
    ),
    "bits above the stored ones are overlays": (
        dicom(RAMP | 0xF000, 12, VOILUTFunction="LINEAR_EXACT", **WINDOW),
        {1536: 0, 2048: 0.5, 2560: 1},
    ),
    "high bit above the stored bits": (
        dicom(RAMP << 4, 12, HighBit=15, VOILUTFunction="LINEAR_EXACT", **WINDOW),
        {1536: 0, 2048: 0.5, 2560: 1},
    ),
    "palette of 16 bits": (dicom(EIGHT, **palette(16)), {0: 0, 255: 0.299}),
    "palette of 8 bits": (dicom(EIGHT, **palette(8)), {0: 0, 255: 0.299}),
    "RGB": (dicom(RGB), {0: LUMA.flat[0] / 255, 777: LUMA.flat[777] / 255}),
    "RGB by planes": (
        dicom(RGB, PlanarConfiguration=1, PixelData=np.moveaxis(RGB, -1, 0).tobytes()),
        {0: LUMA.flat[0] / 255, 777: LUMA.flat[777] / 255},
    ),
    "YBR_FULL": (dicom(RGB, PhotometricInterpretation="YBR_FULL"), {7: 7 / 255, 300: 44 / 255}),
    "YBR_FULL_422": (
        dicom(
            RGB,
            PhotometricInterpretation="YBR_FULL_422",
            PixelData=np.insert(EIGHT.reshape(-1, 2), [2, 2], 128, axis=1).tobytes(),
        ),
        {7: 7 / 255, 300: 44 / 255},
    ),
    "the first of two frames": (
        dicom(EIGHT, NumberOfFrames=2, PixelData=EIGHT.tobytes() + EIGHT[::-1].tobytes()),
        {0: 0, 1: 1 / 255, 255: 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stored_values_give_the_expected_greys(case):
    content, expected = CASES[case]
    pixels = read_dicom(content, "x").pixels
    assert pixels.shape == (64, 64) and pixels.dtype == np.uint16
    for position, grey in expected.items():
        assert pixels.flat[position] == pytest.approx(grey * 65535, abs=0.51), position


@pytest.mark.parametrize("pixels", [RAMP, SIGNED, EIGHT], ids=["12 bits", "signed", "8 bits"])
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_a_lossless_transfer_syntax_changes_no_pixel(syntax, pixels):
    ds = data_set(pixels, 8 if pixels is EIGHT else 12)
    plain = read_dicom(written(ds), "x").pixels
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = pixels.byteswap().tobytes()
    elif syntax.is_compressed and syntax.is_encapsulated:
        compress(ds, syntax)
    assert len(np.unique(plain)) == int(pixels.max()) - int(pixels.min()) + 1
    np.testing.assert_array_equal(read_dicom(written(ds, syntax), "x").pixels, plain)


# One of pydicom's files as a chest: a row and column, the value there, and the values of the
# whole image that become black and white.
PYDICOMS = {
    "CT_small.dcm": (64, 64, 1928, 128, 2191),
    "MR_small_RLE.dcm": (30, 40, 1328, 127, 2145),
    "MR_small_implicit.dcm": (30, 40, 1328, 127, 2145),
    "MR_small_bigendian.dcm": (30, 40, 1328, 127, 2145),
    "MR_small_jp2klossless.dcm": (30, 40, 1328, 127, 2145),
    "MR_small_jpeg_ls_lossless.dcm": (30, 40, 1328, 127, 2145),
    "J2K_pixelrep_mismatch.dcm": (256, 256, 27, -2000, 1896),
    "JPGExtended.dcm": (420, 140, 244, 0, 264),
    "693_J2KI.dcm": (200, 200, 1069, -2971, 2836),
    "image_dfl.dcm": (100, 100, 213, 0, 255),
    "SC_rgb_jpeg_gdcm.dcm": (55, 50, 142, 0, 255),  # JPEG Lossless; luma of 128, 128, 255
    "SC_rgb_rle.dcm": (55, 50, 142, 0, 255),
    "SC_rgb_dcmtk_+eb+cr.dcm": (55, 50, 142, 0, 255),  # JPEG Baseline
    "SC_rgb_jls_lossy_line.dcm": (55, 50, 144, 0, 255),  # luma of 130, 130, 255
}


@pytest.mark.parametrize("name", PYDICOMS)
def test_pydicoms_files_give_their_known_pixel(name):
    row, column, value, black, white = PYDICOMS[name]
    pixels = read_dicom(as_chest(name), name).pixels
    assert pixels[row, column] == round((value - black) / (white - black) * 65535)


@pytest.mark.parametrize(
    "name, value",
    [("CT_small.dcm", "'CT'"), ("MR_small.dcm", "'MR'"), ("JPGExtended.dcm", "'NM'")],
)
def test_another_modality_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}: Modality is {value}; .* CR, DX or RG.$"):
        read_dicom(pydicoms_file(name), name)


@pytest.mark.parametrize("length", [b"BA", b"DA", b"ZZ"])
def test_a_compressed_frame_may_be_as_long_as_letters(length):
    """The length of an item stands where an element of explicit VR has the letters of its VR."""
    frame = io.BytesIO()
    Image.fromarray(EIGHT).save(frame, "JPEG")
    frame = frame.getvalue()
    comment = int.from_bytes(length, "little") - len(frame) - 2
    frame = frame[:2] + struct.pack(">HH", 0xFFFE, comment) + bytes(comment - 2) + frame[2:]
    ds = data_set(EIGHT, PixelData=encapsulate([frame], has_bot=False))
    ds["PixelData"].is_undefined_length = True
    content = written(ds, JPEGBaseline8Bit)
    assert b"\xfe\xff\0\xe0" + length in content
    expected = np.asarray(Image.open(io.BytesIO(frame))).astype(int) * 257
    np.testing.assert_array_equal(read_dicom(content, "x").pixels, expected)


def test_an_offset_table_may_be_as_long_as_letters():
    frame = io.BytesIO()
    Image.fromarray(EIGHT).save(frame, "JPEG")
    frames = [frame.getvalue()] * (int.from_bytes(b"DA", "little") // 4)
    ds = data_set(EIGHT, PixelData=encapsulate(frames), NumberOfFrames=len(frames))
    ds["PixelData"].is_undefined_length = True
    expected = np.asarray(Image.open(frame)).astype(int) * 257
    np.testing.assert_array_equal(read_dicom(written(ds, JPEGBaseline8Bit), "x").pixels, expected)


def test_items_of_undefined_length_and_their_pixels_are_stepped_over():
    icon = data_set(EIGHT[:32], Modality="CT")
    ds = data_set(EIGHT, IconImageSequence=[icon, icon], VOILUTSequence=[FLIPPED])
    ds.VOILUTSequence[0].is_undefined_length_sequence_item = True
    for keyword in ("IconImageSequence", "VOILUTSequence"):
        ds[keyword].is_undefined_length = True
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        pixels = read_dicom(written(ds, syntax), "x").pixels
        np.testing.assert_array_equal(pixels, 65535 - EIGHT.astype(int) * 257)


@pytest.mark.parametrize(
    "center, width",
    [(b"  \\ ", b"3333"), (b"2222", b"0   "), (b"0   ", b"-1  "), (b"22,5", b"3333")],
    ids=["blanks", "width 0", "negative width", "decimal comma"],
)
def test_a_window_that_is_none_is_said_to_be_none(center, width):
    content = dicom(RAMP, 12, WindowCenter="2222", WindowWidth="3333")
    content = content.replace(b"2222", center).replace(b"3333", width)
    image, plain = read_dicom(content, "x"), read_dicom(dicom(RAMP, 12), "x")
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert image.warnings == plain.warnings
    assert "Without a usable window" in plain.warnings[0]


def test_a_real_chest_x_ray(cxr_data):
    image = CxrImageProcessor(224).open(cxr_data / "dicom" / "rsna_sample.dcm")
    assert image.pixels.shape == (1024, 1024)
    assert (image.pixels[512, 512], image.pixels[100, 700]) == (208 * 257, 117 * 257)
    assert image.age == 62


ACCEPTED = {
    "no warning": ({}, ()),
    "secondary capture": ({"Modality": "SC"}, ("Modality is SC, ",)),
    "no modality": ({"Modality": ""}, ("Modality is missing, ",)),
    "left lateral": ({"ViewPosition": "LL"}, ("ViewPosition is LL: a lateral view",)),
    "lateral in a phrase": ({"ViewPosition": "XTABLE LATERAL"}, ("ViewPosition is LATERAL: ",)),
    "frontal": ({"ViewPosition": "PA"}, ()),
    "lateral code": ({"ViewCodeSequence": [code("left lateral")]}, ("ViewCodeSequence says",)),
    "lateral by code value": (
        {"ViewCodeSequence": [code("seitlich", "399173006")]},
        ("ViewCodeSequence says",),
    ),
    "not square": ({"PixelSpacing": [0.2, 0.1]}, ("PixelSpacing says",)),
    "age": ({"PatientAge": "ABCD"}, ("PatientAge cannot be read",)),
    "region": ({"BodyPartExamined": "", "AnatomicRegionSequence": [code("Chest")]}, ()),
    "region by code value": (
        {"BodyPartExamined": "UNKNOWN", "AnatomicRegionSequence": [code("Klatka", "51185008")]},
        (),
    ),
    "words for a body part": (
        {"BodyPartExamined": "MANO"},
        ("The body part is none that is known",),
    ),
    "frames": (
        {"NumberOfFrames": 2, "PixelData": EIGHT.tobytes() * 2},
        ("The file holds 2 frames; the first was read.",),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_doubtful_is_said(case):
    elements, expected = ACCEPTED[case]
    found = read_dicom(dicom(EIGHT, **elements), "x").warnings
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected))


@pytest.mark.parametrize("word", ["LEFT LATERAL", "L LAT", "RT LAT", "L-LAT", "rl", "LL_ERECT"])
def test_a_lateral_view_is_said_however_it_is_written(word):
    ds = data_set(EIGHT)
    ds.add_new("ViewPosition", "LO", word)
    assert "a lateral view" in read_dicom(written(ds), "x").warnings[0]


@pytest.mark.parametrize("word", ["AP", "PA LATE", "COLLATERAL", "PLATE", "LLD"])
def test_a_view_that_only_looks_lateral_is_not_said(word):
    assert read_dicom(dicom(EIGHT, ViewPosition=word), "x").warnings == ()


CHESTS = (
    "PECHO TORACE POITRINE BRUST BRUSTKORB CXR RIB RIBS L_RIBS Thorax TORAKS CHESTABDOMEN OTHER "
    "UNKNOWN NONE N/A"
)


@pytest.mark.parametrize("part", CHESTS.split())
def test_a_chest_in_other_words_or_none_is_read_without_a_warning(part):
    assert read_dicom(dicom(EIGHT, BodyPartExamined=part), "x").warnings == ()


@pytest.mark.parametrize(
    "text, years",
    [("045Y", 45), ("018M", 1.5), ("026W", 26 * 7 / 365.25), ("010D", 10 / 365.25), ("", None)],
)
def test_the_age_is_in_years(text, years):
    assert read_dicom(dicom(EIGHT, PatientAge=text), "x").age == pytest.approx(years)


def test_dicom_is_known_by_its_content():
    image = data_set(EIGHT)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        bare = written(image, syntax, preamble=False)
        assert is_dicom(bare) and read_dicom(bare, "x").pixels.flat[255] == 65535
    assert is_dicom(written(image))
    rng = random.Random(0)
    others = [b"", b"\x08\0" * 200, b"DICM" * 20, b"plain text " * 40, zlib.compress(bytes(9999))]
    others += [b"\x89PNG\r\n\x1a\n" + bytes(300), b"\xff\xd8\xff\xe0" + bytes(300), b"II*\0"]
    others += [b"\x08\0" + rng.randbytes(300) for _ in range(2000)]
    assert not any(is_dicom(other) for other in others)


def test_a_table_of_dicom_files_is_trained_on(train, tmp_path):
    lines = ["file,label,split"]
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        for index in range(count):
            name = f"{split}{index}.dcm"
            (tmp_path / name).write_bytes(dicom(rng.integers(0, 4096, (64, 64), np.uint16), 12))
            lines.append(f"{name},{('NORMAL', 'PNEUMONIA')[index % 2]},{split}")
    (tmp_path / "films.csv").write_text("\n".join(lines))
    flags = ["--model", "baseline", "--model_options", "hidden_sizes=[4,8]", "--image_size", "64"]
    flags += ["--num_train_epochs", "1", "--output_dir", tmp_path / "run"]
    result = train("--dataset", tmp_path / "films.csv", *flags)
    assert result.returncode == 0, result.stderr
    scored = read_predictions(tmp_path / "run" / "predictions_test.csv").image_id
    assert sorted(scored) == [f"test{index}.dcm" for index in range(6)]


# --------------------------------------------------- tables and windows that show nothing or little

NOISE = np.random.default_rng(0).integers(300, 3500, (64, 64)).astype(np.uint16)
BRIGHT = np.round(np.arange(4096) / 4095 * 3000).astype(int).tolist()  # 12 bits, of 16 declared
USELESS = {
    "a window beyond the pixels": {"WindowCenter": 30000, "WindowWidth": 200},
    "a window below the pixels": {"WindowCenter": -500, "WindowWidth": 100},
    "a window a hundred times too wide": {"WindowCenter": 200_000, "WindowWidth": 400_000},
    "a window of the width of a line": {"WindowCenter": 1900, "WindowWidth": 2},
    "a window in other units": {
        "RescaleIntercept": -30000,
        "WindowCenter": 1900,
        "WindowWidth": 3200,
    },
    "a VOI LUT of zeros": {"VOILUTSequence": [lut(0, [0] * 4096, 12)]},
    "a VOI LUT of one grey": {"VOILUTSequence": [lut(0, [2000] * 4096, 12)]},
    "a VOI LUT of two greys": {"VOILUTSequence": [lut(0, [0] * 1900 + [4095] * 2196, 12)]},
    "a VOI LUT for other values": {"VOILUTSequence": [lut(40000, BRIGHT, 12)]},
    "several useless ones": {
        "VOILUTSequence": [lut(0, [7] * 4096, 12)],
        "WindowCenter": [30000, 20000],
        "WindowWidth": [100, 100],
    },
}


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("case", USELESS)
def test_what_shows_nothing_is_passed_over_with_a_warning(case, kind):
    others = {"PhotometricInterpretation": kind}
    image = read_dicom(dicom(NOISE, 12, **USELESS[case], **others), "x")
    plain = read_dicom(dicom(NOISE, 12, **others), "x")
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert np.ptp(plain.pixels) == 65535
    assert all("shows almost nothing of the image" in text for text in image.warnings[:-1])
    assert len(image.warnings) > 1 and image.warnings[-1:] == plain.warnings


def test_a_good_window_is_taken_after_a_useless_table_or_window():
    good = read_dicom(dicom(NOISE, 12, WindowCenter=1900, WindowWidth=3000), "x")
    assert good.warnings == ()
    second = {"WindowCenter": [30000, 1900], "WindowWidth": [10, 3000]}
    table = {"VOILUTSequence": [lut(0, [0] * 4096, 12)], "WindowCenter": 1900, "WindowWidth": 3000}
    for elements, name in ((second, "window"), (table, "VOI LUT")):
        image = read_dicom(dicom(NOISE, 12, **elements), "x")
        np.testing.assert_array_equal(image.pixels, good.pixels)
        assert len(image.warnings) == 1 and f"The file's {name} shows" in image.warnings[0]


GOOD = {"WindowCenter": 1900, "WindowWidth": 3000}
LINE = lut(0, list(range(4096)), 12)
CUT = lut(0, list(range(4096)), 12)
CUT.LUTData = b"\0\0" * 10
TWENTY_BITS = lut(0, list(range(4096)), 12)
TWENTY_BITS.LUTDescriptor = [4096, 0, 20]
DAMAGED = {
    "an empty VOI LUT, a window": {"VOILUTSequence": [Dataset()], **GOOD},
    "a cut VOI LUT, a window": {"VOILUTSequence": [CUT], **GOOD},
    "a VOI LUT of 20 bits, a window": {"VOILUTSequence": [TWENTY_BITS], **GOOD},
    "an empty VOI LUT, a good one": {"VOILUTSequence": [Dataset(), LINE]},
    "a window narrower than 1, a good one": {
        "WindowCenter": [1900, 1900],
        "WindowWidth": ["0.5", 3000],
    },
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_table_or_window_is_passed_over_for_a_good_one(case):
    image = read_dicom(dicom(NOISE, 12, **DAMAGED[case]), "x")
    name = "VOI LUT" if "VOI" in case else "window"
    assert image.warnings == (f"The file's {name} is damaged and was not used.",)
    good = GOOD if "window" in case else {"VOILUTSequence": [LINE]}
    np.testing.assert_array_equal(image.pixels, read_dicom(dicom(NOISE, 12, **good), "x").pixels)


@pytest.mark.parametrize("first", ["", "22,5", "nan", "inf"])
def test_a_window_that_cannot_be_read_leaves_the_next(first):
    ds = data_set(NOISE, 12)
    ds.add_new("WindowCenter", "LO", f"{first}\\1900")
    ds.add_new("WindowWidth", "LO", "9\\3000")
    image = read_dicom(written(ds), "x")
    np.testing.assert_array_equal(image.pixels, read_dicom(dicom(NOISE, 12, **GOOD), "x").pixels)


def test_a_blank_table_leaves_the_second_however_long_its_item_says_it_is():
    ds = data_set(NOISE, 12, VOILUTSequence=[lut(0, [7] * 4096, 12), LINE])
    image = read_dicom(written(ds), "x")
    np.testing.assert_allclose(image.pixels, NOISE / 4095 * 65535, atol=0.51)
    assert len(image.warnings) == 1 and "VOI LUT shows almost nothing" in image.warnings[0]
    ds["VOILUTSequence"].is_undefined_length = True
    for item in ds.VOILUTSequence:
        item.is_undefined_length_sequence_item = True
    np.testing.assert_array_equal(read_dicom(written(ds), "x").pixels, image.pixels)


@pytest.mark.parametrize(
    "elements",
    [
        {"VOILUTSequence": [lut(0, [min(4 * k, 4095) for k in range(4096)], 12)]},
        {"WindowCenter": 600, "WindowWidth": 600},
    ],
)
def test_a_table_or_window_that_saturates_most_of_the_image_is_said(elements):
    (warning,) = read_dicom(dicom(NOISE, 12, **elements), "x").warnings
    assert warning == "The file's window or VOI LUT leaves most of the image black or white."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (dicom(RAMP * 0 + 9, 12), "its pixels have one grey"),
        (dicom(EIGHT * 0 + 9), "its pixels have one grey"),
        (dicom(RGB * 0 + 9), "its pixels have one grey"),
        (dicom(EIGHT * 0, **palette(8)), "its pixels have one grey"),
        (dicom(RAMP, 12, ModalityLUTSequence=[lut(0, [7] * 4096, 12)]), "its pixels have one grey"),
        (
            dicom(RAMP, 12, PixelPaddingValue=0, PixelPaddingRangeLimit=4095),
            "its padding covers every pixel",
        ),
    ],
    ids=["12 bits", "8 bits", "RGB", "palette", "Modality LUT", "padding"],
)
def test_a_blank_image_is_refused(content, sentence):
    with pytest.raises(ValueError, match=f"^x: the image is blank: {sentence}.$"):
        read_dicom(content, "x")


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colours_that_show_too_little_are_stretched(kind):
    dark = EIGHT // 9  # 0 to 28
    if kind == "PALETTE COLOR":
        names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
        content = dicom(dark, **palette(8) | dict.fromkeys(names, bytes(range(256))))
    else:
        content = dicom(np.repeat(dark[..., None], 3, -1), PhotometricInterpretation=kind)
    image = read_dicom(content, "x")
    np.testing.assert_allclose(image.pixels, dark / 28 * 65535, atol=0.51)
    assert any("the greys span" in text for text in image.warnings)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [(RAMP, 0), (RAMP << 4, 1), (RAMP | 0xF000, 1), (SIGNED, 0), (SIGNED * 8, 1)],
    ids=["12 bits", "16 bits", "overlays", "signed", "signed, 15 bits"],
)
def test_bits_above_the_stored_ones_are_said(pixels, said):
    warnings = read_dicom(dicom(pixels, 12, **GOOD), "x").warnings
    assert sum("bits above those that BitsStored" in text for text in warnings) == said


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("top", [255, 1000, 4095, 65535])
def test_a_voi_lut_of_other_bits_than_declared_is_scaled_by_its_brightest(bits, top):
    entries = np.linspace(0, top, 4096).round().astype(int)
    image = read_dicom(dicom(NOISE, 12, VOILUTSequence=[lut(0, entries.tolist(), bits)]), "x")
    fits = top.bit_length() == bits
    white = 2**bits - 1 if fits else top
    np.testing.assert_allclose(image.pixels, entries[NOISE] / white * 65535, atol=0.51)
    assert len(image.warnings) == (not fits)
    assert fits or "of other bits than it declares" in image.warnings[0]


def test_a_voi_lut_of_bytes_may_declare_more_bits():
    item = lut(0, [0], 16)
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = (np.arange(4096) // 16).astype(np.uint8).tobytes()
    image = read_dicom(dicom(NOISE, 12, VOILUTSequence=[item]), "x")
    np.testing.assert_array_equal(image.pixels, NOISE // 16 * 257)
    assert "of other bits" in image.warnings[0]


def test_a_palette_of_bytes_in_words_is_not_black():
    elements = palette(16)
    grey = (np.arange(256, dtype="<u2")).tobytes()
    elements |= {f"{name}PaletteColorLookupTableData": grey for name in ("Red", "Green", "Blue")}
    image = read_dicom(dicom(EIGHT, **elements), "x")
    np.testing.assert_array_equal(image.pixels, EIGHT.astype(int) * 257)
    assert "of the palette are of other bits" in image.warnings[0]


def test_a_marker_brighter_than_all_else_leaves_the_chest_its_contrast():
    marked = NOISE.copy()
    marked[:4, :8] = 65535
    pixels = read_dicom(dicom(marked, 16), "x").pixels
    assert (pixels[:4, :8] == 65535).all()
    assert np.ptp(np.percentile(pixels[8:], (5, 95))) > 0.8 * 65535


def test_eight_bits_that_use_few_greys_are_stretched():
    dark = (EIGHT // 16).astype(np.uint8)
    image = read_dicom(dicom(dark), "x")
    np.testing.assert_allclose(image.pixels, dark / 15 * 65535, atol=0.51)
    assert "Without a usable window" in image.warnings[0]


@pytest.mark.parametrize("limit", [None, -1990, -2010])
@pytest.mark.parametrize("kind", ["SS", "US"])  # writers disagree on the kind, not on the bits
def test_padding_below_zero_does_not_count_as_something_shown(kind, limit):
    signed = NOISE.astype(np.int16) - 2048 + 400
    signed[:32] = -2000
    ds = data_set(signed, 16, WindowCenter=20000, WindowWidth=100)
    mask = 0xFFFF if kind == "US" else -1
    ds.add_new("PixelPaddingValue", kind, -2000 & mask)
    if limit is not None:
        ds.add_new("PixelPaddingRangeLimit", kind, limit & mask)
    image = read_dicom(written(ds), "x")
    assert not image.pixels[:32].any() and np.ptp(image.pixels[32:]) == 65535


def test_an_empty_padding_value_pads_nothing():
    image = read_dicom(dicom(EIGHT, PixelPaddingValue=None), "x")
    np.testing.assert_array_equal(image.pixels, EIGHT.astype(int) * 257)


def test_padding_does_not_count_as_something_shown():
    padded = NOISE.copy()
    padded[:32] = 0
    useless = {"WindowCenter": 100, "WindowWidth": 100, "PixelPaddingValue": 0}
    image = read_dicom(dicom(padded, 12, **useless), "x")
    assert not image.pixels[:32].any() and np.ptp(image.pixels[32:]) == 65535
