"""Out-of-distribution statistics of a checkpoint: computed from photos that it knows, stored in its
folder."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from coprs_core.checkpoints.tensors import save_tensors
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.files import read_text
from coprs_core.machine import as_user_error
from coprs_core.model.backends.ood import OodStatistics, fit_ood_statistics, min_images
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.parsing import parse_json
from coprs_core.photos.photo import Photo

STATISTICS_FILE = "familiar.safetensors"


def compute_ood_statistics(
    segmenter: FocusTokenSegmenter, photos: Iterable[Photo]
) -> OodStatistics:
    """Mean and covariance of a model's descriptions of these photos; raises `CoPRSError` where they
    are too few."""
    descriptions = [segmenter.photo_statistics(photo) for photo in photos]
    needed = min_images(segmenter.model.config.vision.channels)
    if len(descriptions) < needed:
        raise CoPRSError(
            "There are {count:,} pictures and this model needs at least {needed:,} to tell "
            "what is unlike them: give more.",
            count=len(descriptions),
            needed=needed,
        )
    return fit_ood_statistics(torch.stack(descriptions))


def save_ood_statistics(folder: Path, statistics: OodStatistics, note: str | None = None) -> None:
    """Write statistics into a checkpoint folder; `note` says in words what the model knows."""
    save_tensors(statistics.to_tensors(), folder / STATISTICS_FILE)
    if note is not None:
        path = folder / "coprs.json"
        values = parse_json(read_text(path)) | {"note": note}
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_ood_statistics(source: Path, folder: Path) -> None:
    """Copy the statistics of a checkpoint folder, where it has any, into one with the same image
    encoder."""
    if (source / STATISTICS_FILE).is_file():
        shutil.copyfile(source / STATISTICS_FILE, folder / STATISTICS_FILE)


def load_ood_statistics(folder: Path, channels: int) -> OodStatistics | None:
    """The statistics in a checkpoint folder; None where it has none.

    Raises `CoPRSError` where it is broken or of another model.
    """
    path = folder / STATISTICS_FILE
    if not path.is_file():
        return None
    with as_user_error(Phrase("{path} is broken", path=path), file=path):
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    num_features = 2 * channels
    shapes = {"mean": [num_features], "whitening": [num_features, num_features], "border": [1]}
    has_expected_shapes = {name: list(t.shape) for name, t in tensors.items()} == shapes
    if not has_expected_shapes or not all(t.isfinite().all() for t in tensors.values()):
        raise CoPRSError(
            "{path} is not of this model: write it again with `coprs familiar`.", path=path
        )
    if tensors["border"] <= 0:
        raise CoPRSError(
            "{path} has a border of 0: write it again with `coprs familiar`.", path=path
        )
    return OodStatistics(**tensors)
