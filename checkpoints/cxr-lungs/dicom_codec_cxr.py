"""Compressed pixels of DICOM files, through pydicom's decoders.

A frame's own header is checked first, so that a decoder allocates nothing that the DICOM header
does not account for: without this, every codec tried hung or crashed on damaged frames.
"""

import struct

import numpy as np

from .dicom_header_cxr import IMPORTING, DataSet
from .image_cxr import is_slow_jpeg

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
RLE = "1.2.840.10008.1.2.5"
LIBJPEG, OPENJPEG = "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"
# Transfer syntax: its name, and the package beside pydicom that decodes it. Damaged frames crash
# GDCM, hang pyjpegls and panic in pylibjpeg-rle, so none of these is used.
SYNTAXES = {
    JPEG_BASELINE: ("JPEG Baseline", "pillow"),
    "1.2.840.10008.1.2.4.51": ("JPEG Extended", LIBJPEG),
    "1.2.840.10008.1.2.4.57": ("JPEG Lossless", LIBJPEG),
    "1.2.840.10008.1.2.4.70": ("JPEG Lossless", LIBJPEG),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS", LIBJPEG),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS", LIBJPEG),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000", OPENJPEG),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", OPENJPEG),
    "1.2.840.10008.1.2.4.201": ("High-Throughput JPEG 2000", OPENJPEG),
    "1.2.840.10008.1.2.4.202": ("High-Throughput JPEG 2000", OPENJPEG),
    "1.2.840.10008.1.2.4.203": ("High-Throughput JPEG 2000", OPENJPEG),
    RLE: ("RLE", ""),
}
CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: SOC and SIZ
NO_FRAME_MARKERS = (0xFFC4, 0xFFC8, 0xFFCC)  # DHT, JPG, DAC among SOF0 to SOF15
JPEG_LS_FRAME = 0xFFF7
MAX_TILES = 65535
FRAGMENT, MAX_FRAGMENTS = b"\xfe\xff\x00\xe0", 100_000


def decode_frame(
    header: DataSet, syntax: str, shape: tuple[int, int, int], photometric: str, frames: int
) -> tuple[np.ndarray, str, int]:
    """Decodes the first frame.

    Args:
        header: the data set.
        syntax: the transfer syntax's UID.
        shape: rows, columns and samples a pixel, checked by the caller to be of bearable size.
        photometric: PhotometricInterpretation.
        frames: how many the file holds.

    Returns:
        Values, uint8 or uint16 (h, w) or (h, w, 3), PhotometricInterpretation as decoded, and how
        many of a value's bits are used.

    Raises:
        ValueError: a sentence's end without the file's name: another transfer syntax, no package
            for it, or a damaged frame.
    """
    if syntax not in SYNTAXES:
        raise ValueError("its transfer syntax is none that can be read; export it uncompressed")
    kind, package = SYNTAXES[syntax]
    packages = f"pydicom pylibjpeg {package}" if package in (LIBJPEG, OPENJPEG) else "pydicom"
    install = f"its pixels are {kind} compressed; pip install {packages}"
    try:
        with IMPORTING:
            from pydicom.encaps import encapsulate, get_frame
            from pydicom.pixels import get_decoder
    except ImportError:
        raise ValueError(install) from None
    decoder = get_decoder(syntax)
    plugin = "pylibjpeg" if package in (LIBJPEG, OPENJPEG) else package or "pydicom"
    if plugin not in decoder.available_plugins:
        raise ValueError(install)
    damaged = ValueError(f"its {kind} compressed pixels are damaged, or coded oddly")
    rows, columns, samples = shape
    allocated = header.word("BitsAllocated")
    used = header.word("BitsStored", allocated)
    if header.raw("PixelData").count(FRAGMENT) > MAX_FRAGMENTS:
        raise damaged
    try:
        frame = get_frame(header.raw("PixelData"), 0, number_of_frames=frames)
        if syntax == RLE:
            _check_rle(frame, rows * columns, samples * allocated // 8)
        else:
            allocated = 8 if _check_codestream(frame, shape, allocated) <= 8 else 16
            used = min(used, allocated)
        values, properties = decoder.as_array(
            encapsulate([frame], has_bot=False),
            index=0,
            raw=True,
            decoding_plugin=plugin,
            rows=rows,
            columns=columns,
            samples_per_pixel=samples,
            planar_configuration=header.word("PlanarConfiguration", 0),
            photometric_interpretation=photometric,
            bits_allocated=allocated,
            bits_stored=used,
            pixel_representation=header.word("PixelRepresentation", 0),
            pixel_keyword="PixelData",
            number_of_frames=1,
        )
    # What a codec raises on damage is its own affair: OSError, RuntimeError, struct.error, ...
    except Exception:
        raise damaged from None
    if values.dtype.itemsize > 2 or values.shape[:2] != (rows, columns):
        raise damaged
    return (
        values.view(f"u{values.dtype.itemsize}"),
        str(properties["photometric_interpretation"]),
        used,
    )


def _check_codestream(frame: bytes, shape: tuple[int, int, int], allocated: int) -> int:
    """The precision of a JPEG, JPEG-LS or JPEG 2000 frame, `allocated` bits at most."""
    if frame[:4] == CODESTREAM:
        _, _, right, bottom, left, top, tile_width, tile_height = struct.unpack(
            ">HHIIIIII", frame[4:32]
        )
        rows, columns = bottom - top, right - left
        samples, precision = struct.unpack(">HB", frame[40:43])
        precision = precision % 128 + 1
        if -(-columns // tile_width) * -(-rows // tile_height) > MAX_TILES:
            raise ValueError("too many tiles")
    else:
        if is_slow_jpeg(frame):
            raise ValueError("too many parts")
        precision, rows, columns, samples = _jpeg_frame_header(frame)
    if (rows, columns, samples) != shape or not 1 <= precision <= allocated:
        raise ValueError("another shape than the header's")
    return precision


def _jpeg_frame_header(frame: bytes) -> tuple[int, int, int, int]:
    """Precision, rows, columns and components of JPEG or JPEG-LS (ITU-T T.81 B.2.2)."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    position = 2
    while True:
        marker, length = struct.unpack(">HH", frame[position : position + 4])
        is_frame = 0xFFC0 <= marker <= 0xFFCF and marker not in NO_FRAME_MARKERS
        if is_frame or marker == JPEG_LS_FRAME:
            return struct.unpack(">BHHB", frame[position + 4 : position + 10])
        if marker < 0xFF01 or length < 2:
            raise ValueError("no frame header")
        position += 2 + length


def _check_rle(frame: bytes, pixels: int, segments: int) -> None:
    """PackBits adds one byte in 128 at worst; more would inflate to more than the image."""
    limit = pixels * segments * 129 // 128 + 2**12
    if struct.unpack("<I", frame[:4])[0] != segments or len(frame) > limit:
        raise ValueError("another number of segments than the header's")
