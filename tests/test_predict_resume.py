"""predict.py stopped at any moment and started again: nothing lost, nothing twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO
from test_predict import ODD_NAMES, SCRIPT, read_csv, run, save_model, write_xrays

import predict as script
from modeling import load_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_cut_at_any_byte_is_completed_to_the_same_bytes(
    form, tmp_path, model_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = write_xrays(tmp_path / "in", [*ODD_NAMES, *(f"{n}.png" for n in range(4))])
    (folder / "bad.png").write_text("no image")
    loaded = load_model(str(model_folder))
    monkeypatch.setattr(script, "load_model", lambda name: loaded)
    table = Path(f"table.{form}")
    command = ["in", "--model", model_folder, "--output", table, "--batch_size", 4]
    assert run(*command) == 1
    whole = table.read_bytes()
    first = whole.index(b"\n") + 1
    cuts = {0, 1, first - 1, first, first + 1, len(whole) - 1, len(whole)}
    cuts |= {place for place, byte in enumerate(whole) if byte in b'\r\n"'}
    cuts |= set(range(0, len(whole), 37))
    for cut in sorted(cuts)[:: 1 if form == "csv" else 3]:
        table.write_bytes(whole[:cut])
        assert run(*command) == 1
        assert table.read_bytes() == whole, cut


def test_a_deleted_row_is_made_again_and_new_files_are_added(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_xrays(tmp_path / "in", [f"{number}.png" for number in range(6)])
    command = ["in", "--model", model_folder, "--output", "t.csv", "--batch_size", 4]
    assert run(*command) == 0
    lines = Path("t.csv").read_bytes().splitlines(keepends=True)
    Path("t.csv").write_bytes(b"".join(lines[:3] + lines[4:]))
    Path("in/9.png").write_text("no image")
    assert run(*command) == 1
    after = Path("t.csv").read_bytes().splitlines(keepends=True)
    assert after[:-1] == lines[:3] + lines[4:] + [lines[3]]
    assert after[-1].startswith(b"in/9.png,error")
    assert run(*command) == 1  # of an error of an earlier run, too


def test_killed_again_and_again_it_loses_nothing(tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", [f"{number:04}.png" for number in range(400)])
    command = [sys.executable, SCRIPT, folder, "--model", model_folder, "--batch_size", "4"]
    killed = [*command, "--output", tmp_path / "killed.csv"]
    seen = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        # In the background, where a suite may run, SIGINT is ignored and would stay so.
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = subprocess.Popen(killed, stderr=subprocess.PIPE, text=True, **heard)
        while process.poll() is None and (
            not (tmp_path / "killed.csv").exists()
            or (tmp_path / "killed.csv").read_bytes().count(b"\n") < seen + 30
        ):
            time.sleep(0.002)
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
        rows = (tmp_path / "killed.csv").read_bytes().count(b"\n")
        assert seen + 30 <= rows < 401
        seen = rows
    assert "interrupted; the same command goes on" in stderr
    assert run(*killed[2:]) == 0
    assert run(*command[2:], "--output", tmp_path / "whole.csv") == 0
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_table_of_something_else_is_refused_and_left_alone(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_xrays(tmp_path / "in", ["a.png", "b.png"])
    other = save_model(tmp_path / "other" / "tiny", seed=1)
    more_classes = save_model(tmp_path / "more", ("Effusion", "Mass", "Nodule"))
    base = ["in", "--model", model_folder, "--output"]
    assert run(*base, "t.csv") == 0
    assert run(*base, "t.jsonl") == 0
    assert run(*base, "maps.csv", "--heatmaps", "maps") == 0
    Path("notes.csv").write_text("my notes")
    whole = Path("t.csv").read_bytes()
    Path("damaged.csv").write_bytes(whole.replace(b"in/b", b'"in"/b') + whole)
    Path("joined.csv").write_bytes(whole + whole)
    cases = [
        (["in", "--model", other, "--output", "t.csv"], "written with model tiny@"),
        (["in", "--model", other, "--output", "t.jsonl"], "written with model tiny@"),
        (["in", "--model", more_classes, "--output", "t.csv"], "no csv table of this model"),
        (["in", "--model", more_classes, "--output", "t.jsonl"], "row 1 has other columns"),
        ([*base, "t.csv", "--heatmaps", "maps"], "no csv table of this model"),
        ([*base, "t.csv", "--format", "jsonl"], "no jsonl table of this model"),
        ([*base, "t.jsonl", "--format", "csv"], "no csv table of this model"),
        ([*base, "maps.csv", "--heatmaps", "maps", "--method", "layer_cam"], "method grad_cam"),
        ([*base, "maps.csv", "--heatmaps", "maps", "--target", "NORMAL"], "target predicted class"),
        ([*base, "notes.csv"], "no csv table of this model"),
        ([*base, "damaged.csv"], "damaged.csv is damaged after row 1"),
        ([*base, "joined.csv"], "joined.csv: row 3 has other columns"),
    ]
    for command, message in cases:
        before = {path: path.read_bytes() for path in Path().glob("*.*") if path.is_file()}
        with pytest.raises(ValueError, match=message):
            run(*command)
        assert {path: path.read_bytes() for path in before} == before


def test_memory_does_not_grow_with_the_number_of_files(run_python, tmp_path, model_folder):
    for count in (200, 2000):
        folder = write_xrays(tmp_path / str(count), ["0.png"])
        for number in range(1, count):
            os.link(folder / "0.png", folder / f"{number}.png")
    code = f"""
import resource, sys
sys.path.insert(0, {str(REPO)!r})
import predict
for count in ("200", "2000"):
    predict.main([count, "--model", {str(model_folder)!r}, "--output", count + ".csv"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    result = run_python(code, cwd=tmp_path)
    few, many = map(float, result.stdout.split())
    assert len(read_csv(tmp_path / "2000.csv")) == 2000
    assert many - few < 20, f"{few:.0f} MiB, then {many:.0f} MiB"
