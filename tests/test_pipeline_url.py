"""An image by its address, through `pipeline`: read from a server that may not mean well."""

import io
import socket
import threading
import time

import pytest
from PIL import Image

from modeling import create_model, image_cxr
from modeling.pipeline_cxr import CxrImageClassificationPipeline

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n"


@pytest.fixture(scope="module")
def ask():
    model, processor = create_model("baseline", ["a", "b"], image_size=32, hidden_sizes=[8])
    return CxrImageClassificationPipeline(model.eval(), image_processor=processor)


@pytest.fixture
def server():
    """`server(behave)`: the address of a server that does so with its one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run(behave):
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                try:
                    behave(connection)
                except OSError:  # the client had enough
                    return

        def start(behave):
            threading.Thread(target=run, args=(behave,), daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"

        yield start


def test_an_image_is_read_from_its_address(ask, server):
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    url = server(lambda connection: connection.sendall(HEAD + file.getvalue()))
    assert ask(url) == ask(Image.linear_gradient("L"))


def test_a_server_that_trickles_is_given_up(ask, server):
    def trickle(connection):
        connection.sendall(HEAD)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(ValueError, match=r"not there after 1 seconds.*\.$"):
        ask(server(trickle), timeout=1)
    assert time.monotonic() - began < 3


def test_a_server_that_says_nothing_is_given_up(ask, server):
    with pytest.raises(Exception, match="timed out"):
        ask(server(lambda connection: time.sleep(5)), timeout=0.5)


def test_a_server_that_never_ends_is_given_up(ask, server, monkeypatch):
    monkeypatch.setattr(image_cxr, "MAX_FILE_BYTES", 5 * 2**20)

    def pour(connection):
        connection.sendall(HEAD)
        while True:
            connection.sendall(bytes(2**20))

    with pytest.raises(ValueError, match=r"a file of \d MB is too large; the most is 5 MB\.$"):
        ask(server(pour))
