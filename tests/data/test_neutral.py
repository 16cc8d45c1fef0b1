"""Harmless sentences: what is trained on and what is measured on have nothing in common, and nobody trains on the second."""

import re

import pytest

from content_arena.core.config import load_settings
from content_arena.data.embedded_texts import LANGUAGES, read_texts
from content_arena.data.grouping import find_overlap, fingerprints
from content_arena.data.embedded_corpus import NEUTRAL, neutral_test, neutral_train
from content_arena.data.raw_files import DataError
from content_arena.data.readers import load_source
from content_arena.training.data_preparation import prepare_dataset


def test_what_is_measured_on_is_of_another_making():
    train, test = neutral_train(), neutral_test()
    assert len(test) >= 300 and test.text.is_unique and train.text.is_unique
    assert not test.label.any() and not train.label.any()
    assert {f"neutral_{k}" for k in NEUTRAL} == set(test.functionality) == set(train.functionality)
    near = find_overlap(fingerprints(test.text.tolist()), fingerprints(train.text.tolist()), 0.5)
    assert near.empty
    words = lambda text: tuple(re.sub(r"[^\w\s]", "", text.lower()).split())
    runs = {w[i : i + 6] for w in map(words, train.text) for i in range(len(w) - 5)}
    assert not [t for t in test.text if any(words(t)[i : i + 6] in runs for i in range(len(t)))]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_list_is_used_and_none_is_missing(lang):
    texts = read_texts(lang, "neutral")
    used = {
        s for lines in texts.templates.values() for x in lines for s in re.findall(r"{(\w+)}", x)
    }
    assert used == set(texts.slots) and set(texts.templates) == set(NEUTRAL)
    measured = read_texts(lang, "neutral_test")
    sentences = [s for lines in measured.templates.values() for s in lines]
    assert not measured.slots and not re.search(r"[{}<>]", "".join(sentences))


def test_neutral_is_a_source_for_training_only(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    settings = {"ini": tmp_path / "settings.ini", "env": {}, "max_train_rows": 0}
    plain = prepare_dataset(load_settings(**settings), progress=False)
    more = prepare_dataset(load_settings(train_sources="neutral", **settings), progress=False)
    for split in ("valid", "test"):
        assert more.frame(split).equals(plain.frame(split))
    added = more.frame("train")[more.frame("train").source == "neutral"]
    assert len(added) == more.manifest["train_only"]["kept"] > 1000 and not added.label.any()
    with pytest.raises(DataError, match="neutral_test.*unknown"):
        load_source("neutral_test", load_settings(**settings))
