"""What pyproject.toml can't say: a wheel brings along what `content-arena init` makes a project of."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class WithProject(build_py):
    "Puts settings.ini and the pipeline's notebooks into the package, where `core.project` finds them."

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install uses those of the repository
            return
        target = Path(self.build_lib) / "content_arena" / "project"
        shutil.rmtree(target, ignore_errors=True)
        (target / "nbs" / "pipelines").mkdir(parents=True)
        for file in (ROOT / "settings.ini", *sorted(ROOT.glob("nbs/pipelines/*.ipynb"))):
            shutil.copyfile(file, target / file.relative_to(ROOT))


setup(cmdclass={"build_py": WithProject})
