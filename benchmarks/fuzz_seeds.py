"""The valid files that `fuzz_reader.py` alters: every format and DICOM compression, most small."""

import io
import struct

import numpy as np
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

LARGE = (640, 512)  # what damage costs grows with the pixels
SCANS = {"progressive": True, "quality": 10}
# Of pydicom's own tests: compressed as nothing here can.
PYDICOM_FILES = {
    "dicom jpeg-ls": "MR_small_jpeg_ls_lossless.dcm",
    "dicom jpeg lossless": "SC_rgb_jpeg_gdcm.dcm",
    "dicom jpeg 12 bit": "JPGExtended.dcm",
}


def make_seeds() -> dict[str, bytes]:
    """Valid files, {kind: content}."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:40j, -1:1:48j]
    grey = (200 - 150 * np.exp(-8 * (np.abs(x) - 0.5) ** 2) * (1 - y**2)).astype(np.uint8)
    grey += rng.integers(0, 20, grey.shape, dtype=np.uint8)
    image, deep = Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 16)
    colour, exif = image.convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    large = image.resize(LARGE)
    several = {"save_all": True, "append_images": [image.point(lambda v: 255 - v)]}
    text = {"icc_profile": bytes(200), "exif": exif}
    files = {
        "png": (image, "PNG", text),
        "png deep": (deep, "PNG", {}),
        "png palette": (image.convert("P"), "PNG", {"transparency": 3}),
        "png alpha": (image.convert("RGBA"), "PNG", {}),
        "png large": (large, "PNG", {}),
        "png animated": (image, "PNG", several),
        "jpeg": (image, "JPEG", text),
        "jpeg progressive": (colour, "JPEG", {"progressive": True, "exif": exif}),
        "jpeg large": (large, "JPEG", SCANS),
        "jpeg cmyk": (image.convert("CMYK"), "JPEG", {}),
        "tiff": (deep, "TIFF", {}),
        "tiff pages": (image, "TIFF", several),
        "tiff lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (colour, "TIFF", {"compression": "jpeg"}),
        "webp": (colour, "WEBP", {}),
        "webp lossless": (image.convert("RGBA"), "WEBP", {"lossless": True, "exif": exif}),
        "webp animated": (image, "WEBP", several),
        "bmp": (image, "BMP", {}),
        "jpeg2000": (image, "JPEG2000", {}),
        "pnm": (colour, "PPM", {}),
    }
    return {kind: _encode(*file) for kind, file in files.items()} | _dicom_seeds(grey)


def _encode(image: Image.Image, form: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _dicom_seeds(grey: np.ndarray) -> dict[str, bytes]:
    image = Image.fromarray(grey)
    deep = (grey.astype("<u2") * 16).tobytes()
    planes = np.stack([grey] * 3).tobytes()
    rows = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in grey)
    rle = struct.pack("<16I", 1, 64, *[0] * 14) + rows
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}
    window = {"WindowCenter": [2000, 1000], "WindowWidth": [4000, 300]}
    negative = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, **window}
    jpeg = encapsulate([_encode(image, "JPEG", {})])
    large = encapsulate([_encode(image.resize(LARGE), "JPEG", SCANS)])
    jpeg2000 = encapsulate([_encode(image, "JPEG2000", {"no_jp2": True})])
    files = {
        "dicom": (ExplicitVRLittleEndian, deep, 16, window),
        "dicom implicit": (ImplicitVRLittleEndian, deep, 16, negative),
        "dicom deflated": (DeflatedExplicitVRLittleEndian, deep, 16, negative),
        "dicom colour": (ExplicitVRLittleEndian, planes, 8, colour),
        "dicom frames": (ExplicitVRLittleEndian, deep * 2, 16, {"NumberOfFrames": 2}),
        "dicom rle": (RLELossless, encapsulate([rle]), 8, {}),
        "dicom jpeg": (JPEGBaseline8Bit, jpeg, 8, {}),
        "dicom jpeg large": (JPEGBaseline8Bit, large, 8, {"Rows": LARGE[1], "Columns": LARGE[0]}),
        "dicom jpeg2000": (JPEG2000Lossless, jpeg2000, 8, {}),
    }
    made = {kind: _dicom(grey.shape, *file) for kind, file in files.items()}
    return made | {kind: _as_chest(name) for kind, name in PYDICOM_FILES.items()}


def _as_chest(name: str) -> bytes:
    """A file of pydicom's own tests, compressed as nothing here can, under a header of a chest."""
    data = dcmread(get_testdata_file(name, download=False))
    data.Modality, data.BodyPartExamined = "DX", "CHEST"
    file = io.BytesIO()
    data.save_as(file)
    return file.getvalue()


def _dicom(
    shape: tuple[int, int], syntax: UID, pixels: bytes, bits: int, more: dict[str, object]
) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    fields = {
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientAge": "004Y",
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else 8,
        "HighBit": 11 if bits == 16 else 7,
        "PixelRepresentation": 0,
        "PixelData": pixels,
    }
    for name, value in {**fields, **more}.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OB" if syntax.is_compressed or bits == 8 else "OW"
    if syntax.is_encapsulated:
        data["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()
