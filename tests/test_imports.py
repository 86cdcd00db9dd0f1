"""Arrows point one way, room by room: a module imports what is below its own room, or stands in
it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

ROOMS = [  # from the ground up; a tuple is one floor whose modules may import one another
    ("coprs_core.errors", "coprs_core.sizes", "coprs_core.threads"),
    ("coprs_core.files",),
    ("coprs_core.photos",),
    ("coprs_core.prompts", "coprs_core.metrics", "coprs_core.geometry"),
    ("coprs_core.masks", "coprs_core.machine", "coprs_core.parsing"),
    ("coprs_core.mini.world",),
    ("coprs_core.model",),
    ("coprs_core.checkpoints",),
    ("coprs_core.answer",),
    ("coprs_core.datasets",),
    ("coprs_core.probes",),
    ("coprs_core.export",),
    ("coprs_core.batch", "coprs_core.evaluation", "coprs_core.mini.calibrate"),
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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_stands_in_a_room_and_imports_downwards(path):
    name = name_of(path)
    room = room_of(name)
    if room is None:
        assert name in ("coprs_core", "coprs_core.mini", "app"), f"{name} stands in no room"
        return
    above = {
        n
        for n in imported(path)
        if (other := room_of(n)) and other != room and FLOOR_OF[other] > FLOOR_OF[room]
    }
    assert not above, f"{name} imports upwards"


@pytest.mark.parametrize("room", [r for r in FLOOR_OF if (ROOT / r.replace(".", "/")).is_dir()])
def test_inside_a_room_there_is_no_circle(room):
    arrows = {
        name_of(p): {n for n in imported(p) if n.startswith(f"{room}.") and n != name_of(p)}
        for p in MODULES
        if name_of(p).startswith(f"{room}.")
    }
    arrows = {name: targets & arrows.keys() for name, targets in arrows.items()}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {n: targets - leaves for n, targets in arrows.items() if n not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_core_knows_no_gradio_and_the_app_no_tensor(path):
    strangers = {
        "coprs_core": ("gradio", "app"),
        "app": ("torch", "transformers", "segment_anything"),
    }
    package = name_of(path).split(".")[0]
    found = {n.split(".")[0] for n in imported(path)}
    assert not found & {*strangers[package], "tests"}


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
