"""A training beside busy processes: its threads may not burn the processors while they wait for one another."""

import json
import os
import subprocess
import sys

import pytest

STEPS = """
import json, os, subprocess, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from content_arena.core.config import wait_briefly
wait_briefly()
import torch
from torch import nn

torch.set_num_threads(2)
a, w, b = (nn.Parameter(torch.randn(*s) / 20) for s in ((384, 16), (384, 384), (16, 384)))
x = torch.randn(512, 384)

def step():
    h = x
    for _ in range(6):
        h = nn.functional.layer_norm(h + nn.functional.gelu(h @ w + h @ a @ b), (384,))
    h.sum().backward()

neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
try:
    step()
    began, spent, steps = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < 3:
        step()
        steps += 1
    print(json.dumps({"cpu": (time.process_time() - spent) / steps}))
finally:
    for n in neighbours:
        n.kill()
"""


def processor_time(**env: str) -> float:
    "Processor seconds that a step takes beside two busy processes on the same two processors."
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env={**ours, **env}, capture_output=True, check=True
    )
    return json.loads(done.stdout)["cpu"]


@pytest.mark.slow
def test_a_neighbour_does_not_make_a_step_several_times_as_dear():
    spinning = processor_time(GOMP_SPINCOUNT="300000")  # the library's own number
    assert processor_time() < spinning / 1.5, "threads spin as long as they did before"


def test_the_command_says_it_before_torch_is_loaded_unless_somebody_else_did():
    code = (
        "import os, sys; from content_arena.cli.main import main; sys.argv[1:] = ['--help']\n"
        "try: main()\n"
        "finally: sys.stderr.write(os.environ['GOMP_SPINCOUNT'] + ' torch' * ('torch' in sys.modules))"
    )
    for given, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **given}, capture_output=True, text=True
        )
        assert done.stderr.strip() == expected
