"""How a kernel is called: one call a view, on as many threads as torch uses, with addresses of rows of tensors."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool per size; `process` keys it, because threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


def each_view(views: int, call: Callable[[int], int]) -> None:
    """Run call(view) for every view; the bits do not depend on the number of threads.

    Raises MemoryError where a call returns anything but 0.
    """
    threads = min(torch.get_num_threads(), views)
    failed = map(call, range(views)) if threads == 1 else _pool(threads, os.getpid()).map(call, range(views))
    if any(list(failed)):
        raise MemoryError("There is no memory left to draw the views.")


def address(tensor: Tensor | None, row: int = 0) -> ctypes.c_void_p:
    """Address of a row of a contiguous tensor, NULL for None."""
    if tensor is None:
        return ctypes.c_void_p()
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())
