"""A script of this repository in a process of its own, forked from one that has imported the
libraries: half of what a short run takes is to import them.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# The libraries alone: the project's own modules are imported anew by each script.
LIBRARIES = """accelerate datasets evaluate huggingface_hub matplotlib.pyplot numpy pandas PIL.Image
pydicom pytorch_grad_cam safetensors.torch scipy.optimize scipy.stats sklearn.metrics timm torch
torchvision.transforms.v2 transformers yaml""".split()


def run_forked(args, cwd, timeout):
    """`python ARGS`, the first of which is a script's path, as `subprocess.run` would return it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_run, args=(args, cwd, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(args, timeout)
        printed = [path.read_text() for path in outputs]
        return subprocess.CompletedProcess(args, process.exitcode, *printed)


def _run(args, cwd, outputs):
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    ours = ("", str(Path(__file__).parent))
    sys.path[:] = [str(Path(args[0]).parent), *(path for path in sys.path if path not in ours)]
    sys.argv = args
    try:
        runpy.run_path(args[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a forked process would skip
