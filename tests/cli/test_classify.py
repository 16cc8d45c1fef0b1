"""`content-arena classify`: whatever a comment begins with, wherever comments come from, each has an answer."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

import content_arena.cli.classify as module
from content_arena.cli.main import app
from content_arena.testing.fakes import WordScorer


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    "No model has to be trained: 멍청이 is what it flags."
    monkeypatch.setattr(module, "_engine", lambda settings, alias: WordScorer(["멍청이"]))


def ask(*arguments, **more):
    return CliRunner().invoke(app, ["classify", *arguments], **more)


def results(*arguments, **more):
    done = ask("--json", *arguments, **more)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("text", ["-_-", "- 첫째", "---", "-1점"])
def test_a_comment_may_begin_with_a_dash(text):
    [answer] = results(text)["results"]
    assert answer["text"] == text and answer["is_toxic"] is False


def test_a_slip_in_an_option_is_no_comment_but_can_be_one():
    done = ask("--alais", "previous", "x")
    assert done.exit_code == 2 and "--alias" in done.output
    assert results("-pseed=1", "x")["read"] == 1  # the setting as one word is no comment either
    assert results("--", "--alais")["results"][0]["text"] == "--alais"


def test_lines_of_standard_input_are_answered_one_by_one():
    raw = "좋아요\r\n\r\n이 멍청이야\n".encode() + b"\xbb\xf3\n" + b"a\0b"
    value = results("-", input=raw)
    assert (value["read"], value["scored"], value["refused"]) == (4, 2, 2)
    assert [r["line"] for r in value["results"]] == [1, 3, 4, 5]
    assert [r["is_toxic"] for r in value["results"]] == [False, True, None, None]
    assert "unicode" in value["results"][2]["problem"] and "NUL" in value["results"][3]["problem"]


def test_a_file_of_any_form_gives_csv_or_json_lines(tmp_path):
    file = tmp_path / "댓글, 모음.csv"
    file.write_bytes("text;날짜\r\n좋아요;1\r\n;2\r\n이 멍청이야;3\r\n".encode("cp949"))
    done = ask("--file", str(file))
    assert done.exit_code == 0, (done.output, done.exception)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [r["is_toxic"] for r in rows] == ["0", "", "1"] and rows[1]["problem"]
    assert [r["line"] for r in rows] == ["2", "3", "4"]
    assert "3 read = 2 scored + 1 refused" in done.stderr
    out = tmp_path / "answers.jsonl"
    done = ask("--file", f"{file}?text=text", "--output", str(out))
    assert done.exit_code == 0, (done.output, done.exception)
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [a["is_toxic"] for a in answers] == [False, None, True]
    again = ask("--file", str(file), "--output", str(out))
    assert "is there already" in str(again.exception)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([""], "comment 1: String should have at least 1 character"),
        (["fine", "  "], "comment 2: the text is empty"),
        (["a\udcffb"], "comment 1: "),
        ([], "one of them"),
        (["-", "x"], "one of them"),
        (["x", "--file", "y.csv"], "one of them"),
    ],
)
def test_what_can_not_be_scored_is_said_before_a_model_is_loaded(arguments, said, monkeypatch):
    monkeypatch.setattr(module, "_engine", lambda *a: pytest.fail("a model was loaded"))
    done = ask(*arguments)
    assert done.exit_code != 0 and said in str(done.exception)


def test_the_service_says_the_same():
    from content_arena.core.config import load_settings
    from content_arena.serving.schemas import input_problem, request_models
    from pydantic import ValidationError

    settings = load_settings(env={})
    for text in ("", " ", "a\0b", "x" * 30_000):
        [said] = module.problems_of([text], settings)
        with pytest.raises(ValidationError) as e:
            request_models(settings)[0](text=text)
        assert said and said in str(input_problem(e.value.errors()).errors)
