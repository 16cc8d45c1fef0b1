"""A judge of disguises that no attack rule has written: how far is a variant from its original?

It reads through what others than the rules have said: Unicode (normal forms, marks, names, format
characters), the package `confusables` (TR39), the letter signs of `better-profanity`, and the key
tops of KS X 5002. What it then counts is edits between the letters of both, jamo for Hangul: in
all, and in the word that fares worst, so that one lost word is no small change of a long comment.

It is a proxy, no person. It sees that most letters of every word are still there, in their order;
it does not see whether two shapes look alike, whether a Chinese character sounds or means what it
stands for (`UNJUDGED`), or that the letters that went were a negation; and a word of few letters
may change more than a long one before it is noticed (`LEAST`)."""

import unicodedata
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from better_profanity import profanity
from confusables import normalize

LEAST = 5  # letters: shorter words count as that long, or one letter would be half a word


@dataclass(frozen=True)
class Distance:
    "Edits per letter: of the whole comment (`total`), and of the word that fares `worst`; 0.."

    total: float
    worst: float

    def within(self, bound: "Distance") -> bool:
        return self.total <= bound.total and self.worst <= bound.worst


#: the most that a variant of a linguistic class may differ, at any intensity
BOUNDS = {
    "Korean phonological": Distance(0.3, 0.5),
    "Korean iconological": Distance(0.35, 0.7),
    "Korean transliteration": Distance(0.2, 0.5),
    "Korean syntactic": Distance(0.3, 0.75),
    "iconological": Distance(0.3, 0.5),
    "phonological": Distance(0.3, 0.6),
    "syntactic": Distance(0.3, 0.5),
    "pragmatic": Distance(0, 0),
    "invisible": Distance(0, 0),
}

#: rules that this judge has no say about, and why
UNJUDGED = {
    "hanja": "which syllable a Chinese character stands for is no matter of shape; the order of"
    " KS X 1001, which is by sound, vouches for the table",
    "semantic": "no table here says what a Chinese character means",
    "cross_script": "Unicode knows few of these strokes as confusable with Hangul letters",
    "look_alike": "both letters of a syllable change at once; that the two look alike is for eyes",
    "rotation": "no table here says what a syllable looks like upside down",
}

#: a sign, and the letters that it may stand for; `*` stands for any letter, so for none
SIGNS = {
    sign: frozenset(c for c, signs in profanity.CHARS_MAPPING.items() if sign in signs)
    for signs in profanity.CHARS_MAPPING.values()
    for sign in signs
    if sign != "*"
}
_KEYS = dict(
    zip(
        "qwertyuiopasdfghjklzxcvbnmQWERTOP",
        "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡㅃㅉㄸㄲㅆㅒㅖ",
        strict=True,
    )
)


def typed(text: str) -> str:
    "`text` as it comes out if its Latin letters are keys of a Korean keyboard (KS X 5002)."
    return "".join(_KEYS.get(c, _KEYS.get(c.lower(), c)) for c in text)


def romanised(text: str) -> str:
    "`text` with each Hangul syllable as Unicode spells it in its name."
    return "".join(
        unicodedata.name(c, "").removeprefix("HANGUL SYLLABLE ").lower() if "가" <= c <= "힣" else c
        for c in unicodedata.normalize("NFC", text)
    )


@cache
def _seen(c: str) -> str:
    "The letters that character `c` is seen as: jamo, ASCII, signs for letters; else itself, or none."
    if unicodedata.category(c) in ("Mn", "Me", "Cf", "Cc", "Cs"):
        return ""
    name = unicodedata.name(c, "")
    if name.startswith("HANGUL JONGSEONG"):  # a closing consonant is the letter that opens one
        parts = name.removeprefix("HANGUL JONGSEONG ")
        try:
            return unicodedata.lookup(f"HANGUL CHOSEONG {parts}")
        except KeyError:
            return "".join(unicodedata.lookup(f"HANGUL CHOSEONG {p}") for p in parts.split("-"))
    if not c.isascii() and c.isalnum() and not name.startswith("HANGUL"):
        c = normalize(c, prioritize_alpha=True)[0]
    return c.casefold() if c.isalnum() or c in SIGNS else ""


def letters(text: str) -> list[str]:
    "The letters of each word of `text`, as they are seen."
    spread = unicodedata.normalize("NFKD", text)
    return [shape for word in spread.split() if (shape := "".join(map(_seen, word)))]


def unread(text: str) -> set[str]:
    "Letters in `text` that this judge can't read: neither Hangul nor ASCII."
    return {
        c
        for word in letters(text)
        for c in word
        if not c.isascii() and not unicodedata.name(c, "").startswith("HANGUL")
    }


def _cost(a: str, b: str) -> int:
    return int(a != b and a not in SIGNS.get(b, ()) and b not in SIGNS.get(a, ()))


def edits(words: list[str], new: str) -> list[int]:
    """The fewest edits (Levenshtein) that make `new` of the letters of `words`, by word.

    A letter that is written once more is no edit."""
    old = "".join(words)
    place = [i for i, word in enumerate(words) for _ in word]
    more = [1, *(int(a != b) for a, b in zip(new, new[1:]))]
    rows = [list(accumulate(more, initial=0))]
    for i, a in enumerate(old):
        row = [i + 1]
        for j, b in enumerate(new):
            row.append(min(rows[i][j] + _cost(a, b), rows[i][j + 1] + 1, row[j] + more[j]))
        rows.append(row)
    i, j, costs = len(old), len(new), [0] * len(words)
    while i or j:
        here = rows[i][j]
        if i and j and here == rows[i - 1][j - 1] + (cost := _cost(old[i - 1], new[j - 1])):
            i, j = i - 1, j - 1
            costs[place[i]] += cost
        elif j and here == rows[i][j - 1] + more[j - 1]:
            j -= 1
            costs[place[max(i - 1, 0)]] += more[j]
        else:
            i -= 1
            costs[place[i]] += 1
    return costs


def _distance(text: str, variant: str) -> Distance:
    words = letters(text)
    costs = edits(words, "".join(letters(variant)))
    return Distance(
        sum(costs) / max(LEAST, sum(map(len, words))),
        max((n / max(LEAST, len(w)) for n, w in zip(costs, words)), default=0),
    )


def distance(text: str, variant: str) -> Distance:
    "How far `variant` is from `text`; a Korean one may be read as typed, or as Latin letters."
    ways = [str]
    if any("가" <= c <= "힣" for c in text) and any(c.isascii() and c.isalpha() for c in variant):
        ways += [typed, romanised]
    return min(
        (_distance(way(text), way(variant)) for way in ways), key=lambda d: (d.worst, d.total)
    )
