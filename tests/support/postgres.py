"""A PostgreSQL of the tests' own: Debian's binaries, a folder that is thrown away, a free port."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), default=Path("-")).parent


class Postgres:
    "Started with `start`, stopped as hard as one likes; `new` makes an empty database."

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.data = self.root / "data"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self._as: list[str] = []  # PostgreSQL refuses to run as root
        if os.geteuid() == 0:
            shutil.chown(self.root, "postgres")
            self._as = ["runuser", "-u", "postgres", "--"]
        user = "postgres" if self._as else pwd.getpwuid(os.geteuid()).pw_name
        self._user = user
        self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            user,
            "-A",
            "trust",
            "--no-sync",
            "--locale",
            "C.UTF-8",
            "-E",
            "UTF8",
        )
        with open(self.data / "postgresql.conf", "a") as f:
            f.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nfsync = off\n"
                f"unix_socket_directories = '{self.root}'\n"
            )

    def _run(self, program: str, *arguments) -> None:
        command = [*self._as, BINARIES / program, *arguments]
        done = subprocess.run(
            [str(c) for c in command],
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.root / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        "immediate: as after a power cut; fast: connections are told."
        self._run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=self._user, dbname=database, autocommit=True
        )

    def new(self) -> str:
        "The URL of an empty database."
        name = f"t{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"create database {name}")
        return f"postgresql://{self._user}@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
