"""What records and checks say in English is said in Korean on a Korean page: each sentence is made as the code makes it."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from report_pages import ENDINGS, comparison, run_folder

from content_arena.arena.attackers.normaliser import aimed_sentence
from content_arena.core.config import load_settings
from content_arena.data.lost_rows import losses_of
from content_arena.mlops.cascade_evidence import cascade_sentence
from content_arena.mlops.evaluator import BATTLE, SIDE, evidence_record
from content_arena.mlops.gate import Evidence, budget_statement
from content_arena.mlops.lineage import Certificate
from content_arena.mlops.mixed_evidence import flagged_sentence
from content_arena.reports.battle import battle_summary
from content_arena.reports.certified import certified_sentence
from content_arena.reports.evaluation import (
    dataset_summary,
    deployment_summary,
    evidence_lines,
    how_to_roll_back,
    manifest_tables,
    mix_sentence,
    training_summary,
)
from content_arena.reports.page import notebook_page
from content_arena.reports.phrases import in_language, is_english, prose_in
from content_arena.reports.source_shift import shift_sentences
from content_arena.reports.tables import Table, dressed, table_html
from content_arena.reports.texts import phrase_table
from content_arena.training.data_preparation import SYNTHETIC
from content_arena.training.two_readers import read_twice

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "nbs" / "pipelines").glob("*.ipynb"))


def template(node: ast.AST) -> str:
    "A string that code makes, with 7 where something is put in."
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(v) for v in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "7"


def own_sentences(notebook: Path) -> list[str]:
    "What the cells of a notebook hand to `Markdown` as a text of their own."
    made = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and "Markdown(" in cell.source:
            code = re.sub(r"^%.*$", "", cell.source, flags=re.M).replace("await ", "")
            calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
            made += [template(c.args[0]) for c in calls if getattr(c.func, "id", "") == "Markdown"]
    return [m for m in made if re.search("[A-Za-z]{2} [a-z]", m)]


@pytest.mark.parametrize("notebook", PIPELINES, ids=lambda p: p.stem)
def test_every_sentence_of_a_pipeline_notebook_is_known(notebook):
    unknown = [s for s in own_sentences(notebook) if prose_in(s, "ko") is None]
    assert unknown == []


def test_the_notebooks_have_sentences_to_look_for():
    assert sum(len(own_sentences(p)) for p in PIPELINES) > 12


@pytest.mark.parametrize("english", phrase_table("ko"))
def test_a_phrase_is_said_with_what_stood_in_its_places(english):
    names = re.findall(r"{(\w+)}", english)
    assert sorted(names) == sorted(re.findall(r"{(\w+)}", phrase_table("ko")[english]))
    said = in_language(re.sub(r"{\w+}", "7", english), "ko")
    assert said and not is_english(said) and said.count("7") >= len(names)


def manifest() -> dict:
    counts = {
        s: {"rows": 100, "toxic_share": 0.5, "label": {"0": 50, "1": 50}}
        for s in ("train", "valid", "test")
    }
    rows = {"read": 400, "train": 100, "valid": 100, "test": 100, "capped": 90, "quarantined": 8}
    return {
        "id": "ab" * 32,
        "rows": rows | {"duplicates_removed": 2},
        "counts": counts,
        "notes": [SYNTHETIC],
        "groups": {"count": 9, "largest": 3},
        "quarantine": {"empty text": 8},
        "recipe": {"max_train_rows": 100},
        "licences": {"embedded": "Apache-2.0"},
    }


def trained(**metrics: float) -> SimpleNamespace:
    known = {"valid_f1": 0.8, "threshold": 0.4, "temperature": 1.1, "best_step": 50}
    params = {"base_model": "e5-small", "quantization": "nf4", "lora_r": "16", "epochs": "2"}
    data = SimpleNamespace(
        metrics=known | metrics, params=params | {"rows": "3000", "baseline_valid_f1": "0.7"}
    )
    return SimpleNamespace(data=data, info=SimpleNamespace(run_id="7ce07d58"))


def records() -> dict[str, str]:
    "Markdown that pages show of a record, by what it is about, made by the code that makes it."
    share = {"auc": 0.9, "detection_rate": 0.8, "false_positive_rate": 0.3, "attacked": 500}
    side = dict.fromkeys(SIDE, 0.5) | share
    fought = dict.fromkeys(BATTLE, 0.5) | {"sha256": "0f" * 32, "toxic": 503, "clean": 497}
    whole = evidence_record(1200, None, fought | {"champion": side, "challenger": side}, 600)
    first = evidence_record(1200, None, None)
    record = comparison("promote") | {"evidence": whole}
    start = comparison("bootstrap", champion=False) | {"evidence": first}
    pairs = {"comments": 250, "undisguised": 80, "disguised": 103}
    pairs["intervals"] = {"undisguised": [0.27, 0.38], "disguised": [0.35, 0.47]}
    recipe = {"depth": 2, "rules": ["a", "b"], "intensity": 0.5, "seed": 0, "id": "ab" * 32}
    mix = {"mix": {"disguised": 600, "recipe": recipe}, "samples_evaluated": 1200}
    early = {"early": 300, "rows": 1200, "share": 0.25, "flips": 3, "f1": 0.8, "precision": 0.8}
    proven = {"exact": True, "toxic": 500, "share": 0.5, "interval": [0.4, 0.6], "flagged": 400}
    proven |= {"certified": 250, "by_rule": {"spacing": 300, "jamo": 260}}
    drop = {"source left out": ["a", "b"], "macro-F1": [0.7, 0.8], "best macro-F1": [0.75, 0.82]}
    battle = {"intervals": {}, "attacked": 300, "clean_attacked": 200, "status": "completed"}
    for name in ("detection_rate", "recall_unattacked", "false_positive_rate"):
        battle |= {name: 0.6, f"{name}_unattacked": 0.3}
        battle["intervals"] |= {name: [0.5, 0.7], f"{name}_unattacked": [0.2, 0.4]}
    battle |= {"model_version": "1", "strategy": "mixed", "seed": 0, "corpus": {"name": "valid"}}
    battle |= {"invalid_share": 0.1, "id": "ab12", "rounds": 300, "rounds_done": 200}
    aim = {"tried": 90, "hits": 4, "interval": [0.01, 0.1], "by_normaliser": 2}
    parts = {
        "best_valid_f1": 0.8,
        "best_valid_clean_f1": 0.82,
        "best_valid_disguised_f1": 0.78,
        "best_valid_false_positive_gap": 0.03,
        "threshold_ko": 0.4,
    }
    settings = load_settings(env={})
    budget = lambda *counts: budget_statement(Evidence(counts, decision_number=2), settings)
    return {
        "data": dataset_summary(manifest()),
        "training": training_summary(trained()),
        "training, in parts": training_summary(trained(**parts)),
        "shift": shift_sentences(pd.DataFrame(drop)),
        "no shift": shift_sentences(pd.DataFrame()),
        "mix": mix_sentence(mix),
        "no mix": mix_sentence({}),
        "flagged": f"**{flagged_sentence('Version 2, which is not served,', pairs)}**",
        "cascade": cascade_sentence(early | {"without": early, "p_low": 0.3, "p_high": 0.7}),
        "certified": certified_sentence(proven, "Version 2"),
        "not certified": certified_sentence(proven | {"exact": False}, "Version 2"),
        "lineage": Certificate(1200, {"a": 5}, {"1": ["a"], "2": ["a"]}, 0.8, 0, ()).sentence,
        "evidence": evidence_lines(record),
        "no evidence": evidence_lines(start),
        "budget": "> " + budget(400, 50, 30, 220, 80, 60, 20, 340)["sentence"],
        "no difference": "> " + budget(400, 0, 0, 220, 80, 0, 0, 340)["sentence"],
        "back": how_to_roll_back(record),
        "back, rejected": how_to_roll_back(comparison("reject")),
        "back, first": how_to_roll_back(start),
        "battle": battle_summary(battle),
        "battle that stopped": battle_summary(battle | {"status": "stopped"}),
        "aimed": aimed_sentence({"worse": aim, "toxic": aim}),
        "deployed": deployment_summary(
            {"status": "promoted", "model_version": "2", "comparison": record}, "ko"
        ),
    }


def guards() -> dict[str, str]:
    "Why a version has a guard of novelty or not, by how often the network is wrong about new rows."
    words, odd = (["kind", "lovely"], ["idiot", "moron"]), "qzxjv"
    label = np.arange(200) // 5 % 2  # of each fifth row the text is new
    text = [f"{words[y][i % 2] if i % 5 else odd} {i % 7}" for i, y in enumerate(label)]
    valid = pd.DataFrame({"text": text, "label": label})
    train = valid[valid.text.str.contains(odd) == 0]
    right = 2.0 * label - 1
    wrong = np.where(np.arange(200) % 5, right, 3.0)
    asked = {
        "kept": (train, valid, wrong),
        "left out": (train, valid, right * (1 + 8 * (wrong == 3))),
    }
    asked |= {"few": (train, valid[:30], wrong[:30]), "nothing new": (valid, valid, right)}
    twice = lambda a, b, odds: read_twice(a, b, np.stack([0 * odds, odds], 1), "on", guard="auto")
    return {k: twice(*v).spec["guard"] for k, v in asked.items()}


def test_why_there_is_a_guard_is_said_in_korean():
    reasons = guards()
    assert len({re.sub(r"[0-9.%]+", "7", r) for r in reasons.values()}) == 4, reasons
    for reason in reasons.values():
        said = prose_in(f"Guard of novelty there: {reason}.", "ko")
        assert said is not None and not is_english(said), reason


def test_records_are_said_in_korean():
    for name, text in records().items():
        said = prose_in(text, "ko")
        assert said is not None and not is_english(said), (name, text)


def test_a_korean_page_of_records_has_no_english_sentence_and_nothing_folded(tmp_path):
    losses = losses_of(manifest())
    cells = [f"> **Warning.** {w}" for w in losses["warnings"]]
    tables = [Table(t) for t in manifest_tables(manifest()).values()]
    rows = [("labels", "look", "28 of 5,778 rows have a label that a model of the others doubts")]
    tables.append(Table(pd.DataFrame(rows, columns=["check", "", "says"])))
    shown = [{"text/markdown": t} for t in [*records().values(), *cells]]
    shown += [{"text/html": table_html(t)} for t in tables]
    outputs = [nbformat.v4.new_output("display_data", data=d) for d in shown]
    known = {k: v for k, v in ENDINGS["rejected"].items() if v} | {"losses": losses}
    for stage in ("01_prepare", "03_evaluate"):
        notebook = run_folder(tmp_path / stage, known, outputs, stage, "ko")
        soup = BeautifulSoup(notebook_page(notebook), "html.parser")
        assert soup(lang="en") == []
        for part in soup(["code", "pre", "head"]):
            part.decompose()
        left = [t for t in soup.stripped_strings if is_english(t)]
        assert left == [], left


def test_what_is_not_known_stays_whole_and_is_marked_as_english():
    known = "No automatic run."
    assert prose_in(f"{known} Somebody said this to me.", "ko") is None
    cell = Table(pd.DataFrame({"says": ["somebody said this to me"]}), index=False)
    assert 'lang="en"' in dressed(table_html(cell), "ko")
    assert 'lang="en"' not in dressed(table_html(cell), "en")


def test_words_of_a_column_are_said_and_a_comment_is_not():
    frame = pd.DataFrame({"label": ["clean", "toxic"], "comment": ["test", "some other text"]})
    shown = dressed(table_html(Table(frame, index=False)), "ko")
    assert "정상" in shown and "유해" in shown and "some other text" in shown
    assert ">test<" in shown
