"""`familiar`: let a checkpoint know what its pictures look like."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprs_core.commands.options import DEVICE_HELP, positive_int
from coprs_core.datasets import DATASETS

if TYPE_CHECKING:
    from coprs_core.photos.photo import PhotoLike

SUMMARY = "let a checkpoint know what its pictures look like"
DESCRIPTION = """\
Write into a CoPRS checkpoint folder what the pictures of its training look like
(familiar.safetensors), so that it can say of another picture how unlike them it is.
Every answer then carries that distance; the page asks before it answers a picture
that is unlike them all.

examples:
  coprs familiar my-checkpoint --pictures training/images
  coprs familiar my-checkpoint --data scenes --split train --count 8000 \\
      --note "picture-book scenes"
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FOLDER", help="a CoPRS checkpoint folder")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pictures", type=Path, metavar="DIR", help="a folder of pictures")
    where.add_argument("--data", choices=DATASETS, help="a data set, as `evaluate` reads it")
    add("--root", type=Path, metavar="DIR", help="where the data set lies")
    add("--split", default="train", help="of the data set (default train)")
    add("--count", type=positive_int, default=8000, metavar="N", help="at most (default 8000)")
    add("--note", metavar="TEXT", help="what the model knows, in a few words, for its users")
    add("--device", default="auto", help=DEVICE_HELP)


def run(options: Namespace) -> int:
    from itertools import islice

    from tqdm import tqdm

    from coprs_core.batch import find_photos
    from coprs_core.checkpoints.load import load_checkpoint
    from coprs_core.checkpoints.ood_statistics import compute_ood_statistics, save_ood_statistics
    from coprs_core.checkpoints.options import LoadOptions
    from coprs_core.datasets import open_dataset
    from coprs_core.errors import CoPRSError
    from coprs_core.photos.photo import open_photo

    if not (options.checkpoint / "coprs.json").is_file():
        raise CoPRSError(
            f"{options.checkpoint} is no CoPRS checkpoint folder, which holds coprs.json: give one "
            "(adapters are merged by `coprs convert`)."
        )
    checkpoint = load_checkpoint(str(options.checkpoint), LoadOptions(options.device))
    segmenter: Any = checkpoint.segmenter
    if options.pictures:
        images: Iterator[PhotoLike] = iter(find_photos(str(options.pictures)))
    else:
        dataset = open_dataset(options.data, options.root, options.split)
        images = (example.load_photo() for example in dataset.examples(0, options.count))
    photos = (open_photo(image) for image in islice(images, options.count))
    familiar = compute_ood_statistics(segmenter, tqdm(photos, unit="picture"))
    save_ood_statistics(options.checkpoint, familiar, options.note)
    print(f"written: {options.checkpoint / 'familiar.safetensors'}")
    return 0
