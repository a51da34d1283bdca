"""What reading a file gives, whatever the format, and the sizes it may have."""

import struct
from typing import NamedTuple

import numpy as np

MIN_SIDE = 32
MAX_PIXELS = 64_000_000
MAX_RATIO = 20  # of the sides
MAX_FILE_BYTES = 256 * 1024**2  # twice the most pixels at 16 bits
# Each scan of a progressive JPEG is a pass over all pixels; encoders write about ten. Each segment
# of Exif data makes Pillow copy all those before it; encoders write one, and one comment.
MAX_JPEG_PARTS = 100
MAX_FRACTIONS = 1000  # in a TIFF's tag; resolutions have one, colours six
MAX_TIFF_PARTS = 40_000  # strips or tiles, which Pillow reads one by one; a strip a row are less
MAX_JPEG_SEGMENTS = 1000  # a profile of colours may take 255
FULL_SCALE = 65535


class CxrImage(NamedTuple):
    """A chest X-ray as read from its file.

    Attributes:
        pixels: uint16 (h, w), full scale 0..65535, bright where the body stops the rays.
        warnings: what was noticed or corrected on the way, a sentence each.
        age: of the person, years, where the file says so.
        drawn: whether large areas are of exactly one grey, as in drawings and on screens.
        margins: rows and columns of the file's image that were cut away as a plain frame: top,
            left, bottom, right.
    """

    pixels: np.ndarray
    warnings: tuple[str, ...] = ()
    age: float | None = None
    drawn: bool = False
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def file_shape(self) -> tuple[int, int]:
        """Height and width of the file's image, pixels."""
        top, left, bottom, right = self.margins
        height, width = self.pixels.shape
        return top + height + bottom, left + width + right

    @property
    def origin(self) -> tuple[int, int]:
        """Where `pixels` begin in the file's image: columns from its left, rows from its top."""
        top, left, _, _ = self.margins
        return left, top

    def part_of(self, shape: tuple[float, float]) -> tuple[float, float]:
        """Height and width of `pixels` before the file's image was stretched from `shape`."""
        (height, width), (whole_height, whole_width) = self.pixels.shape, self.file_shape
        return height * shape[0] / whole_height, width * shape[1] / whole_width


def check_shape(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses what is too small or too large.

    Args:
        size: width and height.
        name: what the error calls the image.
        max_pixels: in all.

    Raises:
        ValueError: under 32 pixels a side, one 20 times the other, over `max_pixels` in all.
    """
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name}: {width} x {height} pixels is too small for a chest X-ray; "
            f"the least is {MIN_SIDE} a side."
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"{name}: {width} x {height} pixels is too narrow for a chest X-ray; "
            f"the longer side is at most {MAX_RATIO} times the other."
        )
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {width} x {height} pixels is too large; the most is {max_pixels:,} in all."
        )


def check_file_size(count: int, name: str) -> None:
    """Refuses a file that no X-ray needs, before it is read.

    Args:
        count: its bytes.
        name: what the error calls the file.

    Raises:
        ValueError: over 256 MB.
    """
    if count > MAX_FILE_BYTES:
        raise ValueError(
            f"{name}: a file of {count / 1024**2:,.0f} MB is too large; "
            f"the most is {MAX_FILE_BYTES // 1024**2} MB."
        )


def is_slow_jpeg(content: bytes) -> bool:
    """Whether a file is a JPEG of over 100 scans, comments or segments of Exif data.

    Or one of over 1,000 segments of any kind before its first scan. A small one may take minutes to
    read, or much memory.
    """
    if not content.startswith(b"\xff\xd8"):
        return False
    if max(map(content.count, (b"\xff\xda", b"\xff\xfe", b"Exif\0\0"))) > MAX_JPEG_PARTS:
        return True
    place = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        if content[place : place + 1] != b"\xff" or content[place + 1 : place + 2] == b"\xda":
            return False
        place += 2 + max(2, int.from_bytes(content[place + 2 : place + 4], "big"))
    return True


FRACTIONS = (5, 10)  # kinds of TIFF values, unsigned and signed
PARTS = (273, 324)  # TIFF tags: where the strips lie, or the tiles


def is_slow_tiff(content: bytes) -> bool:
    """Whether a file is a TIFF of over 40,000 strips or tiles, or a tag of over 1,000 fractions.

    Pillow reads the ones and reduces the others one by one. Looked at are the tags of the first
    image.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        return False
    try:
        (version,) = struct.unpack_from(f"{order}H", content, 2)
        place, number, entry, value = (8, "Q", "HHQ", 8) if version == 43 else (4, "I", "HHI", 4)
        (start,) = struct.unpack_from(f"{order}{number}", content, place)
        number = "Q" if version == 43 else "H"
        (tags,) = struct.unpack_from(f"{order}{number}", content, start)
        start += struct.calcsize(number)
        for _ in range(min(tags, 10_000)):
            tag, kind, count = struct.unpack_from(f"{order}{entry}", content, start)
            if kind in FRACTIONS and count > MAX_FRACTIONS:
                return True
            if tag in PARTS and count > MAX_TIFF_PARTS:
                return True
            start += struct.calcsize(f"{order}{entry}") + value
    except struct.error:  # it ends before: no TIFF, or a damaged one
        return False
    return False
