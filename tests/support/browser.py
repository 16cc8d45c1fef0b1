"""Chromium, asked through its debugging port: what a page measures, asks for, and looks like."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websocket import create_connection

PATIENCE_S = 60
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]


class Tab:
    "One page of the browser; `asked`: the addresses that it asked for since `open`."

    def __init__(self, address: str):
        self.socket = create_connection(address, timeout=PATIENCE_S)
        self.number, self.asked, self.errors = 0, [], []
        for name in ("Page", "Network", "Runtime"):
            self.call(f"{name}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        "Send a command of the debugging protocol; returns its result."
        self.number += 1
        mine = self.number
        self.socket.send(json.dumps({"id": mine, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == mine:
                assert "error" not in said, (method, said["error"])
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> str:
        method, more = said.get("method", ""), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(more["request"]["url"])
        if method == "Runtime.exceptionThrown":
            self.errors.append(more["exceptionDetails"]["text"])
        return method

    def open(
        self, url: str, width: int = 1280, height: int = 800, dark: bool = False, media: str = ""
    ) -> "Tab":
        "Load `url` in a window of this size; `media`: `print` for how it looks on paper."
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.asked, self.errors = [], []
        self.call("Page.navigate", url=url)
        while self._note(json.loads(self.socket.recv())) != "Page.loadEventFired":
            pass
        return self

    def ask(self, script: str) -> Any:
        "The value of `script`, JSON-able, in the page; a promise is waited for."
        said = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def picture(self, file: Path, whole: bool = True) -> Path:
        "A screenshot (PNG), of the `whole` page or of what the window shows."
        said = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(said["data"]))
        return file


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    "A browser with its profile in `folder`; yields its tab, and ends the browser."
    port = folder / "profile" / "DevToolsActivePort"
    with subprocess.Popen(
        ["chromium", *FLAGS, f"--user-data-dir={port.parent}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield Tab(_address(port))
        finally:
            process.terminate()


def _address(port: Path) -> str:
    "Where the browser's first tab listens, once it does."
    import httpx

    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        try:
            number = int(port.read_text().splitlines()[0])
            tabs = httpx.get(f"http://127.0.0.1:{number}/json/list", timeout=5).json()
            return next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
        except (OSError, IndexError, ValueError, StopIteration, httpx.HTTPError):
            time.sleep(0.1)  # a browser says that it listens by a file
    raise AssertionError("chromium did not begin to listen")
