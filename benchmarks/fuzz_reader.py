"""Feed damaged and hostile image files to `CxrImageProcessor.open`.

    python benchmarks/fuzz_reader.py --count 100000 --seed 0

Each file is a valid one, altered from 1 to 4 times: bytes flipped, cut, spliced or repeated, or
fields of its own format that lie, with checksums that fit. It must be read or refused with a
ValueError of one sentence, soon and without keeping memory. File N of a seed is always the same:
`--seed 0 --first N --count 1` repeats it. Exit code 1 on any failure.
"""

import argparse
import faulthandler
import logging
import os
import random
import re
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.fuzz_seeds import make_seeds  # noqa: E402
from modeling import CxrImageProcessor  # noqa: E402

SLOWEST = 1.0  # seconds of processor time for one file
HANG = 60  # seconds until a file that is still read ends the run
GROWTH = 200  # MB kept after the warm-up
WARM_UP = 1000  # files, until every decoder has been loaded
REPEATED = 300_000  # bytes that a part comes to at most when it is repeated
JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # none that stands among a scan's data
LONG_VRS = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
NUMBERS = (0, 1, 2, 31, 127, 255, 256, 8000, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass
class Result:
    """What became of the files; a failure is (number, kind, what went wrong)."""

    read: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    slowest: tuple[float, int, str] = (0.0, -1, "")
    growth: float = 0.0  # MB


def make_file(seeds: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """File `number` of a seed: the kind it was made from, and its bytes."""
    rng = random.Random(seed * 2**40 + number)
    kind = rng.choice(list(seeds))
    content = seeds[kind]
    lie = LIES.get(kind.split()[0], lambda content, rng: _alter_bytes(content, rng, seeds))
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            content = lie(content, rng)
        else:
            content = _alter_bytes(content, rng, seeds)
    return kind, content


def _alter_bytes(content: bytes, rng: random.Random, seeds: dict[str, bytes]) -> bytes:
    """Bytes flipped, overwritten, cut, doubled, inserted, or taken from another file."""
    data = bytearray(content or b"\0")
    where = rng.randrange(len(data))
    there = min(len(data), where + rng.choice((1, 2, 4, 16, 200)))
    match rng.randrange(8):
        case 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            data[where:there] = rng.randbytes(there - where)
        case 2:
            size = rng.choice((1, 2, 4))
            number = rng.choice(NUMBERS) % 256**size
            data[where : where + size] = number.to_bytes(size, rng.choice(("big", "little")))
        case 3:
            del data[where:]
        case 4:
            del data[where:there]
        case 5:
            data[where:where] = data[where:there] * _times(there - where, rng)
        case 6:
            data[where:where] = rng.randbytes(there - where)
        case 7:
            other = rng.choice(list(seeds.values()))
            data[where:] = other[rng.randrange(len(other)) :]
    return bytes(data)


def _times(size: int, rng: random.Random) -> int:
    """How often a part of so many bytes is repeated."""
    return min(rng.choice((1, 2, 50, REPEATED)), REPEATED // size)


def _png_lie(content: bytes, rng: random.Random) -> bytes:
    """A chunk that lies, is missing, comes twice or blows up, under a right checksum."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        chunks.append((kind, content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    bomb = zlib.compress(bytes(20_000_000), 1) if rng.random() < 0.02 else zlib.compress(b"x" * 99)
    match rng.randrange(6):
        case 0:
            chunks[which] = kind, _overwrite(body, rng, ">")
        case 1:
            del chunks[which]
        case 2:
            other = rng.choice(chunks)
            chunks[which:which] = [other] * _times(len(other[1]) + 12, rng)
        case 3:
            chunks.insert(1, (b"iCCP", b"profile\0\0" + bomb))
        case 4:
            chunks.insert(1, (b"zTXt", b"Comment\0\0" + bomb))
        case 5:
            chunks.insert(1, (b"IDAT", zlib.compress(rng.randbytes(rng.choice((1, 50, 5000))))))
    parts = [content[:8]]
    for kind, body in chunks:
        size = len(body) if rng.random() < 0.97 else rng.choice(NUMBERS)
        crc = zlib.crc32(kind + body)
        parts.append(struct.pack(">I4s", size, kind) + body + struct.pack(">I", crc))
    return b"".join(parts)


def _jpeg_lie(content: bytes, rng: random.Random) -> bytes:
    """A segment of the header, or a scan, that lies, is missing or comes many times."""
    starts, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xD9:
        marker = JPEG_MARKER.search(content, at + 2 + struct.unpack_from(">H", content, at + 2)[0])
        starts.append((at, marker.start() if marker else len(content)))
        at = starts[-1][1]
    if not starts:
        return content
    start, end = rng.choice(starts)
    segment = content[start:end]
    match rng.randrange(4):
        case 0:
            segment = segment[:4] + _overwrite(segment[4:], rng, ">")
        case 1:
            segment = segment[:2] + struct.pack(">H", rng.choice(NUMBERS) % 65536) + segment[4:]
        case 2:
            segment = b""
        case 3:
            segment += segment * _times(len(segment), rng)
    return content[:start] + segment + content[end:]


def _tiff_lie(content: bytes, rng: random.Random) -> bytes:
    """An entry of the first directory with another tag, type, count or value."""
    if len(content) < 8:
        return content
    order = ">" if content[:2] == b"MM" else "<"
    directory = struct.unpack_from(order + "I", content, 4)[0]
    if directory + 2 > len(content):
        return content
    count = struct.unpack_from(order + "H", content, directory)[0]
    at = directory + 2 + 12 * rng.randrange(max(1, count))
    data = bytearray(content)
    if at + 12 > len(data):
        return content
    offset, form = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H")))
    limit = 65536 if form == "H" else 2**32
    number = rng.choice((*NUMBERS, *range(20), len(data), directory)) % limit
    struct.pack_into(order + form, data, at + offset, number)
    return bytes(data)


def _dicom_lie(content: bytes, rng: random.Random) -> bytes:
    """An element that lies, in a deflated data set too, or a JPEG frame that does."""
    if len(content) < 144:
        return content
    start = 144 + struct.unpack_from("<I", content, 140)[0]  # of the data set
    if DeflatedExplicitVRLittleEndian.encode() in content[:start]:
        try:
            plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
        except zlib.error:
            return content
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return content[:start] + packer.compress(_element_lie(plain, rng, 0)) + packer.flush()
    at = content.find(b"\xff\xd8\xff")
    if at < start or rng.random() < 0.5:
        return _element_lie(content, rng, 132)
    end = at + struct.unpack_from("<I", content, at - 4)[0]
    frame = _jpeg_lie(content[at:end], rng)
    frame += bytes(len(frame) % 2)
    return content[: at - 4] + struct.pack("<I", len(frame)) + frame + content[end:]


def _element_lie(content: bytes, rng: random.Random, at: int) -> bytes:
    """An element, of those from `at` on, with another tag, VR, length or value, or many times."""
    elements = []
    while at + 12 <= len(content):
        vr = content[at + 4 : at + 6]
        if not vr.isalpha():  # implicit
            where, form = at + 4, "<I"
        else:
            where, form = (at + 8, "<I") if vr in LONG_VRS else (at + 6, "<H")
        value = where + struct.calcsize(form)
        end = min(value + struct.unpack_from(form, content, where)[0], len(content))
        elements.append((at, where, form, value, end))
        at = end
    if not elements:
        return content
    data, (at, where, form, value, end) = bytearray(content), rng.choice(elements)
    match rng.randrange(5):
        case 0:
            data[value:end] = _overwrite(content[value:end], rng)
        case 1:
            struct.pack_into(form, data, where, rng.choice(NUMBERS) % 256 ** struct.calcsize(form))
        case 2 if where != at + 4:
            vrs = (b"US", b"SS", b"DS", b"IS", b"OB", b"OW", b"SQ", b"UN", b"LO")
            data[at + 4 : at + 6] = rng.choice(vrs)
        case 3:
            other = rng.choice(elements)[0]  # a tag that means something
            data[at : at + 4] = data[other : other + 4]
        case _:
            data[at:at] = data[at:end] * _times(end - at, rng)
    return bytes(data)


def _overwrite(body: bytes, rng: random.Random, order: str = "<") -> bytes:
    """The same length, one number or some text in it changed."""
    if not body:
        return body
    data = bytearray(body)
    at = rng.randrange(len(data))
    if rng.random() < 0.3:
        word = rng.choice((b"nan", b"-1", b"1e999", b"0", b"\\\\", b"\xff\xfe", b"MONOCHROME1"))
        data[at : at + len(word)] = word[: len(data) - at]
    else:
        size = rng.choice([size for size in (1, 2, 4) if size <= len(data)])
        at = rng.randrange(0, len(data) - size + 1, size)
        number = rng.choice((*NUMBERS, *range(34))) % 256**size
        data[at : at + size] = number.to_bytes(size, "big" if order == ">" else "little")
    return bytes(data)


LIES = {"png": _png_lie, "jpeg": _jpeg_lie, "tiff": _tiff_lie, "dicom": _dicom_lie}


def fuzz(count: int, seed: int, first: int = 0, terminal: TextIO | None = None) -> Result:
    """Reads files `first` to `first + count` of a seed; shows progress on `terminal`."""
    seeds, processor, result = make_seeds(), CxrImageProcessor(64), Result()
    for content in seeds.values():
        processor.open(content)  # a seed that is refused would test nothing
    before = _memory()
    for number in tqdm(range(first, first + count), file=terminal, mininterval=2, unit="file"):
        kind, content = make_file(seeds, seed, number)
        started = time.process_time()
        try:
            faulthandler.dump_traceback_later(HANG, exit=True, file=terminal or sys.__stderr__)
            pixels = processor.open(content).pixels
            result.read[kind] += 1
            if pixels.dtype != np.uint16 or pixels.ndim != 2:
                result.failures.append((number, kind, f"{pixels.dtype} {pixels.shape}"))
        except ValueError as error:
            result.refused[kind] += 1
            if "\n" in str(error) or not str(error).startswith("the image: "):
                result.failures.append((number, kind, f"not one sentence: {error}"))
        except Exception as error:
            result.failures.append((number, kind, f"{type(error).__name__}: {error}"))
        seconds = time.process_time() - started
        result.slowest = max(result.slowest, (seconds, number, kind))
        if seconds > SLOWEST:
            result.failures.append((number, kind, f"took {seconds:.1f} s"))
        if number - first == WARM_UP:
            before = _memory()
    faulthandler.cancel_dump_traceback_later()
    result.growth = _memory() - before
    return result


def _memory(what: str = "VmRSS") -> float:
    """What this process holds, or held at most (VmHWM), MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def main() -> None:
    """Reads the files, prints what became of them, and exits with 1 after any failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    args = parser.parse_args()
    # libtiff writes to the error stream itself; the progress bar and a crash keep the real one.
    terminal = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(terminal)
    # Pillow and pydicom remark on every oddity of a file; only exceptions count here.
    warnings.simplefilter("ignore")
    logging.disable()
    started = time.perf_counter()
    result = fuzz(args.count, args.seed, args.first, terminal)
    seconds = time.perf_counter() - started
    print(f"{'made from':20} {'read':>8} {'refused':>8}")
    for kind in sorted(result.read | result.refused):
        print(f"{kind:20} {result.read[kind]:8} {result.refused[kind]:8}")
    print(f"{'all':20} {result.read.total():8} {result.refused.total():8}")
    print(f"{args.count / seconds:.0f} files a second")
    print("slowest: {:.2f} s, file {} ({})".format(*result.slowest))
    print(f"memory: {result.growth:+.0f} MB since the warm-up, at most {_memory('VmHWM'):.0f} MB")
    for number, kind, what in result.failures:
        print(f"FAILED file {number} ({kind}): {what}")
    if result.growth > GROWTH:
        print(f"FAILED: kept more than {GROWTH} MB")
    sys.exit(bool(result.failures) or result.growth > GROWTH)


if __name__ == "__main__":
    main()
