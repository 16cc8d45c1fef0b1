"""Properties of the text views: total, deterministic, idempotent, and gentle to how people write Korean."""

import unicodedata

import pytest
from hypothesis import example, given, settings, strategies as st

from content_arena.core import text

# reproducible, and no deadline: the machine may be busy
settings.register_profile("text", deadline=None, derandomize=True)
settings.load_profile("text")

VIEWS = {
    name: getattr(text, name)
    for name in ("nfc", "nfkc", "strip_invisible", "compose_jamo", "canonical", "skeleton")
}
HANGUL = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
JAMO = st.characters(min_codepoint=0x3131, max_codepoint=0x3163)
CONJOINING = st.characters(min_codepoint=0x1100, max_codepoint=0x11FF)
ASCII = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
INVISIBLE = st.sampled_from(
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f\u3164\U000e0041\x00\x07\ud800\u2800"
)
# st.text() leaves out lone surrogates; comments don't
anything = st.text(
    st.one_of(
        st.sampled_from("ㄱㄳㅋㄸㅏㅠ가각"),
        st.characters(exclude_categories=()),
        HANGUL,
        JAMO,
        CONJOINING,
        INVISIBLE,
        ASCII,
    )
)
korean = st.text(st.one_of(HANGUL, st.sampled_from(" .,!?")))
plain = st.text(st.one_of(HANGUL, ASCII))


def typed(s: str) -> str:
    "Each Hangul syllable of `s` as the keyboard letters it is typed with."
    out = []
    for c in s:
        index = ord(c) - 0xAC00
        if not 0 <= index < 11172:
            out.append(c)
            continue
        lead, vowel, tail = index // 588, index // 28 % 21, index % 28
        out += ["ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"[lead], chr(0x314F + vowel)]
        out += ["ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"[tail - 1]] if tail else []
    return "".join(out)


@pytest.mark.parametrize("name", VIEWS)
@settings(max_examples=300)
@given(s=anything)
@example(s="\ud800\udc00\x00").via("surrogates that look like a pair, NUL")
@example(s="ㅋㅋㅠㅠ가ㄳ하ㅋ나").via("letters, clusters, loose tails")
def test_every_view_is_total_and_idempotent(name, s):
    once = VIEWS[name](s)
    assert isinstance(once, str)
    assert VIEWS[name](once) == once


@settings(max_examples=300)
@given(anything)
def test_keys_can_be_written_to_a_file(s):
    for view in (text.strip_invisible, text.canonical, text.skeleton, text.mask):
        view(s).encode("utf-8")
    assert text.canonical(s) == " ".join(text.canonical(s).split())


@given(anything)
def test_views_are_the_functions_they_name(s):
    views = text.views(s)
    assert views["raw"] == s
    assert views["visible"] == text.strip_invisible(s)
    assert {k: views[k] for k in ("nfc", "nfkc", "canonical", "skeleton")} == {
        k: VIEWS[k](s) for k in ("nfc", "nfkc", "canonical", "skeleton")
    }


@given(korean)
def test_decomposed_hangul_comes_back_exactly(s):
    assert text.compose_jamo(unicodedata.normalize("NFD", s)) == s
    assert text.compose_jamo(typed(s)) == s
    assert text.canonical(typed(s)) == text.canonical(s)
    assert text.decompose_jamo(s) == typed(s)


@given(korean, st.data())
def test_invisible_characters_change_no_key(s, data):
    for _ in range(3):
        at = data.draw(st.integers(0, len(s)))
        dirty = s[:at] + data.draw(INVISIBLE) + s[at:]
        assert text.canonical(dirty) == text.canonical(s)
        assert text.mask(dirty) == text.mask(s)


@given(
    korean,
    st.sampled_from(["ㅋ", "ㅎ", "ㅠ", "ㅜ", "ㅇ", "ㄷ"]),
    st.integers(2, 8),
    st.sampled_from(["ㅠㅠ", "ㅜㅜ", "", "!"]),
)
@example("하", "ㅋ", 3, "ㅠㅠ")
def test_laughter_and_tears_survive(s, letter, n, tail):
    written = s + letter * n + tail
    assert text.compose_jamo(written) == written
    assert letter * n in text.canonical(written)
    assert letter * n in text.skeleton(written)


@pytest.mark.parametrize(
    "s",
    ["ㅋㅋㅋ", "ㅠㅠ", "ㅋㅋㅠ", "ㅇㅋ", "ㄱㅅ", "ㄴㄴ", "ㅊㅋㅊㅋ", "아ㅋ진짜", "앗ㅎ넵", "오ㅏ"],
)
def test_letters_used_as_letters_stay(s):
    assert text.compose_jamo(s) == text.canonical(s) == s


@pytest.mark.parametrize(
    "spelt, meant",
    [
        ("ㅂㅏㅂㅗ", "바보"),
        ("바ㅂㅗ", "바보"),
        ("ㅂㅏ보", "바보"),
        ("머ㅇ청이", "멍청이"),
        ("ㅁㅓㅇ청ㅇㅣ", "멍청이"),
        ("ㅎㅏㅋㅋㅋ", "하ㅋㅋㅋ"),
        ("\uffb2\uffc2\uffb2\uffcc", "바보"),
        ("\u1107\u1161\u1107\u1169", "바보"),
    ],
)
def test_spelt_out_words_are_read(spelt, meant):
    assert text.compose_jamo(spelt) == meant


@given(plain)
def test_plain_korean_and_english_are_their_own_skeleton(s):
    assert text.skeleton(s) == text.canonical(s)
    assert len({text.language(v) for v in text.views(s).values()}) == 1


@given(korean.filter(lambda s: any("가" <= c <= "힣" for c in s)), INVISIBLE)
def test_korean_stays_korean_however_it_is_spelt(s, invisible):
    for spelling in (s, unicodedata.normalize("NFD", s), typed(s), invisible.join(s), s + " ok"):
        assert text.language(spelling) == "ko"


@given(anything)
def test_language_is_one_of_three(s):
    # either of its three answers, whatever the text
    assert text.language(s) in {"ko", "en", "other"}
    assert text.language(s) == text.language(text.strip_invisible(s))


@pytest.mark.parametrize(
    "disguised", ["іdіоt", "ｉｄｉｏｔ", "𝐢𝐝𝐢𝐨𝐭", "ⅰԁⅰоt", "i\u200bdiot", "ІDІОT"]
)
def test_look_alikes_share_a_skeleton(disguised):
    assert text.skeleton(disguised) == "idiot"
    assert text.mask(disguised)[1:] == "••••"


def test_skeleton_never_stands_in_for_the_canonical_view():
    assert text.canonical("іdіоt") != text.canonical("idiot")
    assert text.canonical("Привет") == "привет"


@given(st.text(st.one_of(HANGUL, st.sampled_from("abcdef ,.")), min_size=1))
def test_mask_keeps_shape_and_no_word(s):
    masked = text.mask(s)
    assert len(masked) == len(s)
    for word, shown in zip(s.split(), masked.split(), strict=True):
        assert shown[1:] == "•" * (len(word) - 1)
        assert shown[0] == (word[0] if len(word) > 1 else "•")


def test_a_megabyte_is_no_problem():
    big = "ㅋ" * 300_000 + "바\u200b보 " * 200_000
    assert text.canonical(big).startswith("ㅋㅋㅋ")
    assert len(text.mask(big)) == 900_000
