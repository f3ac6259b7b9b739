"""Memory in large pages, for what each step of decoding reads from its beginning to its end."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from jaxtyping import UInt8
from torch import Tensor

LARGE_PAGE = 2 * 2**20  # bytes


def large_pages(size: int) -> UInt8[Tensor, " N"]:
    """Return ``size`` zero bytes, in large pages of memory where the system has them.

    Each step reads all weights, keys and values. With small pages, a good part of the time goes
    into looking up where each page is.
    """
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8, device="cpu")
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the kernel of the system was built without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    skip = -whole.data_ptr() % LARGE_PAGE
    return whole[skip : skip + size]
