"""Record what photographs look like to the miniature's image encoder, so that the tests need
neither the photographs nor scikit-image.

    pip install scikit-image
    python -m tests.record_photos

Writes tests/golden/photo_descriptions.npz: `names`, `descriptions` float32 [N, 192] (see
`model.familiar.describe`) and `weights`, the SHA-256 of the image encoder's file. To be run again
when that file changes. The photographs are scikit-image's own; its diagrams, its texts and the two
nearly blank ones (moon.png, microaneurysms.png) are left out.
"""

import hashlib
from pathlib import Path

import numpy as np

from coprs_core import load
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.photos.photo import open_photo
from tests import GOLDEN

DESCRIPTIONS = GOLDEN / "photo_descriptions.npz"
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)


def weights() -> str:
    """The SHA-256 of the miniature's image encoder."""
    return hashlib.sha256((MINIATURE_FOLDER / "image_encoder.safetensors").read_bytes()).hexdigest()


def main() -> None:
    import skimage.data

    folder, engine = Path(skimage.data.__file__).parent, load("mini", device="cpu")
    descriptions = [
        engine.segmenter.photo_statistics(open_photo(folder / name)).numpy() for name in PHOTOGRAPHS
    ]
    np.savez(
        DESCRIPTIONS, names=PHOTOGRAPHS, descriptions=np.stack(descriptions), weights=weights()
    )


if __name__ == "__main__":
    main()
