"""Makes DICOM files for tests."""

import io
import struct

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)


def data_set(pixels: np.ndarray, bits: int | None = None, **elements) -> Dataset:
    """A frontal chest X-ray of known pixels (h, w) or (h, w, 3); `elements` replace or add."""
    ds = Dataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "DX"
    ds.BodyPartExamined = "CHEST"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def written(ds: Dataset, syntax=ExplicitVRLittleEndian, preamble: bool = True) -> bytes:
    """The file's bytes; without `preamble` the data set alone."""
    file = io.BytesIO()
    if preamble:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        dcmwrite(file, ds, enforce_file_format=True)
    else:
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        dcmwrite(file, ds, implicit_vr=implicit, little_endian=little)
    return file.getvalue()


def dicom(pixels: np.ndarray, bits: int | None = None, **elements) -> bytes:
    """`data_set`, `written`."""
    return written(data_set(pixels, bits, **elements))


def lut(first: int, entries: list[int], bits: int) -> Dataset:
    """An item of a Modality or VOI LUT Sequence, of 16-bit entries."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


def code(meaning: str, value: str = "") -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodeMeaning = value, meaning
    return item


def pydicoms_file(name: str) -> bytes:
    """A file that pydicom ships, as it is."""
    with open(get_testdata_file(name, download=False), "rb") as file:
        return file.read()


def as_chest(name: str) -> bytes:
    """One of pydicom's files, as a CR of a chest without window or rescale."""
    ds = dcmread(get_testdata_file(name, download=False))
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
        if keyword in ds:
            del ds[keyword]
    if "PixelPaddingValue" in ds:
        del ds["PixelPaddingValue"]
    ds.Modality, ds.BodyPartExamined = "CR", "CHEST"
    file = io.BytesIO()
    dcmwrite(file, ds)
    return file.getvalue()


def nested(depth: int) -> bytes:
    """A file of nothing but sequences of undefined length that lie in each other."""
    begin = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return b"\0" * 128 + b"DICM" + begin * depth + end * depth
