"""Runs commands, many in one go: a process that reads a line with a list of cases, and answers with their results.

A case is `{"arguments": [...], "environment": {...}, "without": [...], "stdout": an encoding or
"/dev/full"}`, a result its exit code and what it printed. Each is a process forked from this one,
which has the libraries loaded and has opened nothing.
"""
import io
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TIME_S = 150                       # then it gets Ctrl-C


def leaves(group, path=()):
    "Path -> click command, of all that can be run."
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def _preload() -> None:
    import httpcore  # noqa: F401
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import content_arena.arena.coevolution.cycles
    import content_arena.cli.main
    import content_arena.workflows.coevolution
    import content_arena.cli.doctor
    import content_arena.workflows.weekly_report
    import content_arena.workflows.pipeline
    import content_arena.serving.app
    import content_arena.workflows.deployment
    import content_arena.workflows.training  # noqa: F401


def _child(case: dict, out: int, err: int) -> None:
    "In the forked process: what starting `content-arena` anew would do, but for the imports."
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open("/dev/full", os.O_WRONLY) if case["stdout"] == "/dev/full" else out, 1)
        os.dup2(err, 2)
        encoding = case["stdout"] if case["stdout"] != "/dev/full" else "utf-8"
        sys.stdin = open(0, closefd=False)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding)
        sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False, buffering=0), encoding,
                                      "backslashreplace", write_through=True)
        for name in [n for n in os.environ if n.startswith("CONTENT_ARENA_")] + case["without"]:
            os.environ.pop(name, None)
        os.environ.update(case["environment"])
        sys.argv = ["content-arena", *case["arguments"]]
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, case.get("time_s", TIME_S))
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


_forking = threading.Lock()


def _run(case: dict) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _forking:
            pid = os.fork()
            if pid == 0:
                _child(case, out.fileno(), err.fileno())
        _, status = os.waitpid(pid, 0)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))
        return {"code": os.waitstatus_to_exitcode(status), "out": said[0], "err": said[1]}


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    _preload()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in sys.stdin:
            print(json.dumps(list(pool.map(_run, json.loads(line)))), flush=True)
