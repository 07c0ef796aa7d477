"""Memory that is kept for the next pass."""

import ctypes
import sys

import torch

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> None:
    """Have glibc keep freed memory: much of a pass goes into giving large tensors back and faulting their pages in again."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            for option, value in ((-4, 0), (-1, -1), (-2, 256 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
                mallopt(option, value)
