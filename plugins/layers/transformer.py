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


@dataclass(frozen=True)
class Sight:
    """What attention needs to know beside the hidden states; the same for every layer.

    Attributes:
        rotary: angles of the new positions, if positions are rotary.
        mask: ``[B, H, N, K]``, True where a query sees a key, or a number that is added to the
            attention score; None where nothing is hidden but by ``causal``.
        causal: whether a query sees keys up to its own only, query 0 being aligned with key 0.
    """

    rotary: Rotary | None = None
    mask: Tensor | None = None
    causal: bool = False


class Attention(nn.Module):
    """Self-attention with fused query, key and value projections."""

    def __init__(self, options: TransformerOptions, layer: int) -> None:
        super().__init__()
        self.heads = options.heads
        self.layer = layer
        self.qkv = nn.Linear(options.width, 3 * options.width, bias=False)
        self.out = nn.Linear(options.width, options.width, bias=False)

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        turned = qkv[:, :, :2] if sight.rotary is None else rotate(qkv[:, :, :2], sight.rotary)
        queries, keys = turned.permute(2, 0, 3, 1, 4).unbind(0)
        values = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mask = sight.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(queries.dtype)  # autocast may have made another one of it
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=sight.causal
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        gate, value = self.rise(x).chunk(2, dim=-1)
        return self.out(functional.silu(gate) * value)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    def __init__(self, options: TransformerOptions, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(options.width, bias=False)
        self.attention = Attention(options, layer)
        self.feed_forward_norm = nn.LayerNorm(options.width, bias=False)
        self.feed_forward = FeedForward(options.width, options.feed_forward_width)
        self.dropout = options.dropout

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        x = x + self._drop(self.attention(self.attention_norm(x), sight, cache))
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _drop(self, x: Hidden) -> Hidden:
        return functional.dropout(x, self.dropout) if self.training and self.dropout else x


class Transformer(nn.Module):
    """Layers of attention; positions are given explicitly and may be fractions.

    Args:
        options: the size, and how positions are told.
        causal: whether a position sees only itself and what comes before it.
        window: positions that one position sees, itself included; None is all of them.
        block: makes one layer, called with the options and the layer's number.
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
        self._initialise(options.depth)

    def _initialise(self, depth: int) -> None:
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith("out.weight")
                std = INIT_STD / (2 * depth) ** 0.5 if residual else INIT_STD
                nn.init.normal_(parameter, std=std)

    @property
    def layers(self) -> list[Block]:
        """``blocks`` as what they are."""
        return list(self.blocks)  # type: ignore[arg-type]

    def sight(self, positions: Positions, valid: Bool[Tensor, "B N"] | None = None) -> Sight:
        """Whole sequences that see themselves.

        Args:
            positions: ``[B, N]``.
            valid: ``[B, N]``, False at padding, which nobody else then sees. Padding at the end of
                a causal sequence needs no telling: no valid position looks ahead.
        """
        visible = self._visible(positions.shape[1], valid, positions.device)
        return self.sight_of(positions, positions, visible)

    def sight_of(
        self, queries: Positions, keys: Float[Tensor, "B K"], visible: Visible | None
    ) -> Sight:
        """Queries that see ``visible`` keys.

        None stands for all of them where there is one query or the model looks both ways, else for
        those up to each query, the last query being aligned with the last key.
        """
        rotary = None if self.rotary is None else self.rotary(queries)
        count, known = queries.shape[1], keys.shape[1]
        causal = self.causal and count > 1 and visible is None
        if causal and known > count:  # ``is_causal`` would align the first ones
            visible, causal = self._triangle(known, queries.device)[None, None, -count:], False
        if self.relative is None:
            return Sight(rotary, visible, causal)
        same = bool((queries == queries[:1]).all()) and bool((keys == keys[:1]).all())
        mask = self.relative(queries[:1], keys[:1]) if same else self.relative(queries, keys)
        if causal:
            visible = self._triangle(count, queries.device)
        if visible is not None:
            mask = mask.masked_fill(~visible, -torch.inf)
        return Sight(rotary, mask)

    def _triangle(self, count: int, device: torch.device) -> Bool[Tensor, "N N"]:
        """Which keys each query of one sequence sees, by causality and window."""
        square = torch.ones(count, count, dtype=torch.bool, device=device)
        if self.causal:
            square = square.tril()
        return square if self.window is None else square.triu(1 - self.window)

    def _visible(
        self, count: int, valid: Bool[Tensor, "B N"] | None, device: torch.device
    ) -> Visible | None:
        narrow = self.window is not None and self.window < count
        if valid is None or bool(valid.all()):
            return self._triangle(count, device)[None, None] if narrow else None
        # A padded position sees itself, as a softmax over nothing is not a number.
        itself = torch.eye(count, dtype=torch.bool, device=device)
        return ((self._triangle(count, device) & valid[:, None, :]) | itself)[:, None]

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None = None) -> Hidden:
        """Hidden states ``[B, N, D]`` of the N last positions.

        Args:
            x: ``[B, N, D]`` embedded inputs.
            sight: what they may look at.
            cache: what came before; the new positions are added to it.
        """
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, sight, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)  # type: ignore[no-any-return]


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of every transformer in a module."""
    return [
        block for part in module.modules() if isinstance(part, Transformer) for block in part.blocks
    ]
