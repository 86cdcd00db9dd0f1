"""Records what the miniature answers today: `python -m tests.record` writes golden/mini_scenes.json.

Tests compare with it scene by scene. Run it only after a change that is meant to change answers.
"""

import json
from contextlib import suppress

from coprs_core import CoPRSError, load
from coprs_core.answer.engine import Engine
from coprs_core.metrics import iou
from coprs_core.mini.world.questions import draw_examples
from coprs_core.mini.world.scenes import SIDE
from coprs_core.probes import zoom
from tests import GOLDEN

PATH = GOLDEN / "mini_scenes.json"
COUNT = 60


def tiny_targets(split: str, count: int):
    """(scene, question) of the first `count` examples whose target covers under 1 % of the
    picture."""
    found = 0
    for scene, question in draw_examples(split, 0, 20 * count):
        if question.targets and scene.objects[question.targets[0]].area < 0.01 * SIDE**2:
            yield scene, question
            found += 1
        if found == count:
            return


def recorded() -> dict:
    """What was recorded: "full" and "nf4" of `mask_ious`, "zoom" of `zoomed_ious`."""
    return json.loads(PATH.read_text())


def mask_ious(engine: Engine) -> list[float]:
    """IoU of mask and truth on the first test scenes."""
    return [
        iou(engine.segment(s.image, q.instruction).mask, s.mask(*q.targets))
        for s, q in draw_examples("test", 0, COUNT)
    ]


def zoomed_ious(engine: Engine, count: int = COUNT) -> list[tuple[float, float]]:
    """IoU of mask and truth before and after zooming in, on scenes with a tiny target.

    An answer that cannot be zoomed into counts as it is.
    """
    pairs = []
    for scene, question in tiny_targets("test", count):
        result, truth = (
            engine.segment(scene.image, question.instruction),
            scene.mask(*question.targets),
        )
        before = after = iou(result.mask, truth)
        with suppress(CoPRSError):
            after = iou(zoom.run(engine, scene.image, result).result.mask, truth)
        pairs.append((before, after))
    return pairs


def record() -> dict:
    mini = load("mini", device="cpu")
    return {
        "full": mask_ious(mini),
        "nf4": mask_ious(load("mini", device="cpu", quantization="nf4")),
        "zoom": zoomed_ious(mini),
    }


if __name__ == "__main__":
    rounded = json.loads(json.dumps(record()), parse_float=lambda text: round(float(text), 4))
    PATH.write_text(json.dumps(rounded) + "\n")
