"""What tests start as a fork of a warm Python ends, prints and is signalled as an ordinary Python is."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from clients import until
from warm import python

SLEEP = """
import sys, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt: sys.exit(7)
"""


def ended(program: str, code: str, **more) -> tuple[int, str, str]:
    "Exit code, stdout and the last line of stderr."
    done = subprocess.run([program, "-c", code, "a", "b"], capture_output=True, text=True, **more)
    return done.returncode, done.stdout, done.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(
    "code",
    [
        "import sys, os; print(sys.argv, os.getcwd(), sys.stdin.read())",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('it does not work')",
        "1 / 0",
        "import atexit; atexit.register(print, 'at the end')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; print(os.environ['CONTENT_ARENA_SEED'], os.environ.get('CONTENT_ARENA_PORT'))",
        "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(5)']))",
    ],
)
def test_a_fork_is_seen_as_an_ordinary_process(code: str, tmp_path):
    env = os.environ | {"CONTENT_ARENA_SEED": "7"}
    warm, ordinary = (
        ended(p, code, cwd=tmp_path, input="said", env=env) for p in (python(), sys.executable)
    )
    assert warm == ordinary


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 7), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_reaches_the_fork(number: int, code: int):
    with subprocess.Popen([python(), "-c", SLEEP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == code


def test_a_fork_dies_with_the_program_that_stands_for_it():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        assert number != process.pid  # it is a fork
        process.kill()
        assert process.stdout.read() == ""  # ends when the fork, which has it open, does
    until(lambda: not psutil.pid_exists(number))


def test_what_was_loaded_is_loaded_in_a_fork_and_another_environment_gets_an_ordinary_python():
    code = "import sys; print('torch' in sys.modules)"
    assert ended(python(), code)[1] == "True\n"
    assert ended(python(), code, env=os.environ | {"HF_HOME": "elsewhere"})[1] == "False\n"


def test_what_every_command_sets_does_not_make_its_kernels_ordinary():
    "Each of them would load the libraries anew: of a whole run of the tests that was half."
    code = "import sys; print('torch' in sys.modules)"
    prepare = "from content_arena.core.config import quiet_libraries, spare_loopback, wait_briefly"
    inner = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {code!r}]))"
    )
    calls = "quiet_libraries(), spare_loopback(), wait_briefly()"
    assert "True" in ended(python(), f"{prepare}; {calls}; {inner}")[1]
    spinning = os.environ | {"GOMP_SPINCOUNT": "7"}
    assert ended(python(), code, env=spinning)[1] == "False\n"
