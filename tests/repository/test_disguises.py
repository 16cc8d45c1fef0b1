"""`scripts/disguises` without a training: what is disguised by what, what a threshold comes from, what is counted."""

import json
import os
import re
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from repository_files import ROOT
from warm import python

from content_arena.core.text import canonical
from content_arena.disguises.mix import layered

TEXTS = [
    "오늘 날씨가 참 좋네요",
    "이 바보야 정신 차려라",
    "내일 다시 만나서 얘기해요",
    "진짜 멍청이 같은 소리",
]


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("disguises_script", str(ROOT / "scripts/disguises"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script):
    texts = [f"{t} {i}" for i in range(20) for t in TEXTS]
    table = pd.DataFrame({"text": texts, "label": [0, 1, 0, 1] * 20, "role": "train"})
    for draw in range(script.DRAWS):
        made = [layered(t, script.korean_rules(), draw) for t in texts]
        table[f"variant{draw}"] = [v.text for v in made]
        table[f"rules{draw}"] = [",".join(v.rules) for v in made]
    return table


def test_every_family_for_korean_is_held_out_and_no_rule_is_in_two(script):
    families = script.families()
    rules = [r.name for f in families for r in script.korean_rules(f)]
    assert sorted(rules) == sorted({r.name for r in script.korean_rules()})
    for family in families:
        own = {r.name for r in script.korean_rules(family)}
        assert own and not own & {r.name for r in script.korean_rules(but=family)}


def test_training_sees_nothing_of_the_held_out_family(script, rows):
    for family in script.families():
        unseen = {r.name for r in script.korean_rules(family)}
        texts, which = script.disguised(rows, "train", family)
        assert 0.1 < which.mean() < script.SHARE["train"] + 0.2
        for text, masked, row in zip(texts, which, rows.itertuples()):
            if not masked:
                assert text == row.text
                continue
            used = [row.rules0, row.rules1][[row.variant0, row.variant1].index(text)]
            assert not unseen & set(used.split(","))


def test_a_stack_is_of_its_family_and_as_deep_as_asked(script):
    invisible = script.korean_rules("invisible")
    assert script.stacked(TEXTS[1], invisible, 0) == TEXTS[1]
    lengths = [len(script.stacked(TEXTS[1], invisible, depth)) for depth in script.DEPTHS]
    assert lengths == sorted(lengths) and lengths[4] > lengths[1] > lengths[0]
    assert canonical(script.stacked(TEXTS[1], invisible, 4)) == TEXTS[1]


def test_methods_of_others_are_stacked_and_each_changes_something(script):
    methods = {
        "never": lambda text, prob, seed: text,
        "double": lambda text, prob, seed: text + text[-1],
        "by chance": lambda text, prob, seed: text.replace("보", "뵤") if seed < prob else text,
    }
    made = [script.by_others(TEXTS[1], methods, depth) for depth in script.DEPTHS]
    assert made[0] == TEXTS[1] and len(set(made)) == 5
    assert made == [script.by_others(TEXTS[1], methods, depth) for depth in script.DEPTHS]
    assert script.by_others(TEXTS[1], {"never": methods["never"]}, 3) == TEXTS[1]


def test_without_konoise_it_says_how_to_get_it(script, tmp_path):
    with pytest.raises(SystemExit, match=f"pip install .*{tmp_path} konoise==") as said:
        script.konoise(tmp_path)
    assert "konoise" in str(said.value)


def test_the_threshold_is_that_of_validation_comments(script):
    scores = {"a": 0.1, "b": 0.2, "c": 0.7, "d": 0.9}
    asked = {"valid": (list("abcd"), np.array([0, 0, 1, 1]))}
    ways = []
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        own = asked | {"test": (list("abcd"), np.array(labels))}
        ways.append(script.judged(own, lambda ts: np.array([scores[t] for t in ts])))
    assert ways[0]["threshold"] == ways[1]["threshold"]
    assert (ways[0]["test"]["auc"], ways[1]["test"]["auc"]) == (1.0, 0.0)
    assert (ways[0]["test"]["detected"], ways[0]["test"]["flagged"]) == (2, 0)
    assert (ways[1]["test"]["detected"], ways[1]["test"]["flagged"]) == (0, 2)


def test_characters_restored_and_damaged_are_counted(script):
    counts = script.restored_share(
        ["바부야", "너너", "xyz"], ["바보여", "너너", "xy"], ["바보야", "너도", "xyw"]
    )
    assert counts == {"changed": 2, "restored": 1, "unchanged": 3, "damaged": 1}


def test_finished_parts_become_one_file_and_none_is_said_so(script, tmp_path: Path):
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [python(), str(ROOT / "scripts/disguises"), "--folder", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)

    none = run("report")
    assert none.returncode == 1 and "scripts/disguises all makes them" in none.stderr
    figures = {"toxic": 4, "detected": 3, "clean": 4, "flagged": 1, "auc": 0.8, "macro_f1": 0.7}
    reading = {f"test {d}": figures for d in script.DEPTHS} | {"ms": 0.5}
    part = {"family": "order", "readings": {"exact": reading}}
    (tmp_path / "rotation-order.json").write_text(json.dumps(part))
    done = run("report", "--write", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "detected 0.750 0.750 clean flagged 0.250 0.250" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["parts"] == {"rotation-order": part}
    assert written["recipe"]["families"] == script.families()


def test_the_benchmark_holds_no_comment():
    kept = json.loads((ROOT / "nbs/benchmarks/unseen_families.json").read_text())

    def strings(value):
        if isinstance(value, dict):
            return [s for v in value.values() for s in strings(v)]
        if isinstance(value, list):
            return [s for v in value for s in strings(v)]
        return [value] if isinstance(value, str) else []

    guards = {s for s in strings(kept) if s.startswith("of comments of which more than ")}
    assert all(s.isascii() and len(s) < 120 for s in set(strings(kept)) - guards)
    said = r"of comments of which [\w %,;.>()-]+: (kept|left out)"  # our own words and numbers
    assert guards and all(s.isascii() and re.fullmatch(said, s) for s in guards)
