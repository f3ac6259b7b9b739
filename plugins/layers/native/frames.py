"""Draw several steps of a codebook pattern in one call of the kernel.

Shape legend: R rows computed, B rows asked for, Q levels, S columns, D width, V codebook size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.sampling import gumbel_noise
from segue.plugins.layers.decoding import Angles, Decoder, HeadProducts
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.heads import LevelEmbedding
from segue.plugins.layers.native.library import library
from segue.plugins.layers.native.step import FLOATS, NativeStep, Packed, fields, require_float32

#: Steps of one call after the first one.
STEPS = 8


class Drawing(ctypes.Structure):
    """``Drawing`` of draw.h."""

    _fields_ = (
        *fields(ctypes.c_int64, "rows levels columns entries"),
        *fields(ctypes.c_void_p, "heads table context guides grid"),
        ("temperature", ctypes.c_float),
        *fields(ctypes.c_void_p, "stream hidden logits"),
    )


def native_frames(
    decoder: Decoder,
    products: HeadProducts,
    embedding: LevelEmbedding,
    drawer: Drawer,
    grid: Int64[Tensor, "R Q S"],
    context: Float[Tensor, "R S D"] | None,
    levels: Sequence[Sequence[int]],
) -> Iterator[None] | None:
    """Draw in C, step after step, into the grid; return None where only PyTorch can.

    Args:
        embedding: of the codes in the grid.
        grid: contiguous; steps read a column each, and write the next one.
        context: contiguous; added to the embedded codes.
        levels: what each step draws.
    """
    step, angles, heads = decoder.native, decoder.angles, products.packed
    if step is None or angles is None or heads is None or not drawer.plain:
        return None
    spans = [(some[0], some[-1] + 1) if some else (0, 0) for some in levels]
    if any(stop - start != len(some) for (start, stop), some in zip(spans, levels, strict=True)):
        return None
    if grid.amin() < 0 or grid.amax() >= embedding.table.num_embeddings // grid.shape[1]:
        return None  # PyTorch says so, the kernel would read any memory
    hidden = decoder.hidden.contiguous()
    return NativeFrames(
        step, angles, heads, hidden, embedding, drawer, grid, context, spans
    ).steps()


class NativeFrames:
    """Arguments as for ``native_frames``; ``hidden`` is that of the first step."""

    def __init__(
        self,
        step: NativeStep,
        angles: Angles,
        heads: Packed,
        hidden: Float[Tensor, "R D"],
        embedding: LevelEmbedding,
        drawer: Drawer,
        grid: Int64[Tensor, "R Q S"],
        context: Float[Tensor, "R S D"] | None,
        spans: Sequence[tuple[int, int]],
    ) -> None:
        self._step, self._angles, self._drawer = step, angles, drawer
        self._spans = torch.tensor(spans, dtype=torch.int64)
        rows, levels, columns = grid.shape
        table, self._width = embedding.table.weight.detach(), heads.matrices[0].rows
        guides = torch.tensor(drawer.guides, **FLOATS)
        stream, hidden = torch.empty_like(hidden), hidden.clone()
        logits = torch.empty(rows, levels, self._width, **FLOATS)
        floats = [table, guides, stream, hidden, logits, *([] if context is None else [context])]
        require_float32(*floats)
        #: All memory that the arguments point to.
        self._alive = [heads, grid, *floats]
        self._arguments = Drawing(
            rows // (1 + len(drawer.guides)), levels, columns, len(table) // levels,
            ctypes.addressof(heads.matrices), table.data_ptr(),
            None if context is None else context.data_ptr(), guides.data_ptr(), grid.data_ptr(),
            drawer.sampling.temperature, stream.data_ptr(), hidden.data_ptr(), logits.data_ptr(),
        )  # fmt: skip
        self._first = columns - len(spans) - 1
        #: As the kernel has it: in 32 bits, the least temperatures are 0.
        self._likeliest = self._arguments.temperature == 0

    def steps(self) -> Iterator[None]:
        """Draw the levels of each step into the next column of the grid; yield after each."""
        self._draw(0, 1)
        yield
        for step in range(1, len(self._spans), STEPS):
            count = min(STEPS, len(self._spans) - step)
            self._draw(step, count)
            yield from [None] * count

    def _draw(self, step: int, count: int) -> None:
        cache, known = self._step.cache, step == 0
        spans = self._spans[step : step + count]
        cosine, sine = self._angles(cache.length, count)
        noise = None
        if not self._likeliest:
            drawn = int((spans[:, 1] - spans[:, 0]).sum())
            noise = gumbel_noise(self._drawer.generators, drawn, self._width)
        library().draw(
            ctypes.addressof(self._step.plan), ctypes.addressof(self._arguments),
            self._first + step, count, spans.data_ptr(), known, cosine.data_ptr(), sine.data_ptr(),
            cache.length, None if noise is None else noise.data_ptr(),
        )  # fmt: skip
        cache.advance(count - known)
