"""What lasts from night to night, for the tests of nights."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def world(postgres, tmp_path_factory):
    from nights import World  # brings MLflow: only if needed

    made = World(tmp_path_factory.mktemp("world"), postgres.new())
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def night_one(world) -> Path:
    "Night 1: nobody is champion yet, and a person allows the first one."
    return world.first_night()


@pytest.fixture
def second(world, night_one: Path):
    "The evening before night 2: a moderator has labelled a comment, and the next model will be better."
    world.restore()
    world.label()
    return world
