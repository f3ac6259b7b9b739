"""Train the encoder by masked prediction: w2v-BERT, BEST-RQ, HuBERT and SpidR.

``targets`` holds the other two objectives. Their parts are used in training only.

Shape legend: B batch, N frames, M chosen frames of all rows, D width, G codebooks, V codes,
C code width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import Encoder, Mask, Masked, masked_figures
from segue.plugins.tokenizers.ssl_encoder.targets import (
    CepstralClusters,
    ChromaClusters,
    ChromaRegression,
    OnlineClusters,
    RandomQuantizer,
    SlowCopy,
    Swap,
    perplexity,
)


def make_objective(config: SslEncoderOptions, encoder: Encoder) -> nn.Module:
    """Build the training parts of ``config.objective``.

    An objective is called with a ``Masked`` batch and the encoder. It returns a scalar ``loss`` and
    further figures for the log.
    """
    if config.objective == "best_rq":
        return BestRq(config)
    if config.objective == "swap":
        return Swap(config, encoder)
    if config.objective == "spidr":
        return Spidr(config, encoder)
    if config.objective == "chroma":
        return ChromaRegression(config)
    return Hubert(config, encoder) if config.objective == "hubert" else W2vBert(config)


class Prediction(nn.Module):
    """Predict ids from the activations of one layer."""

    def __init__(self, config: SslEncoderOptions, codebooks: int, layer: int = -1) -> None:
        super().__init__()
        self.codebooks, self.codes, self.layer = codebooks, config.target_codes, layer
        self.seen_weight = config.seen_weight
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.Linear(config.width, self.codebooks * self.codes)

    def forward(self, batch: Masked, ids: Int64[Tensor, "B N G"]) -> dict[str, Tensor]:
        """Return the figures of ``masked_figures``, losses in nats per id."""

        def compare(chosen: Mask) -> tuple[Tensor, Tensor]:
            states, wanted = batch.states[self.layer][chosen], ids[chosen]
            logits = self.heads(self.norm(states)).view(-1, self.codebooks, self.codes)
            count = max(1, wanted.numel())
            loss = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum") / count
            return loss, (logits.argmax(-1) == wanted).sum() / count

        used = perplexity(ids[batch.hidden], self.codes)
        return masked_figures(batch, self.seen_weight, compare, used)


class BestRq(nn.Module):
    """Predict the ids of a random quantizer (Chiu et al., arXiv 2202.01855)."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.quantizer = RandomQuantizer(config)
        self.prediction = Prediction(config, config.num_codebooks)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        return self.prediction(batch, self.quantizer(batch.mel, batch.valid))


class Hubert(nn.Module):
    """Predict clusters of cepstra, and from ``refine_at`` on those of a copy of the encoder.

    The copy is made at that step and stays as it is (Hsu et al., arXiv 2106.07447).
    """

    updates: Tensor
    refines: Tensor

    def __init__(self, config: SslEncoderOptions, encoder: Encoder) -> None:
        super().__init__()
        self.refine_at, self.layer = config.refine_at, config.layer
        self.cepstral = (
            ChromaClusters(config) if config.bands == "note" else CepstralClusters(config)
        )
        self.prediction = Prediction(config, config.num_codebooks)
        # Present from the start, so that a training without refinement can go on with it.
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.refined = OnlineClusters(config.width, config.target_codes)
        self.refined_prediction = Prediction(config, config.num_codebooks)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("refines", torch.tensor(False))

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        if self.training:
            due = self.refine_at is not None and int(self.updates) >= self.refine_at
            if due and not self.refines:
                # Frozen from here on: a teacher that moves with its pupil can agree on nothing at
                # all.
                self.teacher.load_state_dict(encoder.state_dict())
                self.refines.fill_(True)
            self.updates.add_(1)
        if self.refines:
            return self.refined_prediction(batch, self._teacher_ids(batch))
        return self.prediction(batch, self.cepstral(batch.mel, batch.valid))

    @torch.no_grad()
    def _teacher_ids(self, batch: Masked) -> Int64[Tensor, "B N 1"]:
        states = self.teacher.eval()(batch.mel, batch.valid, self.layer)
        return self.refined(states[-1], batch.valid)


CODE_DECAY = 0.99  # the papers' 0.9 is for batches of an hour of speech, not of half a minute


class Spidr(SlowCopy):
    """Predict, by each of the upper layers, clusters of the same layer of a slow copy.

    Poli et al., arXiv 2512.20308. In DinoSR (Liu et al., arXiv 2305.10005) the last layer predicts
    those of all.
    """

    def __init__(self, config: SslEncoderOptions, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.depth = config.depth
        layers = range(config.depth - config.num_codebooks, config.depth)
        self.predictions = nn.ModuleList(Prediction(config, 1, layer) for layer in layers)
        self.clusters = nn.ModuleList(
            OnlineClusters(config.width, config.target_codes, CODE_DECAY) for _ in layers
        )

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """Return the figures of ``masked_figures``, averaged over layers."""
        if self.training:
            self.follow((self.encoder_copy, encoder))
        with torch.no_grad():
            states = self.encoder_copy.eval()(batch.mel, batch.valid, self.depth)
        parts = zip(self.predictions, self.clusters, states[-len(self.clusters) :], strict=True)
        found = [predict(batch, cluster(x, batch.valid)) for predict, cluster, x in parts]
        return {key: torch.stack([each[key] for each in found]).mean() for key in found[0]}


class GumbelQuantizer(nn.Module):
    """Quantize by codebooks that are learnt with their user.

    In training a code is drawn, and the gradient is that of the soft choice (Baevski et al., arXiv
    2006.11477, section 2).
    """

    updates: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
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
        """Return quantized vectors, ids, and the diversity loss: the share of unused codes."""
        count, codes, _ = self.codebooks.shape
        logits = self.choose(x).view(-1, count, codes)
        ids = logits.argmax(-1)
        hard = functional.one_hot(ids, codes).to(x.dtype)
        if self.training:
            # Straight-through: the value is one code, the gradient that of the soft choice.
            hard = functional.gumbel_softmax(logits.float(), self.temperature, hard=True).to(x)
            self.updates.add_(1)
        # A code whose share is 0 in single precision would have an infinite slope.
        mean = logits.float().softmax(-1).mean(0).clamp_min(1e-12)
        idle = 1 - torch.special.entr(mean).sum(-1).exp().mean() / codes
        chosen = torch.einsum("mgv,gvc->mgc", hard, self.codebooks)
        return self.out(chosen.flatten(1)), ids, idle


class W2vBert(nn.Module):
    """Combine a contrastive loss on a lower layer with prediction of its ids on the upper ones.

    Chung et al., arXiv 2108.06209, section 3.
    """

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.depth = config.contrastive_depth
        self.temperature, self.diversity = config.temperature, config.diversity
        self.target_norm = nn.LayerNorm(config.width)
        self.quantizer = GumbelQuantizer(config)
        self.context = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.code_width)
        )
        self.prediction = Prediction(config, config.num_codebooks)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        whole = encoder.subsampling(batch.mel, batch.valid)
        chosen = batch.valid if self.prediction.seen_weight else batch.hidden
        quantized, ids, idle = self.quantizer(self.target_norm(whole[chosen]))
        hidden = batch.hidden[chosen]
        contrastive, contrastive_accuracy = self._contrastive(batch, quantized[hidden])
        every = ids.new_zeros(*batch.hidden.shape, ids.shape[1])
        every[chosen] = ids
        found = self.prediction(batch, every)
        return {
            **found,
            "loss": found["loss"] + contrastive + self.diversity * idle,
            "contrastive": contrastive,
            "contrastive_accuracy": contrastive_accuracy,
            "idle_codes": idle,
        }

    def _contrastive(
        self, batch: Masked, quantized: Float[Tensor, "M C"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return loss and accuracy of finding a frame's vector among the row's hidden frames.

        All others are distractors, those of equal codes too: a quantizer that gives all frames one
        code has the loss of guessing, not zero. They are of one recording, so that knowing its
        voice does not help.
        """
        context = self.context(batch.states[self.depth - 1][batch.hidden])
        scores = functional.normalize(context, dim=-1) @ functional.normalize(quantized, dim=-1).T
        row = batch.hidden.nonzero()[:, 0]
        scores = (scores / self.temperature).masked_fill(row[:, None] != row[None], -torch.inf)
        places = torch.arange(len(row), device=row.device)
        loss = functional.cross_entropy(scores, places)
        return loss, (scores.argmax(1) == places).float().mean()
