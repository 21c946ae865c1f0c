"""What a weather station measured, in a few lines of text."""

from almanac.readings import Reading, load
from almanac.report import report

__all__ = ["Reading", "load", "report"]
