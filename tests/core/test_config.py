"""settings.ini and files of secrets as editors on several systems write them: read, or refused with line and reason."""

import re
from pathlib import Path

import pytest

from content_arena.core.config import SettingsError, load_secrets, load_settings

TEXT = "# 밤에 도는 설정\n[paths]\nvar_dir = 변수\n[data]\nsources = csv:댓글.csv, embedded\n[train]\nepochs = 3\n"


def written(folder: Path, raw: bytes | str) -> Path:
    file = folder / "settings.ini"
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return file


def refusal(folder: Path, raw: bytes | str, **more) -> str:
    file = written(folder, raw)
    with pytest.raises(SettingsError) as e:
        load_settings(ini=file, env={}, **more)
    message = str(e.value)
    assert str(file) in message and "\n" not in message, message
    return message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_write_is_read(tmp_path, encoding, end):
    text = TEXT.replace("\n", end)
    settings = load_settings(ini=written(tmp_path, text.encode(encoding)), env={})
    assert settings.var_dir == "변수"
    assert settings.sources == ("csv:댓글.csv", "embedded")
    assert settings.epochs == 3 and settings.origin("epochs") == "settings.ini [train]"


@pytest.mark.parametrize("encoding, line", [("cp949", 1), ("utf-16-le", 1), ("johab", 1)])
def test_a_code_page_is_refused_with_its_line(tmp_path, encoding, line):
    message = refusal(tmp_path, TEXT.encode(encoding))
    assert f"line {line} is no UTF-8" in message and "save the file as UTF-8" in message


def test_the_line_is_that_of_the_byte(tmp_path):
    plain = b"[train]\r\nseed = 1\r\n\r\n# "
    assert "line 4 is no UTF-8" in refusal(
        tmp_path, plain + "설정".encode("cp949") + b"\r\nepochs = 2"
    )
    assert "line 2 holds a NUL byte" in refusal(tmp_path, b"[train]\nseed = 1\0\n")


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("[paths]\nvar_dir = a\n  b", 3, "var_dir goes on"),
        ("[model]\nbase_model = a/\n\n # why\n  b\n", 5, "base_model goes on"),
        ("[train]\nseed = 1\n  epochs = 2", 3, "seed goes on"),
        ("[data]\nsources = a.csv\n  test_sources = b.csv", 3, "a key of its own"),
        ("[data]\nsources = embedded,\nbeep", 3, "'beep' is no [section] and no key = value"),
        ("[train]\nepochs", 2, "'epochs' is no [section]"),
        ("epochs = 3", 1, "before the first [section]"),
        ("[train]\nepochs = 3\n\nEPOCHS = 4", 4, "line 2"),
        ("[train]\nepochs = 3\n[model]\n[train]\nseed = 1", 4, "line 1"),
        ("[train]\nepochs = 3  # passes", 2, "line of its own"),
        ("[model]\nbase_model = mine ; not theirs", 2, "line of its own"),
        ("[DEFAULT]\nepochs = 3\n[train]\nseed = 1", 1, "unknown section"),
        ("[train]\nseed = 1\n[tarin]\nepochs = 3", 3, "did you mean 'train'"),
        ("[train]\nseed = 1\nepoch = 3", 3, "did you mean 'epochs'"),
        ("[train]\nseed = 1\nepochs = three", 3, "valid integer"),
        ("[train]\nseed = 1\nepochs = %(seed)s", 3, "valid integer"),
        ("[train]\nseed = 1\n[profile:mine]\nepochs = 0", 4, "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path, text, line, reason):
    profile = "mine" if "profile:mine" in text else None
    message = refusal(tmp_path, text, profile=profile)
    assert re.search(rf"\bline {line}\b", message) and reason in message, message


def test_a_percent_sign_and_a_hash_in_a_word_are_only_signs(tmp_path):
    text = "[paths]\nvar_dir = 50%/a#1;b\n[mlflow]\ntracking_uri = postgresql://h/db?x=%20y\n"
    settings = load_settings(ini=written(tmp_path, text), env={})
    assert settings.var_dir == "50%/a#1;b" and settings.tracking_uri.endswith("?x=%20y")


@pytest.mark.parametrize("text", ["a, b", "a,\n  b", "a\n  b", "a,\n # both\n\n\tb,", "\n  a\n  b"])
def test_a_list_may_go_on_indented(tmp_path, text):
    assert load_settings(ini=written(tmp_path, f"[data]\nsources = {text}\n"), env={}).sources == (
        "a",
        "b",
    )


@pytest.mark.parametrize("raw", ["tóken", "tóken\n", " tóken\r\n", "\ufefftóken\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_with_a_secret_is_read_as_editors_write_it(tmp_path, raw, encoding):
    file = tmp_path / "token"
    file.write_bytes(raw.removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding))
    token = load_secrets({"CONTENT_ARENA_API_TOKEN_FILE": str(file)}).api_token
    assert token.get_secret_value() == "tóken"


@pytest.mark.parametrize(
    "raw, reason",
    [
        (b"token\nof two lines", "several lines"),
        ("token".encode("utf-16-le"), "NUL"),
        ("비밀token".encode("cp949"), "line 1 is no UTF-8"),
        (b"tok\x07en", "control character"),
    ],
)
def test_a_file_with_no_secret_is_refused_and_not_quoted(tmp_path, raw, reason):
    file = tmp_path / "secret.txt"
    file.write_bytes(raw)
    with pytest.raises(SettingsError) as e:
        load_secrets({"CONTENT_ARENA_API_TOKEN_FILE": str(file)})
    assert reason in str(e.value) and "CONTENT_ARENA_API_TOKEN_FILE" in str(e.value)
    assert "tok" not in str(e.value).replace("API_TOKEN", "").replace(str(file), "")


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_file_with_a_secret_that_cannot_be_opened_is_named(tmp_path, name):
    with pytest.raises(SettingsError, match="CONTENT_ARENA_API_TOKEN_FILE"):
        load_secrets({"CONTENT_ARENA_API_TOKEN_FILE": str(tmp_path / name)})
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path / name))):
        load_settings(ini=tmp_path / name, env={})


RECIPE = """[data]
{own}
[profile:big]
sources = beep,curse
test_sources = apeach
train_sources = neutral
source_weights = curse=0.5
epochs = 5
"""


def test_the_recipe_of_a_profile_is_for_those_who_name_no_sources(tmp_path):
    "Nobody's comments are tested on the test set, or trained on beside the rows, that a profile names for others."
    file = written(tmp_path, RECIPE.format(own="valid_fraction = 0.2"))
    whole = load_settings("big", ini=file, env={})
    assert (whole.sources, whole.test_sources) == (("beep", "curse"), ("apeach",))
    assert (whole.train_sources, whole.source_weights) == (("neutral",), ("curse=0.5",))
    own = [
        load_settings("big", ini=file, env={}, sources="csv:own.csv"),
        load_settings("big", ini=file, env={"CONTENT_ARENA_SOURCES": "csv:own.csv"}),
        load_settings(
            "big", ini=written(tmp_path, RECIPE.format(own="sources = csv:own.csv")), env={}
        ),
    ]
    for s in own:
        assert (s.sources, s.test_sources) == (("csv:own.csv",), ())
        assert (s.train_sources, s.source_weights, s.epochs) == ((), (), 5)
    mixed = load_settings("big", ini=file, env={}, sources="beep", test_sources="apeach")
    assert (mixed.sources, mixed.test_sources) == (("beep",), ("apeach",))


@pytest.mark.parametrize("value", ["curse", "curse=-1", "curse=a", "curse=1,curse=2", "curse="])
def test_a_weight_that_is_none_is_refused(tmp_path, value):
    message = refusal(tmp_path, f"[train]\nsource_weights = {value}\n")
    assert "write SOURCE=WEIGHT" in message and "line 2" in message
