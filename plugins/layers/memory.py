"""Memory for what decoding reads from one end to the other in every step."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from jaxtyping import UInt8
from torch import Tensor

PAGE = 2 * 2**20  # bytes of a large page


def large_pages(count: int) -> UInt8[Tensor, " N"]:
    """``count`` zeros that begin on a large page of the CPU's memory and, where the system has such
    pages, lie in them: with small ones a good part of the time goes into looking up where each is.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=torch.uint8, device="cpu")
    memory = mmap.mmap(-1, count + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    skip = -whole.data_ptr() % PAGE
    return whole[skip : skip + count]
