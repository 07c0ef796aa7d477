"""Masks of millions of images, on Ray Data."""

from .engine import MASKS, Totals, batch
from .prompt_table import read_prompt_table

__all__ = ["MASKS", "Totals", "batch", "read_prompt_table"]
