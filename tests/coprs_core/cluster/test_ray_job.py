"""Many photos on Ray: the same files as here, an actor that dies loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from coprs_core.__main__ import main
from coprs_core.batch import BatchOptions, BatchOutcome, open_photo_or_url, segment_photos
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.errors import CoPRSError
from coprs_core.example import Example
from coprs_core.mini.world.scenes import draw_scene
from tests import ROOT

ray = pytest.importorskip("ray")
LARGEST = BatchOptions("mini")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        Image.fromarray(draw_scene(i, "test").image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def cluster():
    from coprs_core.cluster.ray_job import Cluster, _connect

    os.environ["PYTHONPATH"] = str(ROOT)
    _connect(Cluster("local"))
    yield Cluster("local", actors=2, cpus=0.5)
    ray.shutdown()


def items_of(folder: Path) -> list[Example]:
    return [Example(str(p), "the largest thing", name=p.name) for p in sorted(folder.iterdir())]


def essence(out: Path) -> dict:
    found = {p.parent.name: json.loads(p.read_text()) for p in out.rglob("result.json")}
    return {name: (told["outcome"], told["reply"]) for name, told in found.items()}


@pytest.mark.slow
def test_an_actor_that_is_killed_loses_nothing(photos, cluster, tmp_path, mini):
    from coprs_core.cluster.ray_job import segment_on_ray

    items = items_of(photos)
    here = list(segment_photos(items, LARGEST, tmp_path / "here", lambda: mini))
    out, options = tmp_path / "there", LoadOptions(device="cpu")
    done: list[BatchOutcome] = []
    for one in segment_on_ray(items, LARGEST, out, options, cluster, at_once=4):
        done.append(one)
        if len(done) == 1:  # one of the two engines dies in the middle
            killed = _kill_an_actor()
    assert killed and not any(one.problem for one in done)
    assert sorted({one.name for one in done}) == sorted(one.name for one in here)
    assert len(done) <= len(items) + 4
    mine, theirs = essence(tmp_path / "here"), essence(out)
    assert mine.keys() == theirs.keys() and sum(mine[n] != theirs[n] for n in mine) <= 1
    files = {p.relative_to(tmp_path / "here").as_posix() for p in (tmp_path / "here").rglob("*.*")}
    assert files == {p.relative_to(out).as_posix() for p in out.rglob("*.*")}
    again = list(segment_on_ray(items, LARGEST, out, options, cluster, at_once=4))
    assert len(again) == len(items) and not any(one.outcome for one in again)  # done once


def _kill_an_actor() -> bool:
    """The process of one of the engines; Ray names it after what it does."""
    for _ in range(100):
        for process in psutil.process_iter(["cmdline"]):
            if "MapWorker" in " ".join(process.info["cmdline"] or ()):
                process.send_signal(signal.SIGKILL)
                return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_the_command_runs_on_a_cluster(photos, cluster, tmp_path, capsys):
    manifest, out = tmp_path / "asked.jsonl", tmp_path / "out"
    rows = [
        {"photo": f"file://{photos}/00.png"},
        {"photo": str(tmp_path / "gone.png"), "name": "b"},
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    asked = ["segment", str(manifest), "the largest thing", "--out", str(out), "--device", "cpu"]
    assert main([*asked, "--ray", "local", "--ray-actors", "1"]) == 1
    told = capsys.readouterr().err
    assert "1 of 2 photos failed" in told and "gone.png" in told and "Ray listens on" in told
    assert len(list(out.rglob("result.json"))) == 1


@pytest.mark.slow
def test_a_model_that_no_machine_can_load_is_one_sentence(photos, cluster, tmp_path, capsys):
    asked = ["segment", str(photos), "it", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*asked, "--ray", "local", "--ray-actors", "1", "--model", "/nowhere/x"]) == 2
    said = capsys.readouterr().err
    assert "There is no checkpoint '/nowhere/x'" in said and "Traceback" not in said


@pytest.mark.slow
def test_who_reaches_the_cluster_is_said_and_needs_its_token(photos, cluster, tmp_path):
    from coprs_core.cluster.ray_job import _describe_exposure

    said = _describe_exposure()
    assert "listens on all network interfaces (ports " in said and "knows its token" in said
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    address = ray.get_runtime_context().gcs_address
    asked = ["segment", str(photos), "it", "--out", str(tmp_path / "out"), "--device", "cpu"]
    refused = subprocess.run(
        [sys.executable, "-m", "coprs_core", *asked, "--ray", address],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 2, refused.stderr
    said = refused.stderr.splitlines()[-1]
    assert "cannot be reached" in said and "set RAY_AUTH_MODE and RAY_AUTH_TOKEN here" in said, said
    assert "Traceback" not in refused.stderr and not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    "given", [{}, {"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/x"}, {"RAY_AUTH_MODE": "disabled"}]
)  # fmt: skip
def test_a_token_is_made_where_none_is_given(tmp_path, given):
    code = (
        "import os, sys\nfrom coprs_core.cluster.ray_job import _require_token\n_require_token()\n"
        "assert 'ray' not in sys.modules\n"
        "print(os.environ.get('RAY_AUTH_MODE'), os.environ.get('RAY_AUTH_TOKEN'))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=clean | {"HOME": str(tmp_path)} | given,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert told[0][0] == given.get("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" in given or "RAY_AUTH_TOKEN_PATH" in given:
        assert told[0] == told[1] and told[0][1] in ("mine", "None")
    else:
        assert len(told[0][1]) == 64 and told[0] != told[1]
    assert not list(tmp_path.rglob("*"))  # it is written nowhere


def test_a_cluster_that_is_not_there_and_probes_are_sentences(tmp_path, capsys, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked = ["segment", str(tmp_path), "x", "--out", str(tmp_path / "out")]
    assert main([*asked, "--ray", "local", "--probe", "heads"]) == 2
    assert "not asked on a cluster" in capsys.readouterr().err
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refused(*_, **__):
        raise ConnectionError("no such host\nand more")

    monkeypatch.setattr(ray, "init", refused)
    assert main([*asked, "--ray", "ray://nowhere:1"]) == 2
    said = capsys.readouterr().err
    assert (
        "cannot be reached" in said
        and "ray start --head" in said
        and "ray start" in said.splitlines()[-1]
    )


def test_photos_from_elsewhere(photos, tmp_path):
    import fsspec

    assert open_photo_or_url(f"file://{photos}/01.png").size == (256, 256)
    with fsspec.open("memory://box/a.png", "wb") as file:
        file.write((photos / "01.png").read_bytes())
    assert open_photo_or_url("memory://box/a.png").size == (256, 256)
    for wrong, said in (
        ("memory://box/gone.png", "cannot be read"),
        ("nothing://x/y.png", "cannot be read"),
        (str(tmp_path / "gone.png"), "gone.png"),
    ):
        with pytest.raises(CoPRSError, match=said):
            open_photo_or_url(wrong)
