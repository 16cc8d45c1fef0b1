"""Clients of a running service, and waiting for what has no event."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import httpx


def until(happened, seconds=30):
    "Wait for something that has no event; fails after `seconds`."
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Asked(NamedTuple):
    "What a client got (`status`: HTTP, or the error), and when, seconds."

    client: int
    status: int | str
    version: str | None
    began: float
    ended: float


@contextmanager
def load(url, clients=4, pause_s=0.0):
    """Clients that ask without a pause, or with one; yields the list of what they got, as `Asked`.

    Without, they take the interpreter from a service in this process that loads a model."""
    got, stop = [], threading.Event()

    def ask(client):
        with httpx.Client(base_url=url, timeout=30) as c:
            while not stop.is_set():
                began, version = time.perf_counter(), None
                try:
                    r = c.post("/classify/batch", json={"texts": ["one", "another comment"]})
                    status, version = r.status_code, r.json().get("model_version")
                except httpx.HTTPError as e:
                    status = repr(e)
                got.append(Asked(client, status, version, began, time.perf_counter()))
                time.sleep(pause_s)

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, i) for i in range(clients)]
        try:
            yield got
        finally:
            stop.set()
            [a.result() for a in asking]


def reload(url):
    return httpx.post(f"{url}/reload", timeout=120)
