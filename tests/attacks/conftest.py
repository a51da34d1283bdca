"""One live Space for all attacks, and a trap for connections."""

import contextlib
import socket
import threading

import pytest
from space_server import save_tiny, serve

from attacks.visitors import ATTACKER, connect
from benchmarks import space_load


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def question(folder):
    return next(one for one in space_load.prepare([str(folder)], 1)[0] if one.endpoint == "predict")


@pytest.fixture(scope="session")
def served(folder, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("served"), [folder]) as served:
        yield served
    assert f'File "{served.log.parent}' not in served.log.read_text()  # none of its own faults


@pytest.fixture(scope="session")
def trap():
    """A server that nobody should reach: its address, and who did."""
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    connection, peer = listener.accept()
                    reached.append(peer)
                    connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield listener.getsockname()[1], reached


@pytest.fixture(autouse=True)
def nobody_is_reached(trap):
    yield
    assert not trap[1]


@pytest.fixture
def http(served):
    """What an attacker sends with."""
    with connect(served, ATTACKER) as http:
        yield http
