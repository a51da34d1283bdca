"""A set of many images: what a row of it costs in memory, by the benchmark's own way."""

import pytest
from conftest import REPO

SMALL, LARGE = 2_000, 12_000
MAKE = """
import sys
from pathlib import Path
from benchmarks.many_images import make
for count in sys.argv[2:]:
    make(Path(sys.argv[1]) / count, int(count))
"""


@pytest.mark.slow
def test_a_row_takes_no_more_than_four_kilobytes_of_memory(run_python, tmp_path):
    made = run_python(["-c", MAKE, tmp_path, SMALL, LARGE], env={"PYTHONPATH": str(REPO)})
    assert made.returncode == 0, made.stderr
    peaks = []
    for count in (SMALL, LARGE):
        script = REPO / "benchmarks" / "many_images.py"
        result = run_python([script, "--measure", tmp_path / str(count)])
        assert result.returncode == 0, result.stderr
        peaks.append(float(result.stdout.split()[-1]))
    assert 0 < (peaks[1] - peaks[0]) * 2**20 / (LARGE - SMALL) < 4_000
