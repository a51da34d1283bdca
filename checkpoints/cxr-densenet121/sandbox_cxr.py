"""Reading files that may be hostile: in processes of their own, with limits of time and memory.

A small process without torch waits with the decoders loaded and forks a reader for each file that
is read at the same time. Readers read one file after the other until one makes trouble: the kernel
then ends the reader, and a new one takes milliseconds. None has the environment, or writes to a
disk.
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
import traceback
from collections import defaultdict
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .image_cxr import MAX_PIXELS, CxrImage
from .reading_cxr import open_image, read_file

WAITING = 10  # times a reader's seconds of a core it may take on a clock, where cores are busy
GRACE = 5.0  # seconds more until a child that does not end is given up
HEAD = struct.Struct("!?dQQQ")  # of a job: `correct`, limits, the file's length
MAX_HEAD = 2**20  # bytes of the answer before its pixels
# Settings that a library may need to be found and started; all others, like tokens, stay outside.
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
# Loaded once, not in each child; which of them are installed is for the reader to say.
PRELOADED = "pydicom.encaps pydicom.filereader pydicom.pixels pylibjpeg openjpeg libjpeg".split()
# The folder of this file as a package: what is beside it is found whatever the folder is called.
BOOT = """
import importlib, sys, types
folder, *sys.path = sys.argv[1:]
sys.modules["cxr"] = types.ModuleType("cxr")
sys.modules["cxr"].__path__ = [folder]
importlib.import_module("cxr.sandbox_cxr").serve()
"""


class Limits(NamedTuple):
    """What reading a file may take.

    Attributes:
        seconds: of a core; on a clock, ten times as many. Of 64 million pixels, the slowest to read
            take half of the ten.
        memory: bytes of address space, the decoders' own 150 MB and the file's included. Reading 64
            million grey pixels takes 0.6 GB, in JPEG 2000 0.75; of colour, WebP and JPEG 2000 of
            that size take more, and are refused.
        pixels: see `open_image`.
        niceness: 0 to 19; the higher, the more a reader leaves the cores to others.
    """

    seconds: float = 10.0
    memory: int = 2**30
    pixels: int = MAX_PIXELS
    niceness: int = 0


USUAL = Limits()


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
        limits: of a file for which `open` is given no others.
    """

    def __init__(self, correct: bool = True, limits: Limits = USUAL) -> None:
        self.correct, self.limits = correct, limits
        self._lock = threading.Lock()
        self._idle: dict[int, list[socket.socket]] = defaultdict(list)  # by their niceness
        self._start()

    def open(self, file: bytes | str | os.PathLike, limits: Limits | None = None) -> CxrImage:
        """Reads a file.

        Args:
            file: its path, or its bytes.
            limits: of this file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: see `open_image`; or it takes too much time or memory, or ends its decoder.
        """
        limits = limits or self.limits
        if isinstance(file, bytes):
            return self._open(file, limits)
        try:
            return self._open(read_file(file), limits)
        except ValueError as error:
            text = str(error).removeprefix("the image")
            raise ValueError(f"{os.fspath(file)}{text}" if text != str(error) else text) from None

    def _open(self, content: bytes, limits: Limits) -> CxrImage:
        reader = self._take(limits, len(content))
        try:
            reader.sendall(content)
            with reader.makefile("rb") as file:
                image = _receive(file)
        except TimeoutError:
            reader.close()
            reason = f"takes more than {limits.seconds:g} seconds to read"
            raise ValueError(f"the image: {reason}, which no X-ray needs.") from None
        except OSError:  # the connection ended
            reader.close()
            raise ValueError("the image: damaged image file (its decoder ended).") from None
        self._idle[limits.niceness].append(reader)
        if isinstance(image, str):
            raise ValueError(image)
        return image

    def close(self) -> None:
        """Ends the processes; `open` starts others."""
        self._control.close()
        for idle in list(self._idle.values()):
            while idle:
                idle.pop().close()
        self._process.wait()

    def _take(self, limits: Limits, length: int) -> socket.socket:
        """A connection to a process that reads nothing else, and has the head of its job."""
        idle = self._idle[limits.niceness]
        head = HEAD.pack(self.correct, limits.seconds, limits.memory, limits.pixels, length)
        while True:
            old = bool(idle)
            reader = idle.pop() if old else self._fork(limits.niceness)
            reader.settimeout(WAITING * limits.seconds + GRACE)
            with contextlib.suppress(OSError):
                reader.sendall(head)
                if reader.recv(1):
                    return reader
            if not old:
                return reader  # whoever sends the file is told
            reader.close()  # it was killed

    def _fork(self, niceness: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                socket.send_fds(self._control, [bytes([niceness])], [theirs.fileno()])
            except OSError:
                self.close()
                self._start()
                socket.send_fds(self._control, [bytes([niceness])], [theirs.fileno()])
        return ours

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        folder, paths = os.path.dirname(os.path.abspath(__file__)), map(os.path.abspath, sys.path)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, folder, *paths],
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
        TimeoutError: the reader's time was up.
        OSError: the reader ended, or answers what none does.
    """
    (length,) = struct.unpack("!Q", _exactly(file, 8))
    if not length:
        raise TimeoutError
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


def serve() -> None:
    """What the process does that forks, until the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    Image.init()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    control = socket.socket(fileno=0)
    control.sendall(b"r")
    # Of each reader a pipe, which ends when the reader does: its process and its connection.
    readers: dict[int, tuple[int, int]] = {}
    while True:
        for ready in select.select([control, *readers], [], [])[0]:
            if ready is not control:
                _bury(ready, *readers.pop(ready))
                continue
            message, jobs, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                return
            pipe, held = os.pipe()
            process = os.fork()
            if process == 0:
                control.close()
                for other, (_, connection) in readers.items():
                    os.close(other)
                    os.close(connection)
                os.nice(message[0])
                _read_all(jobs[0])
                os._exit(0)
            os.close(held)
            readers[pipe] = process, jobs[0]


def _bury(pipe: int, process: int, connection: int) -> None:
    """Says of a reader that has ended whether its time was up."""
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(OSError):  # nobody waits for it
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
            os.write(connection, bytes(8))
    os.close(connection)
    os.close(pipe)


def _read_all(connection: int) -> None:
    """Reads the files of a connection until it ends, or one of them makes trouble."""
    with socket.socket(fileno=connection) as job, job.makefile("rb") as file:
        with contextlib.suppress(ConnectionError):  # nobody waits for the answer
            while _read(file, job):
                pass


def _limit(limits: Limits) -> None:
    import resource  # not on Windows, where this file is imported, too

    for none in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(none, (0, 0))
    if sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, most))
    # The signals of both end the process.
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * limits.seconds)


def _read(file: BinaryIO, job: socket.socket) -> bool:
    """Reads one file and answers; whether there may be more."""
    start = file.read(HEAD.size)
    if not start:
        return False
    job.sendall(b"r")
    correct, *limits, length = HEAD.unpack(start)
    limits = Limits(*limits)
    _limit(limits)
    pixels, more = b"", True
    try:
        image = open_image(_exactly(file, length), correct, limits.pixels)
        pixels = np.ascontiguousarray(image.pixels)
        head = image._asdict() | {"pixels": None, "shape": pixels.shape}
    except ValueError as error:
        head = {"error": str(error)}
    except MemoryError:
        head = {"error": "the image: takes more memory to read than any X-ray needs."}
        more = False  # what it cannot give back, the next file would lack
    except Exception as error:
        traceback.print_tb(error.__traceback__)  # not its words: they may quote the file
        print(type(error).__name__, file=sys.stderr, flush=True)
        return False
    text = json.dumps(head).encode()
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    job.sendall(struct.pack("!Q", len(text)) + text)
    job.sendall(pixels)
    return more
