"""One decoding engine for transformers that go from left to right: a prefix in one pass, then one
position at a time.

Rows of unequal length are padded on the left, so that all of them end in the same column. Keys and
values lie in a preallocated cache, a ring where the model has a sliding window. Three backends
compute a step: PyTorch, a C kernel for CPUs and, at fixed shapes, CUDA graphs or ``torch.compile``.

Shape legend: B batch, N positions, D width, C slots of the cache, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from segue.core.eight_bits import quantize
from segue.core.errors import ConfigError
from segue.core.interfaces import Tokens
from segue.core.options import Decoding
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.native.library import KernelError, available, library
from segue.plugins.layers.native.step import NativeStep, native_linear
from segue.plugins.layers.quantize import contents, rounded
from segue.plugins.layers.transformer import Sight, Transformer

Step = Callable[[Tensor, Tensor], Tensor]


def pack(valid: Bool[Tensor, "B N"], left: bool) -> Int64[Tensor, "B N"]:
    """For every row, the order that moves padding to one side and keeps the rest in sequence.

    Args:
        valid: ``[B, N]``, False at padding, wherever it lies.
        left: padding goes to the left (for generation: all rows end in the same column), else to
            the right (for training: causal attention then needs no mask).
    """
    return (valid if left else ~valid).to(torch.uint8).argsort(dim=1, stable=True)


def take(x: Tensor, order: Int64[Tensor, "B N"]) -> Tensor:
    """``x`` ``[B, K, ...]`` at ``order`` ``[B, N]``, row by row."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, order]


def left_padded(
    tokens: Tokens, more: int
) -> tuple[Int64[Tensor, "B Q N"], Int64[Tensor, "B N+more"]]:
    """The codes of rows that all end in the same column, and the frame that each column holds.

    Args:
        more: columns after the last one of the codes. Frames are negative at padding, where codes
            mean nothing.
    """
    count = tokens.ids.shape[2]
    columns = torch.arange(count + more, device=tokens.ids.device)
    frame = columns - (count - tokens.lengths)[:, None]
    shifted = take(tokens.ids.transpose(1, 2), frame[:, :count].clamp_min(0)).transpose(1, 2)
    return shifted, frame


#: From this many rows on PyTorch's matrix products are faster than the kernel, which takes rows
#: one by one.
MANY_ROWS = 16
#: Slots of steps of fixed shapes come in multiples of this, so that one compilation serves many
#: lengths.
SLOTS = 256
#: Positions whose angles are computed together for the kernel.
ANGLES = 512


def chosen_backend(decoding: Decoding, like: Tensor, place: str, rows: int = 1) -> str:
    """``torch``, ``native``, ``graph`` or ``compile``: what computes steps on tensors like this.

    Args:
        place: of the options, for messages.
        rows: of the batch.

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
        return "native" if on_cpu and rows < MANY_ROWS and available() else "torch"
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


_ROUNDED: WeakKeyDictionary[Transformer, tuple[tuple[object, ...], Transformer]]
_ROUNDED = WeakKeyDictionary()


def _as_int8(transformer: Transformer) -> Transformer:
    """The transformer with weights rounded to eight bits, made again only when they changed."""
    state = contents(transformer.parameters())
    if transformer not in _ROUNDED or _ROUNDED[transformer][0] != state:
        _ROUNDED[transformer] = state, rounded(transformer)
    return _ROUNDED[transformer][1]


class Decoder:
    """A prefilled transformer that takes one position of every row per step.

    Args:
        transformer: in eval mode, causal.
        x: ``[B, N, D]`` embedded prefix; padding on the left. Without any position the first step
            is at position 0.
        positions: ``[B, N]``.
        valid: ``[B, N]``, False at padding.
        steps: further positions there is room for; each is 1 after the one before.
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
        count, window = x.shape[1], transformer.window
        backend = chosen_backend(decoding, x, "decoding", len(x))
        total = count + steps
        capacity = total if window is None else min(total, window)
        if backend in ("graph", "compile") and window is None:
            capacity = -(-total // SLOTS) * SLOTS
        self._transformer = transformer
        self._cache = KeyValueCache(len(transformer.blocks), capacity, ring=window is not None)
        self._first = (~valid).sum(dim=1)  # padding lies on the left
        self._ragged = bool(self._first.any())
        self._count = 0
        self._keys = self._slots(positions.float(), capacity)
        #: ``[B, D]``, hidden state of the last position.
        self.hidden: Tensor = x.new_zeros(x.shape[0], x.shape[2])
        if count:
            self._last = positions[:, -1].float()
            self.hidden = transformer(x, transformer.sight(positions, valid), self._cache)[:, -1]
        else:
            self._last = x.new_full((x.shape[0],), -1.0)
            heads = transformer.layers[0].attention.heads
            self._cache.reserve(x.new_zeros(x.shape[0], heads, 0, x.shape[2] // heads))
        self._step = self._make_step(backend, decoding, x)

    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Hidden state of one more position of every row."""
        self._count += 1
        self.hidden = self._step(x, self._last + self._count)
        return self.hidden

    def rewind(self) -> None:
        """Forget every position: only for a decoder that started without a prefix."""
        self._cache.length = self._count = 0

    def _slots(self, values: Float[Tensor, "B N"], capacity: int) -> Float[Tensor, "B C"]:
        """What belongs to the positions of the prefix, by the slot that each lies in."""
        count = values.shape[1]
        kept = torch.arange(max(0, count - capacity), count, device=values.device)
        slots = values.new_zeros(values.shape[0], capacity)
        slots[:, kept % capacity] = values[:, kept]
        return slots

    def _make_step(self, backend: str, decoding: Decoding, like: Tensor) -> Step:
        if backend == "native":
            return self._native(decoding.weights == "int8")
        if decoding.weights == "int8":
            self._transformer = _as_int8(self._transformer)
        return self._torch if backend == "torch" else self._fixed(backend, like)

    def _native(self, int8: bool) -> Step:
        keys = self._keys if self._transformer.relative is not None else None
        call = NativeStep(self._transformer, self._cache, self._first, keys, int8)
        rotary = self._transformer.rotary
        if rotary is None:
            return lambda x, positions: call(x, None, None, positions)
        tables: dict[int, list[Tensor]] = {}

        def step(x: Tensor, _: Tensor) -> Tensor:
            block, row = divmod(self._count - 1, ANGLES)
            if block not in tables:  # the angles of many positions at once, [A, B, d]
                tables.clear()
                later = self._last + 1 + torch.arange(ANGLES)[:, None] + block * ANGLES
                tables[block] = [angles.flatten(2).contiguous() for angles in rotary(later)]
            cosine, sine = tables[block]
            return call(x, cosine[row], sine[row], None)

        return step

    def _seen(self, filled: int) -> Bool[Tensor, "B 1 1 K"]:
        """Which of the first ``filled`` slots hold what the position being computed may see."""
        position, capacity = self._cache.length, self._cache.capacity
        slots = torch.arange(filled, device=self._first.device)
        # The position whose key a slot holds: the newest one that belongs there.
        held = position - (position - slots) % capacity
        return ((held >= self._first[:, None]) & (held >= 0))[:, None, None]

    def _torch(self, x: Tensor, positions: Tensor) -> Tensor:
        position, capacity = self._cache.length, self._cache.capacity
        self._keys[:, position % capacity] = positions
        filled = min(position + 1, capacity)
        visible = self._seen(filled) if self._ragged else None
        sight = self._transformer.sight_of(positions[:, None], self._keys[:, :filled], visible)
        return self._transformer(x[:, None], sight, self._cache)[:, 0]  # type: ignore[no-any-return]

    def _fixed(self, backend: str, like: Tensor) -> Step:
        """Steps over all slots, filled or not: each has the same shapes, so it can be captured."""
        cache, transformer = self._cache, self._transformer
        # Already that of the next position: capturing computes a few times before the first step.
        cache.fixed_slot = torch.tensor([cache.length % cache.capacity], device=like.device)
        x = like.new_zeros(like.shape[0], 1, like.shape[2])
        positions = self._last[:, None].clone()
        visible = self._seen(cache.capacity)

        def compute() -> Tensor:
            rotary = None if transformer.rotary is None else transformer.rotary(positions)
            mask: Tensor = visible
            if transformer.relative is not None:
                bias = transformer.relative(positions, self._keys)
                mask = bias.masked_fill(~visible, -torch.inf)
            hidden = x
            for block in transformer.blocks:
                hidden = block(hidden, Sight(rotary, mask), cache)
            return transformer.norm(hidden)[:, 0]  # type: ignore[no-any-return]

        if backend == "graph":
            with torch.cuda.device(like.device):
                run = captured(compute)
        else:
            run = torch.compile(compute, dynamic=False)

        def step(embedded: Tensor, at: Tensor) -> Tensor:
            slot = cache.length % cache.capacity
            assert cache.fixed_slot is not None
            cache.fixed_slot.fill_(slot)
            self._keys[:, slot] = at
            x.copy_(embedded[:, None])
            positions.copy_(at[:, None])
            visible.copy_(self._seen(cache.capacity))
            hidden = run()
            cache.advance(1)
            return hidden.clone()

        return step


def captured(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``compute`` as a CUDA graph: its kernels are launched together, from the same addresses."""
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


class HeadProducts:
    """Logits of one output head per level, by the backend that also computes the steps.

    Args:
        owner: the module that ``weight`` belongs to.
        weight: ``[Q, D, V]``.
        decoding: backend and number format.
        rows: of the batch.
    """

    def __init__(
        self, owner: nn.Module, weight: Float[Tensor, "Q D V"], decoding: Decoding, rows: int
    ) -> None:
        int8 = decoding.weights == "int8"
        if chosen_backend(decoding, weight, "decoding", rows) == "native":
            self._products = native_linear(owner, [level.t() for level in weight], int8)
            return
        levels = [quantize(w.t()).dense().t().to(w) for w in weight] if int8 else list(weight)
        self._products = [lambda x, w=w: x @ w for w in levels]  # type: ignore[misc]

    def __call__(self, hidden: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B V"]:
        return self._products[level](hidden)
