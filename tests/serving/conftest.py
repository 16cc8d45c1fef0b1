import pytest
import stage


@pytest.fixture
def folder(tmp_path):
    stage.FileRegistry(tmp_path).set(champion="1")
    return tmp_path
