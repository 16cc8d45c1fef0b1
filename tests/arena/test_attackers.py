"""Attackers against small scorers, and the LLM attacker against a real server that misbehaves."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from pydantic import SecretStr

from content_arena.disguises.families import strategy_rules
from content_arena.arena.attackers.mix import (
    ATTACK_STRATEGIES,
    bandit_file,
    llm_endpoint,
    make_attacker,
)
from content_arena.arena.battles.battle import attacker_facts
from content_arena.arena.attackers.bandit import BanditAttacker, BanditState, StateError, load_state
from content_arena.arena.attackers.endpoint import ChatEndpoint
from content_arena.arena.attackers.llm import PROMPTS, prompt_folder, prompts_sha256
from content_arena.arena.attackers.normaliser import MOVES, NormaliserAttacker, aimed_counts
from content_arena.arena.attackers.search import SearchAttacker
from content_arena.core.config import Secrets, load_settings
from content_arena.core.text import canonical
from content_arena.data.embedded_texts import LANGUAGES, parse_texts, read_texts
from content_arena.disguises.targets import lexicon
from content_arena.testing.fakes import TextScorer, WordScorer

ROOT = Path(__file__).resolve().parents[2]
INSULTS = ["you are an idiot", "이 바보야 정신 차려", "what a stupid loser", "진짜 멍청이 같다"]
CLEAN = ["have a lovely day", "오늘 날씨가 참 좋네요", "see you on monday", "같이 점심 먹어요"]
TEXTS, LABELS = INSULTS + CLEAN, [1] * 4 + [0] * 4


class Filter(WordScorer):
    def __init__(self):
        super().__init__(("idiot", "바보", "stupid", "멍청"))


@pytest.fixture
def cfg(tmp_path):
    return load_settings(env={}, var_dir=str(tmp_path))


@pytest.mark.parametrize("strategy", ATTACK_STRATEGIES)
def test_every_strategy_answers_for_every_text_and_for_none(strategy: str, cfg):
    attempts = make_attacker(strategy, cfg).attack(TEXTS, LABELS, Filter(), seed=1)
    assert [a.variant.original for a in attempts] == TEXTS
    assert [a.label for a in attempts] == LABELS
    assert not any(a.wrong_before for a in attempts)
    assert make_attacker(strategy, cfg).attack([], [], Filter()) == []
    again = make_attacker(strategy, cfg).attack(TEXTS, LABELS, Filter(), seed=1)
    assert again == attempts


def test_search_keeps_to_its_limit_and_asks_in_batches():
    model = Filter()
    attempts = SearchAttacker(strategy_rules("mixed"), query_limit=40).attack(TEXTS, LABELS, model)
    assert all(a.succeeded for a in attempts if a.label)
    assert all(a.variant.queries <= 40 for a in attempts)
    assert sum(a.variant.queries for a in attempts) == model.texts
    assert model.calls <= 40 < model.texts


def test_an_attack_never_counts_what_the_model_missed_anyway():
    class Blind(Filter):
        def scores(self, texts):
            return np.zeros(len(texts))

    attempts = SearchAttacker(strategy_rules("mixed")).attack(INSULTS, [1] * 4, Blind())
    assert all(a.wrong and a.wrong_before and not a.succeeded for a in attempts)
    assert all(a.variant.queries <= 1 + 4 for a in attempts)  # the search ends when it is wrong


class Undoes:
    "What a version reads: everything (`none`), or what one bad repair leaves of it."

    READINGS = {
        "none": lambda text: text,
        "joins": lambda text: re.sub("[^가-힣a-z]", "", text),  # words meet
        "composes": canonical,  # loose letters close syllables, signs are folded
    }

    def __init__(self, kind="none"):
        self.kind = kind
        self.read = self.READINGS[kind]


class Normalising(TextScorer):
    "Flags listed words, letter by letter, in what it reads."

    words = ("idiot", "stupid", "loser", *(w for w in lexicon() if "가" <= w[0] <= "힣"))

    def __init__(self, kind):
        super().__init__(lambda text: 0.0)
        self.normaliser = Undoes(kind)

    def scores(self, texts):
        self.texts += len(texts)
        read = [self.normaliser.read(t) for t in texts]
        return np.array([0.9 if any(w in t for w in self.words) else 0.1 for t in read])


@pytest.mark.parametrize(
    "kind, name, move", [("joins", "toxic", "meeting_words"), ("composes", "worse", "loose_letter")]
)
def test_what_aims_at_a_normaliser_finds_what_only_it_gets_wrong(kind, name, move):
    model, plain = Normalising(kind), Normalising("none")
    attempts = NormaliserAttacker(query_limit=60).attack(TEXTS * 3, LABELS * 3, model, seed=3)
    won = [a for a in attempts if a.succeeded]
    for a in won:  # as it is written, nobody is wrong about it
        assert (plain.scores([a.variant.text])[0] >= plain.threshold) == bool(a.label)
        assert (model.scores([a.variant.text])[0] >= plain.threshold) != bool(a.label)
        assert {s.partition("/")[2] for s in a.variant.steps} == {"normalised"}
    counts = aimed_counts(attempts)
    for label, part in ((1, "worse"), (0, "toxic")):
        hits = {a.variant.original for a in won if a.label == label}
        assert (counts[part]["tried"], counts[part]["hits"]) == (4, len(hits))
        assert counts[part]["by_normaliser"] == len(hits)
    assert set(counts[name]["moves"]) <= set(MOVES) and move in counts[name]["moves"]


def test_nothing_is_the_normalisers_doing_where_there_is_none():
    attempts = NormaliserAttacker().attack(TEXTS, LABELS, Normalising("none"))
    counts = aimed_counts(attempts)
    assert [c["by_normaliser"] for c in counts.values()] == [0, 0]
    assert counts["worse"]["hits"] > 0  # plain evasions, which it has too


def test_aiming_keeps_to_its_limit():
    for limit in (4, 15):
        model = Normalising("joins")
        attempts = NormaliserAttacker(query_limit=limit).attack(TEXTS, LABELS, model)
        assert max(a.variant.queries for a in attempts) <= limit
        assert sum(a.variant.queries for a in attempts) == model.texts


def test_the_bandit_goes_on_from_its_file(cfg):
    rules, file = strategy_rules("mixed"), bandit_file(cfg)
    whole = BanditAttacker(rules, batch=4)
    expected = [whole.attack(TEXTS, LABELS, Filter(), seed=s) for s in range(4)]
    for s in range(4):  # a new process for each battle
        part = BanditAttacker(rules, load_state(file), batch=4)
        assert part.attack(TEXTS, LABELS, Filter(), seed=s) == expected[s]
        part.state.save(file)
    assert load_state(file).arms == whole.state.arms
    assert load_state(file).plays == 16  # the toxic ones of four rounds


def test_a_state_of_another_version_is_refused_and_kept(cfg):
    file = bandit_file(cfg)
    BanditState({"a@1/all": (1, 2)}).save(file)
    old = file.read_text().replace('"version": 1', '"version": 0')
    file.write_text(old)
    with pytest.raises(StateError, match=r"bandit.json: kind and version are \('bandit', 0\)"):
        make_attacker("bandit", cfg)
    assert file.read_text() == old


class Server:
    "A chat-completion server; `behave` says what it does with the next questions."

    def __init__(self):
        self.behave, self.says, self.questions, self.keys = "answer", "", [], []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["Content-Length"])
                outer.questions.append(json.loads(self.rfile.read(size)))
                outer.keys.append(self.headers.get("Authorization"))
                outer.reply(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        if self.behave == "hang":
            self.released.wait(20)
            return
        status = 500 if self.behave == "error" else 200
        handler.send_response(status)
        if self.behave == "drip":  # a byte now and then, for ever
            handler.end_headers()
            try:
                while not self.released.wait(0.05):
                    handler.wfile.write(b" ")
                    handler.wfile.flush()
            except OSError:
                pass
            return
        comment = json.loads(
            self.questions[-1]["messages"][-1]["content"].splitlines()[0].removeprefix("Comment: ")
        )
        content = {
            "answer": json.dumps({"variant": ".".join(comment)}),
            "error": "",
            "refuse": "I'm sorry, but I can't help with that.",
            "junk": "Here are some ideas:\n1. be kind\n2. be kinder",
            "unchanged": json.dumps({"variant": comment}),
            "nonsense": json.dumps({"variant": "completely something else"}),
            "deaf": "",
            "says": self.says,
        }[self.behave]
        data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        data = b"<html>busy</html>" if self.behave == "html" else data
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join(5)


def llm(cfg, server: Server, name: str = "llm_evasion", timeout: float = 5, **secret):
    settings = load_settings(
        env={}, var_dir=cfg.var_dir, llm_url=server.url, llm_model="tiny", llm_timeout_s=timeout
    )
    return make_attacker(name, settings, secrets=Secrets(**secret))


def test_the_model_is_asked_and_its_variants_are_used(cfg, server):
    attacker = llm(cfg, server, llm_api_key=SecretStr("s3cret"))
    attempts = attacker.attack(TEXTS, LABELS, Filter())
    assert dict(attacker.outcomes) == {"answered": 8}
    assert {a.variant.steps for a in attempts} == {("llm_evasion",)}
    assert all(a.succeeded for a in attempts if a.label)
    assert server.questions[0]["model"] == "tiny" and set(server.keys) == {"Bearer s3cret"}
    assert "s3cret" not in json.dumps(server.questions)


@pytest.mark.parametrize(
    "behave, outcome",
    [
        ("refuse", "refused"),
        ("junk", "junk"),
        ("unchanged", "junk"),
        ("nonsense", "junk"),
        ("deaf", "junk"),
    ],
)
def test_useless_answers_are_counted_and_the_mix_goes_on(cfg, server, behave, outcome):
    server.behave = behave
    attacker = llm(cfg, server)
    attempts = attacker.attack(TEXTS, LABELS, Filter(), seed=2)
    assert dict(attacker.outcomes) == {outcome: 8}
    assert attempts == make_attacker("mixed", cfg).attack(TEXTS, LABELS, Filter(), seed=2)


# What gemma-3-270m said (a base model, Q4_K_M, behind a local server): it goes on writing
GEMMA = (
    '<i>"This is my version of a sentence, using a different spelling. If I use a different '
    'spelling, someone else will be able to read it. "</i>',
    '<i>"This is my version of a stupid loser. Don\'t tell me to use a computer and a '
    'computer"</i>\n\nThe error is in the comment.',
)


@pytest.mark.parametrize("said", GEMMA)
def test_what_a_small_base_model_says_is_junk(cfg, server, said):
    server.behave, server.says = "says", said
    attacker = llm(cfg, server)
    attempts = attacker.attack(INSULTS, [1] * 4, Filter(), seed=1)
    assert dict(attacker.outcomes) == {"junk": 4}
    assert all(a.attacked and a.variant.steps != ("llm_evasion",) for a in attempts)


@pytest.mark.parametrize(
    "behave, outcome", [("hang", "timed_out"), ("drip", "timed_out"), ("error", "http_error")]
)
def test_a_server_that_fails_is_given_up(cfg, server, behave, outcome):
    server.behave = behave
    attacker = llm(cfg, server, timeout=0.3)
    attempts = attacker.attack(TEXTS, LABELS, Filter())
    assert dict(attacker.outcomes) == {outcome: 3, "gave_up": 5}
    assert len(attempts) == 8 and len(server.questions) == 3
    server.behave = "answer"  # the next attack tries again
    server.released.set()
    attacker.endpoint.timeout_s = 5
    attacker.attack(TEXTS[:1], LABELS[:1], Filter())
    assert len(server.questions) == 4


def test_the_adversarial_one_is_told_its_scores(cfg, server):
    class Strict(Filter):
        def scores(self, texts):
            return np.full(len(texts), 0.75)

    attacker = llm(cfg, server, "adversarial_llm")
    attempt = attacker.attack(["you are an idiot"], [1], Strict())[0]
    assert attempt.variant.queries == 3 and not attempt.succeeded
    assert "the filter says 75% toxic" in server.questions[-1]["messages"][-1]["content"]


def test_another_prompt_is_another_battle(cfg, server):
    attacker = llm(cfg, server)
    before = attacker_facts(attacker)
    attacker.prompts = "0" * 64
    assert attacker_facts(attacker) != before and before["prompts"] == prompts_sha256()


def test_a_wheel_brings_the_prompts_and_the_texts(tmp_path):
    for name in ("content_arena", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for name in PROMPTS:
            packed = wheel.read(f"content_arena/arena/attackers/prompts/{name}.txt")
            assert packed == (prompt_folder() / f"{name}.txt").read_bytes()
        for lang in LANGUAGES:
            assert parse_texts(
                wheel.read(f"content_arena/data/texts/{lang}.txt").decode()
            ) == read_texts(lang)


def test_no_server_is_said_and_is_no_failure(cfg):
    attacker = make_attacker("llm_evasion", cfg, secrets=Secrets())
    attempts = attacker.attack(TEXTS, LABELS, Filter(), seed=2)
    assert llm_endpoint(cfg, Secrets()) is None and dict(attacker.outcomes) == {"no_endpoint": 8}
    assert attempts == make_attacker("mixed", cfg).attack(TEXTS, LABELS, Filter(), seed=2)


def test_a_dead_server_is_unreachable():
    with closed_port() as port:
        reply = ChatEndpoint(f"http://127.0.0.1:{port}/v1", "m").ask("", "x")
    assert reply.outcome == "unreachable"


@contextmanager
def closed_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    yield server.server_port
