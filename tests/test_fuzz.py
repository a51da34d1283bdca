"""A small run of `benchmarks/fuzz_reader.py`: hostile files are read or refused in a sentence."""

import random
import struct
import zlib

import pytest

from benchmarks import fuzz_reader
from modeling import CxrImageProcessor
from modeling.dicom_header_cxr import read_data_set

FILES = 1500


@pytest.mark.filterwarnings("ignore")
def test_damaged_and_hostile_files_are_read_or_refused_in_one_sentence():
    result = fuzz_reader.fuzz(FILES, seed=1)
    assert result.failures == []
    assert result.read.total() + result.refused.total() == FILES
    assert min(result.read.total(), result.refused.total()) > FILES / 10  # both ways are taken
    assert result.growth < fuzz_reader.GROWTH


def test_a_file_is_made_again_from_its_number():
    seeds = fuzz_reader.make_seeds()
    assert seeds == fuzz_reader.make_seeds()
    files = [fuzz_reader.make_file(seeds, 3, number) for number in range(200)]
    assert files == [fuzz_reader.make_file(seeds, 3, number) for number in range(200)]
    assert len(set(files)) > 190
    assert max(len(content) for _, content in files) < 10 * fuzz_reader.REPEATED


@pytest.mark.parametrize("error", [KeyError("tag"), ValueError("two\nlines"), MemoryError()])
def test_what_is_no_sentence_is_reported(error, monkeypatch):
    def fail(self, content):
        if content not in seeds:
            raise error
        return opened(self, content)

    seeds, opened = set(fuzz_reader.make_seeds().values()), CxrImageProcessor.open
    monkeypatch.setattr(CxrImageProcessor, "open", fail)
    assert len(fuzz_reader.fuzz(5, seed=0).failures) == 5


def test_jpeg_frames_of_dicom_files_are_lied_in_and_scans_repeated():
    content, rng = fuzz_reader.make_seeds()["dicom jpeg large"], random.Random(0)
    lies = [fuzz_reader.LIES["dicom"](content, rng) for _ in range(300)]
    scans = [lie.count(b"\xff\xda") - content.count(b"\xff\xda") for lie in lies]
    assert max(scans) > 1000 and min(scans) == -1
    assert max(map(len, lies)) < len(content) + 2 * fuzz_reader.REPEATED


@pytest.mark.parametrize("kind", ["dicom", "dicom implicit"])
def test_what_is_repeated_in_a_dicom_file_is_an_element(kind):
    content, rng = fuzz_reader.make_seeds()[kind], random.Random(0)
    lies = [fuzz_reader.LIES["dicom"](content, rng) for _ in range(300)]
    longer = [lie for lie in lies if len(lie) > len(content)]
    assert len(longer) > 30
    for lie in longer:
        assert read_data_set(lie)[1].values == read_data_set(content)[1].values


def test_a_deflated_data_set_is_lied_in():
    content, rng = fuzz_reader.make_seeds()["dicom deflated"], random.Random(0)
    start = 144 + struct.unpack("<I", content[140:144])[0]
    lies = [fuzz_reader.LIES["dicom"](content, rng) for _ in range(100)]
    inflated = {zlib.decompress(lie[start:], -zlib.MAX_WBITS) for lie in lies}
    assert len(inflated) > 50 and {lie[:start] for lie in lies} == {content[:start]}
