"""What must stay fast: `benchmarks/speed.py` finds every limit kept."""

import pytest
from conftest import REPO


@pytest.mark.slow
def test_every_limit_is_kept(run_python):
    run = run_python(["-m", "benchmarks.speed"], cwd=REPO)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 5
