"""Prometheus and Alertmanager of the tests' own: Debian's binaries, free ports, Slack played by a small server."""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def tool(*command: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess:
    "Run promtool or amtool; its exit status and what it said."
    return subprocess.run(
        [str(c) for c in command],
        input=stdin,
        text=True,
        timeout=300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def shorter(duration: str, factor: int) -> str:
    "`duration` (5m, 1d) divided by `factor`, in whole milliseconds."
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)", duration).groups()
    return f"{max(1, int(number) * UNITS[unit] // factor)}ms"


def shortened(rules: dict, factor: int) -> dict:
    "The rule file with every duration divided by `factor`; no threshold is touched."
    copy = json.loads(json.dumps(rules))
    for rule in (r for group in copy["groups"] for r in group["rules"]):
        rule["expr"] = re.sub(
            r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda m: shorter(m[0], factor), rule["expr"]
        )
        if "for" in rule:
            rule["for"] = shorter(rule["for"], factor)
    return copy


def hastened(config: dict, address_file: Path, templates: Path) -> dict:
    "Alertmanager's configuration with short waits; receivers, routes and inhibition as they are."
    copy = json.loads(json.dumps(config))
    copy["global"]["slack_api_url_file"] = str(address_file)
    copy["templates"] = [str(templates / "*.tmpl")]
    for route in (copy["route"], *copy["route"]["routes"]):
        route |= {"group_wait": "100ms", "group_interval": "300ms", "repeat_interval": "1h"}
    return copy


class Slack:
    "Keeps the messages that it is sent."

    def __init__(self):
        self.messages: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.keep(json.loads(body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def keep(self, body: dict) -> None:
        self.messages.append(body["attachments"][0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def heard(self, status: str, alert: str) -> dict | None:
        "The first message of `status` (FIRING, RESOLVED) about `alert`."
        return next(
            (
                m
                for m in self.messages
                if m["title"].startswith(f"[{status}") and f" {alert} (" in m["title"]
            ),
            None,
        )

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(true: Callable[[], object], what: str, seconds: float = 40) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(*command: str, log: Path):
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


class Watch:
    "A Prometheus that scrapes `target` (HOST:PORT) with shortened rules, and its Alertmanager."

    def __init__(self, target: str, factor: int = 120):
        self.folder, self.stack, self.slack = Path(tempfile.mkdtemp()), ExitStack(), Slack()
        self.stack.callback(self.slack.close)
        self.url, alertmanager = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        for name in ("rules.yml", "alerts.yml"):
            rules = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
            (self.folder / name).write_text(yaml.safe_dump(shortened(rules, factor)))
        (self.folder / "slack").write_text(self.slack.url)
        given = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
        (self.folder / "alertmanager.yml").write_text(
            yaml.safe_dump(
                hastened(given, self.folder / "slack", DEPLOY / "alertmanager/templates")
            )
        )
        (self.folder / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {
                        "scrape_interval": "250ms",
                        "scrape_timeout": "200ms",
                        "evaluation_interval": "250ms",
                    },
                    "rule_files": ["rules.yml", "alerts.yml"],
                    "alerting": {
                        "alertmanagers": [
                            {
                                "static_configs": [
                                    {"targets": [alertmanager.removeprefix("http://")]}
                                ]
                            }
                        ]
                    },
                    "scrape_configs": [
                        {"job_name": "content_arena", "static_configs": [{"targets": [target]}]}
                    ],
                }
            )
        )
        self._start(
            "prometheus-alertmanager",
            alertmanager,
            "/-/ready",
            f"--config.file={self.folder}/alertmanager.yml",
            "--cluster.listen-address=",
            f"--storage.path={self.folder}/alertmanager",
        )
        self._start(
            "prometheus",
            self.url,
            "/-/ready",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/tsdb",
        )

    def _start(self, program: str, url: str, ready: str, *options: str) -> None:
        log = self.folder / f"{program}.log"
        address = url.removeprefix("http://")
        self.stack.enter_context(
            running(program, *options, f"--web.listen-address={address}", log=log)
        )
        try:
            wait_until(lambda: answers(url + ready), f"{program} is ready", 20)
        except BaseException:
            self.close()
            print(log.read_text())
            raise

    def query(self, expression: str) -> list[dict]:
        "What `expression` gives now: labels and value."
        got = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        return [r["metric"] | {"value": float(r["value"][1])} for r in got["data"]["result"]]

    def alerts(self) -> set[str]:
        "Names of the alerts that are pending or firing now."
        return {r["alertname"] for r in self.query("ALERTS")}

    def close(self) -> None:
        self.stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)
