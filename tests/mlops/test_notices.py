"""Notices to a webhook on a real socket that accepts and hangs, drips, or is slow; and what becomes of them."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from content_arena.core.config import Secrets, load_settings
from content_arena.mlops.alerting import Notifier

TIMEOUT_S = 0.1


@contextmanager
def webhook(behave):
    "A webhook that does what `behave(handler)` says; yields its address and the texts it got."
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(json.loads(body)["text"].splitlines()[-1])
            behave(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/services/s3cret", got
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def behaving(how: str):
    "As `webhook`; `mute` takes a connection and reads nothing, as a machine that is overloaded."
    over = threading.Event()

    def drip(handler):  # each byte in time, the whole never
        while not over.wait(TIMEOUT_S / 2):
            handler.wfile.write(b"H")

    hang = lambda handler: over.wait(30)
    good = lambda handler: (handler.send_response(200), handler.end_headers())
    try:
        if how == "mute":
            with socket.create_server(("127.0.0.1", 0)) as s:
                yield f"http://127.0.0.1:{s.getsockname()[1]}/services/s3cret", []
        else:
            with webhook({"hang": hang, "drip": drip, "good": good}[how]) as url:
                yield url
    finally:
        over.set()


def notifier(folder: Path, address: str, timeout_s: float = TIMEOUT_S) -> Notifier:
    settings = load_settings(env={}, var_dir=str(folder), notify_attempts=2)
    return Notifier(
        settings, Secrets(slack_webhook_url=SecretStr(address)), timeout_s=timeout_s, backoff_s=0
    )


@pytest.mark.parametrize("how", ["hang", "drip", "mute"])
def test_a_webhook_that_hangs_costs_its_time_once_and_loses_nothing(tmp_path, how):
    begun = time.perf_counter()
    with behaving(how) as (address, _):
        first = notifier(tmp_path, address).notify("failed", reason="first")
        took = time.perf_counter() - begun
        assert not first and first.attempts == 2 and "kept" in first.reason
        assert 2 * TIMEOUT_S <= took < 2 * 3 * TIMEOUT_S + 3
        for number in range(8):  # what waits is tried once, not each again
            later = notifier(tmp_path, address).notify("failed", reason=f"later {number}")
            assert not later and later.attempts == 1
        assert "s3cret" not in str(first) + str(later)
    assert time.perf_counter() - begun < took + 8 * 3 * TIMEOUT_S + 3
    with behaving("good") as (address, got):
        assert notifier(tmp_path, address, 10).notify("promoted", reason="morning")
    assert got == ["first", *(f"later {n}" for n in range(8)), "morning"]


def test_who_hangs_at_the_webhook_does_not_stop_the_other_process(tmp_path):
    "One is in the middle of sending what waits; the next only adds to it."
    with behaving("mute") as (address, _):
        notifier(tmp_path, address).notify("failed", reason="first")
    arrived, leave = threading.Event(), threading.Event()

    def stuck(handler):
        arrived.set()
        leave.wait(30)
        handler.send_response(200)
        handler.end_headers()

    with webhook(stuck) as (address, got):
        slow = notifier(tmp_path, address, 30)
        sending = threading.Thread(target=slow.notify, args=("failed",), kwargs={"reason": "slow"})
        sending.start()
        assert arrived.wait(30)
        begun = time.perf_counter()
        other = notifier(tmp_path, address).notify("failed", reason="other")
        assert not other and "kept" in other.reason and time.perf_counter() - begun < 3
        leave.set()
        sending.join(30)
        assert notifier(tmp_path, address, 10).notify("promoted", reason="last")
    assert sorted(got) == ["first", "last", "other", "slow"] and got[-1] == "last"
