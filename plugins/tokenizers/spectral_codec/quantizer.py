"""Residual vector quantization whose every code stays in use.

Written here because a crop batch holds fewer frames (about 800) than a level has codes (1024): the
libraries' dead-code revival counts uses per batch and would then replace nearly every code at
every step, or, switched off, leave most of them dead. Here a code's use is its running share
relative to an equal share, whatever the batch size.

Residual quantization: Zeghidour et al., SoundStream, arXiv 2107.03312; running-mean codebooks: van
den Oord et al., arXiv 1711.00937, appendix A.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """A quantized batch.

    Attributes:
        latents: ``[B, N, D]`` sums of codes; gradients pass straight to the input.
        ids: ``[B, Q, N]``.
        commitment: mean squared distance of the input to its codes, averaged over levels.
    """

    latents: Float[Tensor, "B N D"]
    ids: Int64[Tensor, "B Q N"]
    commitment: Float[Tensor, ""]


class Codebook(nn.Module):
    """One level: codes are running means of the vectors they were chosen for.

    Args:
        size: number of codes V.
        dim: channels D.
        decay: of the running means.
        revive_below: a code used less than this fraction of an equal share moves to a vector of
            the batch.
    """

    codes: Tensor
    sums: Tensor
    uses: Tensor
    seeded: Tensor

    def __init__(self, size: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        codes = torch.randn(size, dim)
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.clone())
        self.register_buffer("uses", torch.ones(size))  # in equal shares
        self.register_buffer("seeded", torch.tensor(False))

    def nearest(self, x: Float[Tensor, "M D"]) -> Int64[Tensor, "M"]:
        # |x - c|^2 less |x|^2, which is the same for every code.
        scores = torch.addmm(self.codes.square().sum(1), x, self.codes.T, alpha=-2.0)
        return scores.argmin(dim=1)

    @torch.no_grad()
    def learn(self, x: Float[Tensor, "M D"], ids: Int64[Tensor, "M"]) -> None:
        """Move the codes towards the vectors that chose them; a batch that is not finite is left
        out, as its gradient is."""
        if not bool(torch.isfinite(x).all()):
            return
        size = self.codes.shape[0]
        if not self.seeded:
            self._place(torch.ones(size, dtype=torch.bool, device=x.device), x)
            self.seeded.fill_(True)
            return
        share = size / x.shape[0]
        uses = torch.bincount(ids, minlength=size).to(x.dtype) * share
        sums = torch.zeros_like(self.sums).index_add_(0, ids, x) * share
        self.uses.lerp_(uses, 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        self.codes.copy_(self.sums / self.uses.clamp(min=1e-6)[:, None])
        dead = self.uses < self.revive_below
        if dead.any():
            self._place(dead, x)

    def _place(self, which: Bool[Tensor, "V"], x: Float[Tensor, "M D"]) -> None:
        """Put codes onto random vectors, each a little aside so that no two coincide."""
        count = int(which.sum())
        if count <= x.shape[0]:
            chosen = torch.randperm(x.shape[0], device=x.device)[:count]
        else:
            chosen = torch.randint(x.shape[0], (count,), device=x.device)
        aside = torch.randn_like(x[chosen]) * (0.1 * x.std(dim=0, unbiased=False) + 1e-4)
        fresh = x[chosen] + aside
        # Half an equal share: long enough a life to prove useful, short enough to try again.
        self.codes[which] = fresh
        self.uses[which] = 0.5
        self.sums[which] = fresh * 0.5


class ResidualQuantizer(nn.Module):
    """Q codebooks, each quantizing what the levels before it left over.

    Args:
        num_levels: Q.
        size: codes per level V.
        dim: channels D.
        decay: see ``Codebook``.
        revive_below: see ``Codebook``.
        dropout: share of training rows whose latents sum a random number of levels only.
        bypass: share of training rows whose latents are passed on as they are.
    """

    def __init__(
        self,
        num_levels: int,
        size: int,
        dim: int,
        decay: float,
        revive_below: float,
        dropout: float = 0.0,
        bypass: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout, self.bypass = dropout, bypass
        books = (Codebook(size, dim, decay, revive_below) for _ in range(num_levels))
        self.books = nn.ModuleList(books)

    def levels(self) -> list[Codebook]:
        return [book for book in self.books if isinstance(book, Codebook)]

    def forward(self, x: Float[Tensor, "B N D"], mask: Float[Tensor, "B N"]) -> Quantized:
        """Quantize with every level; in training also move the codes and drop levels."""
        batch, frames, dim = x.shape
        valid = mask.reshape(-1) > 0
        kept = self._levels_kept(batch, x.device)
        residual = x.detach().reshape(-1, dim)
        total = torch.zeros_like(x)
        commitment = x.new_zeros(())
        ids: list[Tensor] = []
        reached = torch.zeros_like(x)
        for level, book in enumerate(self.levels()):
            chosen = book.nearest(residual)
            code = book.codes[chosen].reshape(x.shape)
            if self.training and bool(valid.any()):
                book.learn(residual[valid], chosen[valid])
            reached = reached + code
            total = total + code * (kept > level)[:, None, None]
            residual = residual - code.reshape(-1, dim)
            distance = (x - reached).square().mean(dim=2)
            commitment = commitment + (distance * mask).sum() / mask.sum().clamp(min=1)
            ids.append(chosen.reshape(batch, frames))
        if self.training and self.bypass > 0:
            quantized = torch.rand(batch, 1, 1, device=x.device) >= self.bypass
            total = torch.where(quantized, total, x)
        latents = x + (total - x).detach()
        return Quantized(latents, torch.stack(ids, dim=1), commitment / len(ids))

    def encode(self, x: Float[Tensor, "B N D"]) -> Int64[Tensor, "B Q N"]:
        """The ids alone, without any effect on the codes, in training mode too."""
        residual = x.reshape(-1, x.shape[2])
        ids: list[Tensor] = []
        for book in self.levels():
            chosen = book.nearest(residual)
            residual = residual - book.codes[chosen]
            ids.append(chosen.reshape(x.shape[:2]))
        return torch.stack(ids, dim=1)

    def decode(self, ids: Int64[Tensor, "B q N"]) -> Float[Tensor, "B N D"]:
        """The sum of the first q levels' codes."""
        books = self.levels()[: ids.shape[1]]
        parts = [book.codes[ids[:, level]] for level, book in enumerate(books)]
        return torch.stack(parts).sum(dim=0)

    def _levels_kept(self, batch: int, device: torch.device) -> Int64[Tensor, "B"]:
        kept = torch.full((batch,), len(self.books), device=device)
        if not self.training or self.dropout == 0:
            return kept
        fewer = torch.randint(1, len(self.books) + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.dropout, fewer, kept)
