"""Who attacks a live Space, and who must not notice."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import httpx
import psutil

from benchmarks import space_load

VISITOR, ATTACKER = "9.9.9.9", "8.8.8.8"  # what the Space takes them for
MOST_WAIT, MOST_TIME, MOST_MEMORY = 2, 15, 500  # seconds, seconds, MB
META = {"meta": {"_type": "gradio.FileData"}}


def connect(served, address):
    """A client whose address is, for the Space, another than that of this machine."""
    headers = {"X-Forwarded-For": address}
    return httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60, headers=headers)


SPIN = """
import time
while time.process_time() < 0.5:
    pass
print((time.monotonic() - {began}) / 0.5)
"""


def crowding():
    """How many times as long as alone programs on all cores take, because of others."""
    command = [sys.executable, "-S", "-c", SPIN.format(began=time.monotonic())]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(os.cpu_count())]
    return max(float(program.communicate()[0]) for program in programs)


@contextlib.contextmanager
def unnoticed(served, question, most_memory=MOST_MEMORY, most_time=MOST_TIME):
    """Checks that what is done meanwhile ends in time, takes no memory and keeps nobody waiting.

    Where other programs keep the cores busy before it begins, times may be that much longer.
    """
    waits, answers, memory, ended = [], set(), [], threading.Event()
    server = psutil.Process(served.process.pid)

    def measure():
        total = 0
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                total += process.memory_full_info().pss
        return total / 2**20

    def weigh():
        while not ended.wait(0.1):
            memory.append(measure())

    def visit():
        with connect(served, VISITOR) as http:
            while not ended.is_set() or not waits:
                began = time.monotonic()
                try:
                    answers.add(space_load.ask(http, question))
                except Exception as error:  # of a thread, nobody would hear
                    answers.add(repr(error))
                waits.append(time.monotonic() - began)
                ended.wait(0.05)

    with connect(served, VISITOR) as http:
        assert space_load.ask(http, question) == "right"
    before, longer = measure(), crowding()
    threads = [threading.Thread(target=one) for one in (weigh, visit)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
        ended.set()
        for thread in threads:
            thread.join()
    grown = max(memory, default=before) - before
    print(f"took {took:.1f} s, {grown:.0f} MB; others waited {max(waits):.2f} s, x {longer:.1f}")
    assert answers == {"right"}
    assert max(waits) < MOST_WAIT * longer
    assert took < most_time * longer
    assert grown < most_memory


def send(http, content, name="x-ray.png"):
    reply = http.post("upload", files={"files": (name, content)})
    assert reply.status_code == 200, reply.text
    return {"path": reply.json()[0], "orig_name": name, **META}


def answer(http, endpoint, *data):
    """The last event of a call, and its data."""
    joined = http.post(f"call/{endpoint}", json={"data": data})
    assert joined.status_code == 200, joined.text
    stream = http.get(f"call/{endpoint}/{joined.json()['event_id']}").text
    event, data = stream.strip().split("\n\n")[-1].split("\n", 1)
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
