"""A small repository with whatever a rule has to find."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from repository_files import PACKAGE


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    "plant(('00_core/00_config', 'config', 'x = 1'), ...): a repository of notebooks and modules."

    def make(*specs: tuple[str, str, str]) -> Path:
        for path, module, source in specs:
            cells = [
                nbformat.v4.new_code_cell(f"#| default_exp {module}"),
                nbformat.v4.new_code_cell(f"#| export\n{source}"),
            ]
            file = tmp_path / "nbs" / f"{path}.ipynb"
            file.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
            made = tmp_path / PACKAGE / (module.replace(".", "/") + ".py")
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(source)
            (made.parent / "__init__.py").touch()
        return tmp_path

    return make
