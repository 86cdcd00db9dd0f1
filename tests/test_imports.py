"""Arrows point one way: the core never imports gradio, inference never imports training, the app never touches a tensor."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors", "machine", "metrics", "photos", "prompts", "results", "verdict", "compare", "pictures", "drawings", "scenes", "questions", "geometry",
    "model.vision", "model.prior", "model.decoder", "model.mllm", "model.coprs", "model.pointing", "downloads", "coordinates",
    "catalogue", "checkpoints", "convert", "engine", "shelf", "probes", "zoom", "archive", "evaluate", "doctor", "benchmark", "commands", "__main__",
]  # fmt: skip


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("coprs_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_neither_gradio_nor_the_app(path):
    assert not any(n.split(".")[0] in ("gradio", "app", "tests") for n in imported(path))


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_those_before_them(name):
    path = ROOT / "coprs_core" / (name.replace(".", "/") + ".py")
    ours = {n.removeprefix("coprs_core.") for n in imported(path) if n.startswith("coprs_core.")}
    later = set(ORDER[ORDER.index(name) :])
    if name in ("commands", "__main__"):  # each command loads what it needs when it runs
        later -= {"commands", "training.run"}
    assert not ours & later
    if name not in ("commands",):
        assert not any(n.startswith("training") for n in ours)


def test_every_module_of_the_core_has_its_place_in_the_order():
    names = {
        str(p.relative_to(ROOT / "coprs_core")).removesuffix(".py").replace("/", ".") for p in modules("coprs_core")
    }
    assert {n for n in names if not n.startswith("training") and not n.endswith("__init__")} == set(ORDER)


@pytest.mark.parametrize("path", modules("app"), ids=lambda p: p.name)
def test_the_app_never_touches_a_tensor(path):
    assert not any(n.split(".")[0] in ("torch", "transformers", "segment_anything") for n in imported(path))


def test_app_py_stays_thin():
    assert len((ROOT / "app.py").read_text().splitlines()) <= 40


def test_importing_the_core_loads_no_training():
    code = "import sys, coprs_core; print([m for m in sys.modules if 'training' in m and 'coprs' in m], 'gradio' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"
