"""Hand a transformer's weights and cache to the kernel, and take one step at a time.

Shape legend: B batch, D width, d channels per head, V codebook size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segue.core.eight_bits import quantize
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.memory import large_pages
from segue.plugins.layers.native.library import library
from segue.plugins.layers.quantize import contents
from segue.plugins.layers.transformer import Transformer

#: Whatever PyTorch's defaults are.
FLOATS: Mapping[str, Any] = {"dtype": torch.float32, "device": "cpu"}
LINE = 64  # bytes of a cache line
Pointer = ctypes.c_void_p
Integer = ctypes.c_int64


class Matrix(ctypes.Structure):
    """``Matrix`` of kernel.c."""

    _fields_ = (
        ("full", Pointer),
        ("codes", Pointer),
        ("scales", Pointer),
        ("rows", Integer),
        ("columns", Integer),
    )


class Layer(ctypes.Structure):
    """``Layer`` of kernel.c."""

    _fields_ = (
        ("attention_norm", Pointer),
        ("feed_forward_norm", Pointer),
        ("qkv", Matrix),
        ("out", Matrix),
        ("rise", Matrix),
        ("fall", Matrix),
        ("keys", Pointer),
        ("values", Pointer),
    )


class Plan(ctypes.Structure):
    """``Plan`` of kernel.c."""

    _fields_ = (
        *((name, Integer) for name in ("batch", "width", "heads", "hidden", "depth")),
        ("capacity", Integer),
        ("threads", Integer),
        ("layers", Pointer),
        ("norm", Pointer),
        ("first", Pointer),
        ("bias", Pointer),
        ("reach", Integer),
        ("key_positions", Pointer),
        ("scratch", Pointer),
    )


class Packed:
    """Copies of matrices in the form that the kernel reads, one behind the other in large pages."""

    def __init__(self, weights: Sequence[Float[Tensor, "R C"]], int8: bool) -> None:
        parts = [part for weight in weights for part in self._parts(weight.detach(), int8)]
        self._memory = large_pages(sum(map(_padded, parts)))
        self._filled = 0
        pointers = [self._place(part) for part in parts]
        if int8:
            pairs = zip(pointers[::2], pointers[1::2], strict=True)
            triples: list[tuple[int | None, int | None, int | None]]
            triples = [(None, codes, scales) for codes, scales in pairs]
        else:
            triples = [(full, None, None) for full in pointers]
        self.matrices = [
            Matrix(*triple, *weight.shape) for triple, weight in zip(triples, weights, strict=True)
        ]

    @staticmethod
    def _parts(weight: Tensor, int8: bool) -> list[Tensor]:
        if not int8:
            return [weight.contiguous()]
        codes = quantize(weight)
        return [codes.codes, codes.scales]

    def _place(self, part: Tensor) -> int:
        """Copy a tensor behind those that are there; its address."""
        place = self._memory[self._filled : self._filled + part.nbytes]
        place.copy_(part.reshape(-1).view(torch.uint8))
        self._filled += _padded(part)
        return place.data_ptr()


def _padded(part: Tensor) -> int:
    """Bytes of a tensor, up to the next cache line."""
    return -(-part.nbytes // LINE) * LINE


_Kept = tuple[tuple[object, ...], list[Tensor], Packed]
_PACKED: WeakKeyDictionary[nn.Module, dict[bool, _Kept]] = WeakKeyDictionary()


def packed(module: nn.Module, weights: Sequence[Tensor], int8: bool) -> Packed:
    """The matrices of one module, packed anew only when a weight changed since."""
    require_float32(*weights)
    key = contents(weights)
    kept = _PACKED.setdefault(module, {})
    if int8 not in kept or kept[int8][0] != key:
        # The sources are kept too: as long as they live, no other tensor has their address.
        kept[int8] = key, [weight.detach() for weight in weights], Packed(weights, int8)
    return kept[int8][2]


def require_float32(*tensors: Tensor) -> None:
    """The kernel reads and writes memory as it is.

    Raises:
        TypeError: if a tensor is of another number format or not on the CPU.
    """
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the kernel was given {tensor.dtype} on {tensor.device}")


def matrices_of(transformer: Transformer) -> list[Tensor]:
    return [
        weight
        for block in transformer.layers
        for weight in (
            block.attention.qkv.weight,
            block.attention.out.weight,
            block.feed_forward.rise.weight,
            block.feed_forward.out.weight,
        )
    ]


class NativeStep:
    """Steps of a prefilled transformer in float32 on a CPU.

    Args:
        transformer: in eval mode.
        cache: filled by the prefix; further positions go into its tensors.
        first: ``[B]`` first position of each row that is no padding.
        key_positions: ``[B, capacity]`` by slot, written to; needed with a relative bias only.
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
        weights = packed(transformer, matrices_of(transformer), int8)
        block = transformer.layers[0]
        depth, batch = len(transformer.layers), len(first)
        width, hidden = block.feed_forward.out.weight.shape
        self._shape = batch, width
        bias = None
        if transformer.relative is not None:
            bias = transformer.relative.table().contiguous()
            require_float32(bias)
        layers = (Layer * depth)()
        norms = []
        for index, layer in enumerate(transformer.layers):
            stored = cache.layers[index]
            assert stored is not None
            require_float32(*stored)
            pair = layer.attention_norm.weight, layer.feed_forward_norm.weight
            require_float32(*pair)
            norms += [norm.detach().contiguous() for norm in pair]
            layers[index] = Layer(
                norms[-2].data_ptr(), norms[-1].data_ptr(),
                *weights.matrices[4 * index : 4 * index + 4],
                stored[0].data_ptr(), stored[1].data_ptr(),
            )  # fmt: skip
        norm = transformer.norm.weight.detach().contiguous()
        first = first.contiguous()
        self._plan = Plan(
            batch, width, block.attention.heads, hidden, depth, cache.capacity,
            torch.get_num_threads(), ctypes.addressof(layers), norm.data_ptr(), first.data_ptr(),
            None if bias is None else bias.data_ptr(),
            0 if transformer.relative is None else transformer.relative.reach,
            None if key_positions is None else key_positions.data_ptr(), None,
        )  # fmt: skip
        floats = self._library.scratch_floats(ctypes.byref(self._plan))
        scratch = torch.empty(floats, **FLOATS)
        self._plan.scratch = scratch.data_ptr()
        # All that the plan points to.
        self._memory = (weights, layers, norms, norm, first, bias, key_positions, scratch)
        self._plan_address = ctypes.addressof(self._plan)
        self._stream = torch.empty(self._shape, **FLOATS)

    def __call__(
        self,
        x: Float[Tensor, "B D"],
        cosine: Float[Tensor, "B d"] | None,
        sine: Float[Tensor, "B d"] | None,
        positions: Float[Tensor, " B"] | None,
    ) -> Float[Tensor, "B D"]:
        """Hidden states of one more position of every row, which the cache then holds.

        All arguments are contiguous and in float32.
        """
        self._stream.copy_(x)
        output = torch.empty(self._shape, **FLOATS)
        pointers = [None if t is None else t.data_ptr() for t in (cosine, sine, positions)]
        self._library.step(
            self._plan_address, self._stream.data_ptr(), *pointers,
            self._cache.length, output.data_ptr(),
        )  # fmt: skip
        self._cache.advance(1)
        return output


def native_linear(
    owner: nn.Module, weights: Sequence[Float[Tensor, "V D"]], int8: bool
) -> list[Callable[[Float[Tensor, "B D"]], Float[Tensor, "B V"]]]:
    """Products with several matrices of one module.

    Args:
        owner: what the packed matrices are kept with.
        weights: each ``[V, D]``, or a view of that shape.
        int8: read them as eight-bit codes.
    """
    kernel, held = library(), packed(owner, weights, int8)
    threads = torch.get_num_threads()

    def product(matrix: Matrix) -> Callable[[Tensor], Tensor]:
        address, rows = ctypes.addressof(matrix), matrix.rows

        def call(x: Tensor, held: Packed = held) -> Tensor:  # holds the memory of the matrix
            x = x.float().contiguous()
            y = torch.empty(x.shape[0], rows, **FLOATS)
            kernel.linear(address, x.data_ptr(), y.data_ptr(), x.shape[0], threads)
            return y

        return call

    return [product(matrix) for matrix in held.matrices]
