"""The service on a real socket: under load, under attack, and while it is being ended."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings
from hypothesis import strategies as st

import stage
from clients import load, reload, until
from tiny_models import register
from content_arena.core.config import Secrets

from content_arena.serving.app import ServeError, create_app, run

pytestmark = pytest.mark.long(45)


class Keeping(stage.FileLoader):
    "A FileLoader that keeps what it loaded; `gate` holds every scoring until it is set."

    def __init__(self, folder, gate=None):
        super().__init__(folder)
        self.loaded, self.gate = [], gate

    def load(self, version, alias):
        self.loaded.append(super().load(version, alias))
        if len(self.loaded) == 1:
            self.loaded[0].gate = self.gate
        return self.loaded[-1]


# --- hot reload ----------------------------------------------------------------------------------


def slowest(got, began):
    "Seconds of the slowest request that was not over at `began`."
    return max(a.ended - a.began for a in got if a.ended > began)


def reload_beside(url, folder, got, pool):
    """A reload whose load takes until eight more requests were answered; its answer, and the
    seconds of the slowest request before it and during it, over as many answers."""
    began, before = time.perf_counter(), len(got)
    until(lambda: len(got) >= before + 8)
    calm, gate = slowest(got[:], began), folder / "load-held"
    gate.touch()
    began, before, loading = time.perf_counter(), len(got), pool.submit(reload, url)
    until(lambda: len(got) >= before + 8)  # nobody waits for the load
    gate.unlink()
    answered, before = loading.result(60), len(got)
    until(lambda: len(got) >= before + 4)  # those that were being answered then
    return answered, calm, slowest(got[:], began)


def not_slower(calm, during):
    "Whether the slowest request of a reload is, usually, about as slow as the slowest of none."
    return np.median(during) <= 4 * np.median(calm)


def test_hot_reload_under_load_fails_and_delays_no_request(folder):
    "20 versions one after the other, every fifth can't be loaded, while four clients ask."
    registry = stage.FileRegistry(folder)
    broken = {"5", "10", "15", "20"}
    for v in broken:
        (folder / f"broken-{v}").touch()
    times = []
    with stage.service_process(folder, delay_s=0.002) as (_, url), ThreadPoolExecutor(1) as pool:
        assert reload(url).json()["model_version"] == "1"
        assert httpx.get(f"{url}/ready").json()["threshold"] == stage.THRESHOLDS["champion"]
        with load(url) as got:
            for v in map(str, range(2, 22)):
                registry.set(champion=v)
                if v in broken:
                    answered, before = reload(url), len(got)
                    assert answered.status_code == 503
                    assert f"version {int(v) - 1} still serves" in answered.json()["detail"]
                else:
                    answered, *seconds = reload_beside(url, folder, got, pool)
                    assert answered.json()["model_version"] == v
                    times.append(seconds)
                    before = len(got)
                wanted = str(int(v) - 1) if v in broken else v
                for client in range(4):  # its first may have begun before the reload
                    later = lambda: [a.version for a in got[before:] if a.client == client][1:]
                    until(later)
                    assert set(later()) == {wanted}
        metrics = httpx.get(f"{url}/metrics").text
    assert {a.status for a in got} == {200}
    for client in range(4):
        versions = [int(a.version) for a in got if a.client == client]
        assert versions == sorted(versions) and len(set(versions)) > 3
    assert not_slower(*zip(*times)), times
    assert "content_arena_champion_changes_total 16.0" in metrics
    assert f'result="clean"}} {len(got)}.0' in metrics and 'result="error"' not in metrics


def test_a_reload_that_delays_requests_would_be_noticed(folder, monkeypatch):
    "The bound above, with a fault planted: the swap holds the event loop."
    from content_arena.serving.model_host import ModelHost

    own, times = ModelHost._swap, []
    monkeypatch.setattr(
        ModelHost, "_swap", lambda host, fresh: (time.sleep(1), own(host, fresh))[1]
    )
    with stage.service(folder) as url, load(url) as got, ThreadPoolExecutor(1) as pool:
        for v in "234":
            stage.FileRegistry(folder).set(champion=v)
            times.append(reload_beside(url, folder, got, pool)[1:])
    assert not not_slower(*zip(*times)), times


def test_the_old_model_finishes_what_it_began_and_is_freed(folder):
    gate = threading.Event()
    gate.set()
    loader = Keeping(folder, gate)
    app = create_app(stage.settings(folder), Secrets(), loader)
    with stage.serving(app) as url, ThreadPoolExecutor(1) as pool:
        reload(url)
        gate.clear()
        (folder / "scoring").unlink()
        asked = pool.submit(httpx.post, f"{url}/classify", json={"text": "held"}, timeout=30)
        until((folder / "scoring").exists)
        stage.FileRegistry(folder).set(champion="2")
        assert reload(url).json()["model_version"] == "2"
        assert httpx.post(f"{url}/classify", json={"text": "new"}).json()["model_version"] == "2"
        assert not asked.done() and not loader.loaded[0].closed
        gate.set()
        assert asked.result(30).json()["model_version"] == "1"
        until(lambda: loader.loaded[0].closed)
        assert not loader.loaded[1].closed
    assert loader.loaded[1].closed  # by the shutdown


def test_concurrent_reloads_share_one_load(folder):
    loader = Keeping(folder)
    with stage.serving(create_app(stage.settings(folder), Secrets(), loader)) as url:
        reload(url)
        stage.FileRegistry(folder).set(champion="2")
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(reload, [url] * 16))
    assert {a.json()["model_version"] for a in answers} == {"2"}
    assert [s.version for s in loader.loaded] == ["1", "2"]
    assert sum(a.json()["changed"] for a in answers) >= 1


def test_scoring_does_not_stop_the_rest(folder):
    gate = threading.Event()
    gate.set()
    app = create_app(stage.settings(folder), Secrets(), Keeping(folder, gate))
    with stage.serving(app) as url, ThreadPoolExecutor(1) as pool:
        reload(url)
        gate.clear()
        asked = pool.submit(httpx.post, f"{url}/classify", json={"text": "held"}, timeout=30)
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(f"{url}{path}").status_code == 200
        assert not asked.done()
        gate.set()
        assert asked.result(30).status_code == 200


# --- starting and ending -------------------------------------------------------------------------


def test_it_starts_without_a_champion_and_takes_one_up(tmp_path):
    with stage.service_process(tmp_path) as (_, url):
        lives = httpx.get(f"{url}/health")
        assert (lives.status_code, httpx.get(f"{url}/ready").status_code) == (200, 503)
        assert lives.json() == {
            "status": "no model",
            "model_version": None,
            "model_alias": "champion",
        }
        assert httpx.post(f"{url}/classify", json={"text": "hi"}).status_code == 503
        until(lambda: "no champion" in httpx.get(f"{url}/ready").json()["detail"])
        assert "pipeline run" in httpx.get(f"{url}/ready").json()["action"]
        stage.FileRegistry(tmp_path).set(champion="1")  # nobody tells the service
        until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert httpx.get(f"{url}/ready").json()["model_version"] == "1"
        assert not reload(url).json()["changed"]


@pytest.mark.parametrize("end", stage.ENDS)
def test_a_signal_lets_running_requests_finish(end, folder):
    with stage.service_process(folder, delay_s=0.5) as (p, url), ThreadPoolExecutor(1) as pool:
        reload(url)
        (folder / "scoring").unlink()
        asked = pool.submit(httpx.post, f"{url}/classify", json={"text": "the last"}, timeout=30)
        until((folder / "scoring").exists)
        p.send_signal(end)
        assert asked.result(30).json()["model_version"] == "1"
        assert p.wait(30) == stage.ENDS[end]
        assert "Traceback" not in p.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_an_occupied_port_is_said(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = f"127.0.0.1:{port}.*already in use.*CONTENT_ARENA_PORT"
        with pytest.raises(ServeError, match=said):
            run(
                stage.settings(folder, port=port),
                secrets=Secrets(),
                loader=stage.FileLoader(folder),
            )


# --- what clients send ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    stage.FileRegistry(folder).set(champion="1")
    with stage.service(folder, max_request_bytes=4096, max_request_chars=1000) as url:
        yield url


def is_problem(r) -> bool:
    p = r.json()
    return (
        r.headers["content-type"] == "application/problem+json"
        and p["status"] == r.status_code
        and p["request_id"] == r.headers["x-request-id"]
        and {"type", "title", "detail"} <= set(p)
    )


HTTP = httpx.Client(timeout=30, headers={"content-type": "application/json"})


def post(url, content, path="/classify"):
    return HTTP.post(url + path, content=content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 4000,
        b'{"a":' * 800,
        b"9" * 4000,
        b'{"text": ' + b"9" * 4000,
        b"\xff\xfe",
        b"\x00",
        b"",
        b'{"text": NaN}',
        b'{"text": "\\ud800"}',
        b'{"\\udfff": "a"}',
        b'{"text": "a", "text": null}',
        b'"text"',
    ],
)
def test_odd_bodies_are_refused_with_a_problem(url, content):
    for path in ("/classify", "/classify/batch"):
        r = post(url, content, path)
        # either no JSON, too long, or no request: hypothesis draws them all
        assert r.status_code in (400, 413, 422) and is_problem(r)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["text", "texts", "x"]) | st.text(max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=JSON
    | st.builds(lambda t: {"text": t}, JSON | st.text())
    | st.builds(lambda t: {"texts": t}, st.lists(st.text(), max_size=5)),
    path=st.booleans(),
)
def test_no_body_is_a_server_error(url, body, path):
    r = post(url, json.dumps(body).encode(), "/classify/batch" if path else "/classify")
    # either a verdict or a refusal that says why
    assert r.status_code == 200 or (r.status_code in (400, 413, 422) and is_problem(r))
    if r.status_code == 200:
        for v in r.json().get("results", [r.json()]):
            assert 0 <= v["toxic_score"] <= 1
            assert v["is_toxic"] == (v["toxic_score"] >= stage.THRESHOLDS["champion"])


@hypothesis_settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200))
def test_no_bytes_are_a_server_error(url, content):
    r = post(url, content)
    # either it is no JSON or no request
    assert r.status_code in (400, 422) and is_problem(r)


def test_nothing_sent_is_repeated(url):
    for body in ({"text": "hush" * 300}, {"hush": "hush"}, {"text": ["hush"]}, {"text": "hush\0"}):
        r = post(url, json.dumps(body).encode())
        assert r.status_code == 422 and "hush" not in r.text


def chunks(total, size=1000):
    for _ in range(total // size):
        yield b" " * size


@pytest.mark.parametrize("total", [5_000, 5_000_000])
def test_a_body_without_a_length_is_counted(url, total):
    "Sent in chunks, more than the limit: an answer, or a closed connection while we still send."
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as s:
        s.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            for chunk in chunks(total):
                s.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += len(chunk)
        except OSError:  # it hung up on us: just what it should do
            assert sent > 4096
        answer = received(s)
    # either it answers or it hangs up on one who never ends
    assert answer.startswith(b"HTTP/1.1 413") or (not answer and total > 100_000)


def received(s) -> bytes:
    "Everything the other side sent, up to an end or a reset."
    data = b""
    try:
        while part := s.recv(65536):
            data += part
    except OSError:
        pass
    return data


def test_a_declared_length_is_refused_unread(url):
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as s:
        s.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
        assert received(s).startswith(b"HTTP/1.1 413")


def test_the_service_still_lives_after_all_that(url):
    r = httpx.post(f"{url}/classify", json={"text": "감사합니다"})
    assert len(r.json()["prediction_id"]) == 32
    assert {k: v for k, v in r.json().items() if k != "prediction_id"} == {
        "toxic_score": 0.5,
        "threshold": 0.35,
        "margin": 0.15,
        "is_toxic": True,
        "confidence": 0.5,
        "model_version": "1",
        "model_alias": "champion",
    }


def test_openapi_states_the_limits_and_every_error(url):
    api = httpx.get(f"{url}/openapi.json").json()
    text = api["components"]["schemas"]["ClassifyRequest"]["properties"]["text"]
    texts = api["components"]["schemas"]["ClassifyBatchRequest"]["properties"]["texts"]
    assert (text["maxLength"], texts["maxItems"]) == (1000, 256)
    for path, status in (
        ("/classify", "422"),
        ("/classify", "503"),
        ("/reload", "401"),
        ("/ready", "503"),
    ):
        [(_, route)] = api["paths"][path].items()
        assert "application/problem+json" in route["responses"][status]["content"]


# --- with real models ----------------------------------------------------------------------------


@pytest.mark.slow
def test_it_serves_the_champion_of_the_model_registry(tmp_path):
    "Version 1 is loaded from MLflow and served; version 2, damaged in the store, never is."
    from content_arena.mlops.decision_records import DecisionChain
    from content_arena.mlops.model_registry import ModelRegistry
    from content_arena.testing.tiny_base import make_tiny_base

    s = stage.settings(
        tmp_path,
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        dtype="float32",
        artifact_dir=str(tmp_path / "artifacts"),
    )
    base, registry = make_tiny_base(tmp_path / "base"), ModelRegistry(s)
    first = register(s, base, seed=1)
    registry.promote_challenger(DecisionChain(registry).by_hand(first.version, "first"))
    with stage.serving(create_app(s, Secrets())) as url:
        assert reload(url).json()["model_sha256"] == first.sha256
        texts = ["you are kind", "you are awful today", "바보 " * 100]
        many = httpx.post(f"{url}/classify/batch", json={"texts": texts}, timeout=60).json()
        one = httpx.post(f"{url}/classify", json={"text": texts[2]}, timeout=60).json()
        assert one["toxic_score"] == pytest.approx(many["results"][2]["toxic_score"], abs=1e-4)
        assert len({r["toxic_score"] for r in many["results"]}) == 3

        second = register(s, base, seed=2)
        registry.promote_challenger(DecisionChain(registry).by_hand(second.version, "?"))
        newest = max(
            (tmp_path / "artifacts").rglob("head.safetensors"), key=lambda f: f.stat().st_mtime_ns
        )
        newest.write_bytes(b"\0" * 100)
        answer = reload(url)
        assert answer.status_code == 503 and "head.safetensors" in answer.json()["detail"]
        again = httpx.post(f"{url}/classify/batch", json={"texts": texts}, timeout=60).json()
        scored = lambda batch: [r["toxic_score"] for r in batch["results"]]
        assert scored(again) == scored(many) and again["model_version"] == "1"


# --- shadow traffic, events, labels --------------------------------------------------------------


class Shadowed(stage.FileLoader):
    "Versions above 1 are `challenger`s that do what `behaviour` says with the texts they get."

    def __init__(self, folder, behaviour):
        super().__init__(folder)
        self.behaviour = behaviour

    def load(self, version, alias):
        scorer = super().load(version, alias)
        if alias == "challenger":
            own = scorer.scores
            scorer.scores = lambda texts: self.behaviour(own, texts)
        return scorer


def crash(own, texts):
    if "some comment" in texts:  # not while it is warmed up
        raise MemoryError("out of memory")
    return own(texts)


def stand_still(own, texts):
    time.sleep(0.5)  # plays a model that is far too slow
    return own(texts)


@contextmanager
def shadowed(folder, behaviour, **explicit):
    stage.FileRegistry(folder).set(champion="1", challenger="2")
    s = stage.settings(folder, **({"shadow_sample": 1} | explicit))
    app = create_app(s, Secrets(), Shadowed(folder, behaviour))
    with stage.serving(app) as url:
        reload(url)
        service = app.state.service
        until(lambda: service.challenger.slot is not None)
        yield url, service


def answers(url, texts):
    with httpx.Client(base_url=url, timeout=30) as c:
        taken, got = [], []
        for text in texts:
            began = time.perf_counter()
            got.append(c.post("/classify", json={"text": text}).json())
            taken.append(time.perf_counter() - began)
    return got, sorted(taken)[len(taken) // 2]


def value(service, name, **labels):
    return service.metrics.registry.get_sample_value(f"content_arena_{name}", labels) or 0


def test_what_the_challenger_says_is_recorded_and_not_answered(folder):
    from content_arena.store.events import EventStore

    texts = ["x" * n for n in range(1, 41)]
    invert = lambda own, texts: 1 - own(texts)
    with shadowed(folder, invert) as (url, service):
        got, _ = answers(url, texts)
        until(
            lambda: (
                sum(value(service, "shadow_compared_total", agreed=a) for a in ("true", "false"))
                == 40
            )
        )
    assert [a["toxic_score"] for a in got] == [min(len(t) / 10, 1) for t in texts]
    assert {a["model_version"] for a in got} == {"1"}
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        rows, kept = store.read("shadow"), store.read("predictions")
    assert set(rows.prediction_id) == {a["prediction_id"] for a in got} == set(kept.id)
    assert (rows.champion_score + rows.challenger_score).round(6).eq(1).all()
    for role, threshold in stage.THRESHOLDS.items():  # each by its own
        assert rows[f"{role}_toxic"].eq(rows[f"{role}_score"] >= threshold).all()
    assert {a["is_toxic"] for a in got if 0.35 <= a["toxic_score"] < 0.65} == {True}
    assert set(rows.challenger_version) == {"2"} and rows.text.isna().all()


def test_a_reload_tells_what_became_of_the_challenger(folder, monkeypatch):
    from content_arena.serving import app as serving_app

    hold = threading.Event()

    class Held(stage.FileLoader):
        def load(self, version, alias):
            # either it is none that waits, or it waits
            assert alias == "champion" or version.version != "4" or hold.wait(30)
            return super().load(version, alias)

    registry = stage.FileRegistry(folder)
    registry.set(champion="1", challenger="2")
    (folder / "broken-3").touch()
    service = create_app(stage.settings(folder, shadow_sample=1), Secrets(), Held(folder))
    challenger = lambda: reload(url).json()["challenger"]
    with stage.serving(service) as url:
        until(lambda: challenger() == {"result": "unchanged", "model_version": "2", "reason": ""})
        registry.set(challenger="3")
        failed = challenger()
        assert (failed["result"], failed["model_version"]) == ("failed", "2")
        assert "version 3 can't be loaded" in failed["reason"]
        registry.set(champion="2", challenger="4")
        monkeypatch.setattr(serving_app, "CHALLENGER_S", 0.05)
        answer = reload(url).json()  # the champion does not wait for it
        assert (answer["model_version"], answer["challenger"]["result"]) == ("2", "loading")
        monkeypatch.undo()
        hold.set()
        until(lambda: challenger() == {"result": "unchanged", "model_version": "4", "reason": ""})
        registry.set(challenger="5")
        assert challenger() == {"result": "changed", "model_version": "5", "reason": ""}
        registry.set(challenger=None)
        assert challenger() == {"result": "changed", "model_version": None, "reason": ""}
    with stage.service(folder) as url:
        assert challenger()["result"] == "off" and "shadow_sample" in challenger()["reason"]


@pytest.mark.parametrize("behaviour, reason", [(crash, "failed"), (stand_still, "full")])
def test_a_bad_challenger_is_not_noticed_by_clients(folder, behaviour, reason):
    texts = ["some comment"] * 60
    with shadowed(folder, behaviour, shadow_queue=5) as (url, service):
        got, with_shadow = answers(url, texts)
        assert {(a["toxic_score"], a["model_version"]) for a in got} == {(1.0, "1")}
        until(lambda: value(service, "shadow_dropped_total", reason=reason) > 0)
        stage.FileRegistry(folder).set(challenger=None)
        reload(url)
        until(lambda: service.challenger.slot is None)
        _, without = answers(url, texts)
    assert with_shadow < 4 * without  # the slow one takes 0.5 s for a step


def test_labels_are_kept_by_whom_and_wrong_ones_refused(folder):
    from content_arena.store.events import EventStore

    with stage.service(folder) as url:
        verdict = httpx.post(f"{url}/classify", json={"text": "hello"}).json()
        label = {"label": 1, "source": "moderator", "reviewer": "kim"}
        about = {"prediction_id": verdict["prediction_id"]}
        kept = httpx.post(f"{url}/feedback", json=label | about)
        assert kept.status_code == 202
        for wrong in ({}, about | {"label": 2}, about | {"source": "a b"}, {"text_sha256": "f"}):
            refused = httpx.post(f"{url}/feedback", json=label | wrong)
            assert refused.status_code == 422 and is_problem(refused)
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        said = store.read("feedback")
    assert said.id.tolist() == [kept.json()["feedback_id"]]
    assert (said.label.item(), said.source.item(), said.reviewer.item()) == (1, "moderator", "kim")


def test_a_label_is_joined_to_its_verdict_at_once_or_refused(folder):
    from content_arena.store.events import EventStore, text_sha256

    with stage.service(folder) as url:
        label = {"label": 1, "source": "moderator", "reviewer": "kim"}
        send = lambda **more: httpx.post(f"{url}/feedback", json=label | more)
        for n in range(20):  # sooner than any verdict is in the database
            verdict = httpx.post(f"{url}/classify", json={"text": f"hello {n}"}).json()
            about = {"prediction_id": verdict["prediction_id"]}
            assert send(**about).json()["status"] == "added"
        again = [send(**about, label=0), send(text="hello 19"), send(**about, source="audit")]
        assert [r.json()["status"] for r in again] == ["replaced", "replaced", "added"]
        lost, mixed = send(prediction_id="0" * 32), send(**about, text="another")
        page = httpx.get(f"{url}/metrics").text
    assert (lost.status_code, mixed.status_code) == (404, 422) and is_problem(lost)
    assert "0" * 32 in lost.json()["detail"] and "90 days" in lost.json()["detail"]
    for result, count in (
        ("toxic", 20),
        ("clean", 0),
        ("replaced", 2),
        ("unknown", 1),
        ("refused", 1),
    ):
        assert f'feedback_total{{result="{result}",source="moderator"}} {count}.0' in page
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        kept = store.read("feedback")
    assert len(kept) == 21 and set(kept.text_sha256) == {
        text_sha256(f"hello {n}") for n in range(20)
    }


def test_without_a_store_what_was_just_answered_can_be_labelled(folder):
    "What this process doesn't know it can't look up, which is not the same as unknown."
    (folder / "taken").write_text("a file, where the database's folder should be")
    with stage.service(folder, store_url=f"sqlite:///{folder}/taken/events.db") as url:
        verdict = httpx.post(f"{url}/classify", json={"text": "hello"}).json()
        label = {"label": 1, "source": "moderator", "reviewer": "kim"}
        send = lambda id: httpx.post(
            f"{url}/feedback", json=label | {"prediction_id": id}, timeout=30
        )
        assert send(verdict["prediction_id"]).status_code == 202
        other = send("0" * 32)
    assert other.status_code == 503 and is_problem(other) and other.headers["retry-after"]


@given(score=st.floats(0, 1), threshold=st.floats(0.01, 0.99))
def test_the_sign_of_the_margin_is_the_verdict(score, threshold):
    from content_arena.serving.schemas import verdict

    v = verdict(score, threshold)
    assert (v.margin >= 0) == v.is_toxic == (score >= threshold) and v.threshold == threshold
    assert abs(v.margin - (score - threshold)) < 2e-6


def test_a_preview_of_a_sample_is_not_noted(folder):
    from content_arena.store.events import EventStore

    with stage.service(folder, batch_wait_ms=0) as url:
        answers(url, ["x" * n for n in range(1, 11)])
        ask = lambda query="": httpx.post(f"{url}/api/v1/sample{query}", json={"n": 4}).json()
        until(lambda: len(ask("?preview=true")["rows"]) == 4)
        shown = ask("?preview=true")
        with EventStore.open(f"sqlite:///{folder}/events.db") as store:
            assert store.read("label_requests").empty and shown["draw_id"] is None
            made = ask()
            assert set(store.read("label_requests").draw_id) == {made["draw_id"]}


@pytest.mark.parametrize("keep_text", [False, True])
def test_a_sample_is_handed_out_to_who_may_have_it(folder, keep_text):
    from content_arena.store.events import EventStore

    s = stage.settings(folder, store_text=keep_text, batch_wait_ms=0)
    texts = ["x" * n for n in range(1, 11)]
    secrets = Secrets(api_token="s3cret", feedback_token="front-end")
    with stage.serving(create_app(s, secrets, stage.FileLoader(folder))) as url:
        bearer = lambda token: {"Authorization": f"Bearer {token}"}
        ask = lambda token="s3cret", **body: httpx.post(
            f"{url}/api/v1/sample", json=body, headers=bearer(token)
        )
        assert httpx.post(f"{url}/reload", headers=bearer("s3cret")).status_code == 200
        verdicts, _ = answers(url, texts)
        until(lambda: len(ask(n=10).json()["rows"]) == 10)
        for token in ("guess", "front-end"):  # labels may be given, texts not taken
            assert ask(token).status_code == 401
        for wrong in (dict(n=0), dict(n=1001), dict(hours=0), dict(seed=-1), dict(since="7d")):
            refused = ask(**wrong)
            assert refused.status_code == 422 and is_problem(refused)
        drawn = ask(n=4, seed=1).json()
        assert ask(model_version="9").json()["rows"] == []
        api = httpx.get(f"{url}/openapi.json").json()["paths"]["/api/v1/sample"]["post"]
    toxic = {v["prediction_id"]: v["is_toxic"] for v in verdicts}
    assert sorted(toxic[r["prediction_id"]] for r in drawn["rows"]) == [False, False, True, True]
    assert all((r["text"] in texts) if keep_text else r["text"] is None for r in drawn["rows"])
    assert "toxic" not in json.dumps(drawn) and {"401", "403", "422", "503"} < set(api["responses"])
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        noted = store.read("label_requests", match={"draw_id": drawn["draw_id"]})
    assert set(noted.prediction_id) == {r["prediction_id"] for r in drawn["rows"]}


def test_no_sample_without_a_store(folder):
    (folder / "taken").write_text("a file, where the database's folder should be")
    with stage.service(folder, store_url=f"sqlite:///{folder}/taken/events.db") as url:
        refused = httpx.post(f"{url}/api/v1/sample", json={})
    assert refused.status_code == 503 and is_problem(refused) and refused.headers["retry-after"]


def test_a_full_queue_is_refused_and_nothing_accepted_is_lost(folder):
    gate = threading.Event()
    gate.set()
    app = create_app(stage.settings(folder, max_queue_items=8), Secrets(), Keeping(folder, gate))
    with stage.serving(app) as url, ThreadPoolExecutor(40) as pool:
        reload(url)
        gate.clear()
        (folder / "scoring").unlink()
        ask = lambda n: httpx.post(f"{url}/classify", json={"text": "x" * n}, timeout=30)
        first = pool.submit(ask, 5)
        until((folder / "scoring").exists)
        asked = [pool.submit(ask, n) for n in range(1, 31)]
        until(lambda: sum(a.done() for a in asked) == 22)
        gate.set()
        got = [a.result() for a in asked]
        assert first.result().status_code == 200
    assert sorted({a.status_code for a in got}) == [200, 429]
    refused = [a for a in got if a.status_code == 429]
    assert all(is_problem(a) and int(a.headers["retry-after"]) >= 1 for a in refused)
    scores = {a.json()["toxic_score"] for a in got if a.status_code == 200}
    assert len(scores) >= 1 and len(got) - len(refused) == 8


def test_a_watching_service_follows_the_aliases_by_itself(folder):
    app = create_app(
        stage.settings(folder, reload_poll_s=0.02, shadow_sample=1), Secrets(), Keeping(folder)
    )
    with stage.serving(app) as url:
        until(lambda: httpx.get(f"{url}/health").json()["model_version"] == "1")
        stage.FileRegistry(folder).set(champion="2", challenger="3")
        until(lambda: httpx.get(f"{url}/health").json()["model_version"] == "2")
        until(lambda: app.state.service.challenger.slot is not None)
        assert app.state.service.challenger.slot.version == "3"
