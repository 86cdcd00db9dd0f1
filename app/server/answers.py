"""A cache of all visitors' answers within one budget of memory.

An answer is unpacked while it is used. Where the budget is full, the least recently used are
packed: the photo as its file, priors in 8 bits, masks in 1. Where that is not enough, they are
dropped.
"""

import io
import itertools
import pickle
import threading
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.masks import decode_prior, encode_prior
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.probes.finding import Finding
from coprs_core.probes.trace import SentenceTrace

MAX_PIXELS = 12_000_000
"""A visitor's photo of more pixels is brought down to so many."""
UNPACKED_SHARE = 0.25
"""Of the budget, for unpacked answers; most is for packed ones, which take far less (one about a
JPEG of 12 megapixels takes 96 MB unpacked, and packed little more than that file)."""
MIN_PACKED_VALUES = 4096
"""Arrays of fewer values are packed as they are: they are figures, not maps."""
_use_counter, _open_lock = itertools.count(), threading.Lock()


def no_answer_error() -> CoPRSError:
    """The error for a missing or dropped answer."""
    return CoPRSError(
        "No answer is at hand: the next one is under way, or the last one is no longer kept (they "
        "go after an hour, or earlier where the server needs the room). Wait, or ask again."
    )


def open_visitor_photo(source: str | bytes | None) -> Photo:
    """A visitor's photo, of at most `MAX_PIXELS`; raises `CoPRSError` as `open_photo` does."""
    with _open_lock:  # a file of few bytes may be a picture of many pixels
        return open_photo(source, MAX_PIXELS)


@dataclass(eq=False)
class _Content:
    """What an answer holds while it is whole."""

    photo: Photo
    result: Result
    findings: dict[str, Finding] = field(default_factory=dict)
    trace: SentenceTrace | None = None


class _EncodedPhoto:
    """A photo as the bytes of a picture file."""

    def __init__(self, data: bytes):
        self.data = data


class StoredAnswer:
    """One answer of a visitor: its photo, its result, what probes have found in it so far by name,
    and, once its thought is traced, the small pictures of that.

    Reading any of these raises `CoPRSError` where the answer had to go. What stays in any case:

    Attributes:
        summary: the result without its regions; `region_count`: how many there are.
        found_probes: the names of what probes have found; `is_traced`: whether there is a trace.
        file: the photo's own file, from which it can be decoded again.
        changed_sentence: which sentence of the thought a person changed, from 0; None: none.
        is_recorded: whether it is the one of the first screen.
        thumbnail: its picture among the recent ones, once it was made.
        is_dropped: whether it had to make room for newer answers.
    """

    def __init__(
        self,
        photo: Photo,
        result: Result,
        findings: dict[str, Finding] | None = None,
        trace: SentenceTrace | None = None,
        changed_sentence: int | None = None,
        file: str | Path | None = None,
        is_recorded: bool = False,
    ):
        self.changed_sentence, self.file, self.is_recorded = changed_sentence, file, is_recorded
        self.photo_key, self.photo_size, self.last_use = photo.key, photo.size, next(_use_counter)
        self._photo_info = replace(photo, image=Image.new("RGB", (1, 1)))  # all but its pixels
        self.summary, self.region_count = replace(result, regions=()), len(result.regions)
        self.found_probes, self.is_traced = set(findings or ()), trace is not None
        self._content: _Content | None = _Content(photo, result, dict(findings or {}), trace)
        self._packed: tuple[_EncodedPhoto, bytes] | None = None
        self.thumbnail: np.ndarray | None = None
        self.is_dropped = False
        self._lock = threading.Lock()
        self._store: AnswerStore | None = None

    @property
    def photo(self) -> Photo:
        """Decoded each time while the answer is packed, which it stays."""
        self.last_use = next(_use_counter)
        content, packed = self._content, self._packed
        if content is None and packed is not None:
            return self._decode_photo(packed[0])
        return self._load_content().photo

    def _decode_photo(self, file: "_EncodedPhoto") -> Photo:
        return replace(self._photo_info, image=open_visitor_photo(file.data).image)

    @property
    def pixels(self) -> int:
        """What is worked on with it: the pixels of its photo and of every region."""
        height, width = self.photo_size
        return height * width * (1 + self.region_count)

    @property
    def result(self) -> Result:
        return self._load_content().result

    @property
    def trace(self) -> SentenceTrace | None:
        return self._load_content().trace

    @property
    def findings(self) -> dict[str, Finding]:
        """What probes found, by name; a copy."""
        return dict(self._load_content().findings)

    def add_finding(self, name: str, finding: Finding) -> None:
        """Keep what a probe has found with the answer."""
        with self._lock:
            self._unpack().findings[name] = finding
            self.found_probes.add(name)
        self._evict_others()

    def add_trace(self, trace: SentenceTrace) -> None:
        """Keep the small pictures of its thought with the answer."""
        with self._lock:
            self._unpack().trace, self.is_traced = trace, True
        self._evict_others()

    def set_store(self, answers: "AnswerStore") -> None:
        """Set the store that is told of each use."""
        self._store = answers

    def pack(self) -> None:
        """Compress the answer until it is used again."""
        with self._lock:
            if self._content is not None and self._packed is None:
                photo = _encode_photo(self._content.photo, self.file)
                self._packed = photo, _pack_content(self._content)
            self._content = None

    def drop(self) -> None:
        """Forget the content, unless it was unpacked again meanwhile."""
        with self._lock:
            self._packed, self.is_dropped = None, self._content is None

    def unpacked_sizes(self) -> dict[int, int]:
        """Bytes in memory by what holds them, which may be shared with other answers; none of one
        that is packed."""
        content = self._content
        if content is None:
            return {}
        rest = _count_bytes((content.result, content.findings, content.trace))
        return {id(content.photo): _count_bytes(content.photo), id(self): rest}

    def packed_sizes(self) -> dict[int, int]:
        """The same of one that is packed; none of one that is whole."""
        packed = self._packed
        if packed is None:
            return {}
        return {id(packed[0]): len(packed[0].data), id(self): len(packed[1])}

    def _load_content(self) -> _Content:
        self.last_use = next(_use_counter)
        content = self._content
        if content is None:
            with self._lock:
                content = self._unpack()
            # not with the lock held: whoever makes room waits for the locks of others
            self._evict_others()
        return content

    def _unpack(self) -> _Content:
        """What it holds, whole from now on; for whoever has the lock."""
        if self._content is None:
            if self._packed is None:
                raise no_answer_error()
            photo_file, packed = self._packed
            self._content = _Unpacker(packed, self._decode_photo(photo_file)).load()
            self._packed = None
        return self._content

    def _evict_others(self) -> None:
        if self._store is not None:
            self._store.evict(self)


class AnswerStore:
    """All answers of all visitors; an answer that no page holds any more is forgotten by itself.

    Args:
        budget: bytes that they may take together, `UNPACKED_SHARE` of it those that are whole,
            beside the one that is used last: however large that is, it costs no other visitor's.
    """

    def __init__(self, budget: int):
        self._budget, self._answers = budget, weakref.WeakSet[StoredAnswer]()
        self._lock = threading.Lock()

    def add(self, answer: StoredAnswer) -> None:
        """Add an answer and make room for it."""
        with self._lock:
            self._answers.add(answer)
        answer.set_store(self)
        self.evict(answer)

    @property
    def nbytes(self) -> int:
        """What all of them take now; what several share is counted once."""
        kept = list(self._answers)
        return _sum_distinct(map(StoredAnswer.unpacked_sizes, kept)) + _sum_distinct(
            map(StoredAnswer.packed_sizes, kept)
        )

    def evict(self, used: StoredAnswer) -> None:
        """Pack the answers that were used longest ago, and let them go, until all fit."""
        with self._lock:
            others = sorted(set(self._answers) - {used}, key=lambda one: one.last_use)
            for one in others:
                if (
                    _sum_distinct(map(StoredAnswer.unpacked_sizes, others))
                    <= UNPACKED_SHARE * self._budget
                ):
                    break
                one.pack()
            for one in others:
                if _sum_distinct(map(StoredAnswer.packed_sizes, others)) <= self._budget:
                    break
                one.drop()


def _sum_distinct(sizes: Iterable[dict[int, int]]) -> int:
    """Bytes of all together; what several share is counted once."""
    together: dict[int, int] = {}
    for some in sizes:
        together |= some
    return sum(together.values())


_encoded_photos: weakref.WeakValueDictionary[str, _EncodedPhoto] = weakref.WeakValueDictionary()


def _encode_photo(photo: Photo, path: str | Path | None) -> _EncodedPhoto:
    """A photo's file, shared by all answers about it: as it was uploaded, where that is still
    there; else as PNG."""
    kept = _encoded_photos.get(photo.key)
    if kept is None:
        data = b""
        try:
            data = Path(path).read_bytes() if path else b""
            is_same = bool(data) and open_visitor_photo(data).key == photo.key
        except (OSError, CoPRSError):  # uploads are deleted after an hour
            is_same = False
        kept = _EncodedPhoto(data if is_same else _encode_png(photo.image))
        _encoded_photos[photo.key] = kept
    return kept


def _encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # a visitor waits for it
    return file.getvalue()


# --- small forms


def _pack_content(content: _Content) -> bytes:
    file = io.BytesIO()
    _Packer(file, content.photo).dump(content)
    return zlib.compress(file.getvalue(), 1)


class _Packer(pickle.Pickler):
    """Writes an answer into memory, its photo left out and its maps small."""

    def __init__(self, file: io.BytesIO, photo: Photo):
        super().__init__(file, protocol=5)
        self._photo = photo

    def persistent_id(self, obj: Any) -> str | None:
        return "photo" if obj is self._photo else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Image.Image):
            return _decode_png, (_encode_png(obj),)
        if not isinstance(obj, np.ndarray) or obj.size < MIN_PACKED_VALUES:
            return NotImplemented
        if obj.dtype == bool:
            return _unpack_mask, (np.packbits(obj).tobytes(), obj.shape)
        if obj.dtype.kind == "f" and obj.ndim > 1 and obj.min() >= 0 and obj.max() <= 1:
            rows = obj.reshape(-1, obj.shape[-1])
            return _unpack_prior, (encode_prior(rows), rows.shape, obj.shape, obj.dtype.str)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    """Reads what `_Packer` wrote; no bytes from anywhere else ever come here."""

    def __init__(self, packed: bytes, photo: Photo):
        super().__init__(io.BytesIO(zlib.decompress(packed)))
        self._photo = photo

    def persistent_load(self, pid: Any) -> Photo:
        return self._photo


def _decode_png(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def _unpack_mask(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(bool).reshape(shape)


def _unpack_prior(
    url: str, size: tuple[int, int], shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    return decode_prior(url, size).astype(dtype, copy=False).reshape(shape)


def _count_bytes(value: Any) -> int:
    """What pictures and arrays in an answer's parts take."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    if isinstance(value, dict):
        return sum(map(_count_bytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(_count_bytes, value))
    if is_dataclass(value):
        return sum(_count_bytes(getattr(value, part.name)) for part in fields(value))
    return 0
