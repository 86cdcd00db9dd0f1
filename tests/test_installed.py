"""The package as somebody else installs it: its wheel alone, in a fresh environment, far from the
checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests import ROOT

PHOTO, WORDS = ROOT / "assets" / "examples" / "rain.png", "the thing that keeps the rain off"


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints that runs in a folder and is told nothing of the checkout."""
    told = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "COPRS_"))}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=told, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason='hatchling is not installed: pip install -e ".[test]"')
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT)
    (built,) = folder.glob("coprs-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment that holds the wheel; its other libraries are those of the
    environment that the tests run in."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    run(place / "bin" / "pip", "install", "--no-deps", "--no-index", wheel, folder=place)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return place / "bin"


def test_the_wheel_holds_every_file_of_the_package_and_the_miniature_once(wheel):
    def files(folder: Path) -> set[str]:
        found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(ROOT).as_posix() for p in found}

    miniature = {f"coprs_core/{name}" for name in files(ROOT / "assets" / "mini")}
    held = [name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(held) == sorted(files(ROOT / "coprs_core") | miniature)


def test_nothing_but_the_package_is_installed(programs, tmp_path):
    code = "import coprs_core, importlib.util as u; print(coprs_core.__file__, u.find_spec('app'), u.find_spec('tests'))"
    path, *others = run(programs / "python", "-c", code, folder=tmp_path).split()
    assert Path(path).is_relative_to(programs.parent) and others == ["None", "None"]


def test_what_is_installed_answers_about_a_photo_as_the_checkout_does(programs, mini, tmp_path):
    (tmp_path / "photo.png").write_bytes(PHOTO.read_bytes())
    run(programs / "coprs", "segment", "photo.png", WORDS, "--out", "answer", folder=tmp_path)
    told = json.loads((tmp_path / "answer" / "result.json").read_text())
    here = mini.segment(PHOTO, WORDS)
    assert told["outcome"] == here.outcome == "found"
    assert told["reply_ids"] == list(here.reply_ids)
    assert (tmp_path / "answer" / "mask.png").exists()
