"""A Python that has the slow libraries loaded: `python()` is the path of a program to be called as `sys.executable` is.

Loading torch, transformers, peft and MLflow takes longer than most of what the tests have a process do. So one process
a test session loads them and does nothing else; the program asks it for a fork, hands it its arguments, environment,
folder and open files, passes signals on, and ends as the fork does. What is imported is all that the fork inherits.
Where that could matter the program becomes an ordinary Python instead: with another environment than the session's
(but for the names below, and for what every command sets, see `prepared`), another option than -c or -m, or no process
to ask. Kernels that a fork starts are forks too. A test of signals to a whole process group, or of the start itself,
takes `sys.executable`.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

#: variables that are read when they are needed, not when something is imported
FREE = (
    "CONTENT_ARENA_",
    "PYTEST_",
    "JPY_",
    "GITHUB_",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI",
    "PAPERMILL_",
    "PYDEVD_",
    "TMPDIR",
    "COLUMNS=",
    "LINES=",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "_=",
)
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

PROGRAM = """#!{base} -IS
import json, os, signal, socket, struct, sys
PYTHON, WHERE, FREE, ENV, OURS, SIGNALS, ANY = {values}

def ordinary():
    os.execv(PYTHON, [PYTHON, *sys.argv[1:]])

env = {{k: v for k, v in os.environ.items() if not (k + "=").startswith(FREE) and v not in OURS.get(k, ())}}
words = sys.argv[1:]
while words and words[0] == "-u":
    words = words[1:]
if env != ENV and not ANY or not words or words[0].startswith("-") and words[0] not in ("-c", "-m"):
    ordinary()
try:
    door = socket.socket(socket.AF_UNIX)
    door.connect(WHERE)
except OSError:
    ordinary()
asked = json.dumps({{"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "me": sys.argv[0]}}).encode()
socket.send_fds(door, [struct.pack("!I", len(asked))], [0, 1, 2])
for number in SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda n, frame: door.send(bytes([n])))
door.sendall(asked)
parent = os.getppid()
kernel = "ipykernel_launcher" in words
door.settimeout(1 if kernel else None)
answer = b""
while len(answer) < 4:
    try:
        got = door.recv(4 - len(answer))
    except TimeoutError:
        if os.getppid() != parent:                     # whoever a kernel worked for is gone
            os._exit(1)
        continue
    if not got:
        break
    answer += got
code = struct.unpack("!i", answer)[0] if len(answer) == 4 else -9
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def load() -> None:
    "Import what the package imports, at once or later."
    import importlib
    import pkgutil

    import bitsandbytes  # noqa: F401
    import ipykernel.ipkernel  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    import content_arena

    for module in pkgutil.walk_packages(content_arena.__path__, "content_arena."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def listen(where: str) -> tuple[str, str]:
    """Fork for each caller.

    Returns in a fork: what that is asked to run, `("-c", code)`, `("-m", module)` or `(file, "")`."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(where)
        door.listen(64)
        signal.signal(
            signal.SIGCHLD, signal.SIG_IGN
        )  # those who wait for the forks are not waited for
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("loaded", flush=True)
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            if sys.stdin in ready:  # the session has ended
                os._exit(0)
            caller, _ = door.accept()
            if os.fork() == 0:
                door.close()
                return attend(caller)
            caller.close()


def attend(caller: socket.socket) -> tuple[str, str]:
    "Fork once more: wait for that one as its parent; returns in it."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, *_ = socket.recv_fds(caller, 4, 3)
    size, asked = int.from_bytes(head, "big"), b""
    while len(asked) < size:
        if not (piece := caller.recv(size - len(asked))):
            os._exit(0)  # the caller was killed while it asked
        asked += piece
    child = os.fork()
    if child == 0:
        caller.close()
        return become(json.loads(asked), files)
    for file in files:
        os.close(file)
    for file in (0, 1, 2):
        os.close(file)
    exited, status = os.pidfd_open(child), None
    while status is None:
        ready, _, _ = select.select([caller, exited], [], [])
        if exited in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        elif number := caller.recv(1):
            os.kill(child, number[0])
        else:  # the caller was killed
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os._exit(0)
    try:
        caller.sendall(status.to_bytes(4, "big", signed=True))
    except OSError:
        pass
    os._exit(0)


def become(asked: dict, files: list[int]) -> tuple[str, str]:
    "Put on what the caller had."
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        old = getattr(sys, name)
        new = open(
            number,
            mode,
            encoding=old.encoding,
            errors=old.errors,
            closefd=False,
            buffering=1 if number == 2 or os.isatty(number) else -1,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    tempfile.tempdir = None
    kind, *more = asked["words"]
    sys.executable = asked["me"]
    sys.argv = ["-c", *more[1:]] if kind == "-c" else [*more] if kind == "-m" else [kind, *more]
    return kind, more[0] if kind in ("-c", "-m") else ""


def prepared(env: dict[str, str]) -> dict[str, str]:
    "What a command adds to the environment `env` before it loads a library: its kernels have that too."
    from content_arena.core.config import quiet_libraries, spare_loopback, wait_briefly

    ours = dict(env)
    for prepare in (spare_loopback, quiet_libraries, wait_briefly):
        prepare(ours)
    return {k: v for k, v in ours.items() if env.get(k) != v}


@cache
def python() -> str:
    """The path of the program; the process behind it is started by the first call, and ends with this one.

    `WARM_PYTHON` in the environment names another program to be taken; `no`: an ordinary Python."""
    if chosen := os.environ.get("WARM_PYTHON"):
        return sys.executable if chosen == "no" else chosen
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    env = {k: v for k, v in os.environ.items() if not (k + "=").startswith(FREE)}
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    ours = prepared(env)
    compared = {k: v for k, v in env.items() if k not in ours}
    both = {k: (env.get(k), v) for k, v in ours.items()}
    values = (sys.executable, str(folder / "door"), FREE, compared, both, tuple(map(int, SIGNALS)))
    file = folder / "python"
    (folder / "bin").mkdir()
    for program, any_environment in ((file, False), (folder / "bin" / "python", True)):
        program.write_text(PROGRAM.format(base=base, values=repr((*values, any_environment))))
        program.chmod(0o755)
    python.server = subprocess.Popen(
        [sys.executable, __file__, str(folder / "door")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env | ours,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if python.server.stdout.readline().strip() != "loaded":
        raise RuntimeError("the process that loads the slow libraries died: see above")
    atexit.register(shutil.rmtree, folder, True)
    return str(file)


def prefix() -> str:
    """A folder whose `bin/python` is that program for any environment, as a virtual environment's is.

    What sets variables that are read at an import (OMP_NUM_THREADS, PYTHONPATH) finds them without effect."""
    folder = Path(python()).parent
    return str(folder) if (folder / "bin" / "python").exists() else sys.prefix


def killed_here(code: str) -> None:
    "Run `code` in a fork, which must print `here` and go on, and kill it (SIGKILL) as soon as it has."
    process = subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "here", "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def run(kind: str, what: str) -> None:
    "Run what `listen` returned, as an interpreter does."
    if kind == "-c":
        exec(
            compile(what, "<string>", "exec"),
            {"__name__": "__main__", "__builtins__": __builtins__},
        )
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(kind)
        runpy.run_path(kind, run_name="__main__")


def end(code: int) -> None:
    "What an interpreter does at its end, but for taking everything that is loaded apart: that takes seconds."
    with suppress(BaseException):
        threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> None:
    sys.path[0] = ""
    load()
    gc.freeze()
    kind, what = listen(sys.argv[1])
    code = 0
    try:
        run(kind, what)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if not isinstance(e.code, (int, type(None))):
            print(e.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    end(code)


if __name__ == "__main__":
    main()
