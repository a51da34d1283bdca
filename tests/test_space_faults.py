"""The Space under visitors who hang up, send garbage, or find its disk full or its models gone."""

import asyncio
import base64
import io
import itertools
import json
import random
import shutil
import socket
import subprocess
import time
import zipfile
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import space_server
from dicom_files import dicom
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from space_server import LIBRARIES, SPACE, save_tiny, serve

from benchmarks import space_load

SECRET = "Mustermann"  # in the name of every file sent: it must not be logged
REQUESTS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def questions(folder):
    """Requests with right answers: `/predict` and `/heatmap` of one image."""
    return space_load.prepare([str(folder)], 1)[0][:2]


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("served"), [folder]) as served:
        yield served


@pytest.fixture
def http(served):
    with connect(served) as http:
        yield http


def connect(served):
    return httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60)


def send(http, content, name=f"{SECRET}.png"):
    reply = http.post("upload", files={"files": (name, content)})
    assert reply.status_code == 200, reply.text
    return {"path": reply.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def call(http, endpoint, *data):
    """The last event of a call and its data, or the status and the text of its refusal."""
    joined = http.post(f"call/{endpoint}", json={"data": data})
    if joined.is_error:
        return joined.status_code, joined.text
    stream = http.get(f"call/{endpoint}/{joined.json()['event_id']}").text
    event, data = stream.strip().split("\n\n")[-1].split("\n", 1)
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def ask_tool(served, tool, **arguments):
    """An MCP tool's answer: whether it is an error, and its text."""

    async def talk():
        url = f"{served.url}gradio_api/mcp/"
        async with streamable_http_client(url) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                return await session.call_tool(tool, arguments)

    answer = asyncio.run(talk())
    return answer.isError, answer.content[0].text


def data_uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def is_sentence(text):
    """Whether a reader is told one thing, in one line; a table's cell may begin in lower case."""
    return isinstance(text, str) and len(text) > 10 and text.endswith(".") and "\n" not in text


def check_well(served, questions):
    """The server is up, its answers are right, and its log shows neither a name nor a fault in the
    Space's own code: Gradio logs what it refuses itself with a traceback.
    """
    with connect(served) as http:
        assert [space_load.ask(http, question) for question in questions] == ["right", "right"]
    log = served.log.read_text()
    assert f'File "{served.log.parent}' not in log, log[-3000:]
    assert SECRET not in log


def test_clients_that_hang_up(served, http, questions):
    content = questions[0].content
    files = [send(http, content)] * 50
    for endpoint, data in (("predict", [files[0], "tiny"]), ("predict_batch", [files, "tiny"])):
        for _ in range(5):
            job = http.post(f"call/{endpoint}", json={"data": data}).json()["event_id"]
            path = f"/gradio_api/call/{endpoint}/{job}"
            with raw(
                served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            ) as connection:
                connection.recv(1)  # it has begun to answer
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: "
        b'form-data; name="files"; filename="Mustermann.png"\r\n\r\n'
    )
    for _ in range(5):
        with raw(served, head + content):
            pass
    check_well(served, questions)


def raw(served, data):
    connection = socket.create_connection(("127.0.0.1", urlsplit(served.url).port), timeout=30)
    connection.sendall(data)
    return connection


def make_garbage():
    """Endless (endpoint, content, name) of what no visitor should send."""
    rng = random.Random(0)
    whole = []
    for kind in ("PNG", "JPEG", "TIFF"):
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)
        Image.fromarray(noise).save(file, kind)
        whole.append(file.getvalue())
    whole.append(dicom(noise))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{SECRET}.png", bytes(50_000_000))
    climbing = io.BytesIO()
    with zipfile.ZipFile(climbing, "w") as archive:
        for name in ("../../evil.png", "/etc/evil.png", "C:\\evil.png", "a\x00b.png"):
            archive.writestr(name, whole[0][:60])
    while True:
        yield "predict", rng.randbytes(rng.randrange(1, 5000)), f"{SECRET}.png"
        for content in whole:
            yield "predict", content[: rng.randrange(1, len(content) // 2)], f"{SECRET}.dcm"
        yield "predict", rng.choice(whole)[:40], f"../../../tmp/{SECRET}.png"
        yield "predict_batch", bomb.getvalue(), f"{SECRET}.zip"
        yield "predict_batch", climbing.getvalue(), f"..\\..\\{SECRET}.zip"
        yield "predict_batch", climbing.getvalue()[:-30], f"/etc/{SECRET}.zip"


def test_garbage(served, http, questions):
    process, garbage = psutil.Process(served.process.pid), make_garbage()

    def throw(count):
        for endpoint, content, name in itertools.islice(garbage, count):
            file = send(http, content, name)
            if endpoint == "predict":
                event, answer = call(http, endpoint, file, "tiny")
                assert event == "error" and is_sentence(answer["error"]), (event, answer)
            else:
                event, (rows, _) = call(http, endpoint, [file], "tiny")
                assert event == "complete" and {row["status"] for row in rows} == {"error"}
                assert all(is_sentence(row["reason"]) for row in rows), rows
                assert not any(".." in row["file"] or row["file"][0] == "/" for row in rows)

    throw(REQUESTS // 4)  # libraries loaded, threads started
    before = process.num_threads(), process.num_fds()
    throw(REQUESTS)
    time.sleep(1)
    threads, descriptors = process.num_threads(), process.num_fds()
    assert threads <= before[0] + 3 and descriptors <= before[1] + 5
    check_well(served, questions)
    inside = [path for path in served.uploads.parent.rglob("*") if "evil" in path.name]
    assert not inside


GONE = "The upload is not on this server any more; repeat it."
ADDRESS = '{"detail":"No address is fetched; upload the file, then name its path."}'


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/passwd", GONE),
        (f"../../../../etc/{SECRET}.png", GONE),
        (f"/tmp/cxr-uploads-0123456789abcdef/0/{SECRET}.png", GONE),  # of an earlier process
        ("{log}", GONE),
        (f"http://127.0.0.1:9/{SECRET}.png", ADDRESS),
        (f"https://{SECRET}.invalid/{SECRET}.png", ADDRESS),
        ("", GONE),
    ],
)
def test_only_uploads_are_read(served, http, questions, path, said):
    path = path.format(log=served.log)
    file = {"path": path, "orig_name": f"{SECRET}.png", "meta": {"_type": "gradio.FileData"}}
    for endpoint, data in (
        ("predict", [file, "tiny"]),
        ("heatmap", [file, "tiny", "NORMAL", "grad_cam"]),
        ("predict_batch", [[file], "tiny"]),
    ):
        event, answer = call(http, endpoint, *data)
        assert (event, answer) == (400, ADDRESS) or answer["error"] == said
    check_well(served, questions)


@pytest.mark.parametrize(
    "image", [f"/home/{SECRET}.png", f"http://127.0.0.1:9/{SECRET}.png", data_uri(b"garbage")]
)
def test_a_tool_that_is_given_no_image(served, questions, image):
    is_error, text = ask_tool(served, "predict", image=image, model="tiny")
    assert is_error and text
    check_well(served, questions)


@pytest.mark.parametrize("endpoint", ["predict", "show"])
def test_nobody_passes_by_the_queue(http, questions, endpoint):
    file = send(http, questions[0].content)
    data = {"predict": [file, "tiny"], "show": [file, "most probable class", "grad_cam"]}
    reply = http.post(f"run/{endpoint}", json={"data": data[endpoint]})
    assert reply.status_code == 404


@pytest.mark.parametrize(
    "data",
    [
        [],
        ["x", "tiny"],
        [{"path": None}, "tiny"],
        [{"path": f"{SECRET}.png", "size": f"{SECRET}.png"}, "tiny"],
        [7, 8, 9, 10],
        [[[]], {}],
        [None, None],
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoint", ["predict", "heatmap", "predict_batch"])
def test_calls_of_another_shape(served, http, questions, endpoint, data):
    event, answer = call(http, endpoint, *data)
    assert event in range(400, 500) or event == "error" and is_sentence(answer["error"])
    check_well(served, questions)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(256)) * 50 + b"\r\n\r\n",
    ],
    ids=["header", "address", "bytes"],
)
def test_huge_and_broken_heads(served, questions, request_head):
    # The server may hang up before it has read it all.
    with suppress(ConnectionError), raw(served, request_head) as connection:
        assert connection.recv(12)[:10] in (b"HTTP/1.1 4", b"")
    check_well(served, questions)


def test_models_gone_at_start_are_one_sentence(run_python, folder, tmp_path):
    half = shutil.copytree(folder, tmp_path / "half")
    (half / "model.safetensors").unlink()
    for gone in (half, tmp_path / "gone"):
        uploads = tmp_path / "uploads"
        env = {**LIBRARIES, "MODEL_ID": str(gone), "HF_HUB_OFFLINE": "1"}
        env["GRADIO_TEMP_DIR"] = str(uploads)
        run = run_python(["app.py"], env=env, cwd=SPACE, isolated=True)
        assert run.returncode == 1
        sentence = run.stderr.strip().splitlines()[-1]
        assert sentence.startswith("MODEL_ID ") and is_sentence(sentence) and str(gone) in sentence
        assert "Traceback" not in run.stderr
        assert not uploads.exists()


def test_models_gone_while_running(folder, questions, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "models" / "tiny")
    with serve(tmp_path, [copy]) as served:
        shutil.rmtree(copy)
        check_well(served, questions)


@contextmanager
def small_disk(path, size):
    """A file system of so many bytes; skips where none can be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no command mount to make a small disk")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk(folder, questions, tmp_path):
    disk, content = tmp_path / "disk", questions[0].content
    with (
        small_disk(disk, "4m"),
        serve(tmp_path, [folder], GRADIO_TEMP_DIR=str(disk)) as served,
        connect(served) as http,
    ):
        file = send(http, content)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(5_000_000))
        with connect(served) as another:  # it hangs up before it has read the file
            reply = another.post("upload", files={"files": (f"{SECRET}.png", content + b"x")})
            assert reply.is_error
        event, (answer, *_) = call(http, "predict", file, "tiny")  # needs no disk
        assert event == "complete" and answer["probabilities"]
        whole = [file, "tiny", "most probable class", "grad_cam"]
        for endpoint, data in (("heatmap", whole), ("predict_batch", [[file], "tiny"])):
            event, answer = call(http, endpoint, *data)
            assert event == "error" and is_sentence(answer["error"]) and "full" in answer["error"]
        ballast.unlink()
        with connect(served) as http:
            assert [space_load.ask(http, one) for one in questions] == ["right", "right"]
        assert SECRET not in served.log.read_text()
    assert not [path for path in disk.rglob("*") if path.is_file()]


def test_files_are_deleted_in_time_and_at_the_end(folder, questions, tmp_path, monkeypatch):
    """With the ten minutes of the Space shortened to thirty seconds, in a copy of it."""
    quick, temporary = shutil.copytree(SPACE, tmp_path / "quick"), tmp_path / "tmp"
    text = (quick / "cleanup.py").read_text()
    for long, short in (
        ("UPLOAD_MINUTES = 10 ", "UPLOAD_MINUTES = 0.5 "),
        ("SWEEP_SECONDS = 20\n", "SWEEP_SECONDS = 3\n"),
    ):
        assert long in text
        text = text.replace(long, short)
    (quick / "cleanup.py").write_text(text)
    monkeypatch.setattr(space_server, "SPACE", quick)
    temporary.mkdir()
    with (
        serve(tmp_path, [folder], TMPDIR=str(temporary)) as served,
        connect(served) as http,
    ):
        (own,) = served.uploads.glob("cxr-*")
        (own / "interrupted").write_bytes(b"half an upload")
        image = data_uri(questions[0].content)
        is_error, text = ask_tool(served, "predict", image=image, model="tiny")
        assert not is_error and "probabilities" in text
        assert [space_load.ask(http, question) for question in questions] == ["right", "right"]
        contents = [path.read_bytes() for path in own.rglob("*") if path.is_file()]
        assert contents.count(questions[0].content) >= 2
        assert set(served.temporary_files()) == {p for p in own.rglob("*") if p.is_file()}
        oldest, end = 0, time.monotonic() + 60
        while (files := served.temporary_files()) and time.monotonic() < end:
            with suppress(FileNotFoundError):
                oldest = max(time.time() - path.stat().st_mtime for path in files)
            time.sleep(0.1)
        assert not files and 15 < oldest < 30
        send(http, questions[0].content)
        http.post("call/predict_batch", json={"data": [[send(http, b"garbage")] * 100, "tiny"]})
        assert not list(temporary.iterdir())
    assert served.process.returncode == 0
    assert not list(served.uploads.iterdir())
    assert SECRET not in served.log.read_text() and "Traceback" not in served.log.read_text()
