"""Decode with a transformer that goes from left to right: a prefix in one pass, then one position
at a time.

Rows of unequal length are padded on the left, so that all of them end in the same column. Keys and
values lie in a preallocated cache, a ring where the model has a sliding window. Three backends
compute a step: PyTorch, a C kernel for CPUs and, at fixed shapes, CUDA graphs or ``torch.compile``.

Shape legend: B batch, N positions, D width, C slots of the cache, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segue.core.eight_bits import quantize
from segue.core.errors import ConfigError
from segue.core.options import Decoding
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.native.library import KernelError, available, library
from segue.plugins.layers.native.step import NativeStep, native_linear
from segue.plugins.layers.quantize import made_from, rounded
from segue.plugins.layers.transformer import Sight, Transformer

Step = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B D"]]

#: Slots of steps of fixed shapes come in multiples of this, so that one compilation serves many
#: lengths.
SLOTS = 256
#: Positions whose angles are computed together for the kernel.
ANGLES = 512


def chosen_backend(decoding: Decoding, like: Tensor, place: str) -> str:
    """Return the backend for tensors like this: ``torch``, ``native``, ``graph`` or ``compile``.

    Args:
        decoding: the user's choice.
        like: a tensor of the model.
        place: of the options, for messages.

    Raises:
        ConfigError: if the device cannot do what was asked for.
    """
    device, backend = like.device.type, decoding.backend
    if decoding.weights == "int8" and device not in ("cpu", "meta"):
        problem = f"is int8, which runs on a CPU, not on {device}"
        raise ConfigError(f"{place}.weights", problem, "use bfloat16 there")
    on_cpu = device == "cpu" and like.dtype == torch.float32
    if backend == "auto":
        if device == "cuda":
            return "graph"
        return "native" if on_cpu and available() else "torch"
    if backend == "native" and (not on_cpu or decoding.halves):
        kind = decoding.weights if decoding.halves else like.dtype
        problem = f"native computes in float32 on a CPU, not in {kind} on {like.device}"
        raise ConfigError(f"{place}.backend", problem, "use auto")
    if backend == "native":
        try:
            library()
        except KernelError as error:
            problem = f"native cannot be used: {error}"
            raise ConfigError(f"{place}.backend", problem, "use auto") from error
    if backend == "graph" and device != "cuda":
        raise ConfigError(f"{place}.backend", f"graph needs CUDA, not {device}", "use auto")
    return backend


class Decoder:
    """A transformer with a prefix in its cache, ready to take one position of every row per step.

    Attributes:
        hidden: ``[B, D]``, hidden state of the last position of the prefix.
        step: takes one embedded position ``[B, D]`` of every row and returns its hidden state.

    Args:
        transformer: in eval mode, causal.
        x: ``[B, N, D]`` embedded prefix, padded on the left. If N is 0, the first step is at
            position 0.
        positions: ``[B, N]``.
        valid: ``[B, N]``, False at padding.
        steps: number of further positions to make room for; each is 1 after the one before.
        decoding: backend and number format.
    """

    def __init__(
        self,
        transformer: Transformer,
        x: Float[Tensor, "B N D"],
        positions: Float[Tensor, "B N"],
        valid: Bool[Tensor, "B N"],
        steps: int,
        decoding: Decoding,
    ) -> None:
        batch, count, width = x.shape
        window = transformer.window
        backend = chosen_backend(decoding, x, "decoding")
        capacity = count + steps if window is None else min(count + steps, window)
        if backend in ("graph", "compile") and window is None:
            capacity = -(-capacity // SLOTS) * SLOTS
        self._cache = KeyValueCache(len(transformer.blocks), capacity, ring=window is not None)
        self._padding = (~valid).sum(dim=1)  # the first columns of each row
        self._ragged = bool(self._padding.any())
        # The position of the key in each slot, which a relative bias needs: as in the ring itself,
        # column c is in slot c % capacity.
        self._keys = x.new_zeros(batch, capacity, dtype=torch.float32)
        kept = torch.arange(max(0, count - capacity), count, device=x.device)
        self._keys[:, kept % capacity] = positions[:, kept].float()
        self.hidden: Tensor = x.new_zeros(batch, width)
        last = x.new_full((batch,), -1.0, dtype=torch.float32)
        if count:
            self.hidden = self._prefix(transformer, x, positions, valid)
            last = positions[:, -1].float()
        else:
            heads = transformer.layers[0].attention.heads
            self._cache.reserve(x.new_zeros(batch, heads, 0, width // heads))
        # Column c is at position c + shift.
        self._shift = last + 1 - count
        int8 = decoding.weights == "int8"
        if int8 and backend != "native":
            weights = list(transformer.parameters())
            transformer = made_from(transformer, weights, "rounded", lambda: rounded(transformer))
        self._transformer = transformer
        self.step: Step
        if backend == "torch":
            self.step = self._torch_step
        elif backend == "native":
            self.step = self._native_step(int8)
        else:
            self.step = self._fixed_step(backend, x)

    def _prefix(
        self, transformer: Transformer, x: Tensor, positions: Tensor, valid: Tensor
    ) -> Float[Tensor, "B D"]:
        """Fill the cache; return the hidden state of the last position of every row.

        A CPU gains nothing from taking the rows together, and sums in another order for other
        shapes: one by one, each equals bit by bit what it is alone, without a mask for padding.
        """
        cache = self._cache
        if x.device.type != "cpu" or len(x) == 1:
            return transformer(x, transformer.sight(positions, valid), cache)[:, -1]  # type: ignore[no-any-return]
        heads = transformer.layers[0].attention.heads
        cache.reserve(x.new_zeros(len(x), heads, 0, x.shape[2] // heads))
        hidden = []
        for row, first in enumerate(self._padding.tolist()):
            own = slice(row, row + 1), slice(first, None)
            sight = transformer.sight(positions[own])
            hidden.append(transformer(x[own], sight, cache.row(row, first))[:, -1])
        cache.advance(x.shape[1])
        return torch.cat(hidden)

    def rewind(self) -> None:
        """Forget every position; only for a decoder that started without a prefix."""
        self._cache.length = 0

    def _seen(self, filled: int) -> Bool[Tensor, "B 1 1 K"]:
        """Return which of the first ``filled`` slots the next position may see."""
        position, capacity = self._cache.length, self._cache.capacity
        slots = torch.arange(filled, device=self._padding.device)
        # Each slot holds the newest column that belongs there: after a full turn of the ring, slot
        # 0 holds column ``capacity``, slot 1 still column 1. Negative columns are not filled yet.
        column = position - (position - slots) % capacity
        return ((column >= self._padding[:, None]) & (column >= 0))[:, None, None]

    def _torch_step(self, x: Tensor) -> Tensor:
        column, capacity = self._cache.length, self._cache.capacity
        positions = self._shift + column
        self._keys[:, column % capacity] = positions
        filled = min(column + 1, capacity)
        visible = self._seen(filled) if self._ragged else None
        sight = self._transformer.sight_of(positions[:, None], self._keys[:, :filled], visible)
        return self._transformer(x[:, None], sight, self._cache)[:, 0]  # type: ignore[no-any-return]

    def _native_step(self, int8: bool) -> Step:
        """Return steps by the C kernel."""
        cache, rotary, start = self._cache, self._transformer.rotary, self._cache.length
        keys = None if rotary is not None else self._keys
        call = NativeStep(self._transformer, cache, self._padding, keys, int8)
        tables: dict[int, list[Tensor]] = {}

        def step(x: Tensor) -> Tensor:
            if rotary is None:
                return call(x, None, None, self._shift + cache.length)
            block, row = divmod(cache.length - start, ANGLES)
            if block not in tables:  # the angles of many positions at once, [A, B, d]
                tables.clear()
                later = self._shift + start + torch.arange(ANGLES)[:, None] + block * ANGLES
                tables[block] = [angles.flatten(2).contiguous() for angles in rotary(later)]
            cosine, sine = tables[block]
            return call(x, cosine[row], sine[row], None)

        return step

    def _fixed_step(self, backend: str, like: Tensor) -> Step:
        """Return steps over all slots, filled or not, whose equal shapes can be captured."""
        cache, transformer = self._cache, self._transformer
        # Already the slot of the next position: capturing computes before the first step.
        slot = torch.tensor([cache.length % cache.capacity], device=like.device)
        cache.fixed_slot = slot
        embedded = like.new_zeros(like.shape[0], 1, like.shape[2])
        positions = (self._shift + cache.length)[:, None]
        visible = self._seen(cache.capacity)

        def compute() -> Tensor:
            rotary = None if transformer.rotary is None else transformer.rotary(positions)
            mask: Tensor = visible
            if transformer.relative is not None:
                bias = transformer.relative(positions, self._keys)
                mask = bias.masked_fill(~visible, -torch.inf)
            hidden = embedded
            for block in transformer.blocks:
                hidden = block(hidden, Sight(rotary, mask), cache)
            return transformer.norm(hidden)[:, 0]  # type: ignore[no-any-return]

        if backend == "graph":
            with torch.cuda.device(like.device):
                run = captured(compute)
        else:
            run = torch.compile(compute, dynamic=False)

        def step(x: Tensor) -> Tensor:
            # Inputs are written to the addresses that the captured steps read.
            slot.fill_(cache.length % cache.capacity)
            positions.copy_((self._shift + cache.length)[:, None])
            self._keys[:, cache.length % cache.capacity] = positions[:, 0]
            embedded.copy_(x[:, None])
            visible.copy_(self._seen(cache.capacity))
            hidden = run()
            cache.advance(1)
            return hidden.clone()

        return step


def captured(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return ``compute`` as a CUDA graph: one launch for all kernels, at fixed addresses."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up: libraries allocate their workspaces now
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def row_by_row(layer: nn.Module, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
    """Apply a layer; on a CPU to each row alone, as it sums in another order for other shapes."""
    if x.device.type != "cpu" or len(x) == 1:
        return layer(x)  # type: ignore[no-any-return]
    return torch.cat([layer(row) for row in x.split(1)])


class HeadProducts:
    """Logits of one output head per level, by the backend that also computes the steps.

    Args:
        owner: the module of ``weight``.
        weight: ``[Q, D, V]``.
        decoding: backend and number format.
    """

    def __init__(
        self, owner: nn.Module, weight: Float[Tensor, "Q D V"], decoding: Decoding
    ) -> None:
        int8 = decoding.weights == "int8"
        if chosen_backend(decoding, weight, "decoding") == "native":
            self._products = native_linear(owner, [level.t() for level in weight], int8)
            return
        levels = [quantize(w.t()).dense().t().to(w) for w in weight] if int8 else list(weight)
        self._products = [lambda x, w=w: x @ w for w in levels]  # type: ignore[misc]

    def __call__(self, hidden: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B V"]:
        return self._products[level](hidden)
