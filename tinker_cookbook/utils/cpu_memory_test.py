"""What libraries keep of the CPU's memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import psutil
import pytest

from tinker_cookbook.utils.cpu_memory import CACHE_SIZE, KERNELS, return_freed_memory

SHOW = f"import os, tinker_cookbook; print(os.environ.get({CACHE_SIZE!r}))"


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        (SHOW, {}, str(KERNELS)),
        (SHOW, {CACHE_SIZE: "7"}, "7"),
        ("import torch; " + SHOW, {}, "None"),  # too late: do not pretend
    ],
)
def test_kernel_cache_is_bounded_before_torch_is_loaded(
    program: str, given: dict[str, str], expected: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != CACHE_SIZE} | given
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_blocks_go_back_to_the_system() -> None:
    def resident() -> int:
        return psutil.Process().memory_info().rss

    size, count = 100_000, 2000  # too small for malloc to map them one by one
    blocks = [bytes(size) for _ in range(count)]
    last = bytes(size)  # behind them, so that the heap cannot simply become shorter
    del blocks
    before = resident()
    return_freed_memory()
    assert resident() < before - size * count // 2
    assert last
