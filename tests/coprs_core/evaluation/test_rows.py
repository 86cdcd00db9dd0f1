"""Judging an answer: hand-made answers with known figures."""

import dataclasses

import numpy as np
import pytest

from coprs_core.answer.results import Region, Result
from coprs_core.datasets import open_dataset, scenes
from coprs_core.evaluation.protocols import PROTOCOLS
from coprs_core.evaluation.report import compute_scores
from coprs_core.evaluation.rows import evaluate, measure
from coprs_core.masks import decode_rle, encode_rle
from coprs_core.metrics import PRIOR_THRESHOLD, PRIOR_THRESHOLDS, correlation, iou
from coprs_core.mini.world.questions import draw_examples
from coprs_core.prompts import is_well_formed


def result(mask, reply, outcome):
    regions = (Region(mask.astype(np.float32), mask),) if mask.any() else ()
    thought = reply.split("</think>")[0].removeprefix("<think>")
    return Result(
        outcome,
        "",
        "x",
        thought,
        reply,
        regions,
        mask.shape,
        {"thinking": 1.0},
        3,
        False,
        "hand",
        {},
    )


def measure_scene(index, scene, question, answer):
    return measure(scenes.to_example(index, scene, question), answer)


@pytest.fixture(scope="module")
def drawn():
    return list(draw_examples("test", 0, 60))


def test_a_perfect_answer_scores_one_everywhere(drawn):
    rows = []
    for i, (scene, q) in enumerate(drawn):
        outcome = "found" if q.targets else "nothing found"
        rows.append(measure_scene(i, scene, q, result(scene.mask(*q.targets), q.reply, outcome)))
    told = compute_scores(rows, scenes.GROUPS)
    for name in ("well_formed", "hit", "named", "mask_giou", "prior_giou", "mask_giou_if_named"):
        assert told["all"][name] == 1
    assert told["nothing_there"] == {"precision": 1.0, "recall": 1.0}
    assert (
        told["groups"]["unseen pair"]["count"] > 0 and told["groups"]["unseen wording"]["count"] > 0
    )


def test_a_mask_where_nothing_should_be_counts_zero(drawn):
    scene, q = next(d for d in drawn if not d[1].targets)
    row = measure_scene(
        0, scene, q, result(scene.mask(0), "<think>a</think>It is here: <REF_POS>", "found")
    )
    assert (row.mask_iou, row.scores, row.says_nothing_found) == (
        0,
        {"named": False, "hit": False},
        False,
    )


def test_the_wrong_thing_is_no_hit_and_silence_is_none_either(drawn):
    scene, q = next(d for d in drawn if d[1].targets and len(d[0].objects) > 2)
    other = next(i for i in range(len(scene.objects)) if i not in q.targets)
    wrong = result(scene.mask(other), q.reply, "found")
    silent = result(scene.mask(), "<think>a</think>Nothing.", "nothing found")
    assert measure_scene(0, scene, q, wrong).scores == {
        "named": True,
        "hit": False,
        "mask_giou_if_named": 0,
    }
    assert measure_scene(0, scene, q, silent).scores == {"named": False, "hit": False}


def test_an_answer_that_broke_off_is_no_point_of_prior_against_mask(drawn):
    """Two zeros of many would make the line by themselves."""
    scene, q = next(d for d in drawn if d[1].targets)
    cut = result(scene.mask(), "<think>a", "unfinished")
    assert not measure_scene(0, scene, q, cut).has_target_and_mask
    assert measure_scene(
        0, scene, q, result(scene.mask(*q.targets), q.reply, "found")
    ).has_target_and_mask


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_curve_of_a_prior_goes_by_the_protocol_too(name):
    protocol, half = PROTOCOLS[name], PRIOR_THRESHOLDS.tolist().index(PRIOR_THRESHOLD)
    truth, ignore, prior = np.zeros((3, 4, 4), np.float32)
    prior[:3], truth[1:], ignore[0] = 1, 1, 1
    empty = np.zeros((4, 4), np.float32)
    for seen, true, ignored in (
        (prior, truth > 0, ignore > 0),
        (prior, truth > 0, None),
        (prior, empty > 0, ignore > 0),
        (empty, empty > 0, None),
    ):
        for is_failed in (False, True):
            areas = protocol.intersection_and_union(seen >= PRIOR_THRESHOLD, true, ignored)
            curve = protocol.curve(seen, true, ignored, is_failed)
            assert curve[half] == pytest.approx(protocol.iou(areas, is_failed)), (name, is_failed)


def test_the_prior_of_all_regions_is_held_against_the_truth(drawn):
    """Two regions that make up the truth together: each prior alone would be half of it."""
    scene, q = next(d for d in drawn if d[1].targets)
    truth = scene.mask(*q.targets)
    left = truth.copy()
    left[:, np.flatnonzero(truth.any(0)).mean().astype(int) :] = False
    halves = (left, truth & ~left)
    regions = tuple(Region(half.astype(np.float32), half) for half in halves)
    answer = dataclasses.replace(result(truth, q.reply, "found"), regions=regions)
    row = measure_scene(0, scene, q, answer)
    assert left.any() and (truth & ~left).any()
    assert row.mask_iou == row.prior_iou == 1


def test_evaluate_takes_any_examples(mini):
    dataset = open_dataset("scenes", split="validation")
    rows = list(evaluate(mini, dataset.examples(3, 2)))
    rows.sort(key=lambda r: r.index)  # they come as they end
    assert [r.index for r in rows] == [3, 4] and all(r.seconds > 0 for r in rows)
    for example, row in zip(dataset.examples(3, 2), rows, strict=True):
        answer = mini.segment(example.photo, example.instruction)
        assert row.mask_iou == pytest.approx(iou(answer.mask, example.truth), abs=0.01)
        assert {"named", "hit"} <= row.scores.keys() and "family" in row.tags


@pytest.mark.parametrize(
    "reply, formed",
    [
        ("<think>a</think>It is here: <REF_POS>", True),
        ("<think>a</think>Nothing fits.", True),
        ("<think>a</think>", False),
        ("<think></think>x", False),
        ("<think>a", False),
        ("a</think>b", False),
        ("<think>a<REF_POS></think>b", False),
        ("<think>a</think><REF_POS><REF_POS>", False),
    ],
)
def test_well_formed(reply, formed):
    assert is_well_formed(reply) is formed


def test_metrics_by_hand():
    a, b = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    none = np.zeros((1, 4), bool)
    assert iou(a, b) == pytest.approx(1 / 3) and iou(none, none) == 1 and iou(a, none) == 0
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and np.isnan(
        correlation([1, 1], [1, 2])
    )


@pytest.mark.parametrize("seed", range(6))
def test_rle_comes_back(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) > rng.random()
    rle = encode_rle(mask)
    assert np.array_equal(decode_rle(rle), mask) and sum(rle["counts"]) == mask.size


def test_rle_is_cocos():
    assert encode_rle(np.array([[0, 1], [1, 1]], bool)) == {"size": [2, 2], "counts": [1, 3]}
    assert encode_rle(np.ones((2, 2), bool))["counts"] == [0, 4] and encode_rle(
        np.zeros((2, 2), bool)
    )["counts"] == [4]
