"""DICOM files to grey pixels, by the rendering pipeline of DICOM PS3.4 N.2.

Every step from the stored values to the screen maps one value to one grey, so it is computed once
for all the values that a pixel can hold and looked up for each pixel.
"""

import math
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from .dicom_codec_cxr import decode_frame
from .dicom_header_cxr import NATIVE, DataSet, read_data_set
from .image_cxr import FULL_SCALE, MAX_PIXELS, CxrImage, check_shape

MODALITIES = ("CR", "DX", "RG")
UNSPECIFIC_MODALITIES = ("OT", "SC", "")
# Body parts as hospitals write them: in their own language, often without its accents.
CHEST = re.compile(
    "chest|cxr|(?<![a-z])rib|lung|pulm|thora|tora[ckx]|pecho|poitrine|brust|borst", re.IGNORECASE
)
SPINE = re.compile("cervi|spin|lumb|vertebr|wirbel|colu[mn]|colonna|rachis", re.IGNORECASE)
# Chest by SNOMED CT of today and of before, and by its older names.
CHEST_CODES = ("816094009", "51185008", "T-D3000")
NO_PARTS = ("", "UNKNOWN", "OTHER", "NONE", "N/A")
LATERAL_WORDS = ("LL", "RL", "LATERAL", "LAT", "LLAT", "RLAT")
LATERAL = re.compile(r"\blateral\b", re.IGNORECASE)
# Lateral, left lateral and right lateral of CID 4010, by SNOMED CT and its older names.
LATERAL_CODES = "399067008 399173006 399198007 R-102CD R-10236 R-10232".split()
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
# What messages quote of a header: terms of PS3.3 C.7.3.1.1.1 and C.7.6.3.1.2, and of body parts
# that are no chest, those of PS3.16 annex L that are X-rayed. Anything else may be a name.
TERMS = frozenset(
    """CT MR US NM PT XA RF MG IO PX ES GM OP OPT SM SR DOC IVUS BMD XC ECG SEG PR KO RTIMAGE RTPLAN
    RTDOSE RTSTRUCT ARGB CMYK HSV YBR_PARTIAL_420 YBR_PARTIAL_422""".split()
)
PARTS = frozenset(
    """ABDOMEN ABDOMENPELVIS ACJOINT ANKLE ANUS APPENDIX ARM BACK BILEDUCT BLADDER BRAIN BREAST
    BUTTOCK CALCANEUS CALF CAROTID CLAVICLE COCCYX COLON CSPINE DENTAL EAR ELBOW ESOPHAGUS
    EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART
    HEEL HIP HUMERUS ILEUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIPS LIVER LOWERLEG LOWERLIMB
    LSPINE MANDIBLE MAXILLA NASALBONE NECK NOSE ORBIT OVARY PALATE PANCREAS PARATHYROID PAROTID
    PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM SACRUM SCAPULA SCROTUM SHOULDER SINUS
    SKIN SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORACICSPINE THUMB THYROID
    TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA UPPERARM UPPERLIMB URETER
    URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST""".split()
)
# Without a preamble: the file meta group, or an element of group 8 and soon SOPClassUID, in either
# byte order, with a value that is one of DICOM's own images.
BARE_STARTS = tuple(
    re.compile(start, re.DOTALL)
    for start in (
        rb"\x02\0[\0\x01]\0(UL|OB)",
        rb"(?=\x08\0[\0-\x16]\0).{,1024}?\x08\0\x16\0.{4}1\.2\.840\.10008\.5\.1\.4\.",
        rb"(?=\0\x08\0[\0-\x16]).{,1024}?\0\x08\0\x16.{4}1\.2\.840\.10008\.5\.1\.4\.",
    )
)
SAMPLES = 400  # pixels looked at on a line, lines
# Less of full scale from the first to the last hundredth of the pixels, or fewer pixels between
# black and white, are no picture; of 1,670 X-rays, the least were 0.25 and 0.5.
LEAST_CONTRAST, LEAST_BETWEEN = 0.2, 0.03
USUAL_BETWEEN = 0.5  # a table or window that leaves fewer is doubted
MAX_TRIED = 8  # tables, windows
STRETCHED = "Without a usable window, the greys span the file's darkest to brightest."
DAYS = {"D": 1, "W": 7, "M": 365.25 / 12, "Y": 365.25, "": 365.25}  # RSNA's files have no unit


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM, by its content.

    "DICM" after the preamble; or, in old exports without one, first elements that only a DICOM
    image has.
    """
    return content[128:132] == b"DICM" or any(start.match(content) for start in BARE_STARTS)


def read_dicom(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> CxrImage:
    """A chest X-ray from a DICOM file, as a viewer first shows it.

    The first frame is decoded, then go the Modality LUT or rescale, the first VOI LUT or else the
    first window, and at last the inversion of MONOCHROME1. Tables and windows that are damaged, or
    leave nothing but darkness, light or an outline, are passed over, with a warning, for the next
    in the file. Where there is none, pixels of 8 bits and colours keep their full range, as they
    were made for the screen; deeper ones, and those that show too little, are stretched from the
    darkest to the brightest pixel, as viewers (cornerstone) and public data sets (MIMIC-CXR-JPG)
    do, and a warning says so. Padding shows black, colour becomes ITU-R 601 luma. Bits above the
    stored ones are left out as overlays, which a warning says.

    Modality has to be CR, DX or RG; OT, SC or none, as converters write, are read with a warning.
    The body part, by BodyPartExamined or else AnatomicRegionSequence, may be none but a chest; one
    in words that are not known here is read with a warning.

    Of the header only what this needs is read, and messages quote none of it but the tag at fault,
    if its value is one that DICOM defines.

    Args:
        content: the file's bytes.
        name: what errors call the file.
        max_pixels: of the image.

    Returns:
        The image; its age in years comes from PatientAge.

    Raises:
        ValueError: not a chest X-ray by its header, damaged, without pixels, blank, too small or
            large, or compressed in a way that no installed package decodes; all its tables and
            windows are useless and one of them is damaged.
    """
    try:
        syntax, header = read_data_set(content)
        warnings = [*_scope_warnings(header), *_shape_warnings(header)]
        if "PixelData" not in header:
            raise ValueError("it has no pixel data")
        check_shape((header.word("Columns"), header.word("Rows")), name, max_pixels)
        age = _age(header, warnings)
        stored, bits = _stored_values(header, syntax, warnings)
        with np.errstate(all="ignore"):  # damaged numbers are found by their result
            pixels = _render(stored, bits, header, warnings)
    except ValueError as error:
        message = str(error)
        whole = message.startswith(f"{name}: ")  # those of check_shape
        raise ValueError(message if whole else f"{name}: {message}.") from None
    return CxrImage(pixels, tuple(warnings), age)


def _quote(value: str) -> str:
    return repr(value) if value.upper() in TERMS else "not one that DICOM defines"


def _scope_warnings(header: DataSet) -> Iterator[str]:
    modality = header.text("Modality").upper()
    if modality not in MODALITIES + UNSPECIFIC_MODALITIES:
        raise ValueError(f"Modality is {_quote(modality)}; a chest X-ray's is CR, DX or RG")
    if modality not in MODALITIES:
        yield f"Modality is {modality or 'missing'}, so the file may be of something else."
    yield from _part_warnings(header)
    view, words = header.item("ViewCodeSequence"), _words(header.text("ViewPosition").upper())
    lateral = next((word for word in words if word in LATERAL_WORDS), None)
    if lateral:
        yield f"ViewPosition is {lateral}: a lateral view, while the models learned frontal ones."
    elif view and (
        view.text("CodeValue") in LATERAL_CODES or LATERAL.search(view.text("CodeMeaning"))
    ):
        yield "ViewCodeSequence says lateral, while the models learned frontal views."


def _part_warnings(header: DataSet) -> Iterator[str]:
    part, region = header.text("BodyPartExamined"), header.item("AnatomicRegionSequence")
    if part.upper() in NO_PARTS and region:
        is_chest = region.text("CodeValue") in CHEST_CODES
        part = "CHEST" if is_chest else region.text("CodeMeaning")
    is_spine = SPINE.search(part) is not None
    if part.upper() in NO_PARTS or CHEST.search(part) and not is_spine:
        return
    words = _words(part)
    others = [
        word
        for word in ("".join(words), *words)
        if word.upper() in PARTS or word.upper().removesuffix("S") in PARTS
    ]
    if others or is_spine:
        raise ValueError(f"the body part is {(*others, 'SPINE')[0]!r}; the models read chests only")
    yield "The body part is none that is known here, so it may not be a chest."


def _words(text: str) -> list[str]:
    return re.findall("[A-Za-z]+", text)


def _shape_warnings(header: DataSet) -> Iterator[str]:
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        sides = header.numbers(keyword)
        if len(sides) == 2 and min(sides) > 0 and not 0.99 < sides[0] / sides[1] < 1.01:
            yield f"{keyword} says that pixels are not square; the image is shown as if they were."
            return


def _age(header: DataSet, warnings: list[str]) -> float | None:
    text = header.text("PatientAge").upper()
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    if text and not match:
        warnings.append("PatientAge cannot be read, so the person's age is unknown.")
    return int(match[1]) * DAYS[match[2]] / DAYS["Y"] if match else None


def _stored_values(header: DataSet, syntax: str, warnings: list[str]) -> tuple[np.ndarray, int]:
    """The first frame as unsigned (h, w), and how many of a value's bits are used."""
    rows, columns = header.word("Rows"), header.word("Columns")
    photometric = header.text("PhotometricInterpretation").upper()
    if photometric not in GREYS + COLOURS:
        given = _quote(photometric) if photometric else "missing"
        raise ValueError(
            f"PhotometricInterpretation is {given}; it can be {', '.join(GREYS + COLOURS)}"
        )
    samples = header.word("SamplesPerPixel", 1)
    if samples != (3 if photometric in COLOURS else 1):
        raise ValueError(f"SamplesPerPixel is {samples}, which {photometric} does not go with")
    if rows * columns * samples > MAX_PIXELS:
        raise ValueError(f"it is too large; the most is {MAX_PIXELS:,} values in all")
    allocated = header.word("BitsAllocated")
    used = header.word("BitsStored", allocated)
    if allocated not in (8, 16) or not 1 <= used <= allocated:
        raise ValueError(
            f"BitsAllocated is {allocated} and BitsStored {used}; 8 and 16 can be read"
        )
    if header.word("PixelRepresentation", 0) not in (0, 1):
        raise ValueError("PixelRepresentation is neither 0 nor 1")
    frames = (header.numbers("NumberOfFrames") or [1])[0]
    if not 1 <= frames < 2**31:
        raise ValueError("NumberOfFrames is not a count")
    if frames > 1:
        warnings.append(f"The file holds {frames:.0f} frames; the first was read.")
    if header.encapsulated:
        values, photometric, bits = decode_frame(
            header, syntax, (rows, columns, samples), photometric, int(frames)
        )
    else:
        if syntax not in NATIVE:
            raise ValueError(
                "its pixels are uncompressed, which its transfer syntax does not go with; "
                "export it as Explicit VR Little Endian"
            )
        if photometric == "YBR_FULL_422" and columns % 2:
            raise ValueError(f"Columns is {columns}, which YBR_FULL_422 does not go with")
        values = _native(header, rows, columns, samples, photometric, int(frames))
        shift = header.word("HighBit", used - 1) + 1 - used
        if not 0 <= shift <= allocated - used:
            raise ValueError("HighBit does not go with BitsStored")
        if _has_more_bits(values, used + shift, header.word("PixelRepresentation", 0) == 1):
            warnings.append(
                "Pixels have bits above those that BitsStored says; they were left out, and if "
                "they are no overlays, the image is wrong."
            )
        values, bits = values >> shift if shift else values, used
    if values.ndim == 3:
        values = values[..., 0] if photometric.startswith("YBR") else _luma(values)
    return values, bits


def _native(
    header: DataSet, rows: int, columns: int, samples: int, photometric: str, frames: int
) -> np.ndarray:
    """Uncompressed pixels: (h, w), or (h, w, 3), of YBR_FULL_422 the luma (h, w) alone."""
    itemsize = header.word("BitsAllocated") // 8
    per_pixel = 2 if photometric == "YBR_FULL_422" else samples
    count = rows * columns * per_pixel
    raw, needed = header.raw("PixelData"), count * itemsize * frames
    if len(raw) < needed:
        raise ValueError(f"its pixel data is {len(raw):,} bytes, of the {needed:,} needed")
    if itemsize == 1 and header.order == ">" and header.pixel_vr == "OW":
        # PS3.5 annex A.3: by that VR, bytes are written as words of two.
        words = np.frombuffer(raw, "u2", (count + 1) // 2)
        values = words.byteswap().view("u1")[:count]
    else:
        values = np.frombuffer(raw, f"{header.order}u{itemsize}", count)
    if photometric == "YBR_FULL_422":
        return values.reshape(-1, 4)[:, :2].reshape(rows, columns)
    if samples == 1:
        return values.reshape(rows, columns)
    if header.word("PlanarConfiguration", 0) == 1:
        return np.moveaxis(values.reshape(samples, rows, columns), 0, -1)
    return values.reshape(rows, columns, samples)


def _has_more_bits(values: np.ndarray, used: int, signed: bool) -> bool:
    """Whether any of the bits above so many is set, but for those that repeat the sign."""
    if values.max() < 2**used:
        return False
    if not signed:
        return True
    extended = values.view(values.dtype.str.replace("u", "i"))
    return bool(extended.min() < -(2 ** (used - 1)) or extended.max() >= 2 ** (used - 1))


def _luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma in the integer form that Pillow uses, at any depth up to 16 bits."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint16)


def _render(stored: np.ndarray, bits: int, header: DataSet, warnings: list[str]) -> np.ndarray:
    """Stored values (h, w) to uint16 at full scale."""
    photometric = header.text("PhotometricInterpretation").upper()
    signed = header.word("PixelRepresentation", 0) == 1 and photometric in GREYS
    values = np.arange(2 ** (8 * stored.dtype.itemsize)) & (2**bits - 1)
    if signed:
        values = np.where(values >= 2 ** (bits - 1), values - 2**bits, values)
    if photometric in COLOURS + ("PALETTE COLOR",):
        grey = _grey_from_colour(values, bits, signed, stored, header, warnings)
    else:
        grey = _grey(values, bits, signed, stored, header, warnings)
    if not np.isfinite(grey).all():
        raise ValueError("its rescale or window is damaged")
    return (grey.clip(0, 1) * FULL_SCALE).round().astype(np.uint16)[stored]


def _grey_from_colour(
    values: np.ndarray,
    bits: int,
    signed: bool,
    stored: np.ndarray,
    header: DataSet,
    warnings: list[str],
) -> np.ndarray:
    """Grey in [0, 1] of each stored value, which is a luma or stands for a palette's colour."""
    if header.text("PhotometricInterpretation").upper() in COLOURS:
        grey = values / (2**bits - 1)
    else:
        colours, highest, declared = zip(
            *(
                _look_up(values, header, f"{colour}PaletteColorLookupTable", signed)
                for colour in ("Red", "Green", "Blue")
            )
        )
        top = _top(max(highest), declared[0], "palette", warnings)
        grey = np.dot(np.stack(colours, -1), (0.299, 0.587, 0.114)) / top
    seen, padding = _sample(stored), np.zeros(len(values), bool)
    if not _shows(grey[seen]):
        grey = _stretched(grey, stored, seen, padding)
        warnings.append(STRETCHED)
    return grey


def _grey(
    values: np.ndarray,
    bits: int,
    signed: bool,
    stored: np.ndarray,
    header: DataSet,
    warnings: list[str],
) -> np.ndarray:
    """Grey in [0, 1] of each stored value, for the two MONOCHROME kinds."""
    kind = "h" if signed else "H"
    padding = np.zeros(len(values), bool)
    limits = header.words("PixelPaddingValue", kind)[:1]
    if limits:
        limits += header.words("PixelPaddingRangeLimit", kind)[:1]
        padding = (values >= min(limits)) & (values <= max(limits))
    modality_lut = header.item("ModalityLUTSequence")
    if modality_lut:
        modality, _, _ = _look_up(values, modality_lut, "LUT", signed)
    else:
        slope = (header.numbers("RescaleSlope") or [1])[0]
        modality = values * slope + (header.numbers("RescaleIntercept") or [0])[0]
        if slope == 0 or not np.isfinite(modality).all():
            raise ValueError("RescaleSlope or RescaleIntercept is out of range")
    seen = _sample(stored)
    seen = seen[~padding[seen]]
    given = _given_greys(modality, header, warnings)
    grey = next((grey for grey in given if _shows(grey[seen])), None)
    if grey is not None and _between(grey[seen]) < USUAL_BETWEEN:
        warnings.append("The file's window or VOI LUT leaves most of the image black or white.")
    if grey is None and bits <= 8:
        grey = (modality - modality.min()) / (np.ptp(modality) or 1)
        grey = grey if _shows(grey[seen]) else None
    if grey is None:
        grey = _stretched(modality, stored, seen, padding)
        warnings.append(STRETCHED)
    inverse = header.text("PresentationLUTShape").upper() == "INVERSE"
    if inverse or header.text("PhotometricInterpretation").upper() == "MONOCHROME1":
        grey = 1 - grey.clip(0, 1)
    return np.where(padding, 0, grey)


def _given_greys(
    modality: np.ndarray, header: DataSet, warnings: list[str]
) -> Iterator[np.ndarray]:
    """Grey of each stored value by the file's VOI LUTs, then by its windows.

    Whoever asks for the next has found that the last shows too little, which a warning says.

    Raises:
        ValueError: there is no other, and one is damaged.
    """
    unused = "The file's {} shows almost nothing of the image and was not used."
    damaged = "The file's {} is damaged and was not used."
    error = None
    for voi_lut in islice(header.items("VOILUTSequence"), MAX_TRIED):
        before = len(warnings)
        try:
            entries, highest, bits = _look_up(modality, voi_lut, "LUT", modality.min() < 0)
        except ValueError as problem:
            error = error or problem
            warnings.append(damaged.format("VOI LUT"))
            continue
        yield entries / _top(highest, bits, "VOI LUT", warnings)
        warnings[before:] = [unused.format("VOI LUT")]
    for center, width in _windows(header):
        try:
            grey = _window(modality, center, width, header)
        except ValueError as problem:
            error = error or problem
            warnings.append(damaged.format("window"))
            continue
        yield grey
        warnings.append(unused.format("window"))
    if error:
        raise error


def _sample(stored: np.ndarray) -> np.ndarray:
    """Some of the pixels' stored values, (N,)."""
    rows, columns = (-(-side // SAMPLES) for side in stored.shape)
    return stored[::rows, ::columns].ravel()


def _shows(grey: np.ndarray) -> bool:
    """Whether an image shows more than darkness, light, or an outline of both.

    Args:
        grey: of its pixels, (N,); beyond 0 and 1 it is clipped.
    """
    if not len(grey):
        return False
    grey = grey.clip(0, 1)
    darkest, brightest = np.percentile(grey, (1, 99))
    return bool(brightest - darkest >= LEAST_CONTRAST and _between(grey) >= LEAST_BETWEEN)


def _between(grey: np.ndarray) -> float:
    """The share of greys, (N,), that are neither black nor white."""
    return float(((grey > 0) & (grey < 1)).mean())


def _stretched(
    modality: np.ndarray, stored: np.ndarray, seen: np.ndarray, padding: np.ndarray
) -> np.ndarray:
    """From the darkest pixel to the brightest.

    Where a few pixels, a marker's or dead ones, leave the others no contrast, from the first to the
    last hundredth.

    Raises:
        ValueError: these have one grey.
    """
    shown = np.zeros(len(modality), bool)
    shown[stored] = True
    used = modality[shown & ~padding]
    if not len(used):
        raise ValueError("the image is blank: its padding covers every pixel")
    low, high = used.min(), used.max()
    if len(seen) and np.ptp(np.percentile(modality[seen], (1, 99))) < LEAST_CONTRAST * (high - low):
        low, high = np.percentile(modality[seen], (1, 99))
    if low == high:
        raise ValueError("the image is blank: its pixels have one grey")
    return ((modality - low) / (high - low)).clip(0, 1)


def _windows(header: DataSet) -> list[tuple[float, float]]:
    """Centres and widths, but for those of width 0 or no number, as some writers leave them."""
    pairs = []
    for texts in zip(header.texts("WindowCenter"), header.texts("WindowWidth")):
        try:
            center, width = map(float, texts)
        except ValueError:
            continue
        if math.isfinite(center) and math.isfinite(width) and width > 0:
            pairs.append((center, width))
    return pairs[:MAX_TRIED]


def _window(values: np.ndarray, center: float, width: float, header: DataSet) -> np.ndarray:
    """A window's function (PS3.3 C.11.2.1.2 and C.11.2.1.3): greys in [0, 1]."""
    function = header.text("VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(
            f"VOILUTFunction is {_quote(function)}; it can be LINEAR, LINEAR_EXACT or SIGMOID"
        )
    least = 1 if function == "LINEAR" else 0
    if width < least:
        raise ValueError(
            f"WindowCenter {center:g} and WindowWidth {width:g} are no {function} window"
        )
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(float)
    return ((values - center) / width + 0.5).clip(0, 1)


def _look_up(
    values: np.ndarray, holder: DataSet, prefix: str, signed: bool
) -> tuple[np.ndarray, int, int]:
    """Values through a look-up table (PS3.3 C.11.1.1, C.7.6.3.1.5).

    Returns:
        An entry a value, as they are stored; the table's highest, and the bits that it declares.
    """
    descriptor, raw = holder.words(f"{prefix}Descriptor"), holder.raw(f"{prefix}Data")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise ValueError(f"{prefix}Descriptor is damaged")
    count, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if signed and first >= 2**15:
        first -= 2**16
    itemsize = 2 if len(raw) >= 2 * count else 1
    if len(raw) < count or itemsize == 1 and bits > 8 and len(raw) > count + 1:
        raise ValueError(f"{prefix}Data holds fewer than {count} entries")
    entries = np.frombuffer(raw, f"{holder.order}u{itemsize}", count)
    index = (np.asarray(values) - first).round().clip(0, count - 1).astype(int)
    return entries[index].astype(float), int(entries.max()), bits


def _top(highest: int, bits: int, table: str, warnings: list[str]) -> int:
    """The entry that is white: the highest of so many bits, or of a table that uses others."""
    if not highest or highest.bit_length() == bits:
        return 2**bits - 1
    warnings.append(
        f"The entries of the {table} are of other bits than it declares; the highest is white."
    )
    return highest
