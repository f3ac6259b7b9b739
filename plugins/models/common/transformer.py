"""A pre-norm decoder-only transformer with rotary positions.

Sources: pre-norm (Xiong et al., arXiv 2002.04745), rotary positions (Su et al., arXiv 2104.09864),
SwiGLU (Shazeer, arXiv 2002.05202), residual projections scaled by depth (GPT-2).
Shape legend: B batch, N positions, D width, H heads, d channels per head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.models.common.cache import KeyValueCache
from segue.plugins.models.common.config import TransformerOptions

Hidden = Float[Tensor, "B N D"]
Mask = Bool[Tensor, "B 1 N K"]
Rotary = tuple[Float[Tensor, "B N 1 1 d"], Float[Tensor, "B N 1 1 d"]]

INIT_STD = 0.02


def rotate(x: Float[Tensor, "B N 2 H d"], rotary: Rotary) -> Float[Tensor, "B N 2 H d"]:
    """Turn channel pairs ``(i, i + d/2)`` by their position's angle."""
    cosine, sine = rotary
    # Rolling by half swaps the halves; the minus sign of the rotation is in ``sine``.
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with fused query, key and value projections."""

    def __init__(self, options: TransformerOptions, layer: int) -> None:
        super().__init__()
        self.heads = options.heads
        self.layer = layer
        self.qkv = nn.Linear(options.width, 3 * options.width, bias=False)
        self.out = nn.Linear(options.width, options.width, bias=False)

    def forward(
        self, x: Hidden, rotary: Rotary, mask: Mask | None, cache: KeyValueCache | None
    ) -> Hidden:
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        turned = rotate(qkv[:, :, :2], rotary)
        queries, keys = turned.permute(2, 0, 3, 1, 4).unbind(0)
        values = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        return self.out(self._attend(queries, keys, values, mask))  # type: ignore[no-any-return]

    @staticmethod
    def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None) -> Hidden:
        """``[B, H, N, d]`` queries over ``[B, H, K, d]`` keys, the last N of which are their own.

        ``is_causal`` aligns query 0 with key 0, so it is right only where N equals K.
        """
        count, known = queries.shape[2], keys.shape[2]
        causal = mask is None and count == known
        if mask is None and 1 < count < known:
            mask = torch.ones(count, known, dtype=torch.bool, device=keys.device)
            mask = mask.tril(known - count)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal and count > 1
        )
        return mixed.transpose(1, 2).reshape(mixed.shape[0], count, -1)


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

    def forward(
        self, x: Hidden, rotary: Rotary, mask: Mask | None, cache: KeyValueCache | None
    ) -> Hidden:
        x = x + self._drop(self.attention(self.attention_norm(x), rotary, mask, cache))
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _drop(self, x: Hidden) -> Hidden:
        return functional.dropout(x, self.dropout) if self.training and self.dropout else x


class Transformer(nn.Module):
    """Layers of causal attention; positions are given explicitly and may be fractions."""

    inverse_wavelengths: Tensor

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(Block(options, layer) for layer in range(options.depth))
        self.norm = nn.LayerNorm(options.width, bias=False)
        size = options.width // options.heads
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        # Derived from the options, so it is no part of the state dict.
        self.register_buffer("inverse_wavelengths", 10000.0**-exponents, persistent=False)
        self._initialise(options.depth)

    def _initialise(self, depth: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith("out.weight")
                std = INIT_STD / (2 * depth) ** 0.5 if residual else INIT_STD
                nn.init.normal_(parameter, std=std)

    def rotary(self, positions: Float[Tensor, "B N"]) -> Rotary:
        """Cosine and signed sine ``[B, N, 1, 1, d]`` of every position's angles."""
        angles = positions[:, :, None].float() * self.inverse_wavelengths.float()
        cosine, sine = angles.cos(), angles.sin()
        full = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        return full[0][:, :, None, None], full[1][:, :, None, None]

    def forward(
        self,
        x: Hidden,
        rotary: Rotary,
        mask: Mask | None = None,
        cache: KeyValueCache | None = None,
    ) -> Hidden:
        """Hidden states ``[B, N, D]`` of the N last positions.

        Args:
            x: ``[B, N, D]`` embedded inputs.
            rotary: ``self.rotary`` of their positions.
            mask: ``[B, 1, N, K]``, True where a query may look at a key; None where every key up
                to the query is valid, which takes the fast path. Padding at the end of a row
                needs no mask: no valid position looks ahead.
            cache: what came before; the new positions are added to it.
        """
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)  # type: ignore[no-any-return]
