"""The synthetic corpus holds for any seed what its notebook shows for one."""

import hashlib

import pandas as pd
import pytest

from content_arena.core.text import canonical, language, strip_invisible
from content_arena.data import embedded_texts
from content_arena.data.embedded_corpus import DISGUISES, FUNCTIONALITIES, embedded_corpus
from content_arena.data.grouping import group_rows
from content_arena.training import data_preparation


@pytest.fixture(scope="module", params=[0, 7])
def corpus(request) -> pd.DataFrame:
    return embedded_corpus(request.param)


def test_rows_are_many_distinct_and_balanced(corpus):
    assert len(corpus) >= 8000
    assert corpus.text.map(canonical).is_unique
    assert corpus.label.mean() == pytest.approx(0.5, abs=0.01)
    assert (corpus.lang == "ko").mean() == pytest.approx(0.6, abs=0.03)
    assert not corpus.isna().any(axis=None)


def test_every_functionality_has_one_label_and_enough_templates(corpus):
    assert len(FUNCTIONALITIES) >= 25
    for name, rows in corpus.groupby("functionality"):
        assert set(rows.label) == {FUNCTIONALITIES[name][0]}
        assert len(rows) >= 100 and rows.template.nunique() >= 10
    assert set(corpus.functionality) == set(FUNCTIONALITIES)
    # a template is of one functionality, except that all disguises share their carriers
    owners = (
        corpus[~corpus.functionality.isin(DISGUISES)].groupby("template").functionality.nunique()
    )
    assert (owners == 1).all()


def test_no_trace_of_the_notation_is_left(corpus):
    plain = corpus[~corpus.functionality.isin([*DISGUISES, "decorated_benign"])]
    assert not plain.text.str.contains(r"[<>{}|\x00-\x08]|\([이으가는를와야]|  ", regex=True).any()
    assert not plain.text.str.contains(r"\ba [aeio]", regex=True).any()


def test_text_is_clean_unicode_and_in_its_language(corpus):
    assert (corpus.text == corpus.text.str.strip()).all()
    hidden = corpus.text.map(strip_invisible) != corpus.text
    assert set(corpus.functionality[hidden]) <= {"disguise_zero_width", "decorated_benign"}
    plain = corpus[~corpus.functionality.isin([*DISGUISES, "decorated_benign"])]
    assert (plain.text.map(language) == plain.lang).all()


@pytest.mark.slow
def test_near_duplicates_do_not_chain_templates_together(corpus):
    groups = pd.Series(group_rows(corpus.text.tolist(), 0.8, corpus.template.tolist()))
    assert groups.value_counts(normalize=True).iloc[0] < 0.01
    assert groups.nunique() > 0.98 * corpus.template.nunique()


def test_a_seed_decides_everything():
    pd.testing.assert_frame_equal(embedded_corpus(3), embedded_corpus(3))
    same = set(embedded_corpus(3).text) & set(embedded_corpus(4).text)
    assert len(same) < 0.5 * len(embedded_corpus(4))


def test_the_rows_are_those_that_figures_were_reported_on():
    rows = embedded_corpus(0).to_json(orient="split", force_ascii=False)
    assert hashlib.sha256(rows.encode()).hexdigest()[:32] == "00f8f0e49ca8a69477f47b5e61aeae0e", (
        "whoever changes the texts on purpose changes this line, and measures again"
    )


@pytest.mark.parametrize("changed", embedded_texts.LANGUAGES)
def test_a_changed_sentence_is_another_recipe(changed, monkeypatch):
    before, honest = data_preparation._code_digest(), embedded_texts._content
    monkeypatch.setattr(
        embedded_texts,
        "_content",
        lambda lang: honest(lang).replace(b"[closers]\n", b"[closers]\n?!\n", lang == changed),
    )
    assert data_preparation._code_digest() != before
