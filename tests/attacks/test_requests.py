"""Requests that ask a live Space for what it must not do."""

import asyncio
import base64
import hashlib
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from space_server import LIBRARIES, SPACE

from attacks.visitors import ATTACKER, META, answer, connect, send, unnoticed


def raw(served, data, timeout=30):
    connection = socket.create_connection(("127.0.0.1", urlsplit(served.url).port), timeout)
    connection.sendall(data)
    return connection


def ask_tool(served, tool, address=ATTACKER, **arguments):
    async def talk():
        url, headers = f"{served.url}gradio_api/mcp/", {"X-Forwarded-For": address}
        async with (
            httpx.AsyncClient(headers=headers, timeout=60) as client,
            streamable_http_client(url, http_client=client) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await session.call_tool(tool, arguments)

    given = asyncio.run(talk())
    return given.isError, given.content[0].text


# ------------------------------------------------------------------------------------- addresses


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "HTTP", " https", "ftp", "file"])
def test_no_job_makes_the_server_fetch_an_address(served, http, question, trap, scheme):
    file = {"path": f"{scheme}://127.0.0.1:{trap[0]}/x.png", **META}
    config = httpx.get(f"{served.url}config").json()
    numbers = [each["id"] for each in config["dependencies"]]
    with unnoticed(served, question):
        for endpoint, data in (
            ("call/predict", [file, "tiny"]),
            ("call/predict_batch", [[file], "tiny"]),
            ("call/heatmap", [file, "tiny", "NORMAL", "grad_cam"]),
            ("call/predict", [{"deep": [{**file, "url": "x"}]}, "tiny"]),
            ("run/predict", [file, "tiny"]),
        ):
            reply = http.post(endpoint, json={"data": data})
            assert reply.status_code == 400 and "No address" in reply.json()["detail"]
        for number in numbers:
            job = {"data": [file, "a", "b"], "fn_index": number, "session_hash": "s"}
            assert http.post("queue/join", json=job).status_code == 400
        address = file["path"]
        twice = f'{{"data": [{{"path": "{address}", "path": "x", "meta": {{}}}}, "tiny"]}}'
        assert http.post("call/predict", content=twice).status_code == 400


def test_files_of_others_are_not_passed_on(served, http, trap):
    for path in (
        f"file=http://127.0.0.1:{trap[0]}/x.png",
        f"file=http%3A%2F%2F127.0.0.1%3A{trap[0]}/x.png",
        f"file/http://127.0.0.1:{trap[0]}/x.png",
        f"proxy=http://127.0.0.1:{trap[0]}/x.png",
        "file=/etc/passwd",
        f"file={served.uploads}/../../etc/passwd",
        f"file={served.log}",
    ):
        assert http.get(path).status_code in (403, 404), path


@pytest.mark.slow
def test_tools_fetch_no_private_address_and_read_no_file_of_the_server(
    served, folder, question, trap
):
    port, _ = trap
    with unnoticed(served, question):
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:7f00:1]"):
            is_error, text = ask_tool(
                served, "predict", image=f"http://{host}:{port}/x.png", model="tiny"
            )
            assert is_error and text.endswith("."), (host, text)
        for image in ({"path": str(SPACE / "examples" / "normal.png"), **META}, ["x"]):
            is_error, text = ask_tool(served, "predict", image=image, model="tiny")
            assert is_error and "is not a text" in text
        is_error, text = ask_tool(
            served, "predict", image=str(SPACE / "examples" / "normal.png"), model="tiny"
        )
        assert is_error and "data URI" in text


FETCH = """
import asyncio, sys, time
import doors

async def public(host):
    return host

doors.public_ip, doors.FETCH_SECONDS = public, 2
for url in sys.argv[1:]:
    began = time.monotonic()
    try:
        said = f"{len(asyncio.run(doors.fetch(url)))} bytes"
    except ValueError as error:
        said = str(error)
    assert time.monotonic() - began < 5
    print(said)
call = '{"id": 1, "method": "tools/call", "params": {"arguments": {"image": "%s", "model": "%s"}}}'
try:
    with doors.Quota().upload("1.1.1.1") as upload:
        asyncio.run(doors.without_addresses((call % ((sys.argv[4],) * 2)).encode(), upload))
except doors.ToolError as error:
    print(error.answer["result"]["content"][0]["text"])
"""


def test_what_a_tool_fetches_has_an_end(run_python):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n"
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
    stopped = threading.Event()

    def trickle(connection):
        connection.sendall(head)
        while not stopped.wait(0.5):
            connection.sendall(b"x")

    def pour(connection):
        connection.sendall(head)
        while True:
            connection.sendall(bytes(2**20))

    def circle(connection):
        connection.sendall(redirect)

    def give(connection):
        connection.sendall(head + b"picture")

    def serve_once(listener, behave):
        for _ in range(6):
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                try:
                    behave(connection)
                except OSError:
                    continue

    addresses = []
    for behave in (trickle, pour, circle, give):
        listener = socket.create_server(("127.0.0.1", 0))
        addresses.append(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        threading.Thread(target=serve_once, args=(listener, behave), daemon=True).start()
    addresses.append("ftp://127.0.0.1/x.png")
    run = run_python(["-c", FETCH, *addresses], cwd=SPACE, env=LIBRARIES, isolated=True)
    stopped.set()
    assert run.stdout.splitlines() == [
        "The image did not arrive within 2 seconds.",
        "The image is larger than 16 MB; upload it.",
        "The image's address leads nowhere; give one with http or https.",
        "7 bytes",
        "The image's address leads nowhere; give one with http or https.",
        "A call names one image; give one address.",
    ], run.stderr


# ---------------------------------------------------------------------------------------- bodies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("call/predict", b'{"data": [%s]}' % (b"[]," * 20_000_000), 413),
        ("call/predict", b'{"data": ["%s"]}' % (b"x" * 150_000_000), 413),
        ("queue/join", b"[" * 500_000, 400),
        ("call/predict", b'{"data": [%s[]]}' % (b"[]," * 170_000), 400),
        ("call/predict", b'{"data": [%s[]]}' % (b"[]," * 9_000), 200),
        ("cancel", b'{"event_id": "%s"}' % (b"x" * 70_000), 413),
        ("mcp/", b'{"method": "%s"}' % (b"x" * 30_000_000), 413),
        ("mcp/", b'{"method": [%s[]]}' % (b"[]," * 5_000_000), 400),
    ],
    ids=["lists", "text", "deep", "wide", "most", "cancel", "tool", "tool-lists"],
)
@pytest.mark.parametrize("framed", ["length", "chunks"])
def test_bodies_are_limited(served, http, question, path, body, status, framed):
    pieces = (body[at : at + 2**16] for at in range(0, len(body), 2**16))
    with unnoticed(served, question):
        reply = http.post(
            path,
            content=body if framed == "length" else pieces,
            headers={"Content-Type": "application/json"},
        )
        assert reply.status_code == status


# ----------------------------------------------------------------------------------------- queue


@pytest.mark.slow
def test_one_client_fills_no_lane(served, question):
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    with connect(served, "8.8.4.7") as http:
        file = send(http, content.getvalue())

        def join(job):
            endpoint, data = job
            return endpoint, http.post(f"call/{endpoint}", json={"data": data})

        jobs = [
            ("predict", [file, "tiny"]),
            ("heatmap", [file, "tiny", "NORMAL", "grad_cam"]),
            ("heatmap", [file, "tiny", "NORMAL", "score_cam"]),
            ("predict_batch", [[file] * 4, "tiny"]),
        ]
        with unnoticed(served, question), ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(join, jobs * 40))
            codes = [reply.status_code for _, reply in replies]
            assert set(codes) == {200, 503} and codes.count(200) < 140
            refused = next(reply for _, reply in replies if reply.status_code == 503)
            assert refused.json()["detail"].startswith("Queue is full. 16 of your")
            endpoint, first = replies[0]
            stream = http.get(f"call/{endpoint}/{first.json()['event_id']}").text
            assert "event: complete" in stream
        for endpoint, reply in replies[1:]:  # leave nothing to the next test
            if reply.status_code == 200:
                assert "event: " in http.get(f"call/{endpoint}/{reply.json()['event_id']}").text


def test_the_pages_own_functions_do_nothing_slow_in_the_lane_of_all(served, http, question):
    config = httpx.get(f"{served.url}config").json()
    (show,) = (each["id"] for each in config["dependencies"] if each["api_name"] == "show")
    data = [send(http, question.content), "most probable class", "score_cam"]
    job = {"data": data, "fn_index": show, "session_hash": "attacker"}
    assert http.post("queue/join", json=job).status_code == 200
    stream = http.get("queue/data", params={"session_hash": "attacker"}).text
    assert "Grad-CAM" in stream and "Score-CAM" not in stream
    job["fn_index"] = 12345
    refused = http.post("queue/join", json=job)
    assert refused.status_code == 400 and refused.json()["detail"].endswith(".")


# --------------------------------------------------------------------------------------- uploads


@pytest.mark.slow
def test_uploads_have_a_size_a_form_and_a_total(served, question):
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 8.8.4.4\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n{}\r\n\r\n"
    )

    def claim(header):
        return raw(served, head.format(header).encode())

    def status(connection):
        with connection:
            return int(connection.recv(12)[-3:])

    with unnoticed(served, question):
        assert status(claim("Transfer-Encoding: chunked")) == 411
        assert status(claim("Content-Length: 9\r\nTransfer-Encoding: chunked")) in (400, 411)
        assert status(claim("Content-Length: 1100000000")) == 413
        with connect(served, "8.8.4.5") as http:
            reply = http.post("upload", data={"field": "x" * 50_000_000}, files={"files": b"x"})
            assert reply.status_code == 400
        slow = [raw(served, head.replace("4.4", "4.6").format("Content-Length: 9").encode())
                for _ in range(20)]  # fmt: skip
        with connect(served, "8.8.4.6") as http:
            refused = http.post("upload", files={"files": b"x"})
            assert refused.status_code == 429 and refused.text.endswith(".")
        for one in slow:
            one.close()


@pytest.mark.slow
def test_claims_without_bytes_close_nothing_and_what_is_cut_off_leaves_nothing(served, question):
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 8.8.7.{}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    )
    before = large_files(served)
    with unnoticed(served, question):
        claims = [raw(served, head.format(number % 3).encode()) for number in range(30)]
        for one in claims[:3]:
            one.sendall(bytes(20_000_000))
        with connect(served, "8.8.7.0") as http:
            send(http, question.content)
        for one in claims:
            one.close()
    deadline = time.monotonic() + 10
    while large_files(served) - before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def large_files(served):
    """What takes more than 10 MB; a file may go while one looks."""
    found = set()
    for path in served.uploads.rglob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_size > 10_000_000:
                found.add(path)
    return found


def test_a_name_that_leads_out_of_its_folder_is_replaced(served, http, question):
    for name in ("..", "a/..", "/", "\N{BULLET}"):
        path = send(http, question.content, name)["path"]
        assert Path(path).parents[2] == served.uploads and Path(path).is_file()


QUOTA = """
import asyncio, time
import doors
from starlette.requests import Request
from starlette.responses import PlainTextResponse

doors.QUOTA_BYTES, doors.QUOTA_UPLOADS, doors.ALL_BYTES = 1000, 3, 1500
doors.SEND_FILES = doors.SEND_FILES._replace(seconds=0.2)
doors.ROUTES = (doors.SEND_FILES,)

async def gradio(scope, receive, send):
    request = Request(scope, receive)
    body = b"".join([piece async for piece in request.stream()])
    status = 400 if body.startswith(b"bad") else 200
    await PlainTextResponse("", status)(scope, receive, send)

server = doors.Doors(gradio)

async def upload(client, pieces, claimed=None, seconds=0):
    pieces, answers = list(pieces), []

    async def receive():
        await asyncio.sleep(seconds)
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        answers.append(message.get("status"))

    length = sum(map(len, pieces)) if claimed is None else claimed
    headers = [(b"host", b"localhost"), (b"content-length", str(length).encode())]
    await server({
        "type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers,
        "client": (client, 1),
    }, receive, send)
    return next(filter(None, answers), None)

def send(*args, **options):
    print(asyncio.run(upload(*args, **options)), server.quota.total, end="; ")

send("1.1.1.1", [b"x" * 400, b"x" * 200])
send("1.1.1.1", [b"x" * 500])  # by what it claims
send("1.1.1.1", [b"x" * 300, b"x" * 300], claimed=1)  # by what arrives
send("1.1.1.1", [b"bad"])
send("1.1.1.1", [b"x", b"x", b"x"], seconds=0.15)
send("1.1.1.1", [b"x"] * 400)
send("1.1.1.1", [b""])
send("1.1.1.1", [b""])  # the fourth
send("2.2.2.2", [b"x" * 600])  # of all clients together
send("2.2.2.2", [b"x" * 500])
"""


def test_what_arrives_and_stays_is_charged(run_python):
    run = run_python(["-c", QUOTA], cwd=SPACE, env=LIBRARIES, isolated=True)
    assert run.stdout.split("; ")[:-1] == (
        "200 600; 429 600; 429 600; 400 600; 408 600; 200 1000; 200 1000; 429 1000; 503 1000; "
        "200 1500"
    ).split("; "), run.stderr


def test_what_a_tool_fetches_is_charged(run_python):
    code = """
import asyncio, doors
async def fetched(url):
    return bytes(1000)
doors.fetch = fetched
quota = doors.Quota()
call = b'{"id": 1, "method": "tools/call", "params": {"arguments": {"image": "http://a.example"}}}'
with quota.upload("1.1.1.1") as upload:
    asyncio.run(doors.without_addresses(call, upload))
    print(quota.total)
doors.QUOTA_BYTES = 999
try:
    with quota.upload("1.1.1.1") as upload:
        asyncio.run(doors.without_addresses(call, upload))
except doors.Refusal as refusal:
    print(refusal.status, quota.total)
for address in "8.8.8.8 2606:4700::1 64:ff9b::808:808 2002:808:808::1".split():
    assert doors.is_public(address), address
private = "127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::808:808 2002:7f00:1::1 2002:c0a8:1::"
for address in f"{private} ::ffff:10.0.0.1 ::10.0.0.1 ::1 :: fe80::1 169.254.169.254".split():
    assert not doors.is_public(address), address
"""
    run = run_python(["-c", code], cwd=SPACE, env=LIBRARIES, isolated=True)
    assert run.stdout.split() == ["1000", "429", "0"] and not run.stderr, run.stderr


def test_nobody_can_test_for_the_name_of_anothers_file(served, http, question):
    paths = {send(http, question.content, "Mustermann.png")["path"] for _ in range(2)}
    is_error, _ = ask_tool(
        served, "predict", image=f"data:image/png;base64,{encoded(question.content)}", model="tiny"
    )
    assert len(paths) == 2 and not is_error
    answer(http, "predict", {"path": min(paths), **META}, "tiny")
    digests = {
        hashlib.sha256(content).hexdigest()
        for content in (question.content, encoded(question.content).encode())
    }
    assert not digests & {path.name for path in served.uploads.rglob("*")}


def encoded(content):
    return base64.b64encode(content).decode()


def test_what_is_uploaded_runs_nowhere(served, http):
    page = b"<script>alert(1)</script>"
    for name in ("x.png", "x.html", "x.svg", "x"):
        reply = http.get(f"file={send(http, page, name)['path']}")
        assert reply.status_code == 200
        assert "sandbox" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "html" not in reply.headers["content-type"]


# ------------------------------------------------------------------------------ routes and headers


@pytest.mark.parametrize(
    "path",
    """GET:/monitoring GET:/monitoring/summary GET:/monitoring/x GET:/gradio_api/dev/reload
    POST:/gradio_api/process_recording POST:/gradio_api/component_server GET:/gradio_api/token
    GET:/gradio_api/runs GET:/gradio_api/deep_link POST:/gradio_api/vibe-edit POST:/login GET:/docs
    GET:/gradio_api/vibe-code POST:/gradio_api/stream/x GET:/gradio_api/mcp/sse
    POST:/gradio_api/mcp/messages/ POST:/gradio_api/api/predict POST:/gradio_api/call/v2/predict
    GET:/gradio_api/custom_component/x/client/y/z.js PUT:/gradio_api/upload
    GET:/gradio_api/profiling/traces GET:/gradio_api/proxy=https://x.hf.space/""".split(),
)
def test_other_routes_are_closed(served, path):
    method, path = path.split(":", 1)
    assert httpx.request(method, served.url.rstrip("/") + path).status_code == 404


def test_headers_bind_a_browser(served):
    foreign = {"Origin": "https://evil.example"}
    for path in ("", "config", "gradio_api/info", "gradio_api/nothing"):
        headers = httpx.get(served.url + path, headers=foreign).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self' https://huggingface.co" in headers["content-security-policy"]
        assert "access-control-allow-credentials" not in headers
    asked = {**foreign, "Access-Control-Request-Method": "POST"}
    headers = httpx.options(f"{served.url}gradio_api/upload", headers=asked).headers
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-origin" not in headers


def test_another_name_of_this_machine_is_refused(served):
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", ""):
        assert httpx.get(served.url, headers={"Host": host}).status_code in (400, 421)
    for host in ("localhost", "127.0.0.1:1234", "[::1]:7860", "192.168.0.2"):
        assert httpx.get(served.url, headers={"Host": host}).status_code == 200


CLIENTS = """
import doors

def client(peer, *headers):
    return doors.client_of({"type": "http", "client": (peer, 1), "headers": headers})

def forwarded(text):
    return b"x-forwarded-for", text.encode()

print(client("9.9.9.9"))
print(client("10.0.0.1", forwarded("1.1.1.1, 8.8.8.8, 10.0.0.2")))
print(client("9.9.9.9", forwarded("1.1.1.1")))
print(client("2606:4700:4700:1:2::3"))
print(client("9.9.9.9", (b"x-cxr-asker", b"1.1.1.1")))
"""


@pytest.mark.parametrize(("space", "second"), [({}, "10.0.0.1"), ({"SPACE_ID": "a/b"}, "8.8.8.8")])
def test_nobody_passes_for_another_client(run_python, space, second):
    run = run_python(["-c", CLIENTS], cwd=SPACE, env={**LIBRARIES, **space}, isolated=True)
    network = "2606:4700:4700:1::/64"
    assert run.stdout.split() == ["9.9.9.9", second, "9.9.9.9", network, "9.9.9.9"], run.stderr
