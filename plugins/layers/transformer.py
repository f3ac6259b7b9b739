"""A pre-norm transformer: causal for stage models that go from left to right, or bidirectional.

Sources: pre-norm (Xiong et al., arXiv 2002.04745), SwiGLU (Shazeer, arXiv 2002.05202), residual
projections scaled by depth (GPT-2).
Shape legend: B batch, N positions, K keys, D width, H heads, d channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.config import TransformerOptions
from segue.plugins.layers.positions import (
    Positions,
    RelativeBias,
    Rotary,
    RotaryPositions,
    rotate,
)

Hidden = Float[Tensor, "B N D"]
Visible = Bool[Tensor, "B 1 N K"]

INIT_STD = 0.02
#: Longest sequence that attention by plain products is faster for, see ``attend``.
SHORT = 512


@dataclass(frozen=True)
class Sight:
    """Positions and visibility, the same for the attention of every layer."""

    rotary: Rotary | None = None  # angles of the new positions, if positions are rotary
    # ``[B, H, N, K]``, True where a query sees a key, or a number to add to the attention score;
    # None hides nothing except by ``causal``.
    mask: Tensor | None = None
    # Whether a query sees keys up to its own only; query 0 is aligned with key 0.
    causal: bool = False
    # ``[B, N, 1]``, False at padding, for layers that convolve; None without padding.
    valid: Bool[Tensor, "B N 1"] | None = None


class Attention(nn.Module):
    """Self-attention with fused query, key and value projections."""

    def __init__(self, options: TransformerOptions, layer: int) -> None:
        super().__init__()
        self.heads = options.heads
        self.layer = layer
        self.qkv = nn.Linear(options.width, 3 * options.width, bias=False)
        self.out = nn.Linear(options.width, options.width, bias=False)

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        return self.out(self.mix(self.qkv(x), sight, cache))

    def mix(self, qkv: Tensor, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        """Return what attention mixes for ``out``, given the products of ``qkv``."""
        batch, count = qkv.shape[:2]
        qkv = qkv.view(batch, count, 3, self.heads, -1)
        turned = qkv[:, :, :2] if sight.rotary is None else rotate(qkv[:, :, :2], sight.rotary)
        queries, keys = turned.permute(2, 0, 3, 1, 4).unbind(0)
        values = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            # Keys are stored turned by their own position: no later step changes them.
            keys, values = cache.extend(self.layer, keys, values)
        mask = sight.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(queries.dtype)  # autocast may have changed the dtype of queries
        mixed = attend(queries, keys, values, mask, sight.causal)
        return mixed.transpose(1, 2).flatten(2)


def attend(
    queries: Float[Tensor, "B H N d"],
    keys: Float[Tensor, "B H K d"],
    values: Float[Tensor, "B H K d"],
    mask: Tensor | None,
    causal: bool,
) -> Float[Tensor, "B H N d"]:
    """Return softmax attention; ``mask`` and ``causal`` are those of ``Sight``."""
    halves = queries.dtype == torch.bfloat16 and queries.device.type == "cpu"
    if not (halves and causal and keys.shape[2] <= SHORT and torch.is_grad_enabled()):
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal
        )
    # To train on a CPU: its fused attention takes twice as long, most of it in the backward pass.
    count, channels = queries.shape[2:]
    hidden = queries.new_full((count, count), -torch.inf).triu(1)
    rows, columns, kept = (x.flatten(0, 1) for x in (queries, keys, values))
    scores = torch.baddbmm(hidden, rows, columns.transpose(1, 2), alpha=channels**-0.5)
    return (scores.softmax(dim=-1).to(kept.dtype) @ kept).view_as(queries)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        return self.out(self.gated(self.rise(x)))

    @staticmethod
    def gated(risen: Tensor) -> Tensor:
        """Return the input of ``out``, given the products of ``rise``."""
        gate, value = risen.chunk(2, dim=-1)
        return functional.silu(gate) * value


def dropped(change: Hidden, dropout: float) -> Hidden:
    """Apply dropout to the output of a sublayer; a probability of 0 changes nothing."""
    return functional.dropout(change, dropout) if dropout else change


class Block(nn.Module):
    """One layer: attention, then feed-forward; each normalises its input and adds its output."""

    def __init__(self, options: TransformerOptions, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(options.width, bias=False)
        self.attention = Attention(options, layer)
        self.feed_forward_norm = nn.LayerNorm(options.width, bias=False)
        self.feed_forward = FeedForward(options.width, options.feed_forward_width)
        self.dropout = options.dropout

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        dropout = self.dropout if self.training else 0.0
        x = x + dropped(self.attention(self.attention_norm(x), sight, cache), dropout)
        return x + dropped(self.feed_forward(self.feed_forward_norm(x)), dropout)


class Transformer(nn.Module):
    """Layers of attention. Positions are passed explicitly and may be fractions.

    Args:
        causal: whether a position sees only itself and earlier ones.
        window: number of positions that one position sees, itself included; None sees all.
        block: makes one layer from the options and the layer's number.
    """

    def __init__(
        self,
        options: TransformerOptions,
        *,
        causal: bool = True,
        window: int | None = None,
        block: Callable[[TransformerOptions, int], nn.Module] = Block,
    ) -> None:
        super().__init__()
        self.causal, self.window = causal, window
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(block(options, layer) for layer in range(options.depth))
        self.norm = nn.LayerNorm(options.width, bias=False)
        self.rotary: RotaryPositions | None = None
        self.relative: RelativeBias | None = None
        if options.position_encoding == "rotary":
            self.rotary = RotaryPositions(options.width // options.heads)
        else:
            buckets, reach = options.relative_buckets, options.relative_reach
            self.relative = RelativeBias(options.heads, buckets, reach)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                # Each of the 2 x depth sublayers adds to the residual stream: scaled down, their
                # sum starts at the size of one.
                shrink = (2 * options.depth) ** 0.5 if name.endswith("out.weight") else 1
                nn.init.normal_(parameter, std=INIT_STD / shrink)

    @property
    def layers(self) -> list[Block]:
        """``blocks`` with their type."""
        return list(self.blocks)  # type: ignore[arg-type]

    def sight(self, positions: Positions, valid: Bool[Tensor, "B N"] | None = None) -> Sight:
        """Return what whole sequences ``[B, N]`` see of themselves.

        Args:
            valid: ``[B, N]``, False at padding, which is then hidden. Padding at the end of a
                causal sequence needs no mask: no valid position looks ahead.
        """
        count, device = positions.shape[1], positions.device
        visible: Visible | None = None
        if valid is not None and not bool(valid.all()):
            # A padded position sees itself: a softmax over nothing would be NaN.
            itself = torch.eye(count, dtype=torch.bool, device=device)
            visible = ((self._triangle(count, device) & valid[:, None, :]) | itself)[:, None]
        elif self.window is not None and self.window < count:
            visible = self._triangle(count, device)[None, None]
        return self.sight_of(positions, positions, visible)

    def sight_of(
        self, queries: Positions, keys: Float[Tensor, "B K"], visible: Visible | None
    ) -> Sight:
        """Return what queries see of keys, the last query being aligned with the last key.

        Args:
            queries: positions ``[B, N]``.
            keys: positions ``[B, K]``.
            visible: ``[B, 1, N, K]``; None shows all keys to a single query or a bidirectional
                model, and otherwise those up to each query.
        """
        rotary = None if self.rotary is None else self.rotary(queries)
        count, known = queries.shape[1], keys.shape[1]
        # A single query is the newest position: all that the cache holds lies before it.
        causal = self.causal and count > 1 and visible is None
        if causal and known > count:  # ``is_causal`` would align the first query and key
            visible, causal = self._triangle(known, queries.device)[None, None, -count:], False
        if self.relative is None:
            return Sight(rotary, visible, causal)
        # Rows at the same positions share one bias, which saves memory.
        same = bool((queries == queries[:1]).all()) and bool((keys == keys[:1]).all())
        mask = self.relative(queries[:1], keys[:1]) if same else self.relative(queries, keys)
        if causal:
            visible = self._triangle(count, queries.device)
        if visible is not None:
            mask = mask.masked_fill(~visible, -torch.inf)
        return Sight(rotary, mask)

    def _triangle(self, count: int, device: torch.device) -> Bool[Tensor, "N N"]:
        """Return which keys each query of one sequence sees, by causality and window."""
        square = torch.ones(count, count, dtype=torch.bool, device=device)
        if self.causal:
            # Row i holds what query i sees: keys 0 to i.
            square = square.tril()
        return square if self.window is None else square.triu(1 - self.window)

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None = None) -> Hidden:
        """Return hidden states of embedded inputs ``[B, N, D]``; keys, values go to ``cache``."""
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, sight, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the layers of every transformer in a module."""
    return [
        block for part in module.modules() if isinstance(part, Transformer) for block in part.blocks
    ]
