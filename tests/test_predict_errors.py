"""What predict.py says to wrong input: one sentence, and an exit code of its own."""

import os
import shutil

import pytest
from conftest import REPO
from test_predict import SCRIPT, run, save_model, write_xrays


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
