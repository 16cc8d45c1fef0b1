"""Nights whose machine is lost or taken away, on a runner that forgets: the next night is right.

Every one begins where the first night ended: MLflow's and the store's rows of that moment are put back. Of the ten power
cuts one is always run; the others (marked `nights`) are run by `scripts/two-nights`.
"""

import os
import signal

import pytest
from nights import API, World, call, is_right, reached, result_of, switch_off

pytestmark = [pytest.mark.slow, pytest.mark.long(300), pytest.mark.needs("postgres")]

#: where night 2 is when its machine loses power: the door, the call that is held there, whether it is carried out, and
#: whether the champion is another one by then
CUTS = {
    "begun": ("mlflow", call(f"POST {API}/runs/create"), True, False),
    "trains": ("mlflow", call(f"POST {API}/runs/log-batch", "train_loss"), False, False),
    "trained": ("mlflow", call(f"POST {API}/logged-models"), True, False),
    "registers": ("mlflow", call(f"POST {API}/model-versions/create"), True, False),
    "challenges": (
        "mlflow",
        call(f"POST {API}/registered-models/alias", "challenger"),
        True,
        False,
    ),
    "decided": (
        "mlflow",
        call(f"POST {API}/registered-models/set-tag", "decisions.head"),
        True,
        False,
    ),
    "promotes": ("mlflow", call(f"POST {API}/registered-models/alias", '"champion"'), False, False),
    "promoted": ("mlflow", call(f"POST {API}/registered-models/alias", '"champion"'), True, True),
    "reloads": ("service", call("POST /reload"), False, True),
    "verifies": ("service", call("GET /ready"), True, True),
}


@pytest.mark.parametrize(
    "at", [pytest.param(k, marks=[] if k == "promoted" else pytest.mark.nights) for k in CUTS]
)
def test_whenever_night_two_loses_its_machine_night_three_is_right(second: World, at: str):
    door, meant, after, moved = CUTS[at]
    doors = {"mlflow": second.mlflow_door, "service": second.service_door}
    stop = doors[door].stop_at(meant, after)
    before = second.champion().sha256
    process, _ = second.night(wait=False)
    reached(stop, process)
    switch_off(process, stop)
    for each in doors.values():
        each.open()
    left = second.champion().sha256
    assert (left != before) == moved
    assert second.served()["model_version"] == ("2" if at == "verifies" else "1")
    code, into = second.night()
    is_right(second, into, code, left if moved else "")
    assert "begun from zero" in second.said(into)
    told = [title for title in second.slack.titles() if "New champion" in title]
    assert len(told) == 1, second.slack.titles()


def test_of_two_runners_one_trains_and_the_other_says_who(second: World):
    """Then the one that trains is cancelled: its report is kept, people hear of it, and the next night is right."""
    stop = second.mlflow_door.stop_at(call(f"POST {API}/runs/log-batch", "train_loss"))
    process, into = second.night(wait=False)
    reached(stop, process)
    code, other = second.night()
    assert code == 4, second.said(other)
    assert result_of(other)["outputs"]["outcome"] == "busy"
    assert "somebody trains" in second.said(other) and os.uname().nodename in second.said(other)
    process.send_signal(signal.SIGINT)
    code = process.wait(300)
    assert code == 130, second.said(into)
    assert result_of(into)["outputs"]["outcome"] == "interrupted"
    kept = {f.name for f in (into / "artifacts").rglob("*") if f.is_file()}
    assert "02_train.ipynb" in kept
    assert any("stopped from outside" in title for title in second.slack.titles())
    second.mlflow_door.open()
    code, into = second.night()
    is_right(second, into, code)


def test_a_re_run_on_a_runner_that_was_kept_goes_on_with_the_night(second: World):
    stop = second.mlflow_door.stop_at(call(f"POST {API}/model-versions/create"))
    process, into = second.night(wait=False)
    reached(stop, process)
    switch_off(process, stop)
    second.mlflow_door.open()
    code, into = second.night("--attempt", "2", again=into)
    is_right(second, into, code)
    again = second.said(into).split("== Learn")[2]
    assert "going on with" in again and "02_train: done before" in again
