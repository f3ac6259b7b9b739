"""Memory in large pages, for what each step of decoding reads from its beginning to its end."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import torch
from jaxtyping import UInt8
from torch import Tensor

LARGE_PAGE = 2 * 2**20  # bytes
#: Bytes that are kept for later owners: the system clears new memory before it gives it away, which
#: takes longer than some steps of decoding.
KEPT_BYTES = 128 * 2**20

_FREE: deque[UInt8[Tensor, " N"]] = deque()


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


def used_pages(size: int, owner: object) -> UInt8[Tensor, " N"]:
    """Return ``size`` bytes with anything in them, maybe of an owner before.

    The next owner may get them when this one is gone, which must be the last to use them.
    """
    block = None
    for _ in range(len(_FREE)):
        with suppress(IndexError):  # another thread took the last one
            candidate = _FREE.popleft()
            if block is None and len(candidate) >= size:
                block = candidate
            else:
                _FREE.append(candidate)
    if block is None:
        block = large_pages(size)
    weakref.finalize(owner, _keep, block)
    return block[:size]


def _keep(block: UInt8[Tensor, " N"]) -> None:
    _FREE.append(block)
    while sum(map(len, tuple(_FREE))) > KEPT_BYTES:  # a copy: other threads may change it
        with suppress(IndexError):
            _FREE.popleft()
