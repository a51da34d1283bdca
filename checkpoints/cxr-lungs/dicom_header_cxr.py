"""The few elements of a DICOM file that reading a chest X-ray needs, through pydicom.

pydicom's element reader steps over the others and leaves the values of these as bytes, while its
`dcmread` inflates without a limit, follows nested sequences as deep as they go, and quotes the file
in warnings.
"""

import io
import struct
import threading
import zlib
from collections.abc import Iterator

from .image_cxr import MAX_PIXELS

# Nothing that is not listed here is ever read.
KEYWORDS = """
    TransferSyntaxUID Modality CodeValue CodeMeaning AnatomicRegionSequence PatientAge
    BodyPartExamined ImagerPixelSpacing ViewPosition SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing PixelAspectRatio BitsAllocated
    BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit WindowCenter
    WindowWidth RescaleIntercept RescaleSlope VOILUTFunction RedPaletteColorLookupTableDescriptor
    GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableData ModalityLUTSequence LUTDescriptor LUTData VOILUTSequence
    ViewCodeSequence PresentationLUTShape PixelData
""".split()
CHARACTER_SET, ITEM, SEQUENCE_END = 0x00080005, 0xFFFEE000, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
# pydicom's modules import one another: a thread that comes in between would find them half done.
IMPORTING = threading.Lock()
MAX_ELEMENTS = 100_000  # outside sequences of known length; an X-ray has some hundred
MAX_STOPS = 10_000  # at sequences and items of undefined length; an X-ray has some ten
MAX_INFLATED = 2 * MAX_PIXELS + 2**24
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
# Those of uncompressed pixels: implicit and explicit VR, both little endian, the above, none named.
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED, "")


class DataSet:
    """Elements of a data set or of a sequence's item, converted when asked for.

    Args:
        file: where the first element starts; read up to the pixel data or the end.
        order: "<" or ">", the byte order.
        last_group: elements of higher groups are left in the file.

    Raises:
        ValueError: truncated, or no pydicom; a sentence's end each.
    """

    def __init__(self, file: io.BytesIO, order: str = "<", last_group: int = 0xFFFF) -> None:
        self.order = order
        self.values = {}
        try:
            for keyword, vr, length, value in _elements(file, order, last_group):
                if length not in (len(value), UNDEFINED):
                    raise ValueError("it is truncated")
                self.values[keyword] = value
                if keyword == "PixelData":
                    self.pixel_vr, self.encapsulated = vr, length == UNDEFINED
                    break
        except struct.error:
            raise ValueError("it is truncated") from None

    def __contains__(self, keyword: str) -> bool:
        """Whether the element is there and not empty."""
        return bool(self.raw(keyword))

    def raw(self, keyword: str) -> bytes:
        """The value's bytes; none where there is no such element."""
        return self.values.get(keyword, b"")

    def texts(self, keyword: str) -> list[str]:
        """The values of an element of text, without padding; none where it is empty."""
        text = self.raw(keyword).decode("ascii", "replace").strip(" \0\t\r\n")
        return [value.strip(" \0\t\r\n") for value in text.split("\\")] if text else []

    def text(self, keyword: str) -> str:
        """The first of `texts`, or an empty text."""
        return next(iter(self.texts(keyword)), "")

    def numbers(self, keyword: str) -> list[float]:
        """The values of a decimal or integer string."""
        try:
            return [float(value) for value in self.texts(keyword) if value]
        except ValueError:
            raise ValueError(f"{keyword} is not a number") from None

    def words(self, keyword: str, kind: str = "H") -> list[int]:
        """The values of a 16-bit binary element; `kind` is "H" or, if signed, "h"."""
        raw = self.raw(keyword)
        if len(raw) % 2:
            raise ValueError(f"{keyword} has a damaged length")
        return list(struct.unpack(f"{self.order}{len(raw) // 2}{kind}", raw))

    def word(self, keyword: str, default: int | None = None) -> int:
        """The first of unsigned `words`; without one, `default`, or an error if that is None."""
        value = next(iter(self.words(keyword)), default)
        if value is None:
            raise ValueError(f"{keyword} is missing")
        return value

    def item(self, keyword: str) -> "DataSet | None":
        """The first item of a sequence, or None."""
        return next(self.items(keyword), None)

    def items(self, keyword: str) -> Iterator["DataSet"]:
        """The items of a sequence, each read when it is asked for."""
        file = io.BytesIO(self.raw(keyword))
        while len(header := file.read(8)) == 8:
            group, element, length = struct.unpack(f"{self.order}HHI", header)
            if group << 16 | element != ITEM:
                return
            whole = file if length == UNDEFINED else io.BytesIO(file.read(length))
            yield DataSet(whole, self.order)


def read_data_set(content: bytes) -> tuple[str, DataSet]:
    """Finds the elements of `KEYWORDS` up to the pixel data.

    Args:
        content: a DICOM file (PS3.10), or a data set without its preamble or file meta group.

    Returns:
        The transfer syntax's UID, empty where the file names none, and the data set.

    Raises:
        ValueError: truncated, deflated from more than any X-ray needs, or no pydicom; a sentence's
            end without the file's name.
    """
    file = io.BytesIO(content)
    file.seek(132 if content[128:132] == b"DICM" else 0)
    syntax = DataSet(file, last_group=2).text("TransferSyntaxUID")
    if syntax == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            file = io.BytesIO(inflater.decompress(file.read(), MAX_INFLATED))
        except zlib.error:
            raise ValueError("its deflated data set is damaged") from None
        if not inflater.eof:
            raise ValueError(f"its data set is cut or inflates to more than {MAX_INFLATED:,} bytes")
    big = syntax == BIG_ENDIAN or not syntax and content[file.tell() :][:2] == b"\0\x08"
    return syntax, DataSet(file, ">" if big else "<")


def _elements(
    file: io.BytesIO, order: str, last_group: int
) -> Iterator[tuple[str, str | None, int, bytes]]:
    """Yields keyword, VR, length and value, up to the delimiter of an item or the file's end.

    pydicom's reader is stopped at two kinds of elements, which are stepped over here. A character
    set it would convert, and quote in a warning if unknown, with all that a damaged length takes
    for it. Values of undefined length it would read by recursion, and again and again if damaged.
    """
    try:
        with IMPORTING:
            from pydicom.datadict import tag_for_keyword
            from pydicom.filereader import data_element_generator
    except ImportError:
        raise ValueError("it is a DICOM file; pip install pydicom") from None
    keywords = {tag_for_keyword(keyword): keyword for keyword in KEYWORDS}
    outer_implicit, outermost, depth, stopped, count = None, None, 0, (), 0

    def stop_when(tag: int, vr: str | None, length: int) -> bool:
        nonlocal stopped, count
        count += 1
        if count > MAX_ELEMENTS:
            raise ValueError(f"it holds more than {MAX_ELEMENTS:,} elements")
        special = tag >> 16 > last_group or tag in (CHARACTER_SET, SEQUENCE_END)
        stopped = (int(tag), vr, length, file.tell()) if special or length == UNDEFINED else ()
        return bool(stopped)

    for _ in range(MAX_STOPS):
        start, stopped = file.tell(), ()
        group, vr = struct.unpack("2s2x2s", file.read(6).ljust(6))
        file.seek(start)
        # Each item may be implicit VR or not; an item's own header has none.
        implicit = not (vr.isalpha() and vr.isupper()) or group in (b"\xfe\xff", b"\xff\xfe")
        outer_implicit = implicit if outer_implicit is None else outer_implicit
        for element in data_element_generator(
            file,
            implicit if depth else outer_implicit,
            order == "<",
            stop_when,
            specific_tags=[CHARACTER_SET] if depth else list(keywords),
        ):
            yield keywords[element.tag], element.VR, element.length, element.value or b""
        if not stopped:  # after an item's delimiter, or at the end of the file
            if depth == 0 or file.tell() == start:
                return
            continue
        tag, vr, length, start = stopped
        if tag >> 16 > last_group:
            return
        file.seek(start)
        if tag == SEQUENCE_END:
            if depth == 1 and outermost[0] in keywords:
                tag, vr, start = outermost
                yield keywords[tag], vr, UNDEFINED, file.getvalue()[start : file.tell()]
            depth = max(depth - 1, 0)
        elif length != UNDEFINED:
            file.seek(length, io.SEEK_CUR)
        elif tag != ITEM:
            outermost = outermost if depth else (tag, vr, start)
            depth += 1
    raise ValueError(f"it holds more than {MAX_STOPS:,} sequences and items")
