"""A challenger that a comparison left undecided, and the labels that come in while it waits in the shadow."""

from datetime import timedelta
from functools import partial

import pytest
from comparisons import ENGINES, TEST, Fake
from stage import Notices

from content_arena.cli.watch import _auto
from content_arena.mlops.decisions import DecisionLog
from content_arena.mlops.deployer import ModelDeployer
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.monitoring.feedback import Feedback
from content_arena.monitoring.shadow_statistics import shadow_evidence
from content_arena.store.events import EventStore, text_sha256
from content_arena.workflows import waiting
from watch import free_port

pytestmark = pytest.mark.long(40)


class Evaluator(ChampionChallengerEvaluator):
    "Version 2 is a little better than version 1: enough for the rule, not against luck."

    def compare(self, test, **more):
        engines = {**ENGINES, "challenger": Fake("2", 0.822)}
        shadow = partial(shadow_evidence, self.settings)
        return super().compare(test, engines=engines, shadow=shadow, **more)


@pytest.fixture
def here(registry, tmp_path, monkeypatch):
    "Settings whose challenger was left undecided; what decides on it has the test set at hand."
    url = f"http://127.0.0.1:{free_port()}"
    more = {
        "store_url": f"sqlite:///{tmp_path}/events.db",
        "inference_url": url,
        "guarded_slices": (),
    }
    settings = registry.settings.model_copy(update=more)

    async def deploy(asked):
        evaluator = Evaluator(registry, asked)
        return await ModelDeployer(registry, asked, Notices(tmp_path), evaluator).deploy_if_better(
            TEST
        )

    monkeypatch.setattr(waiting, "evaluate_and_deploy", deploy)
    done = DecisionLog(registry).decide(Evaluator(registry, settings), TEST)
    assert done.verdict == "inconclusive", done.gate.headline
    return settings


def answered(store, since, right: str, n: int = 80, prefix: str = "") -> list[str]:
    "`n` comments after `since` of which only the model `right` made the right thing, and their texts' hashes."
    names = [text_sha256(f"{prefix}{right}{i}") for i in range(n)]
    toxic = {"champion": right == "champion", "challenger": right == "challenger"}
    about = [
        dict(time=since + timedelta(seconds=i), text_sha256=t, lang="ko", length=9)
        for i, t in enumerate(names)
    ]
    scores = {f"{role}_score": 0.5 for role in toxic} | {f"{r}_toxic": x for r, x in toxic.items()}
    versions = {"champion_version": "1", "challenger_version": "2"}
    store.add("shadow", [a | versions | scores for a in about])
    said = dict(
        toxic_score=0.5, is_toxic=toxic["champion"], model_version="1", model_alias="champion"
    )
    store.add("predictions", [a | said | {"id": f"{prefix}{i}"} for i, a in enumerate(about)])
    return names


def verdicts(log: DecisionLog) -> list[str]:
    "Of the comparisons; the first champion was made by hand."
    return [v for v in log.list().verdict if v != "by hand"]


def label(store, names) -> None:
    given = dict(label=1, source="moderator", reviewer="mo")
    store.add("feedback", [dict(text_sha256=t, **given) for t in names])


def test_labels_that_were_drawn_promote_it_at_the_next_look(here, registry):
    since, log = registry.get_challenger().created, DecisionLog(registry)
    with EventStore(here) as store:
        look = _auto(store, here).run_once
        assert look()["status"] == "idle" and verdicts(log) == ["inconclusive"]
        label(store, answered(store, since, "challenger", prefix="reported "))
        assert look()["status"] == "idle"  # who reports, reports what the champion got wrong
        day = since + timedelta(minutes=5), since + timedelta(hours=1)
        names = answered(store, day[0], "challenger", prefix="drawn ")
        assert len(Feedback(store, here).draw(60, since=day[0], until=day[1])) == 60
        label(store, names)
        result = look()
        later = look()
    assert (result["status"], result["start"]) == ("promoted", None), result
    assert result["decided_again"]["challenger"] == "2"
    assert "the gate says promote" in result["decided_again"]["since"]
    assert registry.get_champion().version == "2" and registry.get_challenger() is None
    assert later["status"] == "idle"
    assert verdicts(log) == ["inconclusive", "promote"]
    again = log.show(log.list().id.iloc[-1])["comparison"]
    assert again["test_set"]["budget"]["decision_number"] == 1  # the same pair on the same rows
    assert "drawn at random from the traffic" in " ".join(again["reasons"])
    assert (
        log.verify().moves == 2
    )  # each with the record that permits it, every verdict derived again


def test_labels_that_show_it_to_be_worse_reject_it_before_it_is_superseded(here, registry):
    with EventStore(here) as store:
        label(store, answered(store, registry.get_challenger().created, "champion"))
        auto, trained = _auto(store, here), []
        auto.learn = lambda situation: (here, {"labels": 80})
        auto.pipeline = lambda settings: (
            trained.append(registry.get_version("2").status)
            or {"status": "rejected", "model_version": "3"}
        )
        result = auto.run_once(force=True)
    assert (result["status"], result["model_version"]) == ("rejected", "3")
    assert result["decided_again"]["status"] == "rejected"
    assert trained == ["rejected"]  # and not "superseded", without having been asked again
    assert verdicts(DecisionLog(registry)) == ["inconclusive", "reject"]


def test_another_champion_is_a_reason_and_an_undecided_pair_is_asked_once(here, registry):
    found = waiting.WaitingChallenger(here, registry)
    assert found.reason() == ""
    registry.reject_challenger("by hand")
    assert found.reason() == "" and found.decide() is None
