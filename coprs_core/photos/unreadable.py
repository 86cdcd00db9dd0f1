"""What a file is that cannot be read as a picture, in words, and what to do about it."""

HEAD_BYTES = 4096
_USE = "use a JPEG, PNG, WebP or another common picture file"
_PART = "copy or download it again, for the rest of it is missing"
_EXPORT = "save it as JPEG or PNG with the program that shows it, and use that"
_RAW = (
    "a camera's RAW file",
    "develop it, or take the JPEG that the camera saved beside it, and use that",
)
_HEIC = (
    "HEIC, as phones take photos",
    "save it as JPEG and use that (on an iPhone: Settings, Camera, Formats, Most Compatible)",
)
_AVIF = (
    "AVIF that is damaged, or that this installation does not read",
    "copy it again, or install Pillow 11.3 or newer",
)
_RAW_SUFFIXES = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".dng", ".arw", ".sr2", ".orf", ".rw2"),
    *(".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq"),
)
PHOTO_SUFFIXES = (".heic", ".heif", ".jxl", *_RAW_SUFFIXES)
"""Of photos that cameras and phones save and that are not read: named, not passed over."""
_STARTS = {
    b"version https://git-lfs.github.com/": (
        "a Git LFS pointer, which stands for the picture",
        "fetch the picture itself with `git lfs pull`",
    ),
    b"/annex/objects/": (
        "a git-annex pointer, which stands for the picture",
        "fetch the picture itself with `git annex get`",
    ),
    b"\xff\x0a": ("JPEG XL", _EXPORT),
    b"\0\0\0\x0cJXL ": ("JPEG XL", _EXPORT),
    b"8BPS": ("a Photoshop file", _EXPORT),
    b"gimp xcf": ("a GIMP file", _EXPORT),
    b"%PDF-": ("a PDF", "save the page as PNG and use that"),
    b"%!PS": ("PostScript, a program that draws", "save what it draws as PNG and use that"),
    b"v/1\x01": ("OpenEXR", _EXPORT),
    b"#?RADIANCE": ("a Radiance HDR file", _EXPORT),
    b"\x93NUMPY": ("an array of NumPy", "load it in Python and give the array"),
    b"PK\x03\x04": ("a zip", "unpack it and use one picture of it"),
    b"\x1f\x8b": ("packed with gzip", "unpack it first"),
    b"\x1aE\xdf\xa3": ("a video", "save one picture of it and use that"),
    **dict.fromkeys((b"FUJIFILMCCD-RAW", b"IIRO", b"MMOR", b"IIU\0", b"FOVb"), _RAW),
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": _RAW,
}
_PICTURES = {
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"MM\0+": "a TIFF",
}


def unreadable(
    head: bytes,
    suffix: str = "",
    is_cut: bool = False,
    is_raw: bool = False,
    subject: str = "This file",
) -> str:
    """The sentence for a file that no decoder reads.

    Args:
        head: its first `HEAD_BYTES`, or all.
        suffix: of its name, such as ".nef"; "" where it has none.
        is_cut: whether it is known to end too early.
        is_raw: where it is known to be a camera's RAW file.
        subject: what the sentence is about.
    """
    what, do = (f"it is {_RAW[0]}", _RAW[1]) if is_raw else _kind(head, suffix.lower(), is_cut)
    return f"{subject} cannot be read as a picture ({what}): {do}."


def _kind(head: bytes, suffix: str, is_cut: bool) -> tuple[str, str]:
    if not head:
        return "it is empty, 0 bytes", "copy or save it again"
    if len(head) > 1 and not head.strip(b"\0"):
        return "it begins with zeros alone, as where a copy broke off", "copy or download it again"
    for start, told in _STARTS.items():
        if head.startswith(start):
            return f"it is {told[0]}", told[1]
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if suffix in _RAW_SUFFIXES:
        return f"it is {_RAW[0]}", _RAW[1]
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    known = next((k for start, k in _PICTURES.items() if head.startswith(start)), None)
    if known := "a WebP" if is_webp else known:
        if is_cut:
            return f"it is {known} that ends too early", _PART
        return f"it is {known} that is damaged, or of a form that is not read", _USE
    return _of_text(head) or ("it may be broken or of another kind", _USE)


def _of_brands(head: bytes) -> tuple[str, str]:
    """A file in boxes (ISO 14496-12): its major brand tells, or else one that it agrees with."""
    brands = [head[at : at + 4] for at in (8, *range(16, min(_number(head[:4]), 256), 4))]
    for brand in brands:
        if told := _BRANDS.get(brand):
            return f"it is {told[0]}", told[1]
    if brands[0] in (b"mif1", b"msf1"):
        return f"it is {_HEIC[0]}", _HEIC[1]
    return "it is a video", "save one picture of it and use that"


def _number(four: bytes) -> int:
    return int.from_bytes(four, "big")


def _of_text(head: bytes) -> tuple[str, str] | None:
    """Of a file of characters, of which kind it is."""
    try:
        wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = head.decode("utf-16" if wide else "utf-8-sig", errors="ignore" if wide else "strict")
    except UnicodeDecodeError as problem:
        if problem.start < len(head) - 4:  # else a character that the head cuts through
            return None
        text = head[: problem.start].decode("utf-8-sig")
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return None
    start = text.lstrip().lower()
    if "<svg" in start[:1000]:
        return "it is SVG, a drawing", "save it as PNG and use that"
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start[:500]:
        return "it is a web page, HTML", "save the picture itself, not the page that shows it"
    if start[:1] in ("{", "["):
        return "it is JSON", _USE
    return "it is text", _USE
