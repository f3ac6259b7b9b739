"""Decode with a transformer that goes from left to right: a prefix in one pass, then one position
at a time.

Rows of unequal length are padded on the left, so that all of them end in the same column. Keys and
values lie in a preallocated cache, a ring where the model has a sliding window. Three backends
compute a step: PyTorch, a C kernel for CPUs and, at fixed shapes, CUDA graphs or ``torch.compile``.

Shape legend: B batch, N positions, D width, C slots of the cache, V codebook size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segue.core.errors import ConfigError
from segue.core.options import Decoding
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.native.library import KernelError, available, library
from segue.plugins.layers.native.step import (
    NativeStep,
    Packed,
    native_prefix,
    packed,
    transformer_weights,
)
from segue.plugins.layers.positions import RotaryPositions
from segue.plugins.layers.quantize import eight_bits, made_from, rounded
from segue.plugins.layers.transformer import Sight, Transformer

Step = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B D"]]

#: Slots of steps of fixed shapes come in multiples of this, so that one compilation serves many
#: lengths.
SLOTS = 256
#: Positions whose angles are computed together for the kernel.
ANGLES = 512
#: Shapes that steps are kept for, of each transformer.
KEPT_SHAPES = 4


def chosen_backend(decoding: Decoding, like: Tensor, place: str) -> str:
    """Return the backend for tensors like this: ``torch``, ``native``, ``graph`` or ``compile``.

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
        native: takes the steps in C; None for another backend.
        angles: of the native steps' positions; None without rotary positions.

    Args:
        transformer: in eval mode, causal.
        x: ``[B, N, D]`` embedded prefix, padded on the left. If N is 0, the first step is at
            position 0.
        valid: ``[B, N]``, False at padding.
        steps: number of further positions to make room for; each is 1 after the one before.
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
        int8 = decoding.weights == "int8"
        stepwise = transformer
        if int8 and backend != "native":
            weights = list(transformer.parameters())
            stepwise = made_from(transformer, weights, "rounded", lambda: rounded(transformer))
        ring, fixed = window is not None, None
        matrices = transformer_weights(transformer, int8) if backend == "native" else None
        halves = matrices is not None and matrices.coded
        self._cache = KeyValueCache(len(transformer.blocks), capacity, ring, halves)
        prefix: Callable[..., Tensor] = transformer
        if matrices is not None and matrices.coded and matrices.exact:
            prefix = partial(native_prefix, transformer, matrices)
        if backend in ("graph", "compile"):
            like = x.new_zeros(batch, width)
            fixed = kept_step(self, stepwise, backend, like, capacity, ring)
            self._cache.layers = fixed.cache.layers
        self._padding = (~valid).sum(dim=1)  # the first columns of each row
        self._ragged = bool(self._padding.any())
        # The position of the key in each slot, which a relative bias needs: as in the ring itself,
        # column c is in slot c % capacity.
        self._keys = x.new_zeros(batch, capacity, dtype=torch.float32)
        kept = torch.arange(max(0, count - capacity), count, device=x.device)
        self._keys[:, kept % capacity] = positions[:, kept].float()
        self.hidden: Tensor = x.new_zeros(batch, width)
        known = torch.arange(batch)
        last = x.new_full((batch,), -1.0, dtype=torch.float32)
        together = x.device.type != "cpu" or batch == 1
        if count and together:
            sight = transformer.sight(positions, valid)
            self.hidden = prefix(x, sight, self._cache)[:, -1]
        elif self._cache.layers[0] is None:  # no kept step brought its slots
            heads = transformer.layers[0].attention.heads
            self._cache.reserve(x.new_zeros(batch, heads, 0, width // heads))
        if count and not together:
            # A CPU gains nothing from taking the rows together, and sums in another order for other
            # shapes: one by one, each equals bit by bit what it is alone, without a mask.
            hidden, before = list[Tensor](), -1
            sharing = matrices is not None and count + steps <= capacity
            for row, first in enumerate(self._padding.tolist()):
                own = slice(row, row + 1), slice(first, None)
                if first == before and torch.equal(x[row], x[row - 1]):  # candidates of one prompt
                    if sharing:
                        known[row] = known[row - 1]
                    else:
                        self._cache.repeat(row, min(count, capacity))
                    hidden.append(hidden[-1])
                    continue
                before = first
                sight = transformer.sight(positions[own])
                hidden.append(prefix(x[own], sight, self._cache.row(row, first))[:, -1])
            self._cache.advance(count)
            self.hidden = torch.cat(hidden)
        if count:
            last = positions[:, -1].float()
        # Column c is at position c + shift.
        self._shift = last + 1 - count
        self._transformer = stepwise
        #: Computes steps; None for PyTorch. It must not hold the decoder: in a cycle, the cache
        #: would stay in memory until Python looks for cycles, which large tensors do not hasten.
        self._call: Step | None = None
        self.native: NativeStep | None = None
        self.angles: Angles | None = None
        if matrices is not None:
            rotary = transformer.rotary
            keys = self._keys if rotary is None else None
            self.native = NativeStep(transformer, matrices, self._cache, self._padding, known, keys)
            self.angles = None if rotary is None else Angles(rotary, self._shift)
            self._call = native_steps(self.native, self.angles, self._shift)
        elif fixed is not None:
            fixed.begin(self._padding, self._shift, self._keys)
            self._call = fixed_step(fixed, stepwise, self._cache)

    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the hidden state of one embedded position of every row."""
        if self._call is not None:
            return self._call(x)
        column, capacity = self._cache.length, self._cache.capacity
        positions = self._shift + column
        self._keys[:, column % capacity] = positions
        filled = min(column + 1, capacity)
        visible = None
        if self._ragged:
            slots = torch.arange(filled, device=x.device)
            visible = seen(self._padding, column, slots, capacity)
        sight = self._transformer.sight_of(positions[:, None], self._keys[:, :filled], visible)
        return self._transformer(x[:, None], sight, self._cache)[:, 0]

    def rewind(self) -> None:
        """Forget every position; only for a decoder that started without a prefix."""
        self._cache.length = 0


class Angles:
    """The angles of the positions of further columns, many columns at a time.

    Args:
        shift: ``[B]``; column c of a row is at position c + shift.
    """

    def __init__(self, rotary: RotaryPositions, shift: Float[Tensor, " B"]) -> None:
        self._rotary, self._shift = rotary, shift
        self._first, self._tables = 0, (shift[:0, None], shift[:0, None])

    def __call__(
        self, column: int, count: int = 1
    ) -> tuple[Float[Tensor, "count B d"], Float[Tensor, "count B d"]]:
        """Return cosine and sine of ``count`` columns from ``column`` on."""
        at = column - self._first
        if not 0 <= at <= len(self._tables[0]) - count:
            self._first, at = column, 0
            columns = column + torch.arange(max(count, ANGLES))[:, None]
            cosine, sine = self._rotary(self._shift + columns)
            self._tables = cosine.flatten(2).contiguous(), sine.flatten(2).contiguous()
        cosine, sine = self._tables
        return cosine[at : at + count], sine[at : at + count]


def native_steps(call: NativeStep, angles: Angles | None, shift: Float[Tensor, " B"]) -> Step:
    """Return the steps of one decoder by the C kernel; they do not keep the decoder itself."""
    cache = call.cache

    def step(x: Tensor) -> Tensor:
        if angles is None:
            return call(x, None, None, shift + cache.length)
        return call(x, *angles(cache.length), None)

    return step


def fixed_step(fixed: FixedStep, transformer: Transformer, cache: KeyValueCache) -> Step:
    """Return the steps of one decoder; they do not keep the decoder itself."""

    def step(x: Tensor) -> Tensor:
        hidden = fixed(transformer, x, cache.length)
        cache.advance(1)
        return hidden

    return step


class FixedStep:
    """A step over all slots of a cache, filled or not: its shapes and addresses stay the same.

    So it can be captured or compiled once and used by one decoder after the other.

    Args:
        transformer: its weights' addresses are captured; it is not kept.
        like: ``[B, D]``, for its shape, type and device.
    """

    def __init__(
        self, transformer: Transformer, backend: str, like: Tensor, capacity: int, ring: bool
    ) -> None:
        batch, width = like.shape
        heads, device = transformer.layers[0].attention.heads, like.device
        self.cache = KeyValueCache(len(transformer.blocks), capacity, ring)
        self.cache.reserve(like.new_zeros(batch, heads, 0, width // heads))
        self.cache.fixed_slot = torch.zeros(1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._slots = torch.arange(capacity, device=device)
        self._embedded = like.new_zeros(batch, 1, width)
        self._padding = torch.zeros(batch, dtype=torch.long, device=device)
        self._shift = torch.zeros(batch, device=device)
        self._keys = torch.zeros(batch, capacity, device=device)
        self._graphed = backend == "graph"
        self._run: Callable[[], Tensor] | None = None

    def begin(self, padding: Tensor, shift: Tensor, keys: Tensor) -> None:
        """Take over what a decoder's prefix left beside its keys and values."""
        self._padding.copy_(padding)
        self._shift.copy_(shift)
        self._keys.copy_(keys)

    def __call__(self, transformer: Transformer, x: Float[Tensor, "B D"], column: int) -> Tensor:
        # Inputs are written to the addresses that the captured step reads.
        assert self.cache.fixed_slot is not None
        self._column.fill_(column)
        self.cache.fixed_slot.fill_(column % self.cache.capacity)
        self._embedded.copy_(x[:, None])
        if self._run is None:  # computing before the first step changes its own slot only
            self._run = self._captured(transformer)
        return self._run().clone()

    def _captured(self, transformer: Transformer) -> Callable[[], Tensor]:
        if self._graphed:
            with torch.cuda.device(self._embedded.device):
                return captured(lambda: self._compute(transformer))
        compiled, known = torch.compile(self._compute, dynamic=False), weakref.ref(transformer)
        return lambda: compiled(known())  # type: ignore[arg-type]  # the caller holds it

    def _compute(self, transformer: Transformer) -> Tensor:
        column, slot = self._column, self.cache.fixed_slot
        assert slot is not None
        positions = (self._shift + column)[:, None]
        self._keys.index_copy_(1, slot, positions)
        visible = seen(self._padding, column, self._slots, self.cache.capacity)
        rotary = None if transformer.rotary is None else transformer.rotary(positions)
        mask: Tensor = visible
        if transformer.relative is not None:
            mask = transformer.relative(positions, self._keys).masked_fill(~visible, -torch.inf)
        hidden = self._embedded
        for block in transformer.blocks:
            hidden = block(hidden, Sight(rotary, mask), self.cache)
        return transformer.norm(hidden)[:, 0]


#: Steps that no decoder uses at present, by transformer and shape.
_FREE: WeakKeyDictionary[Transformer, dict[object, list[FixedStep]]] = WeakKeyDictionary()


def kept_step(
    user: object, transformer: Transformer, backend: str, like: Tensor, capacity: int, ring: bool
) -> FixedStep:
    """Return a step that is free, or a new one; it is free again when ``user`` is gone."""
    weights = tuple(weight.data_ptr() for weight in transformer.parameters())
    key = backend, like.shape, like.dtype, capacity, ring, weights
    free = _FREE.setdefault(transformer, {})
    steps = free.setdefault(key, [])
    while len(free) > KEPT_SHAPES:
        del free[next(iter(free))]
    step = steps.pop() if steps else FixedStep(transformer, backend, like, capacity, ring)
    weakref.finalize(user, steps.append, step).atexit = False
    return step


def seen(
    padding: Tensor, position: int | Tensor, slots: Tensor, capacity: int
) -> Bool[Tensor, "B 1 1 K"]:
    """Return which slots the next position may see."""
    # Each slot holds the newest column that belongs there: after a full turn of the ring, slot 0
    # holds column ``capacity``, slot 1 still column 1. Negative columns are not filled yet.
    column = position - (position - slots) % capacity
    return ((column >= padding[:, None]) & (column >= 0))[:, None, None]


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
        return layer(x)
    return torch.cat([layer(row) for row in x.split(1)])


class HeadProducts:
    """Logits of output heads ``[Q, D, V]``, one per level, by the backend of the steps."""

    def __init__(
        self, owner: nn.Module, weight: Float[Tensor, "Q D V"], decoding: Decoding
    ) -> None:
        int8 = decoding.weights == "int8"
        #: The heads as the kernel reads them; None for PyTorch.
        self.packed: Packed | None = None
        if chosen_backend(decoding, weight, "decoding") == "native":
            self.packed = packed(owner, [level.t() for level in weight], int8)
        else:
            self._weights = [_rounded_head(w) for w in weight] if int8 else list(weight)

    def __call__(self, hidden: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B V"]:
        return self.levels(hidden, level, level + 1)[:, 0]

    def levels(self, hidden: Float[Tensor, "B D"], start: int, stop: int) -> Float[Tensor, "B q V"]:
        """Return the logits of levels ``start`` to ``stop``."""
        if self.packed is not None:
            return self.packed.products(hidden, start, stop)
        return torch.stack([hidden @ weight for weight in self._weights[start:stop]], dim=1)


def _rounded_head(weight: Float[Tensor, "D V"]) -> Float[Tensor, "D V"]:
    found = eight_bits(weight.t(), lossy=True)
    assert found is not None
    matrix, of_columns = found
    return (matrix.dense() if of_columns else matrix.dense().t()).to(weight)
