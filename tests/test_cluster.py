"""Many photos on Ray: the same files as here, an actor that dies loses nothing."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from coprs_core.__main__ import main
from coprs_core.batch import Answered, Item, Query, open_stored, segment_photos
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.errors import CoPRSError
from coprs_core.world.scenes import draw_scene

ray = pytest.importorskip("ray")
LARGEST = Query("the largest thing", "mini")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        Image.fromarray(draw_scene(i, "test").image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def cluster():
    from coprs_core.cluster.ray_job import Cluster, _connected

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    _connected(Cluster("local"))
    yield Cluster("local", actors=2, cpus=0.5)
    ray.shutdown()


def items_of(folder: Path) -> list[Item]:
    return [Item(str(path), LARGEST.instruction, path.name) for path in sorted(folder.iterdir())]


def essence(out: Path) -> dict:
    found = {p.parent.name: json.loads(p.read_text()) for p in out.rglob("result.json")}
    return {name: (told["outcome"], told["reply"]) for name, told in found.items()}


@pytest.mark.slow
def test_an_actor_that_is_killed_loses_nothing(photos, cluster, tmp_path, mini):
    from coprs_core.cluster.ray_job import segment_on_ray

    items = items_of(photos)
    here = list(segment_photos(items, LARGEST, tmp_path / "here", lambda: mini))
    out, options = tmp_path / "there", LoadOptions(device="cpu")
    done: list[Answered] = []
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
    assert "1 of 2 photos failed" in told and "gone.png" in told
    assert len(list(out.rglob("result.json"))) == 1


@pytest.mark.slow
def test_a_model_that_no_machine_can_load_is_one_sentence(photos, cluster, tmp_path, capsys):
    asked = ["segment", str(photos), "it", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*asked, "--ray", "local", "--ray-actors", "1", "--model", "/nowhere/x"]) == 2
    said = capsys.readouterr().err
    assert "There is no checkpoint '/nowhere/x'" in said and "Traceback" not in said


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

    assert open_stored(f"file://{photos}/01.png").size == (256, 256)
    with fsspec.open("memory://box/a.png", "wb") as file:
        file.write((photos / "01.png").read_bytes())
    assert open_stored("memory://box/a.png").size == (256, 256)
    for wrong, said in (
        ("memory://box/gone.png", "cannot be read"),
        ("nothing://x/y.png", "cannot be read"),
        (str(tmp_path / "gone.png"), "gone.png"),
    ):
        with pytest.raises(CoPRSError, match=said):
            open_stored(wrong)
