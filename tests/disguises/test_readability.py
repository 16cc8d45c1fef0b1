"""Attack rules before a judge that none of them has written (`readability`)."""

import random
import unicodedata

import pytest

from content_arena.disguises.families import RULES
from content_arena.disguises.rules import Rule
from content_arena.disguises.targets import lexicon_spans
from content_arena.disguises.validity import invalid
from content_arena.core.text import language
from content_arena.data.embedded_corpus import embedded_corpus
from readability import BOUNDS, UNJUDGED, Distance, distance, letters, unread

N = 24  # comments for each rule and language


@pytest.fixture(scope="module")
def comments() -> dict[str, list[str]]:
    texts = embedded_corpus().sample(frac=1, random_state=5).text.tolist()
    return {lang: [t for t in texts if language(t) == lang] for lang in ("ko", "en")}


@pytest.fixture(scope="module")
def judged(comments) -> dict[str, list[tuple[Distance | None, str, str]]]:
    "Rule -> (distance or None, comment, variant): the first comments that it changes, all it may."
    by_class = {}
    for name, rule in RULES.items():
        rows = by_class[name] = []
        for lang in ("ko", "en") if rule.lang == "any" else (rule.lang,):
            made = ((t, v) for t in comments[lang] if (v := rule(t, 1.0, seed=7)) != t)
            for (text, variant), _ in zip(made, range(N)):
                read = not unread(variant) - unread(text)
                rows.append((distance(text, variant) if read else None, text, variant))
    return by_class


def outside(name: str, rows) -> list[str]:
    bound = BOUNDS[RULES[name].linguistic_class]
    return [
        f"{name}: {d}, allowed {bound}: {text} -> {variant}"
        for d, text, variant in rows
        if d is None or not d.within(bound)
    ]


def test_variants_lie_within_the_bound_of_their_class_or_the_rule_is_listed(judged):
    assert min(map(len, judged.values())) >= N // 2, {k: len(v) for k, v in judged.items()}
    assert set(BOUNDS) == {r.linguistic_class for r in RULES.values()}
    beyond = {name: lines for name, rows in judged.items() if (lines := outside(name, rows))}
    wrong = [lines[0] for name, lines in beyond.items() if name not in UNJUDGED]
    assert not wrong, "\n".join([*wrong, "mend the rule, or list it in UNJUDGED with a reason"])
    assert set(beyond) == set(UNJUDGED), f"judged after all: {set(UNJUDGED) - set(beyond)}"


def test_no_bound_is_wider_than_its_class_needs(judged):
    for kind, bound in BOUNDS.items():
        rows = [
            d
            for name, results in judged.items()
            for d, _, _ in results
            if name not in UNJUDGED and RULES[name].linguistic_class == kind
        ]
        most = Distance(max(d.total for d in rows), max(d.worst for d in rows))
        assert bound.total - most.total <= 0.1 and bound.worst - most.worst <= 0.1, (kind, most)


def _other_letter(c: str, rng: random.Random) -> str:
    if "가" <= c <= "힣":
        return chr(0xAC00 + rng.randrange(11172))
    return rng.choice("abcdefghijklmnopqrstuvwxyz") if c.isascii() and c.isalpha() else c


def _target(text: str) -> tuple[int, int]:
    "The word, from space to space, that holds the longest listed word; (0, 0) if none of 5 letters."
    at, end = max(lexicon_spans(text), key=lambda s: s[1] - s[0], default=(0, 0))
    at, end = text.rfind(" ", 0, at) + 1, (text + " ").find(" ", end)
    return (at, end) if lexicon_spans(text) and len("".join(letters(text[at:end]))) >= 5 else (0, 0)


def random_letters(text: str, rng: random.Random, texts: list[str]) -> str:
    return "".join(_other_letter(c, rng) for c in text)


def another_comment(text: str, rng: random.Random, texts: list[str]) -> str:
    return rng.choice(texts)


def target_deleted(text: str, rng: random.Random, texts: list[str]) -> str:
    at, end = _target(text)
    return text[:at] + text[end:]


def target_made_up(text: str, rng: random.Random, texts: list[str]) -> str:
    at, end = _target(text)
    return text[:at] + random_letters(text[at:end], rng, texts) + text[end:]


def shuffled(text: str, rng: random.Random, texts: list[str]) -> str:
    words = text.split()
    return " ".join(rng.sample(words, len(words))) if len(words) >= 5 else text


@pytest.mark.parametrize(
    "plant", [random_letters, another_comment, target_deleted, target_made_up, shuffled]
)
@pytest.mark.parametrize("lang", ["ko", "en"])
def test_nonsense_is_refused_by_every_class(comments, plant, lang):
    rng, texts = random.Random(3), comments[lang]
    made = ((t, v) for t in texts if (v := plant(t, rng, texts)) != t)
    measured = [(distance(t, v), t, v) for (t, v), _ in zip(made, range(40))]
    assert len(measured) == 40
    for kind in {r.linguistic_class for r in RULES.values() if r.lang in (lang, "any")}:
        passed = [row for row in measured if row[0].within(BOUNDS[kind])]
        assert len(passed) <= 2, (kind, len(passed), passed[:4])


def test_a_rule_that_vouches_for_itself_is_found_out(comments):
    "It leaves listed words out, and its own reading finds nothing missing."

    def gone(text: str, rng: random.Random) -> list[tuple[int, int, str]]:
        at, end = _target(text)
        return [(at, end, "")] if end else []

    about = dict(family="", lang="ko", example=("", ""), note="", max_share=1.0)
    for kind in {r.linguistic_class for r in RULES.values() if r.lang != "en"}:
        rule = Rule("gone", gone, kind, reading=lambda s: "", **about)
        made = [(t, v) for t in comments["ko"][:400] if (v := rule(t)) != t]
        assert not any(invalid(t, v, rule) for t, v in made)
        bad = [not distance(t, v).within(BOUNDS[kind]) for t, v in made[:20]]
        assert len(bad) == 20 and sum(bad) >= 19, (kind, bad)


def _vouched_for(pairs: list[tuple[str, str]]) -> bool:
    """Whether KS X 1001, which lists Chinese characters by their Korean sound, has the characters
    in the order of the syllables; one with several sounds is listed several times."""
    at = b""
    for _, character in sorted(pairs):
        same = [
            chr(i)
            for i in range(0xF900, 0xFB00)
            if unicodedata.normalize("NFC", chr(i)) == character
        ]
        places = sorted(p for c in (character, *same) if (p := c.encode("euc_kr", "ignore")) >= at)
        if not places:
            return False
        at = places[0]
    return True


def test_chinese_characters_stand_in_the_order_of_their_sounds():
    syllables = [chr(i) for i in range(0xAC00, 0xD7A4)]
    pairs = [(c, v) for c in syllables if (v := RULES["hanja"](c)) != c]
    assert len(pairs) > 100 and _vouched_for(pairs)
    for i in range(len(pairs) - 9):  # any one that is wrong is noticed
        (a, x), (b, y) = pairs[i], pairs[i + 9]
        assert not _vouched_for(
            [*pairs[:i], (a, y), *pairs[i + 1 : i + 9], (b, x), *pairs[i + 10 :]]
        )
