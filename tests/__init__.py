"""The tests mirror the packages, path for path; what concerns the whole product stands here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
