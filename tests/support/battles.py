"""A filter, comments, and battles in processes that may be killed."""

from pathlib import Path

import numpy as np
from forks import die

from content_arena.arena.battles.orders import Order, fight
from content_arena.arena.battles.corpus import Corpus
from content_arena.core.config import load_settings

WORDS = ["idiot", "바보", "stupid", "멍청"]


class Filter:
    "Flags four words spelt plainly, more surely in short texts."

    version, sha256, threshold = "4", "aa", 0.62

    def scores(self, texts):
        return np.array(
            [0.95 - len(t) / 1000 if any(w in t for w in WORDS) else 0.1 for t in texts]
        )

    def close(self):
        pass


class Deadly(Filter):
    "Kills its process at the nth call."

    def __init__(self, calls: int):
        self.calls = calls

    def scores(self, texts):
        self.calls -= 1
        if self.calls < 0:
            die()
        return super().scores(texts)


def comments(n: int = 60) -> list[tuple[str, int]]:
    insults = [
        "you are such an idiot, number {}",
        "이 바보야 정신 차려 {}",
        "what a stupid loser {}",
    ]
    kind = ["have a lovely day, number {}", "오늘 날씨가 참 좋네요 {}", "see you on monday {}"]
    return [
        (t.format(i), y) for i in range(n // 2) for t, y in ((insults[i % 3], 1), (kind[i % 3], 0))
    ]


def corpus(n: int = 60) -> Corpus:
    return Corpus(*zip(*comments(n)), "made")


def write_csv(folder: Path, n: int = 60) -> str:
    rows = [f'"{t}",{y}' for t, y in comments(n)]
    (folder / "comments.csv").write_text("text,label\n" + "\n".join(rows))
    return f"csv:{folder / 'comments.csv'}"


def settings(folder: Path, **more):
    state = dict(
        var_dir=str(folder / "var"),
        battle_corpus=write_csv(folder),
        store_url=f"sqlite:///{folder}/events.db",
    )
    return load_settings(env={}, **(state | more))


def fight_to_the_death(pipe, folder: Path, strategy: str, calls: int) -> None:
    "A hundred rounds, in a process that is killed at the nth call of the model."
    fight(Order(strategy, rounds=100), Deadly(calls), settings(folder), {}, batch=16)
