"""Memory in large pages, for what each step of decoding reads from its beginning to its end."""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch
from jaxtyping import UInt8
from torch import Tensor

LARGE_PAGE = 2 * 2**20  # bytes
#: Bytes that are kept for later owners: the system clears new memory before it gives it away, which
#: takes longer than some steps of decoding.
KEPT_BYTES = 128 * 2**20

#: The oldest first. Each operation on it is one that no other thread comes between.
_FREE: dict[int, UInt8[Tensor, " N"]] = {}


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
    fitting = [block for block in tuple(_FREE.values()) if len(block) >= size]
    for block in sorted(fitting, key=len):
        if _FREE.pop(id(block), None) is not None:  # or another thread took it
            break
    else:
        block = large_pages(size)
    weakref.finalize(owner, _keep, block).atexit = False
    return block[:size]


def _keep(block: UInt8[Tensor, " N"]) -> None:
    if len(block) <= KEPT_BYTES:
        _FREE[id(block)] = block
    for key in tuple(_FREE):
        if sum(map(len, tuple(_FREE.values()))) > KEPT_BYTES:
            _FREE.pop(key, None)
