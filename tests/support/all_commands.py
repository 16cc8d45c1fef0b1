"""Runs commands of `content-arena`, each in a process of its own that has the libraries loaded (`warm`).

A case is `{"arguments": [...], "environment": {...}, "without": [...], "stdout": an encoding or "/dev/full",
"time_s": until it gets Ctrl-C}`; only the first must be there.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

TIME_S = 150
ROOT = Path(__file__).resolve().parents[2]


def leaves(group, path=()):
    "Path -> click command, of all that can be run."
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def run(case: dict) -> dict:
    "Exit code of a command, and what it printed: `code`, `out`, `err`."
    from warm import python

    case = {"environment": {}, "without": [], "stdout": "utf-8", "time_s": TIME_S} | case
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        open("/dev/full", "wb") as full,
    ):
        done = subprocess.run(
            [python(), __file__, json.dumps(case)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=full if case["stdout"] == "/dev/full" else out,
            stderr=err,
        )
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))
        return {"code": done.returncode, "out": said[0], "err": said[1]}


def _become(case: dict) -> None:
    "What starting `content-arena` anew would do, but for the imports. Does not return."
    code = 70
    try:
        encoding = case["stdout"] if case["stdout"] != "/dev/full" else "utf-8"
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding)
        sys.stderr = io.TextIOWrapper(
            open(2, "wb", closefd=False, buffering=0),
            encoding,
            "backslashreplace",
            write_through=True,
        )
        for name in [n for n in os.environ if n.startswith("CONTENT_ARENA_")] + case["without"]:
            os.environ.pop(name, None)
        os.environ.update(case["environment"])
        sys.argv = ["content-arena", *case["arguments"]]
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, case["time_s"])
        from content_arena.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        os._exit(code)


if __name__ == "__main__":
    _become(json.loads(sys.argv[1]))
