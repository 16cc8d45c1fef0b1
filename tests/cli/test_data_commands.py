"""`content-arena data`: the answer has every row in it, for people and for programs, also when it is an error."""

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import arena

NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee Mia Ned Oda Pat Quy Ray Sue Tom".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONTENT_ARENA_")}
    state = {"VAR_DIR": tmp_path / "var", "SOURCES": f"csv:{tmp_path}/a.csv", "VALID_FRACTION": 0.2}
    return {**clean, **{f"CONTENT_ARENA_{k}": str(v) for k, v in state.items()}}


def write(path: Path, *more: str, toxic: str = "the fool") -> None:
    lines = [f"{who} made a lovely {what} today,0" for who in NAMES for what in THINGS]
    lines += [f"{who} {toxic} wants no {what},1" for who in NAMES for what in THINGS]
    path.write_text("\n".join(["text,label", *lines, *more]) + "\n")


def answer(environment, *arguments):
    code, out, err = arena(environment, *arguments, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def balance(part):
    return part["read"] - part["used"] - part["quarantined"] - part["duplicates"] - part["cut"]


@pytest.mark.slow
def test_prepare_says_what_became_of_every_row(environment, tmp_path):
    write(tmp_path / "a.csv", "no label", ",1", "Ann made a lovely soup TODAY,0")
    said = answer(environment, "data", "prepare", "-p", "max_train_rows=100")
    losses = said["losses"]
    assert (losses["read"], losses["quarantined"], losses["duplicates"]) == (403, 2, 1)
    assert losses["cut"] > 0 and balance(losses) == 0
    assert sum(said["rows"].values()) == losses["used"] and said["rows"]["train"] == 100
    source = f"csv:{tmp_path}/a.csv"
    assert list(losses["sources"]) == [source] and balance(losses["sources"][source]) == 0
    assert sum(losses["reasons"].values()) == 2
    assert len(Path(losses["quarantine_file"]).read_text().splitlines()) == 2
    assert "max_train_rows = 100 leaves out" in losses["warnings"][0]

    code, out, _ = arena(environment, "data", "prepare", "-p", "max_train_rows=100")
    assert code == 0 and said["dataset_id"][:16] in out
    assert re.search(r"403 read = \d+ used \+ 2 quarantined \+ 1 duplicates \+ \d+ cut", out)
    assert "warning: max_train_rows = 100 leaves out" in out and losses["quarantine_file"] in out


def test_too_many_lost_rows_are_an_error_with_a_way_out(environment, tmp_path):
    write(tmp_path / "a.csv", *["no label"] * 40)
    code, out, err = arena(environment, "data", "prepare", "--json")
    said = json.loads(out.splitlines()[-1])
    assert code == 1 and "Traceback" not in err and said["status"] == "error"
    assert "40 of 440 rows (9.1%) can't be used" in said["message"]
    file = re.search(r"in (\S+\.jsonl) with its line", said["message"])[1]
    assert len(Path(file).read_text().splitlines()) == 40
    setting = re.search(r"max_lost_fraction = [\d.]+", said["message"])[0].replace(" ", "")
    losses = answer(environment, "data", "prepare", "-p", setting)["losses"]
    assert losses["quarantined"] == 40 and balance(losses) == 0


def test_check_and_diff_by_the_beginning_of_an_id(environment, tmp_path):
    write(tmp_path / "a.csv")
    first = answer(environment, "data", "prepare")["dataset_id"]
    write(tmp_path / "a.csv", "Never seen before,0")
    checked = answer(environment, "data", "check")
    assert checked["status"] == "clear" and len(checked["checks"]) == 6
    assert answer(environment, "data", "check", first[:8])["dataset_id"] == first
    said = answer(environment, "data", "diff", first[:8], checked["dataset_id"][:8])
    assert said["rows"]["added"] == 1 and said["rows"]["removed"] == 0
    assert list(said["inputs"].values()) == ["changed"]
    code, out, _ = arena(environment, "data", "diff", first[:8], checked["dataset_id"][:8])
    assert code == 0 and "1 added, 0 removed" in out
    code, _, err = arena(environment, "data", "diff", first[:8], "zzzz")
    assert code == 1 and "no such data set" in err and first[:16] in err


def test_a_battle_on_a_file_says_what_the_file_lost(tmp_path):
    from content_arena.arena.battles.corpus import read_corpus
    from content_arena.core.config import load_settings
    from content_arena.data.lost_rows import noted_losses

    write(tmp_path / "a.csv", "no label")
    settings = load_settings(env={}, var_dir=str(tmp_path / "var"))
    read_corpus(f"csv:{tmp_path}/a.csv", settings)
    losses = noted_losses()[-1]
    assert (losses["read"], losses["used"], losses["quarantined"]) == (401, 400, 1)


def test_a_command_answers_only_for_what_it_prepared_itself(tmp_path):
    from content_arena.cli.main import app
    from content_arena.data.lost_rows import note_losses, noted_losses

    noted_losses()
    note_losses({"dataset_id": "of whoever imported the package"})
    done = CliRunner().invoke(app, ["settings", "--json", "-p", f"var_dir={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert "losses" not in json.loads(done.output) and noted_losses() == []
