"""Pass a transformer's weights and cache to the kernel, and take one step at a time.

Shape legend: B batch, D width, C slots of the cache, d channels per head, V codebook size.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.native.library import library
from segue.plugins.layers.pages import large_pages
from segue.plugins.layers.quantize import eight_bits, made_from
from segue.plugins.layers.transformer import Sight, Transformer

#: Explicit, because PyTorch's defaults can be changed and the kernel reads memory as it is.
FLOATS: Mapping[str, Any] = {"dtype": torch.float32, "device": "cpu"}
CACHE_LINE = 64  # bytes
PANEL = 64  # of products.h
#: About half a millisecond of one core.
PRODUCTS_PER_THREAD = 8_000_000
#: Of a thread with rows of its own, which meets the others once a step.
PRODUCTS_APART = 2_000_000
#: Matrices of so many bytes stay in cache, so that each thread may read them all.
CACHED_BYTES = 1 << 24


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Return fields of one type for a structure."""
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """``Matrix`` of products.h."""

    _fields_ = (
        *fields(ctypes.c_void_p, "full codes row_scales column_scales"),
        *fields(ctypes.c_int64, "rows columns"),
    )


class Layer(ctypes.Structure):
    """``Layer`` of kernel.c."""

    _fields_ = (
        *fields(ctypes.c_void_p, "attention_norm feed_forward_norm"),
        *fields(Matrix, "qkv out rise fall"),
        *fields(ctypes.c_void_p, "keys values"),
    )


class Plan(ctypes.Structure):
    """``Plan`` of kernel.c."""

    _fields_ = (
        *fields(ctypes.c_int64, "batch width heads hidden depth capacity threads apart halves"),
        *fields(ctypes.c_void_p, "layers norm first known"),
        *fields(ctypes.c_int64, "shared"),
        *fields(ctypes.c_void_p, "bias"),
        *fields(ctypes.c_int64, "reach"),
        *fields(ctypes.c_void_p, "key_positions scratch"),
    )


def num_threads(products: int) -> int:
    """Return how many threads compute so many products of a weight and an input.

    Threads meet several times a layer, and those that wait sleep: little work is done sooner by
    one.
    """
    return min(usable_threads(), max(1, products // PRODUCTS_PER_THREAD))


def usable_threads() -> int:
    """Return PyTorch's number of threads, or that of the cores that the process may use if less."""
    threads = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        threads = min(threads, len(os.sched_getaffinity(0)))
    return threads


def rows_apart(rows: int, packed: Packed) -> int:
    """Return how many threads take rows of a step of their own, or 0: they share the matrices.

    Threads with rows of their own meet once a step; each reads all matrices.
    """
    threads = min(usable_threads(), rows)
    even = rows >= 2 * threads or rows == threads
    much = rows * packed.products_of_a_row >= threads * PRODUCTS_APART
    return threads if even and much and threads > 1 and packed.bytes <= CACHED_BYTES else 0


def in_panels(rows: Tensor, together: int = 1) -> Tensor:
    """Return ``[R, C]`` as the kernel reads it, ``[panels, C / together, PANEL, together]``."""
    rows = functional.pad(rows, (0, -rows.shape[1] % together, 0, -len(rows) % PANEL))
    columns = rows.shape[1] // together
    return rows.view(-1, PANEL, columns, together).transpose(1, 2).contiguous()


class Packed:
    """Copies of matrices in the kernel's format, one behind the other in one block of memory.

    Attributes:
        matrices: an array of the kernel's ``Matrix``.
        coded: whether all of them are codes.
        bytes: how much memory they take.
        products_of_a_row: how many products one input takes.
        exact: whether they stand for the given weights, without rounding.

    Args:
        weights: each ``[R, C]``, or a view of that shape.
        int8: round them to eight-bit codes. Weights that were stored as codes are read as codes
            anyhow: that changes no weight, and takes a quarter of the memory.
    """

    def __init__(self, weights: Sequence[Float[Tensor, "R C"]], int8: bool) -> None:
        found = [self._parts(weight.detach(), False) for weight in weights]
        self.exact = not int8 or all("codes" in parts for parts in found)
        if not self.exact:
            found = [self._parts(weight.detach(), True) for weight in weights]
        self.coded = all("codes" in parts for parts in found)
        parts = [part for parts in found for part in parts.values()]
        # Each part begins on a cache line.
        sizes = [-(-part.nbytes // CACHE_LINE) * CACHE_LINE for part in parts]
        self.bytes = sum(sizes)
        self.products_of_a_row = sum(weight.numel() for weight in weights)
        self._memory = large_pages(self.bytes)
        places = iter(self._memory.split(sizes))
        self.matrices = (Matrix * len(weights))()
        for index, weight in enumerate(weights):
            addresses = {}
            for name, part in found[index].items():
                place = next(places)
                place[: part.nbytes].copy_(part.reshape(-1).view(torch.uint8))
                addresses[name] = place.data_ptr()
            rows, columns = weight.shape
            self.matrices[index] = Matrix(rows=rows, columns=columns, **addresses)

    def products(self, x: Float[Tensor, "N C"], start: int, stop: int) -> Float[Tensor, "N Q R"]:
        """Return the products with matrices ``start`` to ``stop``, which have one shape."""
        x, first, count = x.float().contiguous(), self.matrices[start], stop - start
        y = torch.empty(len(x), count, first.rows, **FLOATS)
        threads = num_threads(count * first.rows * first.columns * len(x))
        address = ctypes.addressof(self.matrices) + start * ctypes.sizeof(Matrix)
        if library().linear(address, count, x.data_ptr(), y.data_ptr(), len(x), threads):
            raise MemoryError("the kernel has no memory for its inputs")
        return y

    @staticmethod
    def _parts(weight: Float[Tensor, "R C"], int8: bool) -> dict[str, Tensor]:
        found = eight_bits(weight, int8)
        if found is None:
            return {"full": in_panels(weight)}
        matrix, of_columns = found
        if of_columns:
            scales = matrix.scales.t().contiguous()
            return {"codes": in_panels(matrix.codes.t(), 2), "column_scales": scales}
        return {"codes": in_panels(matrix.codes, 2), "row_scales": in_panels(matrix.scales)}


def packed(module: nn.Module, weights: Sequence[Tensor], int8: bool) -> Packed:
    """Return the packed matrices of one module; pack them again only if a weight changed."""
    require_float32(*weights)
    form = "int8" if int8 else "float32"
    return made_from(module, weights, form, lambda: Packed(weights, int8))


def require_float32(*tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are float32 on the CPU: the kernel trusts pointers."""
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the kernel was given {tensor.dtype} on {tensor.device}")


def transformer_weights(transformer: Transformer, int8: bool) -> Packed:
    """Return the matrices of all layers, four of each."""
    matrices = [
        layer.weight
        for block in transformer.layers
        for layer in (
            block.attention.qkv, block.attention.out,
            block.feed_forward.rise, block.feed_forward.out,
        )
    ]  # fmt: skip
    return packed(transformer, matrices, int8)


def native_prefix(
    transformer: Transformer, weights: Packed, x: Float[Tensor, "1 N D"], sight: Sight,
    cache: KeyValueCache,
) -> Float[Tensor, "1 N D"]:  # fmt: skip
    """Return what ``transformer(x, sight, cache)`` does; the kernel multiplies the codes."""

    def product(index: int, x: Tensor) -> Tensor:
        return weights.products(x[0], index, index + 1).transpose(0, 1)

    for index, block in enumerate(transformer.layers):
        qkv = product(4 * index, block.attention_norm(x))
        x = x + product(4 * index + 1, block.attention.mix(qkv, sight, cache))
        risen = product(4 * index + 2, block.feed_forward_norm(x))
        x = x + product(4 * index + 3, block.feed_forward.gated(risen))
    cache.advance(x.shape[1])
    return transformer.norm(x)


class NativeStep:
    """Steps of a transformer in float32 on a CPU, after a prefix.

    Attributes:
        plan: what the kernel is given of transformer and cache.

    Args:
        weights: ``transformer_weights``.
        cache: filled by the prefix; further positions go into its tensors.
        first: ``[B]`` first column of each row that is not padding.
        known: ``[B]`` row that keeps a row's prefix: itself, or one with the same prefix. The
            others' slots for it stay empty. Only where the cache never overwrites a position.
        key_positions: ``[B, C]`` by slot, written to; needed with a relative bias only.
    """

    def __init__(
        self,
        transformer: Transformer,
        weights: Packed,
        cache: KeyValueCache,
        first: Int64[Tensor, " B"],
        known: Int64[Tensor, " B"],
        key_positions: Float[Tensor, "B C"] | None,
    ) -> None:
        self._library, self.cache = library(), cache
        blocks, relative = transformer.layers, transformer.relative
        #: All memory that the plan points to.
        self._alive: list[object] = [weights]

        def pointer(tensor: Tensor) -> int:
            tensor = tensor.detach().contiguous()
            self._alive.append(tensor)
            return tensor.data_ptr()

        if not cache.halves:
            require_float32(*(slots for stored in cache.layers for slots in stored or ()))
        layers = (Layer * len(blocks))()
        for index, (block, stored) in enumerate(zip(blocks, cache.layers, strict=True)):
            assert stored is not None
            norms = block.attention_norm.weight, block.feed_forward_norm.weight
            require_float32(*norms)
            layers[index] = Layer(
                *map(pointer, norms),
                *weights.matrices[4 * index : 4 * index + 4],
                *(slots.data_ptr() for slots in stored),  # not a copy: the kernel writes there
            )
        width, hidden = blocks[0].feed_forward.out.weight.shape
        self._shape = len(first), width
        products = weights.products_of_a_row
        apart = rows_apart(len(first), weights)
        self.plan = Plan(
            len(first), width, blocks[0].attention.heads, hidden, len(blocks), cache.capacity,
            apart or num_threads(len(first) * products), apart, cache.halves,
            ctypes.addressof(layers), pointer(transformer.norm.weight), pointer(first),
            pointer(known), cache.length,
            None if relative is None else pointer(relative.table().to(**FLOATS)),
            0 if relative is None else relative.reach,
            None if key_positions is None else key_positions.data_ptr(), None,
        )  # fmt: skip
        scratch = torch.empty(self._library.scratch_floats(ctypes.byref(self.plan)), **FLOATS)
        self.plan.scratch = pointer(scratch)
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
            ctypes.addressof(self.plan), self._stream.data_ptr(), *pointers,
            self.cache.length, output.data_ptr(),
        )  # fmt: skip
        self.cache.advance(1)
        return output
