"""Reading files that may be hostile: in processes of their own, with limits of time and memory.

A small process without torch waits with the decoders loaded and forks another for each file that is
read at the same time. These read one file after the other until one makes trouble: the kernel then
ends the process, and a new one takes milliseconds. None has the environment, or writes to a disk.
"""

import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from typing import BinaryIO

import numpy as np
from PIL import Image

from .image_cxr import MAX_PIXELS, CxrImage
from .reading_cxr import open_image, read_file

SECONDS = 10.0  # of 64 million pixels, the slowest to read take half of that
# Bytes of address space. Reading 64 million grey pixels takes 0.6 GB, in JPEG 2000 0.75; of colour,
# WebP and JPEG 2000 of that size take more, and are refused.
MEMORY = 2**30
GRACE = 5.0  # seconds more until a child that does not end is given up
MAX_HEAD = 2**20  # bytes of the answer before its pixels
# Settings that a library may need to be found and started; all others, like tokens, stay outside.
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
# Loaded once, not in each child; which of them are installed is for the reader to say.
PRELOADED = "pydicom.encaps pydicom.filereader pydicom.pixels pylibjpeg openjpeg libjpeg".split()
# The folder of this file as a package: what is beside it is found whatever the folder is called.
BOOT = """
import importlib, sys, types
folder, seconds, memory, *sys.path = sys.argv[1:]
sys.modules["cxr"] = types.ModuleType("cxr")
sys.modules["cxr"].__path__ = [folder]
importlib.import_module("cxr.sandbox_cxr").serve(float(seconds), int(memory))
"""


def shared_sandbox(correct: bool) -> "Sandbox":
    """The one of this process, made at the first call.

    Args:
        correct: see `open_image`.
    """
    return _of_process(os.getpid(), correct)


@functools.lru_cache
def _of_process(process: int, correct: bool) -> "Sandbox":
    return Sandbox(correct)


class Sandbox:
    """Reads image files as `open_image` does, but where they can do no harm.

    Threads may share one. It needs Linux or macOS; macOS does not limit memory.

    Args:
        correct: see `open_image`.
        seconds: most time that a file may take.
        memory: most bytes of memory, the decoders' own 150 MB and the file's included.
    """

    def __init__(
        self, correct: bool = True, seconds: float = SECONDS, memory: int = MEMORY
    ) -> None:
        self.correct, self.seconds, self.memory = correct, seconds, memory
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._start()

    def open(self, file: bytes | str | os.PathLike) -> CxrImage:
        """Reads a file.

        Args:
            file: its path, or its bytes.

        Raises:
            FileNotFoundError: no such file.
            ValueError: see `open_image`; or it takes too much time or memory, or ends its decoder.
        """
        if isinstance(file, bytes):
            return self._open(file)
        try:
            return self._open(read_file(file))
        except ValueError as error:
            text = str(error).removeprefix("the image")
            raise ValueError(f"{os.fspath(file)}{text}" if text != str(error) else text) from None

    def _open(self, content: bytes) -> CxrImage:
        reader = self._take()
        began = time.monotonic()
        try:
            reader.sendall(struct.pack("!?Q", self.correct, len(content)))
            reader.sendall(content)
            with reader.makefile("rb") as file:
                image = _receive(file)
        except OSError:  # the connection ended, or nothing came
            reader.close()
            if time.monotonic() - began < self.seconds:
                raise ValueError("the image: damaged image file (its decoder ended).") from None
            reason = f"takes more than {self.seconds:g} seconds to read"
            raise ValueError(f"the image: {reason}, which no X-ray needs.") from None
        self._idle.append(reader)
        if isinstance(image, str):
            raise ValueError(image)
        return image

    def close(self) -> None:
        """Ends the processes; `open` starts others."""
        self._control.close()
        while self._idle:
            self._idle.pop().close()
        self._process.wait()

    def _take(self) -> socket.socket:
        """A connection to a process that reads nothing else."""
        while self._idle:
            reader = self._idle.pop()
            if not select.select([reader], [], [], 0)[0]:
                return reader
            reader.close()  # what could be read is its end
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                socket.send_fds(self._control, [b"j"], [theirs.fileno()])
            except OSError:
                self.close()
                self._start()
                socket.send_fds(self._control, [b"j"], [theirs.fileno()])
        ours.settimeout(self.seconds + GRACE)
        return ours

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        folder, paths = os.path.dirname(os.path.abspath(__file__)), map(os.path.abspath, sys.path)
        limits = [str(self.seconds), str(self.memory)]
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, folder, *limits, *paths],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                cwd="/",
                # Of a library's threads, none would be left after a fork.
                env=kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        if not self._control.recv(1):
            raise RuntimeError(f"The reader ended with status {self._process.wait()}.")


def _receive(file: BinaryIO) -> CxrImage | str:
    """A reader's answer, or what `open_image` says of the file; it is not trusted.

    Raises:
        OSError: the reader ended, or answers what none does.
    """
    (length,) = struct.unpack("!Q", _exactly(file, 8))
    if length > MAX_HEAD:
        raise ConnectionError
    head = json.loads(_exactly(file, length))
    if "error" in head:
        return head["error"]
    height, width = head["shape"]
    if not 0 < height * width <= MAX_PIXELS:
        raise ConnectionError
    pixels = np.empty((height, width), np.uint16)
    if file.readinto(pixels.data.cast("B")) < pixels.nbytes:
        raise ConnectionError
    return CxrImage(
        pixels, tuple(head["warnings"]), head["age"], head["drawn"], tuple(head["margins"])
    )


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise ConnectionError
    return content


def serve(seconds: float, memory: int) -> None:
    """What the process does that forks, until the one that started it is gone.

    Args:
        seconds: see `Sandbox`.
        memory: see `Sandbox`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # readers leave nothing behind
    Image.init()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    control = socket.socket(fileno=0)
    control.sendall(b"r")
    while True:
        message, jobs, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            with socket.socket(fileno=jobs[0]) as job, job.makefile("rb") as file:
                _limit(memory)
                with contextlib.suppress(ConnectionError):  # nobody waits for the answer
                    while _read(file, job, seconds):
                        pass
            os._exit(0)
        os.close(jobs[0])


def _limit(memory: int) -> None:
    import resource  # not on Windows, where this file is imported, too

    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = memory
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))


def _read(file: BinaryIO, job: socket.socket, seconds: float) -> bool:
    """Reads one file and answers; whether there may be more."""
    start = file.read(9)
    if not start:
        return False
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process
    correct, length = struct.unpack("!?Q", start)
    pixels = b""
    try:
        image = open_image(_exactly(file, length), correct)
        pixels = np.ascontiguousarray(image.pixels)
        head = image._asdict() | {"pixels": None, "shape": pixels.shape}
    except ValueError as error:
        head = {"error": str(error)}
    except MemoryError:
        head = {"error": "the image: takes more memory to read than any X-ray needs."}
    except Exception as error:
        traceback.print_tb(error.__traceback__)  # not its words: they may quote the file
        print(type(error).__name__, file=sys.stderr, flush=True)
        return False
    text = json.dumps(head).encode()
    signal.setitimer(signal.ITIMER_REAL, 0)
    job.sendall(struct.pack("!Q", len(text)) + text)
    job.sendall(pixels)
    return True
