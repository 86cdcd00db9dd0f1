"""CoPRS: reasoning segmentation that people can see into."""

from coprs_core.answer.engine import Engine, Update, load
from coprs_core.errors import CoPRSError
from coprs_core.answer.results import Region, Result

__all__ = ["CoPRSError", "Engine", "Region", "Result", "Update", "load"]
