"""A bidirectional conformer on the attention and feed-forward of the common transformer.

Gulati et al., arXiv 2005.08100, section 2: half a feed-forward, attention, a convolution, half a
feed-forward. Shape legend: B batch, N frames, D width.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.config import TransformerOptions
from segue.plugins.layers.positions import Positions
from segue.plugins.layers.transformer import (
    Attention,
    FeedForward,
    Hidden,
    Sight,
    Transformer,
    dropped,
)


class ConvolutionModule(nn.Module):
    """Gate, depthwise convolution over time, activation (section 2.2 of the paper).

    Layer normalisation replaces batch normalisation, because a row must not depend on the rows and
    the padding beside it.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Hidden, sight: Sight) -> Hidden:
        gated = functional.glu(self.rise(x), dim=-1)
        if sight.valid is not None:
            gated = gated * sight.valid
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.out(functional.silu(self.norm(mixed)))


class ConformerBlock(nn.Module):
    """One layer, whose two feed-forwards together hold the weights of a transformer layer's one.

    The paper ends each block with a norm. Here the residual stream stays as it is, and one norm
    ends the whole stack.
    """

    def __init__(self, options: TransformerOptions, kernel: int, layer: int) -> None:
        super().__init__()
        width, hidden = options.width, max(1, options.feed_forward_width // 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(4))
        self.first = FeedForward(width, hidden)
        self.attention = Attention(options, layer)
        self.convolution = ConvolutionModule(width, kernel)
        self.second = FeedForward(width, hidden)
        self.dropout = options.dropout

    def forward(self, x: Hidden, sight: Sight, cache: KeyValueCache | None) -> Hidden:
        dropout = self.dropout if self.training else 0.0
        before_first, before_attention, before_convolution, before_second = self.norms
        x = x + 0.5 * dropped(self.first(before_first(x)), dropout)
        x = x + dropped(self.attention(before_attention(x), sight, cache), dropout)
        x = x + dropped(self.convolution(before_convolution(x), sight), dropout)
        return x + 0.5 * dropped(self.second(before_second(x)), dropout)


class Conformer(Transformer):
    """Conformer layers in place of transformer layers.

    Args:
        kernel: number of frames that each convolution spans; odd.
    """

    def __init__(self, options: TransformerOptions, kernel: int) -> None:
        super().__init__(
            options, causal=False, block=lambda own, layer: ConformerBlock(own, kernel, layer)
        )

    def sight(self, positions: Positions, valid: Bool[Tensor, "B N"] | None = None) -> Sight:
        sight = super().sight(positions, valid)
        if valid is None or bool(valid.all()):
            return sight
        return replace(sight, valid=valid[:, :, None])
