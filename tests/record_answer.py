"""Records the answer of the page's first screen: `python -m tests.record_answer`.

A real answer of the bundled miniature about a bundled picture, with the trace of its thought; of a
saved answer's files those that opening it reads.
"""

import tempfile
import zipfile
from pathlib import Path

from app.saved_answers import RECORDED_ZIP
from coprs_core import load
from coprs_core.export.archive import save_answer
from coprs_core.photos.photo import open_photo
from coprs_core.probes import sentences

PICTURE, INSTRUCTION = "shirt.png", "the animal nearest to the purple shirt"
READ = ("result.json", "photo.png", "prior.npy")


def main() -> None:
    engine = load("mini", device="cpu")
    photo = open_photo(RECORDED_ZIP.parent / PICTURE)
    result = engine.segment(photo.image, INSTRUCTION)
    trace = sentences.run(engine, photo.image, result)
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(RECORDED_ZIP, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for file in save_answer(Path(folder), photo, result, [trace]):
            is_trace = file.name.startswith("sentences") and file.suffix != ".png"
            if file.name in READ or is_trace:
                archive.write(file, file.name)


if __name__ == "__main__":
    main()
