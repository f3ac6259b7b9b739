"""Pass a transformer's weights and cache to the kernel, and take one step at a time.

Shape legend: B batch, D width, C slots of the cache, d channels per head, V codebook size.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from segue.core.eight_bits import quantize
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.native.library import library
from segue.plugins.layers.quantize import made_from
from segue.plugins.layers.transformer import Transformer

#: Explicit, because PyTorch's defaults can be changed and the kernel reads memory as it is.
FLOATS: Mapping[str, Any] = {"dtype": torch.float32, "device": "cpu"}
CACHE_LINE = 64  # bytes
LARGE_PAGE = 2 * 2**20  # bytes


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """``Matrix`` of kernel.c."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "full codes scales"),
        *_fields(ctypes.c_int64, "rows columns"),
    )


class Layer(ctypes.Structure):
    """``Layer`` of kernel.c."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "attention_norm feed_forward_norm"),
        *_fields(Matrix, "qkv out rise fall"),
        *_fields(ctypes.c_void_p, "keys values"),
    )


class Plan(ctypes.Structure):
    """``Plan`` of kernel.c."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch width heads hidden depth capacity threads"),
        *_fields(ctypes.c_void_p, "layers norm first bias"),
        *_fields(ctypes.c_int64, "reach"),
        *_fields(ctypes.c_void_p, "key_positions scratch"),
    )


def num_threads() -> int:
    """Return PyTorch's number of threads, but no more than the cores that the process may use.

    More threads than cores would wait for each other at every barrier of the kernel.
    """
    threads = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        threads = min(threads, len(os.sched_getaffinity(0)))
    return threads


def large_pages(size: int) -> UInt8[Tensor, " N"]:
    """Return ``size`` zero bytes in large pages of memory, where the system has them.

    Each step reads all weights. With small pages, a good part of the time goes into looking up
    where each page is.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8, device="cpu")
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the kernel of the system was built without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    skip = -whole.data_ptr() % LARGE_PAGE
    return whole[skip : skip + size]


class Packed:
    """Copies of matrices in the kernel's format, one behind the other in one block of memory."""

    def __init__(self, weights: Sequence[Float[Tensor, "R C"]], int8: bool) -> None:
        parts = []
        for weight in weights:
            codes = quantize(weight) if int8 else None
            parts += [codes.codes, codes.scales] if codes else [weight.detach().contiguous()]
        # Each part begins on a cache line.
        sizes = [-(-part.nbytes // CACHE_LINE) * CACHE_LINE for part in parts]
        self._memory = large_pages(sum(sizes))
        addresses = []
        for part, place in zip(parts, self._memory.split(sizes), strict=True):
            place[: part.nbytes].copy_(part.reshape(-1).view(torch.uint8))
            addresses.append(place.data_ptr())
        self.matrices = []
        for index, weight in enumerate(weights):
            pointers = (
                [None, *addresses[2 * index :][:2]] if int8 else [addresses[index]] + [None] * 2
            )
            self.matrices.append(Matrix(*pointers, *weight.shape))


def packed(module: nn.Module, weights: Sequence[Tensor], int8: bool) -> Packed:
    """Return the matrices of one module, packed anew only if a weight changed."""
    require_float32(*weights)
    form = "int8" if int8 else "float32"
    return made_from(module, weights, form, lambda: Packed(weights, int8))


def require_float32(*tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are float32 on the CPU: the kernel trusts pointers."""
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the kernel was given {tensor.dtype} on {tensor.device}")


class NativeStep:
    """Steps of a transformer in float32 on a CPU, after a prefix.

    Args:
        transformer: in eval mode.
        cache: filled by the prefix; further positions go into its tensors.
        first: ``[B]`` first column of each row that is not padding.
        key_positions: ``[B, C]`` by slot, written to; needed with a relative bias only.
        int8: read the weights as eight-bit codes.
    """

    def __init__(
        self,
        transformer: Transformer,
        cache: KeyValueCache,
        first: Int64[Tensor, " B"],
        key_positions: Float[Tensor, "B C"] | None,
        int8: bool,
    ) -> None:
        self._library, self._cache = library(), cache
        blocks, relative = transformer.layers, transformer.relative
        matrices = [
            layer.weight
            for block in blocks
            for layer in (
                block.attention.qkv, block.attention.out,
                block.feed_forward.rise, block.feed_forward.out,
            )
        ]  # fmt: skip
        weights = packed(transformer, matrices, int8)
        #: All memory that the plan points to.
        self._alive: list[object] = [weights]

        def pointer(tensor: Tensor) -> int:
            tensor = tensor.detach().contiguous()
            self._alive.append(tensor)
            return tensor.data_ptr()

        layers = (Layer * len(blocks))()
        for index, (block, stored) in enumerate(zip(blocks, cache.layers, strict=True)):
            assert stored is not None
            norms = block.attention_norm.weight, block.feed_forward_norm.weight
            require_float32(*norms, *stored)
            layers[index] = Layer(
                *map(pointer, norms),
                *weights.matrices[4 * index : 4 * index + 4],
                *(slots.data_ptr() for slots in stored),  # not a copy: the kernel writes there
            )
        width, hidden = blocks[0].feed_forward.out.weight.shape
        self._shape = len(first), width
        self._plan = Plan(
            len(first), width, blocks[0].attention.heads, hidden, len(blocks),
            cache.capacity, num_threads(),
            ctypes.addressof(layers), pointer(transformer.norm.weight), pointer(first),
            None if relative is None else pointer(relative.table().to(**FLOATS)),
            0 if relative is None else relative.reach,
            None if key_positions is None else key_positions.data_ptr(), None,
        )  # fmt: skip
        scratch = torch.empty(self._library.scratch_floats(ctypes.byref(self._plan)), **FLOATS)
        self._plan.scratch = pointer(scratch)
        self._alive += [layers, key_positions]
        self._stream = torch.empty(self._shape, **FLOATS)

    def __call__(
        self,
        x: Float[Tensor, "B D"],
        cosine: Float[Tensor, "B d"] | None,
        sine: Float[Tensor, "B d"] | None,
        positions: Float[Tensor, " B"] | None,
    ) -> Float[Tensor, "B D"]:
        """Return hidden states of one more position of every row, and store it in the cache.

        All arguments are contiguous and in float32.
        """
        self._stream.copy_(x)
        output = torch.empty(self._shape, **FLOATS)
        pointers = [None if t is None else t.data_ptr() for t in (cosine, sine, positions)]
        self._library.step(
            ctypes.addressof(self._plan), self._stream.data_ptr(), *pointers,
            self._cache.length, output.data_ptr(),
        )  # fmt: skip
        self._cache.advance(1)
        return output


def native_linear(
    owner: nn.Module, weights: Sequence[Float[Tensor, "V D"]], int8: bool
) -> list[Callable[[Float[Tensor, "B D"]], Float[Tensor, "B V"]]]:
    """Return the products with several matrices of one module.

    Args:
        owner: the module that the packed matrices are kept with.
        weights: each ``[V, D]``, or a view of that shape.
        int8: read them as eight-bit codes.
    """
    kernel, memory, threads = library(), packed(owner, weights, int8), num_threads()

    def product(matrix: Matrix) -> Callable[[Tensor], Tensor]:
        address, rows = ctypes.addressof(matrix), matrix.rows

        def call(x: Tensor, alive: Packed = memory) -> Tensor:
            x = x.float().contiguous()
            y = torch.empty(x.shape[0], rows, **FLOATS)
            kernel.linear(address, x.data_ptr(), y.data_ptr(), x.shape[0], threads)
            return y

        return call

    return [product(matrix) for matrix in memory.matrices]
