"""A small run of `benchmarks/fuzz_reader.py`: hostile files are read or refused in a sentence."""

import pytest

from benchmarks import fuzz_reader
from modeling import CxrImageProcessor

FILES = 2500


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


@pytest.mark.parametrize("error", [KeyError("tag"), ValueError("two\nlines"), MemoryError()])
def test_what_is_no_sentence_is_reported(error, monkeypatch):
    def fail(self, content):
        if content not in seeds:
            raise error
        return opened(self, content)

    seeds, opened = set(fuzz_reader.make_seeds().values()), CxrImageProcessor.open
    monkeypatch.setattr(CxrImageProcessor, "open", fail)
    assert len(fuzz_reader.fuzz(5, seed=0).failures) == 5
