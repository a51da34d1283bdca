"""The folder that the Space gives Gradio, and those of Spaces that could not delete theirs."""

import subprocess
import sys
from contextlib import ExitStack

from space_server import SPACE

HOLD = """
import sys, tempfile, cleanup
assert not cleanup.FOLDER.exists()
with cleanup.own_temporary_folder():
    open(f"{tempfile.gettempdir()}/x-ray.png", "w").close()
    print(cleanup.FOLDER.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_space_left_is_deleted_by_the_next(tmp_path):
    (tmp_path / "cxr-of-others").mkdir()
    settings = {"cwd": SPACE, "env": {"GRADIO_TEMP_DIR": str(tmp_path)}, "text": True}
    settings |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def folders():
        return {path.name for path in tmp_path.iterdir() if list(path.iterdir())}

    with ExitStack() as stack:
        spaces, names = [], []
        for _ in range(3):
            command = [sys.executable, "-B", "-c", HOLD]
            spaces.append(stack.enter_context(subprocess.Popen(command, **settings)))
            names.append(spaces[-1].stdout.readline().strip())
            assert names[-1] in folders()
            if len(spaces) == 2:
                spaces[1].kill()
                spaces[1].wait()
                assert folders() == set(names)
        assert folders() == {names[0], names[2]}
        for space in (spaces[0], spaces[2]):
            space.communicate()
            assert space.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cxr-of-others"]
