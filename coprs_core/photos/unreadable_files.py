"""What a file is that cannot be read as a picture, in words, and what to do about it."""

from coprs_core.errors import CoPRSError, Phrase

HEAD_BYTES = 4096
THIS_FILE = Phrase("This file")
COMMON_FORMAT_HINT = Phrase("use a JPEG, PNG, WebP or another common picture file")
_MISSING_REST_HINT = Phrase("copy or download it again, for the rest of it is missing")
_EXPORT_HINT = Phrase("save it as JPEG or PNG with the program that shows it, and use that")
_RAW = (
    Phrase("a camera's RAW file"),
    Phrase("develop it, or take the JPEG that the camera saved beside it, and use that"),
)
_HEIC = (
    Phrase("HEIC, as phones take photos"),
    Phrase(
        "save it as JPEG and use that (on an iPhone: Settings, Camera, Formats, Most Compatible)"
    ),
)
_AVIF = (
    Phrase("AVIF that is damaged, or that this installation does not read"),
    Phrase("copy it again, or install Pillow 11.3 or newer"),
)
_VIDEO = Phrase("a video"), Phrase("save one picture of it and use that")
_RAW_SUFFIXES = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".dng", ".arw", ".sr2", ".orf", ".rw2"),
    *(".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq"),
)
UNREADABLE_PHOTO_SUFFIXES = (".heic", ".heif", ".jxl", *_RAW_SUFFIXES)
"""Of photos that cameras and phones save and that are not read: named, not passed over."""
_UNREADABLE_SIGNATURES = {
    b"version https://git-lfs.github.com/": (
        Phrase("a Git LFS pointer, which stands for the picture"),
        Phrase("fetch the picture itself with `git lfs pull`"),
    ),
    b"/annex/objects/": (
        Phrase("a git-annex pointer, which stands for the picture"),
        Phrase("fetch the picture itself with `git annex get`"),
    ),
    b"\xff\x0a": (Phrase("JPEG XL"), _EXPORT_HINT),
    b"\0\0\0\x0cJXL ": (Phrase("JPEG XL"), _EXPORT_HINT),
    b"8BPS": (Phrase("a Photoshop file"), _EXPORT_HINT),
    b"gimp xcf": (Phrase("a GIMP file"), _EXPORT_HINT),
    b"%PDF-": (Phrase("a PDF"), Phrase("save the page as PNG and use that")),
    b"%!PS": (
        Phrase("PostScript, a program that draws"),
        Phrase("save what it draws as PNG and use that"),
    ),
    b"v/1\x01": (Phrase("OpenEXR"), _EXPORT_HINT),
    b"#?RADIANCE": (Phrase("a Radiance HDR file"), _EXPORT_HINT),
    b"\x93NUMPY": (Phrase("an array of NumPy"), Phrase("load it in Python and give the array")),
    b"PK\x03\x04": (Phrase("a zip"), Phrase("unpack it and use one picture of it")),
    b"\x1f\x8b": (Phrase("packed with gzip"), Phrase("unpack it first")),
    b"\x1aE\xdf\xa3": _VIDEO,
    **dict.fromkeys((b"FUJIFILMCCD-RAW", b"IIRO", b"MMOR", b"IIU\0", b"FOVb"), _RAW),
}
_FTYP_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": _RAW,
}
_READABLE_SIGNATURES = {
    b"\x89PNG": Phrase("a PNG"),
    b"\xff\xd8\xff": Phrase("a JPEG"),
    b"GIF8": Phrase("a GIF"),
    b"II*\0": Phrase("a TIFF"),
    b"MM\0*": Phrase("a TIFF"),
    b"II+\0": Phrase("a TIFF"),
    b"MM\0+": Phrase("a TIFF"),
}


def unreadable_file_error(
    head: bytes,
    suffix: str = "",
    is_cut: bool = False,
    is_raw: bool = False,
    subject: Phrase = THIS_FILE,
) -> CoPRSError:
    """The sentence for a file that no decoder reads.

    Args:
        head: its first `HEAD_BYTES`, or all.
        suffix: of its name, such as ".nef"; "" where it has none.
        is_cut: whether it is known to end too early.
        is_raw: where it is known to be a camera's RAW file.
        subject: what the sentence is about.
    """
    description, hint = (
        _as_predicate(_RAW) if is_raw else _describe_kind(head, suffix.lower(), is_cut)
    )
    return CoPRSError(
        "{subject} cannot be read as a picture ({what}): {hint}.",
        subject=subject,
        what=description,
        hint=hint,
    )


def _as_predicate(kind: tuple[Phrase, Phrase]) -> tuple[Phrase, Phrase]:
    return Phrase("it is {kind}", kind=kind[0]), kind[1]


def _describe_kind(head: bytes, suffix: str, is_cut: bool) -> tuple[Phrase, Phrase]:
    if not head:
        return Phrase("it is empty, 0 bytes"), Phrase("copy or save it again")
    if len(head) > 1 and not head.strip(b"\0"):
        zeros = Phrase("it begins with zeros alone, as where a copy broke off")
        return zeros, Phrase("copy or download it again")
    for start, kind in _UNREADABLE_SIGNATURES.items():
        if head.startswith(start):
            return _as_predicate(kind)
    if head[4:8] == b"ftyp":
        return _kind_by_ftyp_brand(head)
    if suffix in _RAW_SUFFIXES:
        return _as_predicate(_RAW)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    known = next((k for start, k in _READABLE_SIGNATURES.items() if head.startswith(start)), None)
    if known := Phrase("a WebP") if is_webp else known:
        if is_cut:
            return Phrase("it is {kind} that ends too early", kind=known), _MISSING_REST_HINT
        damaged = Phrase("it is {kind} that is damaged, or of a form that is not read", kind=known)
        return damaged, COMMON_FORMAT_HINT
    return _kind_of_text(head) or (
        Phrase("it may be broken or of another kind"),
        COMMON_FORMAT_HINT,
    )


def _kind_by_ftyp_brand(head: bytes) -> tuple[Phrase, Phrase]:
    """A file in boxes (ISO 14496-12): its major brand tells, or else one that it agrees with."""
    brands = [head[at : at + 4] for at in (8, *range(16, min(_uint32(head[:4]), 256), 4))]
    for brand in brands:
        if kind := _FTYP_BRANDS.get(brand):
            return _as_predicate(kind)
    if brands[0] in (b"mif1", b"msf1"):
        return _as_predicate(_HEIC)
    return _as_predicate(_VIDEO)


def _uint32(four: bytes) -> int:
    return int.from_bytes(four, "big")


def _kind_of_text(head: bytes) -> tuple[Phrase, Phrase] | None:
    """Of a file of characters, of which kind it is."""
    try:
        is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = head.decode(
            "utf-16" if is_utf16 else "utf-8-sig", errors="ignore" if is_utf16 else "strict"
        )
    except UnicodeDecodeError as problem:
        if problem.start < len(head) - 4:  # else a character that the head cuts through
            return None
        text = head[: problem.start].decode("utf-8-sig")
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return None
    start = text.lstrip().lower()
    if "<svg" in start[:1000]:
        return Phrase("it is SVG, a drawing"), Phrase("save it as PNG and use that")
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start[:500]:
        page = Phrase("it is a web page, HTML")
        return page, Phrase("save the picture itself, not the page that shows it")
    if start[:1] in ("{", "["):
        return Phrase("it is JSON"), COMMON_FORMAT_HINT
    return Phrase("it is text"), COMMON_FORMAT_HINT
