"""What libraries keep of the CPU's memory: oneDNN's kernels, and blocks that malloc has freed."""

from __future__ import annotations

import ctypes
import os
import sys

CACHE_SIZE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 128


def bound_kernel_cache() -> None:
    """Let oneDNN keep KERNELS compiled kernels instead of 1,024, unless the user has set a number.

    It keeps one for each shape of a product, and packed sequences come in ever new lengths. A pass
    needs about 30, since all layers have the same shapes. oneDNN reads the number when it is first
    used; without effect once torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(CACHE_SIZE, str(KERNELS))


def return_freed_memory() -> None:
    """Give blocks that were freed, but are kept for later allocations, back to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
