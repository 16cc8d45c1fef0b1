"""What the pages of reports are made from: a run's files for every ending, a battle, a week, a training, long and short."""

import json
from pathlib import Path

import nbformat

from content_arena.reports.page import write_page
from content_arena.reports.summary import FACTS, Summary

METRICS = {"f1": 0.8, "precision": 0.8, "recall": 0.84, "accuracy": 0.8}

GAIN = {"champion": 0.8, "challenger": 0.795, "gain": -0.005, "needed": 0.01}


def comparison(verdict: str, champion: bool = True) -> dict:
    "A record as the evaluator leaves it, as far as pages read it."
    part = METRICS | {"false_positive_rate": 0.32}
    mixed = {"clean": part, "disguised": part | {"recall": 0.81, "false_positive_rate": 0.41}}
    for name, before, now in (("toxic_pairs", 210, 202), ("clean_pairs", 80, 103)):
        mixed[name] = {"comments": 250, "undisguised": before, "disguised": now}
    return {
        "verdict": verdict,
        "should_promote": verdict in ("promote", "bootstrap"),
        "champion": {"version": "1", **METRICS} if champion else None,
        "challenger": {"version": "2", **METRICS},
        "samples_evaluated": 1200,
        "test_set": {"toxic": 500},
        "counts": [400, 50, 30, 220, 80, 60, 20, 340],
        "settings": {"floor_f1": 0.7},
        "reasons": ["F1 0.8000 against 0.7900: +0.0100"],
        "checks": [{"name": "f1", "result": "fail", "condition": True, "numbers": GAIN}],
        "decision": "ab" * 32,
        "mix": {"champion": mixed if champion else None, "challenger": mixed},
        "slices": [
            {
                "column": "functionality",
                "value": "negated",
                "n": 40,
                "toxic": 0,
                "change": -0.1,
                "champion": {"accuracy": 0.4},
                "challenger": {"accuracy": 0.3},
            }
        ],
    }


def run_folder(folder: Path, values: dict, outputs: list, stage: str, language: str) -> Path:
    "A run's folder with `values` as its files and an executed notebook `stage`; its path."
    folder.mkdir()
    settings = {"profile": "", "values": {"report_language": language}}
    for name, value in ({"settings": settings} | values).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\n> Lead."),
        nbformat.v4.new_code_cell("secret_code()", outputs=outputs),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{stage}.ipynb")
    return folder / f"{stage}.ipynb"


#: outcome -> the files of a run that ended so
ENDINGS = {
    "bootstrapped": {
        "comparison": comparison("bootstrap", champion=False),
        "deployment": {"status": "bootstrapped"},
    },
    "promoted": {"comparison": comparison("promote"), "deployment": {"status": "promoted"}},
    "to_promote": {"comparison": comparison("promote")},
    "rejected": {"comparison": comparison("reject"), "deployment": {"status": "rejected"}},
    "floor": {"comparison": comparison("reject", champion=False)},
    "inconclusive": {"comparison": comparison("inconclusive")},
    "rolled_back": {
        "comparison": comparison("promote"),
        "deployment": {"status": "rolled_back", "reason": "the service serves 1"},
    },
    "busy": {
        "comparison": comparison("promote"),
        "deployment": {"status": "busy", "reason": "process 7 deploys"},
    },
    "no_challenger": {"deployment": {"status": "no_challenger"}, "run": {"status": "running"}},
    "refused": {
        "run": {
            "status": "failed",
            "failed": "03_evaluate",
            "reason": "cell 3 raised LineageError: 3 test rows were trained on",
        }
    },
    "failed": {
        "run": {
            "status": "failed",
            "failed": "03_evaluate",
            "profile": "cpu",
            "reason": "cell 3 raised MemoryError: 4 GB",
        }
    },
    "cancelled": {"run": {"status": "cancelled", "failed": "03_evaluate"}},
    "finished": {"run": {"status": "finished"}},
    "running": {"run": {"status": "running"}},
}
SERVING = {
    "version": "1",
    "since": "2026-11-12T09:00:00Z",
    "asked": "2026-11-29T10:00:00+00:00",
    "action": "promote",
    "replaces": "",
    "decision": "3fa9" * 16,
    "tested": {"caught": 0.84, "flagged": 0.32, "caught_disguised": 0.81, "flagged_disguised": 0.4},
}
RATES = {
    "detection_rate": 0.6,
    "recall_unattacked": 0.9,
    "false_positive_rate": 0.4,
    "false_positive_rate_unattacked": 0.3,
}
BATTLE = RATES | {
    "status": "completed",
    "by_rule": {"jamo": {"attacked": 30, "detection_rate": 0.1}},
}
EARLIER = {"model_version": "1", "created": "2026-11-01T08:00:00Z"} | RATES
WEEK = {
    "judged": 9000,
    "flagged": 0.2,
    "drifted": ["length"],
    "labelled": 120,
    "champion_f1": 0.8,
    "f1": 0.7,
    "low": 0.6,
    "high": 0.78,
    "precision": 0.8,
    "precision_low": 0.7,
    "precision_high": 0.9,
    "triggers": [{"name": "f1_drop", "state": "fired", "says": "F1 fell by 0.1"}],
}
TRAINING = {
    "f1": 0.8,
    "baseline": 0.7,
    "clean": 0.82,
    "disguised": 0.78,
    "gap": 3,
    "flagged": 0.2,
    "flagged_disguised": 0.3,
}
WORST = {
    "column": "functionality",
    "value": "insult_implicit",
    "rows": 40,
    "wrong": 24,
    "of": "clean",
    "example": "•" * 110,
}


def facts(ending: str) -> dict:
    "What is known of a run that ended so, as summaries read it."
    return dict.fromkeys(("id", *FACTS), {}) | ENDINGS[ending]


def flat(summary: Summary) -> str:
    "All that a summary says."
    return "\n".join(
        [summary.decision, summary.means, *summary.numbers, *summary.worst, summary.now]
        + [*summary.worse, *summary.since]
    )


def display(html: str = "", **more: str):
    "An output of a cell: HTML, or more by its kind."
    data = {"text/html": html} if html else {}
    return nbformat.v4.new_output("display_data", data=data | more)


def lost(record: dict) -> dict:
    "`record` with three kinds of comments and four shares that fell, and many reasons: the longest page there is."
    kinds = ("negated", "quoted_endorsed", "insult_implicit", "praise_sarcastic")
    slices = [record["slices"][0] | {"value": k} for k in kinds]
    return record | {"slices": slices, "reasons": ["F1 0.8 against 0.79: not enough"] * 8}


REPORTS = {
    "03_evaluate": {
        "comparison": lost(comparison("reject")),
        "worst": WORST,
        "deployment": {"status": "rejected"},
        "harmless": {"challenger": 20.0},
    },
    "02_train": {"training": TRAINING},
    "05_battle": {"fought": BATTLE, "earlier": EARLIER | {"detection_rate": 0.7}},
    "06_monitor": {"week": WEEK},
}


def written_pages(folder: Path, language: str, outputs: list) -> dict[str, Path]:
    "The page of each report and of each ending, by name, with `outputs` of its notebook; in `folder`, which is made."
    folder.mkdir()
    run, made = {"run": {"status": "finished", "started": "2026-01-31T02:00:00+00:00"}}, {}
    for name, values in {**REPORTS, **ENDINGS}.items():
        stage = name if name in REPORTS else "03_evaluate"
        known = {"serving": SERVING} | ({} if stage[:2] in ("05", "06") else run)
        known |= {k: v for k, v in values.items() if v}
        made[name] = write_page(run_folder(folder / name, known, outputs, stage, language))
    return made
