"""Makes TIFF files for tests."""

import struct


def tiff(entries, data):
    """A little-endian TIFF of entries (tag, type, count, value) and what they point at."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4) + data


def tiles(side):
    """A TIFF of a tile a pixel, so many a side, which Pillow reads one by one."""
    count = side * side
    start = 8 + 2 + 11 * 12 + 4
    offsets = struct.pack("<I", start) * count
    counts = struct.pack("<I", 1) * count
    return tiff(
        [
            (256, 4, 1, side),
            (257, 4, 1, side),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
            (322, 4, 1, 1),
            (323, 4, 1, 1),
            (324, 4, count, start),
            (325, 4, count, start + len(offsets)),
            (339, 3, 1, 1),
        ],
        offsets + counts,
    )
