"""What is deployed to watch the service: rules, routes, dashboard, runbooks, compose file; checked by their own tools."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import CounterMetricFamily

from content_arena.core.config import SECRETS, Settings
from content_arena.mlops.metrics import CAUSES, Metrics, exposition
from content_arena.monitoring.run_metrics import GROUPS, RunFiles
from content_arena.serving.model_host import REMEDIES
from content_arena.serving.registry_watch import WriterMetrics
from content_arena.store.writer import WriterStats
from watch import DEPLOY, ROOT, UNITS, shortened, tool

pytestmark = pytest.mark.long(60)

PROMETHEUS = DEPLOY / "prometheus"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
NAME = re.compile(r"(?<![\w:])(?:content_arena|process)[\w:]*(?![\w:(])")


def rules(name: str) -> list[dict]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


def service_metrics(folder: Path) -> Metrics:
    "All that a service registers."
    metrics = Metrics()
    metrics.registry.register(WriterMetrics(WriterStats))
    metrics.registry.register(RunFiles(folder))
    return metrics


def known_series(folder: Path) -> set[str]:
    "Every name that can be asked for: samples of metrics, run metrics, and what rules record."
    names = {m.name for group in GROUPS.values() for m in group}
    for family in service_metrics(folder).registry.collect():
        total = isinstance(family, CounterMetricFamily) or family.type == "counter"
        names.add(family.name + "_total" * total)
        names |= {s.name for s in family.samples}
        if family.type == "histogram":
            names |= {family.name + end for end in ("_bucket", "_count", "_sum")}
    return names | {rule["record"] for rule in rules("rules.yml")}


def names_in(expression: str) -> set[str]:
    "Metrics named in a PromQL expression; not those in the values of labels."
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expression)))


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana/dashboards/content_arena.json").read_text())


def dashboard_expressions(value: object) -> Iterator[str]:
    "Every `expr` in panels, annotations and variables."
    if isinstance(value, dict):
        if isinstance(value.get("expr"), str):
            yield value["expr"]
        for inner in value.values():
            yield from dashboard_expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from dashboard_expressions(inner)


# Rules -------------------------------------------------------------------------------------------


def test_the_named_alerts_have_the_promised_limits():
    wanted = {
        "DetectionRateDrop": ("< 0.5", "10m", "warning"),
        "ModelF1ScoreDrop": ("< 0.7", "5m", "critical"),
        "HighInferenceLatency": ("> 0.5", "5m", "warning"),
        "ChallengerStale": ("> 86400", "5m", "info"),
    }
    for name, (limit, wait, severity) in wanted.items():
        rule = ALERTS[name]
        assert limit in rule["expr"], name
        assert (rule["for"], rule["labels"]["severity"]) == (wait, severity), name


def test_every_alert_says_what_it_means_and_names_its_page():
    for name, rule in ALERTS.items():
        assert {"summary", "description", "runbook"} == set(rule["annotations"]), name
        # either of those that a route knows
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert rule["annotations"]["runbook"] == f"deploy/runbooks/{name}.md"
        page = (ROOT / rule["annotations"]["runbook"]).read_text()
        assert page.startswith(f"# {name}\n") and len(page.split()) < 200, name
        assert all(part in page for part in ("**Means.**", "**Check**", "**Do**")), name
    assert {p.stem for p in (DEPLOY / "runbooks").glob("*.md")} == set(ALERTS)


def test_commands_in_runbooks_exist():
    import typer.main

    from content_arena.cli.main import app

    root = typer.main.get_command(app)
    for page in sorted((DEPLOY / "runbooks").glob("*.md")):
        for words in re.findall(r"`content-arena ([^`]+)`", page.read_text()):
            command = root
            for word in words.split():
                if not hasattr(command, "commands") or not re.fullmatch(r"[a-z-]+", word):
                    break
                assert word in command.commands, f"{page.name}: content-arena {words}"
                command = command.commands[word]
            options = {o for p in command.params for o in p.opts}
            assert set(re.findall(r"--[\w-]+", words)) <= options, f"{page.name}: {words}"


def hasty_rollbacks(page: str) -> list[str]:
    "Lines that say to roll back without what tells a bad model from a load that failed."
    tells = ("- `model`", "content-arena classify", "It rose with the change of champion")
    return [
        line
        for line in page.splitlines()
        if "registry rollback" in line and not any(t in line for t in tells)
    ]


def test_pages_on_the_service_tell_a_load_that_failed_from_a_bad_model():
    for page in ("NoVerifiedModel", "ReloadFailing"):
        text = (DEPLOY / "runbooks" / f"{page}.md").read_text()
        causes = set(re.findall(r"^- `([a-z_]+)`", text, re.M))
        assert causes >= set(REMEDIES) - {"no_champion"}, page
        assert "content-arena classify hello" in text and "failed_loads" in text, page
    [service, *_] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in service["rules"]:
        assert not hasty_rollbacks((ROOT / rule["annotations"]["runbook"]).read_text()), rule
    assert hasty_rollbacks("- Champion can't be loaded: `content-arena registry rollback`")
    assert set(REMEDIES) == set(CAUSES)  # what the metric's label can say
    assert ["rollback" in remedy for remedy in REMEDIES.values()] == [c == "model" for c in CAUSES]


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("file", ["rules.yml", "alerts.yml"])
def test_promtool_accepts_the_rules(file: str):
    done = tool("promtool", "check", "rules", PROMETHEUS / file)
    assert done.returncode == 0, done.stdout
    assert f"{len(rules(file))} rules found" in done.stdout


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_configuration():
    done = tool("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("file", TESTS, ids=lambda f: f.stem)
def test_rules_fire_when_they_should_and_not_else(file: Path):
    done = tool("promtool", "test", "rules", file)
    assert done.returncode == 0, done.stdout


def covered(wanted_to_fire: bool) -> set[str]:
    "Alerts that a rule test expects to be firing, or expects not to be."
    names = set()
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for check in test["promql_expr_test"]:
                name = re.search(r'alertname="(\w+)", alertstate="firing"', check["expr"])
                if name and bool(check["exp_samples"]) == wanted_to_fire:
                    names.add(name[1])
    return names


def test_every_alert_is_shown_firing_and_not_firing():
    assert covered(True) == set(ALERTS) and covered(False) == set(ALERTS)


@pytest.mark.slow
@pytest.mark.needs("prometheus")
def test_a_rule_with_another_limit_is_found_out(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    for file in [PROMETHEUS / "rules.yml", *TESTS]:
        (tmp_path / file.relative_to(PROMETHEUS)).write_text(file.read_text())
    text = (PROMETHEUS / "alerts.yml").read_text()
    for old, new, file in (
        ("battle_detection_rate < 0.5", "battle_detection_rate < 0.4", "model"),
        ("> 86400", "> 172800", "days"),
        (":p99", ":p50", "service"),
        ("errors:ratio_rate5m > 0.05", "errors:ratio_rate5m > 0.045", "limits"),
        ("errors:ratio_rate5m > 0.05", "errors:ratio_rate5m >= 0.05", "limits"),
        ("> 0.067", "> 0.06", "limits"),
        (">= 500", ">= 550", "limits"),
        ("for: 10m", "for: 9m", "waits"),
    ):
        assert old in text
        (tmp_path / "alerts.yml").write_text(text.replace(old, new))
        assert tool("promtool", "test", "rules", tmp_path / f"tests/{file}.yml").returncode, new


def seconds(duration: str) -> int:
    return int(duration[:-1]) * UNITS[duration[-1]] // 1000


def told(alert: str) -> Iterator[list[tuple[int, bool]]]:
    "Of each rule test that asks more than once: when, in order, and whether `alert` is expected to be firing then."
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            asked = [
                (
                    seconds(check["eval_time"]),
                    any(f'alertname="{alert}"' in x["labels"] for x in check["exp_samples"] or ()),
                )
                for check in test["promql_expr_test"]
                if "firing" in check["expr"]
                and f'alertname="{alert}"' in check["expr"]
                or 'ALERTS{alertstate="firing"}' in check["expr"]
            ]
            yield sorted(asked)


@pytest.mark.slow
def test_a_wait_a_fifth_shorter_or_longer_would_be_noticed():
    """Each alert is shown silent, and firing little later: a rule test that passes then pins its `for` down."""
    for name, rule in ALERTS.items():
        apart = [
            after - before
            for asked in told(name)
            for (before, silent), (after, fires) in zip(asked, asked[1:])
            if fires and not silent
        ]
        assert apart and min(apart) < seconds(rule["for"]) / 5 + 1, (name, apart)


def test_shortened_rules_keep_their_thresholds():
    given = {
        "groups": [{"rules": [{"expr": "rate(a[5m]) > 0.5 and b offset 1h > 86400", "for": "10m"}]}]
    }
    [rule] = shortened(given, 120)["groups"][0]["rules"]
    assert rule == {"expr": "rate(a[2500ms]) > 0.5 and b offset 30000ms > 86400", "for": "5000ms"}
    assert given["groups"][0]["rules"][0]["for"] == "10m"


def test_rules_ask_for_metrics_that_exist(tmp_path: Path):
    known = known_series(tmp_path)
    for rule in (*rules("alerts.yml"), *rules("rules.yml")):
        assert names_in(rule["expr"]) - known == set(), rule
    assert names_in("rate(content_arena_gone_total[5m])") - known == {"content_arena_gone_total"}


# Metrics -----------------------------------------------------------------------------------------


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_page(tmp_path: Path):
    page = exposition(service_metrics(tmp_path))[0].decode()
    done = tool("promtool", "check", "metrics", stdin=page)
    assert (done.returncode, done.stdout) == (0, "")


# Alertmanager ------------------------------------------------------------------------------------


@pytest.mark.needs("prometheus")
def test_amtool_accepts_the_configuration():
    done = tool("amtool", "check-config", DEPLOY / "alertmanager/alertmanager.yml")
    assert done.returncode == 0, done.stdout
    assert "1 templates" in done.stdout and "3 receivers" in done.stdout


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_goes_to_the_channel_of_its_severity(name: str):
    severity = ALERTS[name]["labels"]["severity"]
    done = tool(
        "amtool",
        "config",
        "routes",
        "test",
        "--verify.receivers",
        f"slack-{severity}",
        "--config.file",
        DEPLOY / "alertmanager/alertmanager.yml",
        f"alertname={name}",
        f"severity={severity}",
        "job=content_arena",
    )
    assert done.returncode == 0, done.stdout


def test_inhibition_speaks_of_alerts_that_exist():
    config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
    for rule in config["inhibit_rules"]:
        for side in ("source_matchers", "target_matchers"):
            for matcher in rule[side]:
                label, names = re.fullmatch(r'(\w+) =~? "?([\w|]+)"?', matcher).groups()
                if label == "alertname":
                    assert set(names.split("|")) <= set(ALERTS), matcher
        source = re.findall(r"\w+", rule["source_matchers"][0].partition("=")[2])
        assert all(s in ALERTS for s in source)


# Dashboard ---------------------------------------------------------------------------------------


def test_the_dashboard_is_what_its_notebook_makes():
    from content_arena.reports.dashboard import dashboard_json

    file = DEPLOY / "grafana/dashboards/content_arena.json"
    assert file.read_text() == dashboard_json(), "run scripts/dashboard"


def test_every_panel_says_what_it_means_and_names_a_runbook_that_is_there():
    panels = [p for p in dashboard()["panels"] if p["type"] != "row"]
    assert len(panels) >= 30
    for panel in panels:
        meaning, _, page = panel["description"].partition("\n\nRunbook: ")
        assert len(meaning.split()) >= 3 and (ROOT / page).is_file(), panel["title"]


def test_the_first_row_is_red_where_nothing_answers():
    first = [p for p in dashboard()["panels"] if p["type"] != "row"][:4]
    for panel in first[:2]:
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert (steps[0]["color"], steps[1]["value"], steps[1]["color"]) == ("red", 1, "green")
    assert all(p["fieldConfig"]["defaults"]["noValue"] == "no data" for p in first)


def test_the_dashboard_asks_for_metrics_that_exist(tmp_path: Path):
    expressions, known = list(dashboard_expressions(dashboard())), known_series(tmp_path)
    assert len(expressions) > 25
    for expression in expressions:
        if not re.search(r"\b(?:up|ALERTS)\{", expression):  # series that Prometheus makes itself
            assert names_in(expression), expression
        assert names_in(expression) <= known, expression


@pytest.mark.needs("prometheus")
def test_every_expression_of_the_dashboard_parses(tmp_path: Path):
    def check(expressions: list[str]) -> int:
        made = [
            {"record": f"r{i}", "expr": e.replace("$__rate_interval", "1m")}
            for i, e in enumerate(expressions)
        ]
        (tmp_path / "r.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": made}]}))
        return tool("promtool", "check", "rules", tmp_path / "r.yml").returncode

    assert check(list(dashboard_expressions(dashboard()))) == 0
    assert check(["sum(rate(content_arena_x_total[1m])"]) != 0


def test_grafana_finds_dashboard_and_data_source():
    provisioning = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    used = set(re.findall(r'"uid": "(\w+)"\s*}', json.dumps(dashboard())))
    assert used - {"grafana"} == {source["uid"]}
    [provider] = yaml.safe_load((provisioning / "dashboards/content_arena.yaml").read_text())[
        "providers"
    ]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = [v.split(":") for v in compose["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"], "ro"] in mounts
    assert ["./grafana/provisioning", "/etc/grafana/provisioning", "ro"] in mounts


# Compose -----------------------------------------------------------------------------------------


def test_the_compose_file_fits_its_schema(tmp_path: Path):
    def check(file: Path) -> int:
        return tool(
            Path(sys.executable).with_name("check-jsonschema"),
            "--builtin-schema",
            "vendor.compose-spec",
            file,
        ).returncode

    assert check(DEPLOY / "compose.yaml") == 0
    (tmp_path / "compose.yaml").write_text("services: {a: {imagee: b}}\n")
    assert check(tmp_path / "compose.yaml") != 0


def test_compose_names_settings_files_and_targets_that_exist():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {"service", "mlflow", "postgres", "prometheus", "alertmanager", "grafana"} <= set(
        compose["services"]
    )
    for name, service in compose["services"].items():
        for key in service.get("environment", {}):
            if key.startswith("CONTENT_ARENA_"):
                key = key.removeprefix("CONTENT_ARENA_")
                # either a secret, maybe as a file, or a setting
                assert key.removesuffix("_FILE") in SECRETS or key.lower() in Settings.model_fields
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source[0] == "." else source in compose["volumes"]
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        assert all(p.startswith("127.0.0.1:") for p in service.get("ports", [])), name
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = {
        t for job in scraped["scrape_configs"] for c in job["static_configs"] for t in c["targets"]
    }
    assert {t.split(":")[0] for t in targets} - {"localhost"} <= set(compose["services"])
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
