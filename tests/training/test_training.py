"""Training end to end on a tiny base: decoders, kills, full disks, offline loading."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import tiny_models
from safetensors.torch import load_file
from tiny_models import comments, tiny_settings, train
from warm import python

from content_arena.disguises.mix import valid_mix
from content_arena.inference.engine import Engine
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.reports.evaluation import training_figure, training_summary
from content_arena.training.base_models import resolve_base_model
from content_arena.training.model_files import ModelError, read_manifest, read_spec, verify_model
from content_arena.training.loop import TrainingError

from content_arena.training.qlora_trainer import QLoRATrainer
from content_arena.training.two_readers import classification_metrics

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind, head", [("encoder", "mean"), ("decoder", "standard")])
def test_trained_model_is_served_from_the_registry_alone(tmp_path, kind, head):
    settings = tiny_settings(tmp_path, kind)
    run_id = train(settings, tmp_path / "work")
    spec = read_spec(tmp_path / "work" / "model")
    assert spec["head"] == head and spec["quantised_layers"]

    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    engine = Engine.load(
        registry.download(version),
        cache_dir=tmp_path / "var" / "cache",
        version=version.version,
        expected_sha256=version.sha256,
    )
    scores = engine.scores(["you are kind today", "you are awful today"])
    assert scores[0] < engine.threshold <= scores[1]
    assert engine.check_probe(0.05) <= 0.05

    os.environ["CONTENT_ARENA_VAR_DIR"] = str(tmp_path / "var")
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/content-filter/{version.version}")
    finally:
        del os.environ["CONTENT_ARENA_VAR_DIR"]
    answers = loaded.predict(pd.DataFrame({"text": ["you are kind today", "you are awful today"]}))
    assert answers.tolist() == scores.astype(float).tolist()


def test_only_the_top_layer_is_trained_and_the_filter_is_served(tmp_path):
    settings = tiny_settings(tmp_path, train_layers=1)
    train(settings, tmp_path / "work")
    folder = tmp_path / "work" / "model"
    names = load_file(folder / "adapter_model.safetensors")
    assert names and all(".layer.1." in name for name in names)
    engine = Engine.load(folder, cache_dir=tmp_path / "var" / "cache", version="1")
    scores = engine.scores(["you are kind today", "you are awful today"])
    assert scores[0] < engine.threshold <= scores[1]
    assert engine.check_probe(0.05) <= 0.05
    with pytest.raises(ModelError, match="train_layers = 3, but BertModel has 2 layers"):
        train(tiny_settings(tmp_path, train_layers=3), tmp_path / "more")


def test_the_same_training_makes_the_same_filter_to_the_last_byte(tmp_path):
    settings, hashes = tiny_settings(tmp_path), []
    for name in ("one", "two"):
        train(settings, tmp_path / name)
        hashes.append(verify_model(tmp_path / name / "model"))
    assert hashes[0] == hashes[1]
    files = read_manifest(tmp_path / "one" / "model")["files"]
    assert {"README.md", "adapter_model.safetensors"} <= set(files)
    train(tiny_settings(tmp_path, seed=1), tmp_path / "three")
    other = read_manifest(tmp_path / "three" / "model")["files"]
    assert other["adapter_model.safetensors"] != files["adapter_model.safetensors"]


@pytest.fixture(scope="module")
def curved(tmp_path_factory):
    "A training that kept an earlier step than its last: its run, summary, folder, and what each validation gave."
    from content_arena.training import qlora_trainer

    folder, curve = tmp_path_factory.mktemp("curve"), {}
    real = qlora_trainer._validator

    def watched(*args):
        validate = real(*args)
        return lambda step: curve.setdefault(step, validate(step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qlora_trainer, "_validator", watched)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
        run_id = train(tiny_settings(folder, characters="off"), folder / "work")
    summary = json.loads(mlflow_text(folder, "training_summary.json"))
    assert summary["best_step"] < max(curve) == summary["steps"]
    return run_id, summary, folder, curve


def test_a_training_says_what_it_took_of_the_machine(curved):
    run_id, *_ = curved
    taken = mlflow.MlflowClient().get_run(run_id).data.metrics
    assert taken["system/system_memory_usage_megabytes"] > 0
    assert taken["system/cpu_utilization_percentage"] >= 0


def test_every_point_of_a_curve_is_its_own_steps(curved):
    run_id, summary, _, curve = curved
    client = mlflow.MlflowClient()
    for name in next(iter(curve.values())):
        history = [(p.step, p.value) for p in client.get_metric_history(run_id, name)]
        assert history == [(step, values[name]) for step, values in sorted(curve.items())], name


def test_the_kept_model_has_names_of_its_own(curved):
    run_id, summary, folder, curve = curved
    m, last, kept = (
        mlflow.get_run(run_id).data.metrics,
        curve[summary["steps"]],
        curve[summary["best_step"]],
    )
    assert m["best_step"] == summary["best_step"]
    assert kept["valid_f1"] == summary["best_valid_f1"]
    # calibration moves no comment past another; the threshold is its own (thresholds.robust_threshold)
    ranked = kept["valid_average_precision"]
    assert m["best_valid_average_precision"] == pytest.approx(ranked, abs=1e-6)
    assert m["valid_log_loss"] == last["valid_log_loss"] != m["best_valid_log_loss"]
    engine = Engine.load(folder / "work" / "model", cache_dir=folder / "var" / "cache")
    frame = valid_mix(tiny_settings(folder)).apply(comments()[90:])  # what it was chosen on
    metrics = classification_metrics(
        frame.label.to_numpy(), engine.scores(frame.text.tolist()), engine.threshold
    )
    assert {
        k: m[f"best_valid_{k}"] for k in ("f1", "precision", "recall", "accuracy", "macro_f1")
    } == {k: metrics[k] for k in ("f1", "precision", "recall", "accuracy", "macro_f1")}
    points = {
        p.step
        for k in m
        if k.startswith("best_")
        for p in mlflow.MlflowClient().get_metric_history(run_id, k)
    }
    assert points == {summary["best_step"]}


def drawn(run_id) -> dict[str, list[tuple[float, float]]]:
    lines = [line for axes in training_figure(run_id).axes for line in axes.lines]
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in lines}


def test_the_report_draws_the_curve_and_marks_what_was_kept(curved):
    run_id, summary, _, curve = curved
    lines = drawn(run_id)
    for name in ("valid_log_loss", "valid_f1", "valid_average_precision"):
        assert lines[name] == [(step, values[name]) for step, values in sorted(curve.items())]
    assert {x for x, _ in lines["kept"]} == {summary["best_step"]}
    run = mlflow.get_run(run_id)
    said = training_summary(run)
    assert f"F1 {100 * run.data.metrics['best_valid_f1']:.1f} % on validation" in said
    assert f"kept from step {summary['best_step']}." in said
    base = Path(run.data.params["base_model"])
    assert base.is_absolute() and f"\n\n{base.name}, " in said and str(base) not in said


def test_older_runs_keep_their_last_point(curved):
    "They logged the kept model's value once more, at the last step, under the curve's name."
    run_id, summary, folder, curve = curved
    client = mlflow.MlflowClient()
    old = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    for step, values in sorted(curve.items()):
        client.log_metric(old, "valid_log_loss", values["valid_log_loss"], step=step)
        time.sleep(0.002)  # MLflow orders by its clock, in milliseconds
    client.log_metric(old, "valid_log_loss", 9.0, step=summary["steps"])
    assert drawn(old)["valid_log_loss"] == [
        (step, v["valid_log_loss"]) for step, v in sorted(curve.items())
    ]


def test_a_version_is_known_by_the_model_it_holds(curved):
    from content_arena.versions.shelf import facts_of

    run_id, summary, folder, _ = curved
    registry = ModelRegistry(tiny_settings(folder))
    m = registry.metrics(run_id)
    mlflow.MlflowClient().log_metric(
        run_id, "valid_f1", 0.123, step=summary["steps"] + 1
    )  # a last step that went wrong
    facts = facts_of(registry, registry.register_challenger(run_id))
    assert facts.metrics["valid_f1"] == m["best_valid_f1"] != 0.123


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_models as t
import content_arena.training.loop as loop
step = loop.train_step
def slow(*args):
    value = step(*args)
    print("step", flush=True)
    return value
loop.train_step = slow
t.train(t.tiny_settings(Path({folder!r})), Path({folder!r}) / "work")
print("finished", flush=True)
"""


def start(folder: Path) -> subprocess.Popen:
    code = KILLED.format(tests=str(Path(tiny_models.__file__).parent), folder=str(folder))
    return subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_where_the_other_does(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    train(tiny_settings(straight), straight / "work")

    process = start(killed)
    steps = 0
    while steps < 8:
        line = process.stdout.readline()
        assert line, "the training ended before it could be killed"
        steps += line.strip() == "step"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = json.loads((killed / "work" / "training.json").read_text())
    assert not left["finished"] and list((killed / "work" / "checkpoints").glob("step-*"))

    process = start(killed)
    lines = process.stdout.read().split()
    assert process.wait() == 0 and lines[-1] == "finished"
    total = sum(line == "step" for line in start_count(straight))
    assert lines.count("step") < total, "the second process started from the beginning"

    ticket = json.loads((killed / "work" / "training.json").read_text())
    assert ticket["finished"] and ticket["mlflow_run_id"] == left["mlflow_run_id"]
    for name in ("adapter_model.safetensors", "head.safetensors"):
        files = [read_manifest_of(f / "work" / "model", name) for f in (straight, killed)]
        assert files[0] == files[1], f"{name} differs after the restart"


def read_manifest_of(folder: Path, name: str) -> str:
    verify_model(folder)
    return json.loads((folder / "manifest.json").read_text())["files"][name]


def start_count(folder: Path) -> list[str]:
    """One 'step' per optimiser step of the uninterrupted training."""
    summary = json.loads(mlflow_text(folder, "training_summary.json"))
    return ["step"] * summary["steps"]


def mlflow_text(folder: Path, artifact: str) -> str:
    ticket = json.loads((folder / "work" / "training.json").read_text())
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    return mlflow.artifacts.load_text(f"runs:/{ticket['mlflow_run_id']}/{artifact}")


def test_full_disk_while_saving_a_checkpoint_keeps_the_previous_one(tmp_path):
    from content_arena.training.classifier import build_classifier
    from content_arena.training.loop import load_checkpoint, make_optimizer, save_checkpoint

    settings = tiny_settings(tmp_path)
    base = resolve_base_model(settings.base_model, tmp_path / "cache", progress=False)
    classifier, _ = build_classifier(base, lora_r=8)
    optimizer = make_optimizer(classifier, settings, "cpu")
    save_checkpoint(tmp_path / "checkpoints", classifier, optimizer, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(Exception) as caught:
            save_checkpoint(tmp_path / "checkpoints", classifier, optimizer, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert isinstance(caught.value, TrainingError), repr(caught.value)
    assert "can't be written" in str(caught.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert load_checkpoint(tmp_path / "checkpoints", classifier, optimizer) == {"step": 1}


def test_no_row_of_one_class_only(tmp_path):
    frame = comments()
    with pytest.raises(TrainingError, match="rows of both classes"):
        QLoRATrainer(tiny_settings(tmp_path)).train(frame[frame.label == 0], frame)


def test_unreachable_mlflow_fails_before_training(tmp_path):
    from content_arena.training.tracking import TrackingError

    settings = tiny_settings(tmp_path, tracking_uri="sqlite:////proc/nowhere/mlflow.db")
    started = time.monotonic()
    with pytest.raises(TrackingError, match="can't be used"):
        train(settings, tmp_path / "work")
    assert not (tmp_path / "work").exists() and time.monotonic() - started < 120
