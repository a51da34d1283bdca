"""What predict.py says to wrong input: one sentence, and an exit code of its own."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import REPO
from PIL import Image
from test_predict import SCRIPT, read_csv, run, save_model, write_xrays

from prediction.writing import only_writer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "the following arguments are required"),
        (["in", "--output", "t.csv"], "required: --model"),
        (["in", "--model", "M", "--output", "t.txt"], "t.txt ends in neither .csv nor .jsonl"),
        (["in", "--model", "M", "--output", "t.csv", "--batch_size", "0"], "--batch_size is 0"),
        (["in", "--model", "M", "--output", "t.csv", "--target", "NORMAL"], "for --heatmaps"),
        (["in", "--model", "M", "--output", "t.csv", "--method", "x"], "invalid choice: 'x'"),
    ],
)
def test_wrong_flags_are_a_sentence_and_exit_code_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "paths, flags, message",
    [
        (["nowhere"], [], "nowhere does not exist; name files or folders."),
        (["empty"], [], "there are no files in empty."),
        (["in", "in/a.png"], [], "in/a.png is named twice, or lies in .*in."),
        (["in", "./in"], [], "in is named twice"),
        (["in"], ["--heatmaps", "m", "--target", "MASS"], "--target MASS is no class; choose NORM"),
        (
            *(["in"], ["--heatmaps", "m", "--method", "token_grad_cam"]),
            "method is 'token_grad_cam'; it can be grad_cam, ",
        ),
        (["in"], ["--model", "gone/gone/gone"], "neither a folder with a saved model nor a Hub id"),
    ],
)
def test_what_cannot_work_is_a_sentence_before_anything_is_written(
    paths, flags, message, tmp_path, model_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_xrays(tmp_path / "in", ["a.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        run(*paths, "--model", model_folder, "--output", "t.csv", *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]


def test_an_error_is_one_line_on_stderr_and_exit_code_2(run_python, tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["a.png"])
    (tmp_path / "file").write_text("")
    args = [SCRIPT, folder, "--model", model_folder, "--output", tmp_path / "file" / "t.csv"]
    result = run_python(args)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("predict.py: error: ")
    assert "Traceback" not in result.stderr


def test_whatever_else_goes_wrong_is_exit_code_2_too(run_python, tmp_path, model_folder):
    folder = write_xrays(tmp_path / "in", ["a.png"])
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    table = tmp_path / "t.csv"
    result = run_python([SCRIPT, folder, "--model", broken, "--output", table])
    assert result.returncode == 2
    assert f"the weights of {broken} are damaged" in result.stderr.splitlines()[-1]
    code = (
        "import runpy, sys, torch, modeling.modeling_cxr as m\n"
        "def full(*args): raise torch.OutOfMemoryError('no memory is left')\n"
        "m.CxrClassifier.assess = full\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    args = ["-c", code, SCRIPT, folder, "--model", model_folder, "--output", table]
    result = run_python(args, cwd=REPO)
    assert result.returncode == 2
    assert "no memory is left" in result.stderr.splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_named(hub, run_python, tmp_path, model_folder):
    hub.add_files("org/tiny", {path.name: path.read_bytes() for path in model_folder.iterdir()})
    write_xrays(tmp_path / "in", ["a.png"])
    args = [SCRIPT, tmp_path / "in", "--model", "org/tiny", "--output", tmp_path / "t.csv"]
    result = run_python(args, env={**hub.env, "HF_HOME": "/proc/none", "HOME": "/proc/none"})
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "predict.py: error: the Hub's cache /proc/none cannot be written (No such file or "
        "directory); set HF_HOME to a folder that can."
    )


def test_a_second_run_on_one_table_is_refused_and_the_first_goes_on(tmp_path, model_folder):
    write_xrays(tmp_path / "in", [f"{number}.png" for number in range(6)])
    command = [tmp_path / "in", "--model", model_folder, "--output", tmp_path / "t.csv"]
    with only_writer(tmp_path / "t.csv"):
        with pytest.raises(ValueError, match=r"^another run is writing .*t\.csv; wait for its end"):
            run(*command)
        assert not (tmp_path / "t.csv").exists()
    assert run(*command) == 0
    assert run(*command) == 0  # the lock of a run that has ended holds nobody up


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("full", ["maps", "table"])
def test_a_full_disk_ends_the_run_with_a_sentence_and_is_tried_again(
    full, run_python, tmp_path, model_folder
):
    folder = write_xrays(tmp_path / "in", [f"{number}.png" for number in range(40)])
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], check=True)
    try:
        places = {"table": tmp_path / "t.csv", "maps": tmp_path / "maps"}
        places[full] = disk / places[full].name
        if full == "table":
            (disk / "filler").write_bytes(bytes(26_000))  # leaves a page for the table
        args = [SCRIPT, folder, "--model", model_folder, "--output", places["table"]]
        args += ["--batch_size", "4", "--heatmaps", places["maps"]]
        result = run_python(args)
        assert result.returncode == 2, result.stderr
        last = result.stderr.splitlines()[-1]
        assert re.fullmatch(
            r"predict.py: error: .* could not be written \(No space left on device\); the same "
            r"command goes on from here once there is room\.",
            last,
        ), result.stderr
        rows = places["table"].read_text()
        assert ",error," not in rows and 0 < rows.count("\n") < 41
        for heatmap in places["maps"].rglob("*.png"):
            Image.open(heatmap).load()
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run_python(args).returncode == 0
        assert len(read_csv(places["table"])) == len(list(places["maps"].rglob("*.png"))) == 40
        assert not list(places["maps"].rglob(".*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)
