"""The chain of decision records in a real registry: kills, rivals and forgers."""
import json
import threading

import pytest

from content_arena.mlops import decisions
from content_arena.mlops.decisions import DecisionError, DecisionLog, differences_found
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.mlops.model_registry import ModelRegistry
from test_evaluator import ENGINES, TEST, Fake, learn, registry  # noqa: F401  (registry: fixture)
from test_model_registry import settings  # noqa: F401  (fixture)


@pytest.fixture
def compare(registry, settings):  # noqa: F811
    evaluator = ChampionChallengerEvaluator(registry, settings)
    return lambda **engines: evaluator.compare(TEST, engines=ENGINES | engines)


@pytest.fixture
def three(registry, settings, compare):  # noqa: F811
    "A log of three decisions: promote, reject, promote."
    log = DecisionLog(registry)
    log.record(compare(), code="c1")
    log.record(compare(challenger=Fake("2", 0.5)), code="c2")
    learn(settings, "3", ["b", "e"], ["a row of e"])
    log.record(compare(challenger=Fake("3", 0.9)), code="c3")
    return log


def stored(settings, suffix: str) -> list:  # noqa: F811
    return sorted(settings.path("artifact_dir").rglob(f"decisions/*.{suffix}"))


def test_an_honest_history(three, registry):  # noqa: F811
    assert three.verify() == 3
    assert three.list().verdict.tolist() == ["promote", "reject", "promote"]
    record = three.show(three.list().id[1])
    assert record["previous"]["id"].startswith(three.list().id[0]) and record["code"] == "c2"
    tags = {v.version: {k: t for k, t in v.tags.items() if k.startswith("decision.")}
            for v in registry.versions()}
    assert [len(tags[n]) for n in "123"] == [3, 2, 1]
    assert set(tags["3"].values()) == {"promote (as challenger)"}


def test_a_recorded_comparison_names_its_record(registry, compare):  # noqa: F811
    comparison = compare()
    recorded = DecisionLog(registry).record(comparison, code="c")
    assert comparison["decision"] == "" and len(recorded["decision"]) == 64
    assert {k: v for k, v in recorded.items() if k != "decision"} == \
        {k: v for k, v in comparison.items() if k != "decision"}


def test_a_record_from_before_a_check_existed_still_gives_its_verdict(compare):
    comparison = compare()
    old = comparison.to_dict()
    old["checks"] = [c for c in old["checks"] if c["name"] != "shadow"]
    del old["settings"]["shadow_guard"]
    assert differences_found(old, comparison.rows) == []
    old["checks"] = [c for c in old["checks"] if c["name"] != "significance"]
    assert ["significance" in d for d in differences_found(old, comparison.rows)] == [True]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_one_changed_byte_anywhere_is_noticed(three, settings, suffix):  # noqa: F811
    for file in stored(settings, suffix):
        good = file.read_bytes()
        for position in (0, len(good) // 3, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            file.write_bytes(bad)
            with pytest.raises(DecisionError, match=f"decision .*{file.stem[:12]}.* changed"):
                three.verify()
        file.write_bytes(good)
    assert three.verify() == 3


def test_a_missing_file_is_named(three, settings):  # noqa: F811
    file = stored(settings, "parquet")[0]
    file.unlink()
    with pytest.raises(DecisionError, match=f"{file.name} is missing in run"):
        three.verify()


def test_a_chain_that_was_cut_or_lost_is_noticed(three, registry):  # noqa: F811
    head = registry.notes("decisions.head")["decisions.head"]
    earlier = json.dumps(three._read(json.loads(head))["previous"])
    for forged in (earlier, ""):
        registry.note("decisions.head", lambda _: forged)
        with pytest.raises(DecisionError, match="not in the chain"):
            three.verify()
    registry.note("decisions.head", lambda _: head)
    assert three.verify() == 3


def test_a_verdict_that_the_rows_do_not_give_is_noticed(three, registry, settings):  # noqa: F811
    "A forger who rewrites the last record with a name that fits, and the tags too."
    link = three.head()
    record = three._read(link)
    rows = three._file(link, f"{link['id']}.parquet")
    record["comparison"]["settings"]["min_f1_gain"] = 0.5      # "that was the rule at the time"
    data = decisions.canonical_json(record)
    forged = {"id": decisions.sha256(data), "run_id": link["run_id"]}
    folder = next(f for f in stored(settings, "json") if f.stem == link["id"]).parent
    (folder / f"{forged['id']}.json").write_bytes(data)
    (folder / f"{forged['id']}.parquet").write_bytes(rows)
    registry.note("decisions.head", lambda _: json.dumps(forged))
    with pytest.raises(DecisionError, match="decision 3 .* as promote, but the rows give reject"):
        three.verify()


def test_death_before_the_head_moves_changes_nothing(three, compare, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    comparison = compare(challenger=Fake("3", 0.5))
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(ModelRegistry, "note", die)
        three.record(comparison, code="c")
    assert three.verify() == 3
    three.record(comparison, code="c")
    assert three.verify() == 4


def test_rivals_line_up_one_behind_the_other(registry, settings, compare):  # noqa: F811
    comparisons = [compare(challenger=Fake("2", right)) for right in (0.6, 0.7, 0.9)]
    barrier, failed = threading.Barrier(3), []

    def record(comparison):
        try:
            barrier.wait()
            DecisionLog(ModelRegistry(settings)).record(comparison, code="c")
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=record, args=(c,)) for c in comparisons]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert DecisionLog(registry).verify() == 3


def test_an_empty_history_is_sound(settings):  # noqa: F811
    log = DecisionLog(ModelRegistry(settings))
    assert log.verify() == 0 and log.list().empty
    with pytest.raises(DecisionError, match="0 decisions start with 'ab'"):
        log.show("ab")
