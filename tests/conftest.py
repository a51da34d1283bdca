"""Fixtures shared by all tests: a Hub of their own, real data, fresh Python processes."""

import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

# Libraries read these at import, so they are set before any of them is: no setting of the user's
# leaks into a test, and no test touches the user's cache or reaches for a GPU.
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_", "GRADIO_")):
        del os.environ[_name]
_hf_home = tempfile.TemporaryDirectory(prefix="cxr-tests-hf-home-")
os.environ.update(
    HF_HOME=_hf_home.name,
    CXR_CACHE=f"{_hf_home.name}/cxr",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    MPLBACKEND="Agg",
    # A thread a test process, which neither spins while it waits: cores are shared by xdist.
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    CUDA_VISIBLE_DEVICES="",
    NO_PROXY="127.0.0.1,localhost",
)

from accelerate.state import AcceleratorState  # noqa: E402
from forked import run_forked  # noqa: E402
from hub_server import HubServer  # noqa: E402

REPO = Path(__file__).parent.parent
SCRIPTS = [str(path) for path in REPO.glob("*.py")]


@pytest.fixture
def hub(tmp_path):
    """A running, empty `HubServer`; a process started with `hub.env` talks to it alone."""
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def no_accelerator():
    """Forget the process's Accelerator before and after: its precision is set once a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def cxr_data() -> Path:
    """The folder of real chest X-rays that the environment variable CXR_DATA names."""
    if not os.environ.get("CXR_DATA"):
        pytest.skip("CXR_DATA is not set: it names the folder of real chest X-rays")
    return Path(os.environ["CXR_DATA"])


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """`run_python(code_or_args, env=None, cwd=None, isolated=False) -> CompletedProcess` (text)."""

    def run(code_or_args, env=None, cwd=None, isolated=False):
        """Run code (a str) or arguments (a list: a script's path, its flags) in a fresh process.

        `env` adds to this process's environment and `cwd` is an empty folder unless given. With
        `isolated`, the checkout is not importable: `-S` leaves the editable install's `.pth` file
        unread, while PYTHONPATH still offers the libraries.
        """
        args = ["-c", code_or_args] if isinstance(code_or_args, str) else map(str, code_or_args)
        python, args = [sys.executable], list(args)
        options = {
            "env": {**os.environ, **(env or {})},
            "cwd": cwd or tmp_path_factory.mktemp("cwd"),
            "capture_output": True,
            "text": True,
            "timeout": 900,
        }
        # Libraries read their settings when they are imported: a script with others starts anew.
        if args[0] in SCRIPTS and not env:
            return run_forked(args, options["cwd"], options["timeout"])
        if isolated:
            python.append("-S")
            options["env"]["PYTHONPATH"] = sysconfig.get_path("purelib")
            find = "import importlib.util; print(importlib.util.find_spec('modeling'))"
            found = subprocess.run([*python, "-c", find], **options).stdout.strip()
            assert found == "None", f"an isolated process can import {found}"
        return subprocess.run([*python, *args], **options)

    return run


@pytest.fixture(scope="session")
def train(run_python, tmp_path_factory):
    """`train(*flags, launch=(), env=None)`: train.py in a fresh process, with one pixel cache."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*flags, launch=(), env=None):
        flags = [*flags, "--cache_dir", cache]
        return run_python([*launch, REPO / "train.py", *flags], env=env, cwd=REPO)

    return run


@pytest.fixture(scope="session")
def new_hub():
    """`new_hub(folder)`: a Hub that runs to the end of the session."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(HubServer(folder))


@pytest.fixture(scope="session")
def finished(train, new_hub, tmp_path_factory):
    """The folder of a finished run, the Hub that it was pushed to, and what it printed."""
    from test_train import FLAGS, LAUNCH

    hub = new_hub(tmp_path_factory.mktemp("hub"))
    folder = tmp_path_factory.mktemp("runs") / "finished"
    push = ["--push_to_hub", "--hub_model_id", "org/cxr-densenet121"]
    result = train(
        *FLAGS, *push, "--output_dir", folder, launch=[*LAUNCH, "--num_processes=1"], env=hub.env
    )
    assert result.returncode == 0, result.stderr
    return folder, hub, result
