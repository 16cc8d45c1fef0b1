"""Two cycles of co-evolution in small, with the real character branch: battle, samples, learning on, gate."""

import numpy as np
import pandas as pd
import pytest

from content_arena.arena.coevolution.evolution import EvolvedMix
from content_arena.arena.coevolution.samples import choose_samples
from content_arena.disguises.families import split_families
from content_arena.disguises.mix import valid_mix
from content_arena.disguises.targets import lexicon
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.training.character_branch import CharacterBranch
from content_arena.training.characters import choose_threshold

TOXIC = ("바보", "멍청이", "쓰레기", "idiot", "moron")
CLEAN = ("바다", "멍게", "쓰임새", "idiom", "morning")  # in disguise they look alike
KOREAN = (
    "오늘",
    "정말",
    "우리",
    "그냥",
    "아침에",
    "학교에서",
    "영화가",
    "같은",
    "너는",
    "여기",
    "내일도",
    "다시",
)
ENGLISH = (
    "today",
    "really",
    "there",
    "just",
    "morning",
    "school",
    "movie",
    "like",
    "maybe",
    "again",
)


def comments(rows: int, seed: int) -> pd.DataFrame:
    "Comments of a few ordinary words, and one that decides."
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    texts = []
    for i, y in enumerate(labels):
        word = str(rng.choice(TOXIC if y else CLEAN))
        around = list(rng.choice(ENGLISH if word.isascii() else KOREAN, 4))
        around.insert(int(rng.integers(0, 5)), word)
        texts.append(f"{' '.join(around)} {seed * 10_000 + i}")
    return pd.DataFrame({"text": texts, "label": labels, "lang": "ko"})


class Branch:
    "A character branch as a model that can be compared; threshold from the declared mix."

    size_mb = 4.0

    def __init__(self, version: str, branch: CharacterBranch, valid: pd.DataFrame):
        self.version, self.sha256, self.branch = version, f"sha{version}", branch
        self.threshold = choose_threshold(valid.label.to_numpy(), self.scores(valid.text.tolist()))

    def scores(self, texts):
        return (1 / (1 + np.exp(-self.branch.logits(list(texts))))).astype(np.float32)

    def close(self):
        pass


@pytest.mark.slow
def test_two_cycles_win_a_promotion_by_robustness_alone(registry, settings):
    assert set(TOXIC) <= lexicon()
    train, valid, test = (comments(n, seed) for n, seed in ((1500, 1), (400, 2), (1200, 3)))
    mixed = valid_mix(settings).apply(valid)
    first = CharacterBranch.fit(train.text.tolist(), train.label.to_numpy())
    champion = Branch("1", first, mixed)
    split = split_families(0, settings.held_out_rules)
    attacker = EvolvedMix(split.rules(held_out=False))
    rows, newest, samples = train, champion, []
    for cycle in (1, 2):
        attempts = attacker.attack(train.text.tolist(), train.label.tolist(), newest, seed=cycle)
        new = choose_samples(attempts, seed=cycle)
        assert {s.kind for s in new} & {"evaded", "false_positive"}
        samples += new
        more = pd.DataFrame([{"text": s.text, "label": s.label} for s in new])
        rows = pd.concat([rows, more], ignore_index=True)
        learnt = CharacterBranch.fit(rows.text.tolist(), rows.label.to_numpy(), first)
        newest = Branch("2", learnt, mixed)
    engines = {"champion": champion, "challenger": newest}
    made = ChampionChallengerEvaluator(registry, settings).compare(test, engines=engines)
    shown = {
        role: {part: made["mix"][role][part]["f1"] for part in ("clean", "disguised")}
        for role in engines
    }
    assert shown["champion"]["clean"] > 0.95, shown  # nothing to be won on clean text
    assert shown["challenger"]["clean"] >= shown["champion"]["clean"] - 0.01, shown
    assert shown["challenger"]["disguised"] > shown["champion"]["disguised"] + 0.02, shown
    assert made["verdict"] == "promote", (made["reasons"], shown)
    used = {r for s in samples for r in s.attack.split("+")}
    assert not used & {r.name for r in split.rules(held_out=True)}
