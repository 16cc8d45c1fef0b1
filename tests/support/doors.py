"""A door in front of an HTTP server: a test sees what passes, stops it at a request, cuts it off or answers itself."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Meant = Callable[[str, bytes], bool]  # of a call, `POST /path`, and its body
KEPT_BACK = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}


@dataclass
class Stop:
    """The first call that is `meant` gets no answer; `after`: the server has done what it asks for.

    `reached`: it is there; `gone`: the caller has hung up, or was killed."""

    meant: Meant
    after: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    dropped: threading.Event = field(default_factory=threading.Event)

    def drop(self) -> None:
        "Hang up on the caller."
        self.dropped.set()


class Door:
    "`url` leads to `target`; `calls`: what passed. `cut`: nothing does; `says`: a call's own answer (status, text)."

    def __init__(self, target: str):
        self.target, self.calls, self.cut = target, [], False
        self.stop: Stop | None = None
        self.says: dict[str, tuple[int, str]] = {}
        self.client = httpx.Client(timeout=None, limits=httpx.Limits(max_connections=None))
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                self.close_connection |= door.handle(self, f"{self.command} {self.path}", body)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = pass_on

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop_at(self, meant: Meant, after: bool = False) -> Stop:
        self.stop = Stop(meant, after)
        return self.stop

    def open(self) -> None:
        "Everything passes again."
        self.stop, self.cut = None, False
        self.says.clear()
        self.calls.clear()

    def handle(self, request: BaseHTTPRequestHandler, call: str, body: bytes) -> bool:
        "Whether the connection is to be closed."
        self.calls.append(call)
        stop = self.stop
        meant = bool(stop) and not stop.reached.is_set() and stop.meant(call, body)
        if meant and not stop.after:
            return self.hold(request, stop)
        if self.cut:
            return True
        status, headers, content = self.answer(request, call, body)
        if meant:
            return self.hold(request, stop)
        with suppress(OSError):  # whoever asked may be gone
            request.send_response(status)
            for name, value in headers:
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
            return False
        return True

    def answer(self, request: BaseHTTPRequestHandler, call: str, body: bytes):
        for begin, (status, text) in self.says.items():
            if call.startswith(begin):
                return status, [("content-type", "application/json")], text.encode()
        method, _, path = call.partition(" ")
        sent = {k: v for k, v in request.headers.items() if k.lower() not in KEPT_BACK}
        sent["accept-encoding"] = "identity"
        got = self.client.request(method, self.target + path, headers=sent, content=body)
        back = [(k, v) for k, v in got.headers.items() if k.lower() not in KEPT_BACK]
        return got.status_code, back, got.content

    @staticmethod
    def hold(request: BaseHTTPRequestHandler, stop: Stop) -> bool:
        stop.reached.set()
        request.connection.settimeout(0.1)
        while not stop.dropped.is_set():
            try:
                request.connection.recv(1)  # nothing comes: it returns when the caller hangs up
                break
            except TimeoutError:
                continue
            except OSError:
                break
        stop.gone.set()
        return True

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.client.close()
