"""Arrows point one way, room by room: a module imports what is below its own room, or stands in
it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

ROOMS = [  # from the ground up; a tuple is one floor whose modules may import one another
    ("coprs_core.errors", "coprs_core.storage", "coprs_core.threads"),
    ("coprs_core.files", "coprs_core.fair_semaphore"),
    ("coprs_core.photos",),
    ("coprs_core.prompts", "coprs_core.metrics", "coprs_core.geometry", "coprs_core.example"),
    ("coprs_core.masks", "coprs_core.machine", "coprs_core.parsing", "coprs_core.run_settings"),
    ("coprs_core.mini.world",),
    ("coprs_core.model",),
    ("coprs_core.checkpoints",),
    ("coprs_core.answer",),
    ("coprs_core.datasets",),
    ("coprs_core.probes",),
    ("coprs_core.export",),
    ("coprs_core.batch", "coprs_core.evaluation", "coprs_core.calibrate"),
    ("coprs_core.random_weights", "coprs_core.cluster"),
    ("coprs_core.benchmark",),
    ("coprs_core.training",),
    ("coprs_core.mini.train",),
    ("coprs_core.mini.ablation",),
    ("coprs_core.commands",),
    ("coprs_core.__main__",),
    ("app.texts", "app.theme", "app.options"),
    ("app.server",),
    ("app.views",),
    ("app.visitors", "app.frame"),
    ("app.examples", "app.saved_answers", "app.models"),
    ("app.display",),
    ("app.thought_actions", "app.opening"),
    ("app.api", "app.handlers", "app.actions"),
    ("app.tabs",),
    ("app.ui",),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
MODULES = sorted(p for d in ("coprs_core", "app") for p in (ROOT / d).rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


def name_of(path: Path) -> str:
    name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    return name.removesuffix(".__init__")


def room_of(name: str) -> str | None:
    """The room that a module stands in; None for the faces of the two packages."""
    return next((r for r in FLOOR_OF if name == r or name.startswith(f"{r}.")), None)


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, type checking aside."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_every_module_stands_in_a_room():
    faces = {"coprs_core", "coprs_core.mini", "app"}
    homeless = [n for n in map(name_of, MODULES) if room_of(n) is None and n not in faces]
    assert not homeless


def test_imports_point_downwards():
    upwards = []
    for path in MODULES:
        room = room_of(name_of(path))
        for name in imported(path) if room else ():
            other = room_of(name)
            if other and other != room and FLOOR_OF[other] > FLOOR_OF[room]:
                upwards.append(f"{name_of(path)} imports {name}")
    assert not upwards, "\n".join(sorted(upwards))


def circle(room: str) -> set[str]:
    """The modules of a room that import one another in a circle, or stand between circles."""
    arrows = {
        name_of(p): {n for n in imported(p) if n.startswith(f"{room}.") and n != name_of(p)}
        for p in MODULES
        if name_of(p).startswith(f"{room}.")
    }
    arrows = {name: targets & arrows.keys() for name, targets in arrows.items()}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {n: targets - leaves for n, targets in arrows.items() if n not in leaves}
    return set(arrows)


def test_inside_a_room_there_is_no_circle():
    circles = {room: sorted(found) for room in FLOOR_OF if (found := circle(room))}
    assert not circles


def test_files_and_functions_are_short():
    long = []
    for path in MODULES:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            long.append(f"{name_of(path)} has {lines} lines; {MAX_LINES} are the most")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(
                        f"{name_of(path)}.{node.name} has {lines} lines; {MAX_FUNCTION_LINES} are the most"
                    )
    assert not long, "\n".join(long)


STRANGERS = {
    "coprs_core": {"gradio", "app", "tests"},
    "app": {"torch", "transformers", "segment_anything", "tests"},
}


def test_the_core_knows_no_gradio_and_the_app_no_tensor():
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        for name in imported(path)
        if name.split(".")[0] in STRANGERS[name_of(path).split(".")[0]]
    ]
    assert not wrong, "\n".join(sorted(wrong))


WHOLE = {"dependencies", "docstrings", "help", "imports", "installed", "quality", "seams"}
"""Tests of the whole product; they stand at the top, as tests/test_X.py."""


def test_tests_mirror_the_packages_path_for_path():
    """tests/a/b/test_c.py tests a/b/c.py, or the package a/b/c."""
    modules = {path.relative_to(ROOT).with_suffix("") for path in MODULES}
    rooms = {module.parent for module in modules}
    astray = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        inside = path.relative_to(ROOT / "tests")
        tested = inside.with_name(path.stem.removeprefix("test_"))
        if not (tested in modules | rooms or (inside.parent == Path() and tested.name in WHOLE)):
            astray.append(f"tests/{inside} tests no module of its path")
    assert not astray, "\n".join(astray)


def test_app_py_stays_thin():
    assert len((ROOT / "app.py").read_text().splitlines()) <= 40


def test_importing_the_core_loads_nothing_and_using_it_no_training():
    code = (
        "import sys, coprs_core\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])\n"
        "coprs_core.load\n"
        "print([m for m in sys.modules if 'coprs_core.training' in m], 'gradio' in sys.modules)\n"
        "print(sorted(coprs_core.__all__) == sorted(set(dir(coprs_core)) & set(coprs_core.__all__)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == ["[]", "[] False", "True"]


@pytest.mark.parametrize(
    "command", ["-m coprs_core --help", "-m coprs_core segment --help", "app.py --help"]
)
def test_help_loads_no_library(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = {command.split()[-2:] if 'segment' in command else ['x', '--help']!r}\n"
    )
    if command.startswith("-m"):
        code += "sys.argv = ['coprs_core'] + " + repr(command.split()[2:]) + "\n"
        body = "runpy.run_module('coprs_core', run_name='__main__')"
    else:
        body = "runpy.run_path('app.py', run_name='__main__')"
    code += f"sys.path.insert(0, '.')\ntry:\n    {body}\nexcept SystemExit:\n    pass\n"
    code += "print([m for m in ('torch', 'numpy', 'gradio', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]" and "usage:" in run.stdout, run.stderr


def test_the_drawn_world_is_entered_by_its_data_set_and_by_commands_alone():
    enters = ("coprs_core.mini", "coprs_core.datasets.scenes", "coprs_core.commands")
    for path in MODULES:
        if not name_of(path).startswith(enters):
            inside = {n for n in imported(path) if n.startswith("coprs_core.mini")}
            assert not inside, f"{name_of(path)} enters the drawn world"
