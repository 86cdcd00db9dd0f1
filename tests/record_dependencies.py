"""Records which versions of the dependencies are tested: `python -m tests.record_dependencies`.

Writes assets/docs/constraints.txt (the versions installed here, with the hashes of their files on
PyPI, which uv looks up) and assets/docs/dependencies.md (their licences).
"""

import platform
import re
import subprocess
import sys
from collections import defaultdict
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

CONSTRAINTS = ROOT / "assets" / "docs" / "constraints.txt"
LICENCES = ROOT / "assets" / "docs" / "dependencies.md"
PYTHON = "3.12"
SYSTEM = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
"""What is recorded for, in the words of environment markers: what the Dockerfile uses."""
NOT_IN_METADATA = {
    "segment-anything": "Apache-2.0",  # its file LICENSE
    "cuda-toolkit": "none stated (no files of its own)",  # brings the nvidia packages
}
_LONGEST = 60
_UNKNOWN = ("unknown", "none", "other/proprietary license")


def requirements() -> list[Requirement]:
    """What requirements.txt asks for where it is recorded for."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return [a for a in asked if a.marker is None or a.marker.evaluate({**SYSTEM})]


def pinned() -> dict[str, str]:
    """Normalised name → version, as recorded."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))


def needed(pins: dict[str, str] | None = None) -> dict[str, list[Requirement]]:
    """Normalised name → what is asked of it, by requirements.txt and by all that it brings along.

    Args:
        pins: follow only the distributions that are installed in these versions (default: all).
    """
    found, seen, left = defaultdict(list), set(), requirements()
    while left:
        asked = left.pop()
        name = canonicalize_name(asked.name)
        found[name].append(asked)
        for wish in {(name, extra) for extra in ("", *asked.extras)} - seen:
            seen.add(wish)
            left += _brings(*wish, pins)
    return dict(sorted(found.items()))


def _brings(name: str, extra: str, pins: dict[str, str] | None) -> list[Requirement]:
    if pins is not None and installed(name) != pins.get(name):
        return []
    asked = map(Requirement, metadata.requires(name) or [])
    system = {**SYSTEM, "extra": extra}
    return [a for a in asked if a.marker is None or a.marker.evaluate(system)]


def installed(name: str) -> str:
    """The version that is installed here, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def licence(name: str) -> str:
    """In a few words: an SPDX expression, or as the metadata or its classifiers name it."""
    about = metadata.metadata(name)
    classifiers = about.get_all("Classifier") or []
    names = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
    texts = (about.get("License-Expression"), about.get("License"), ", ".join(names))
    known = [t.strip() for t in (*texts, NOT_IN_METADATA.get(name)) if t and t.strip()]
    known = [text for text in known if text.lower() not in _UNKNOWN]
    short = [text for text in known if len(text) <= _LONGEST and "\n" not in text]
    return (short or [text.splitlines()[0][:_LONGEST] for text in known] or ["unknown"])[0]


def with_hashes(pins: dict[str, str]) -> str:
    """`name==version` and the hashes of all files of that version."""
    lines = "\n".join(f"{name}=={version}" for name, version in pins.items())
    options = "--generate-hashes --no-deps --no-annotate --no-header --no-config --quiet"
    command = [sys.executable, "-m", "uv", "pip", "compile", *options.split(), "-"]
    done = subprocess.run(command, input=lines, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit("error: uv found no hashes: see above, and install it with pip install uv.")
    return done.stdout


def record() -> None:
    here = f"{platform.python_version()} {platform.system()} {platform.machine()}"
    if not re.fullmatch(rf"{re.escape(PYTHON)}\.\S+ Linux x86_64", here):
        sys.exit(f"error: this is Python {here}: record with Python {PYTHON} on Linux x86_64.")
    pins = {name: metadata.version(name) for name in needed()}
    rows = "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in pins.items())
    CONSTRAINTS.write_text(
        "# The tested version of each package that requirements.txt installs with Python\n"
        f"# {PYTHON} on Linux x86_64, with the hashes of its files on PyPI for all systems.\n"
        "# Made by `python -m tests.record_dependencies`.\n" + with_hashes(pins)
    )
    LICENCES.write_text(
        "# Dependencies\n\n"
        f"What `requirements.txt` installs with Python {PYTHON} on Linux x86_64, and the licence that\n"
        "each package states. The tested versions with the hashes of their files are in\n"
        "[constraints.txt](constraints.txt). Both files are made by\n"
        "`python -m tests.record_dependencies`. The `cuda` and `nvidia` packages come with PyTorch\n"
        "and are used on an NVIDIA GPU only.\n\n"
        "| package | version | licence |\n| --- | --- | --- |\n" + rows
    )


if __name__ == "__main__":
    record()
