"""Gradio's queue made fair: who asks for much waits behind those who ask for little."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBodyInternal
from gradio.exceptions import Error
from gradio.queueing import Event, EventQueue, Queue
from models import PATIENTLY, SLOW, Unordinary

WAITING = 64  # jobs in a lane
OWN = 16  # of them, one client's
ASIDE = 16  # jobs with files that take long to read

# A lane runs one job of a client at a time, so that each client is answered in its order, and so
# many of different clients. Score-CAM, batches and the heatmaps that programs ask for keep nobody
# else waiting. Ten quick readers share the cores: an ordinary file among nine that are none takes
# ten times as long to read, a fraction of a second, where behind them it would take seconds.
ONE, HEAT, SLOWLY, MANY = (
    {"concurrency_id": name, "concurrency_limit": limit}
    for name, limit in (("one", 10), ("heat", 2), ("slowly", 1), ("many", 2))
)


class Lanes(Queue):
    """The queue of `Page`; `doors` has told each request's client."""

    aside = 0
    patience = asyncio.Semaphore(1)

    async def push(
        self, body: PredictBodyInternal, request: fastapi.Request, username: str | None
    ) -> tuple[bool, Any, str]:
        """Lets a job wait, unless its lane is full or has enough of the client's.

        Returns:
            Whether it waits; its id or why not; Gradio's name for that.
        """
        function = self.blocks.fns.get(body.fn_index)
        if function is None:
            return False, "There is no such function.", "error"
        lane = self._lane(function, body)
        if len(lane.queue) >= WAITING:
            return False, f"Queue is full. {WAITING} requests wait; try again later.", "queue_full"
        client = request.scope["client_key"]
        if [client_of(event) for event in lane.queue].count(client) >= OWN:
            return False, f"Queue is full. {OWN} of your requests wait already.", "queue_full"
        success, event_id, state = await super().push(body, request, username)
        if success and lane.concurrency_id != function.concurrency_id:
            event = self.event_ids_to_events[event_id]
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            event.concurrency_id = lane.concurrency_id
            lane.queue.append(event)
        return success, event_id, state

    def _lane(self, function: BlockFunction, body: PredictBodyInternal) -> EventQueue:
        """Where a job waits: its function's lane, but for Score-CAM that a program asks for."""
        self.create_event_queue_for_fn(function)
        lanes, name = self.event_queue_per_concurrency_id, function.concurrency_id
        if name == HEAT["concurrency_id"] and SLOW in body.data:
            return lanes.setdefault(SLOWLY["concurrency_id"], EventQueue(**SLOWLY))
        return lanes[name]

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """The next job: in each lane, clients take turns."""
        running = {
            (event.concurrency_id, client_of(event))
            for job in self.active_jobs
            for event in job or []
        }
        lanes = list(self.event_queue_per_concurrency_id.items())
        for name, lane in random.sample(lanes, len(lanes)):
            if lane.current_concurrency >= lane.concurrency_limit:
                continue
            free = (event for event in lane.queue if (name, client_of(event)) not in running)
            event = next(free, None)
            if event is not None:
                lane.queue.remove(event)
                # The client's others let those of all others pass.
                lane.queue.sort(key=lambda other: client_of(other) == client_of(event))
                return [event], False, name
        return None

    async def run(self, event_id: str | None, job: Callable[[], Awaitable[Any]]) -> Any:
        """Runs a job; one whose file is `Unordinary` leaves its place to others and starts again.

        It is then read patiently, when those that went aside before it are done. Batches are read
        patiently from the start.

        Args:
            event_id: Gradio's, of the job; None of one that never waited.
            job: runs it.

        Raises:
            Error: too many are aside.
            Exception: what the job raises.
        """
        event = self.event_ids_to_events.get(event_id)
        if event is None or event.concurrency_id == MANY["concurrency_id"]:
            return await job()
        quickly = PATIENTLY.set(False)
        try:
            return await job()
        except Unordinary:
            pass
        finally:
            PATIENTLY.reset(quickly)
        if self.aside >= ASIDE:
            sentence = f"{ASIDE} files that take long to read wait already; try again later."
            raise Error(sentence, print_exception=False)
        lane = self.event_queue_per_concurrency_id[event.concurrency_id]
        self.aside += 1
        lane.current_concurrency -= 1
        try:
            async with self.patience:
                return await job()
        finally:
            lane.current_concurrency += 1
            self.aside -= 1


def client_of(event: Event) -> str:
    """Whose job it is."""
    return event.request.scope["client_key"]
