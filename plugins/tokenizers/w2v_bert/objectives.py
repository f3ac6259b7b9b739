"""What the encoder learns from; these parts are used in training only.

Shape legend: B batch, N frames, M hidden frames of all rows, D width, G codebooks, V codes,
C code width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.w2v_bert.chroma import ChromaRegression
from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import Encoder
from segue.plugins.tokenizers.w2v_bert.masking import Masked
from segue.plugins.tokenizers.w2v_bert.swap import Swap
from segue.plugins.tokenizers.w2v_bert.targets import (
    CepstralClusters,
    ChromaClusters,
    OnlineClusters,
    RandomQuantizer,
    perplexity,
)


class Prediction(nn.Module):
    """Predict the ids of hidden frames from the uppermost layer."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.codebooks, self.codes = config.num_codebooks, config.target_codes
        self.seen_weight = config.seen_weight
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.Linear(config.width, self.codebooks * self.codes)

    def forward(self, batch: Masked, ids: Int64[Tensor, "B N G"]) -> dict[str, Tensor]:
        """``loss``; of hidden frames ``masked`` (nats per id), ``accuracy`` and ``perplexity`` of
        the ids; of the others ``seen``, if it counts."""
        masked, accuracy = self._nats(batch.states[-1][batch.hidden], ids[batch.hidden])
        figures = {"accuracy": accuracy, "perplexity": perplexity(ids[batch.hidden], self.codes)}
        if not self.seen_weight:
            return {"loss": masked, "masked": masked, **figures}
        shown = batch.valid & ~batch.hidden
        seen, _ = self._nats(batch.states[-1][shown], ids[shown])
        return {"loss": masked + self.seen_weight * seen, "masked": masked, "seen": seen, **figures}

    def _nats(
        self, states: Float[Tensor, "M D"], ids: Int64[Tensor, "M G"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean loss and accuracy; of no frame, nothing."""
        logits = self.heads(self.norm(states)).view(-1, self.codebooks, self.codes)
        count = max(1, ids.numel())
        loss = functional.cross_entropy(logits.transpose(1, 2), ids, reduction="sum") / count
        return loss, (logits.argmax(-1) == ids).sum() / count


class BestRq(nn.Module):
    """Masked prediction of what a random quantizer says (Chiu et al., arXiv 2202.01855)."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.quantizer = RandomQuantizer(config)
        self.prediction = Prediction(config)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        return self.prediction(batch, self.quantizer(batch.mel, batch.valid))  # type: ignore[no-any-return]


class Hubert(nn.Module):
    """Masked prediction of clusters: of cepstra first, then, from ``refine_at`` on, of a copy of
    the encoder that is made then (Hsu et al., arXiv 2106.07447)."""

    updates: Tensor
    refines: Tensor

    def __init__(self, config: W2vBertOptions, encoder: Encoder) -> None:
        super().__init__()
        self.refine_at, self.layer = config.refine_at, config.layer
        self.cepstral = (
            ChromaClusters(config) if config.bands == "note" else CepstralClusters(config)
        )
        self.prediction = Prediction(config)
        # There from the start, so that what was trained without refinement can be refined.
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.refined = OnlineClusters(config.width, config.target_codes)
        self.refined_prediction = Prediction(config)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("refines", torch.tensor(False))

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        if self.training:
            due = self.refine_at is not None and int(self.updates) >= self.refine_at
            if due and not self.refines:
                self.teacher.load_state_dict(encoder.state_dict())
                self.refines.fill_(True)
            self.updates.add_(1)
        if self.refines:
            found: dict[str, Tensor] = self.refined_prediction(batch, self._clusters(batch))
        else:
            found = self.prediction(batch, self.cepstral(batch.mel, batch.valid))
        return found

    @torch.no_grad()
    def _clusters(self, batch: Masked) -> Int64[Tensor, "B N 1"]:
        """Of the teacher's activations for the whole spectra."""
        states = self.teacher.eval()(batch.mel, batch.valid, self.layer)
        ids: Tensor = self.refined(states[-1], batch.valid)
        return ids


class GumbelQuantizer(nn.Module):
    """A product quantizer that is learnt with its user (Baevski et al., arXiv 2006.11477, section
    2): in training a code is drawn, and the gradient is that of the soft choice."""

    updates: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        count, codes, width = config.num_codebooks, config.target_codes, config.code_width
        self.first, self.last = config.gumbel
        self.decay = config.gumbel_decay
        self.choose = nn.Linear(config.width, count * codes)
        self.codebooks = nn.Parameter(torch.rand(count, codes, width))
        self.out = nn.Linear(count * width, config.code_width)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        nn.init.normal_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)

    @property
    def temperature(self) -> float:
        return max(self.last, self.first * self.decay ** int(self.updates))

    def forward(
        self, x: Float[Tensor, "M D"]
    ) -> tuple[Float[Tensor, "M C"], Int64[Tensor, "M G"], Float[Tensor, ""]]:
        """Quantised vectors, ids, and the diversity loss: the share of codes that lie idle."""
        count, codes, _ = self.codebooks.shape
        logits = self.choose(x).view(-1, count, codes)
        ids = logits.argmax(-1)
        hard = functional.one_hot(ids, codes).to(x.dtype)
        if self.training:
            hard = functional.gumbel_softmax(logits.float(), self.temperature, hard=True).to(x)
            self.updates.add_(1)
        # A code whose share is 0 in single precision would have an infinite slope.
        mean = logits.float().softmax(-1).mean(0).clamp_min(1e-12)
        idle = 1 - torch.special.entr(mean).sum(-1).exp().mean() / codes
        chosen = torch.einsum("mgv,gvc->mgc", hard, self.codebooks)
        return self.out(chosen.flatten(1)), ids, idle


class W2vBert(nn.Module):
    """Contrastive loss on a lower layer, masked prediction of the quantizer's ids on the upper
    ones, jointly (Chung et al., arXiv 2108.06209, section 3)."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.depth = config.contrastive_depth
        self.temperature, self.diversity = config.temperature, config.diversity
        self.target_norm = nn.LayerNorm(config.width)
        self.quantizer = GumbelQuantizer(config)
        self.context = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.code_width)
        )
        self.prediction = Prediction(config)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        whole = encoder.subsampling(batch.mel, batch.valid)
        chosen = batch.valid if self.prediction.seen_weight else batch.hidden
        quantised, ids, idle = self.quantizer(self.target_norm(whole[chosen]))
        hidden = batch.hidden[chosen]
        contrastive, found_right = self._contrastive(batch, quantised[hidden])
        every = ids.new_zeros(*batch.hidden.shape, ids.shape[1])
        every[chosen] = ids
        found = self.prediction(batch, every)
        return {
            **found,
            "loss": found["loss"] + contrastive + self.diversity * idle,
            "contrastive": contrastive,
            "contrastive_accuracy": found_right,
            "idle_codes": idle,
        }

    def _contrastive(
        self, batch: Masked, quantised: Float[Tensor, "M C"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Tell a frame's quantised vector from those of the row's other hidden frames.

        All of them are distractors, those of equal codes as well: the loss of a quantizer that
        gives all frames one code is that of guessing, not zero. They are of one recording, so
        what tells its voice from others is of no use.
        """
        context = self.context(batch.states[self.depth - 1][batch.hidden])
        scores = functional.normalize(context, dim=-1) @ functional.normalize(quantised, dim=-1).T
        row = batch.hidden.nonzero()[:, 0]
        scores = (scores / self.temperature).masked_fill(row[:, None] != row[None], -torch.inf)
        places = torch.arange(len(row), device=row.device)
        loss = functional.cross_entropy(scores, places)
        return loss, (scores.argmax(1) == places).float().mean()


def make_objective(config: W2vBertOptions, encoder: Encoder) -> nn.Module:
    """The training parts that ``config.objective`` names."""
    if config.objective == "best_rq":
        return BestRq(config)
    if config.objective == "swap":
        return Swap(config, encoder)
    if config.objective == "chroma":
        return ChromaRegression(config)
    return Hubert(config, encoder) if config.objective == "hubert" else W2vBert(config)
