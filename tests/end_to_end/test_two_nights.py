"""Two nights on a runner that forgets: each begins with a fresh clone, an empty disk and the URLs of what lasts."""

from pathlib import Path

import pytest
from nights import World, is_right, json_of, result_of

pytestmark = [pytest.mark.slow, pytest.mark.long(240), pytest.mark.needs("postgres")]


@pytest.fixture(scope="module")
def night_one(world: World) -> Path:
    "As a runner does it, with nothing loaded before."
    return world.first_night(ordinary=True)


def test_a_scheduled_run_does_not_make_the_first_champion(world: World):
    code, into = world.night()
    assert code == 3, world.said(into)
    assert "no champion" in world.said(into) and world.champion() is None
    assert result_of(into)["steps"][-1]["code"] is None  # no report to keep


def test_the_first_night_leaves_a_champion_that_is_served(world: World, night_one: Path):
    outputs = result_of(night_one)["outputs"]
    assert (outputs["status"], outputs["outcome"], outputs["model_version"]) == (
        *("bootstrapped", "done"),
        "1",
    )
    assert world.served()["model_version"] == "1"
    kept = {f.name for f in (night_one / "artifacts").rglob("*") if f.is_file()}
    assert {"03_evaluate.ipynb", "03_evaluate.html"} <= kept
    assert not any(name.endswith((".safetensors", ".pt", ".bin")) for name in kept)
    assert "✅ bootstrapped" in (night_one / "summary.md").read_text()
    assert outputs["report"].startswith(world.mlflow_door.url)


def test_the_second_night_beats_the_first_and_learns_what_was_labelled_since(second: World):
    champion = second.champion()
    code, into = second.night()
    is_right(second, into, code)
    outputs = result_of(into)["outputs"]
    assert (outputs["status"], outputs["model_version"]) == ("promoted", "2")
    [page] = (into / "clone" / "runs").glob("*/03_evaluate.html")
    assert champion.sha256[:12] in page.read_text(encoding="utf-8")
    assert second.registry.get_previous().sha256 == champion.sha256
    code, into = second.night()  # nothing is left to learn
    assert (code, json_of(second, into)["status"]) == (0, "idle"), second.said(into)


def test_without_a_gpu_the_gpu_profile_does_not_train(world: World):
    code, into = world.night(CONTENT_ARENA_PROFILE="gpu")
    assert code != 0 and result_of(into)["conclusion"] == "failure"
    assert not list((into / "clone").glob("runs/*"))
    [checked] = [s for s in result_of(into)["steps"] if s["name"].startswith("Is the GPU")]
    assert checked["code"]


def test_the_week_the_pages_and_the_notice_are_made_of_what_lasts(world: World, night_one: Path):
    "The other jobs that need no more than the URLs, each on an empty disk."
    world.restore()
    for workflow, job, page in (
        ("monitor.yaml", "monitor", "06_monitor.html"),
        ("pages.yaml", "build", "index.html"),
    ):
        code, into = world.rehearse(workflow, job, world.folder / job)
        assert code == 0, world.said(into)
        assert list((into / "artifacts").rglob(page)), world.said(into)
    code, into = world.rehearse(
        "train.yaml", "notify", world.folder / "notify", "--need=train=failure"
    )
    assert code == 0, world.said(into)
    assert "train failure" in world.slack.messages[-1]["text"]
