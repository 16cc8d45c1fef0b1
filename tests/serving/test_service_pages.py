"""What a person sees who opens the service's address: it is served by the service alone."""

import re

import pytest
from fastapi.testclient import TestClient
from stage import FileLoader, settings

from content_arena.core.config import Secrets
from content_arena.serving.app import create_app


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    "The application without its start: these pages need no model."
    folder = tmp_path_factory.mktemp("pages")
    return TestClient(create_app(settings(folder), Secrets(), FileLoader(folder)))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_asks_nobody_else(client, path):
    answer = client.get(path)
    assert answer.status_code == 200 and "<h1>" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<(script|link|img|iframe)|(src|href)=\"(https?:)?//", answer.text)


def test_home_leads_to_what_there_is(client):
    links = re.findall(r'href="([^"]+)"', client.get("/").text)
    assert {"docs", "ready", "metrics", "openapi.json"} == set(links)
    for link in set(links) - {"ready"}:  # without a model it is not ready
        assert client.get(f"/{link}").status_code == 200, link


def test_every_question_is_on_the_page_with_a_body_that_is_accepted(client):
    text, described = client.get("/docs").text, client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}</code>" in text
    assert "/docs" not in described["paths"] and "POST /classify<" in text
    assert "&#x27;{&quot;text&quot;:" in text
    assert client.get("/redoc").status_code == 404


def test_every_parameter_says_what_it_is(client):
    described = client.get("/openapi.json").json()
    operations = [o for methods in described["paths"].values() for o in methods.values()]
    parts = [p for o in operations for p in o.get("parameters", ())]
    assert len(parts) > 5 and [p["name"] for p in parts if not p.get("description")] == []


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("host", ["filter.example:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_a_command_can_be_pasted_as_it_stands(client, path, host):
    text = client.get(path, headers={"host": host}).text
    assert f"curl -X POST http://{host}/classify \\\n  -H" in text and "HOST:PORT" not in text


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("host", ["x;reboot", "$(reboot)", "x'\"><script>alert(1)</script>", "a b"])
def test_what_is_no_host_is_not_repeated(client, path, host):
    text = client.get(path, headers={"host": host}).text
    assert "http://HOST:PORT/classify" in text
    assert "reboot" not in text and "alert" not in text and "a b/" not in text
