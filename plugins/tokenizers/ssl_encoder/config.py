"""Options of the self-supervised tokenizer. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segue.plugins.layers.config import Layers, OddKernel, check_heads
from segue.plugins.tokenizers.common.options import KMeansOptions, WindowOptions, check_window


class SslEncoderOptions(KMeansOptions, WindowOptions):
    """Configure ``ssl_encoder``.

    Defaults are the best for ``hubert`` on seven hours of speech and half an hour of one CPU core,
    which is far from the papers' setting.

    Attributes:
        window: samples of the spectra's window.
        bands: ``mel`` bands, for speech, or ``note``: semitones from ``lowest_note`` up, for music,
            which need a ``window`` of some 4096 samples.
        lowest_note: MIDI number of the lowest band of notes.
        num_mels: bands of a spectrum.
        normalise: what gets zero mean and unit variance over a recording (a window of it): each
            ``band``, which removes voices and rooms but also the key of music, or the ``row``.
        subframes: spectra per token; convolutions reduce the rate by 4 or 2.
        width: D, channels of the encoder.
        depth: conformer layers.
        heads: attention heads.
        feed_forward: hidden width of a layer's feed-forwards together; None takes 8/3 of the width.
        kernel: frames that a layer's convolution spans; odd.
        dropout: in training, of what each sublayer adds.
        layer: whose activations are clustered, 1 being the lowest.
        objective: how the encoder learns:
            ``w2v_bert``: a contrastive loss below, codes of a learnt quantizer above (Chung et al.,
            arXiv 2108.06209);
            ``best_rq``: codes of a fixed random quantizer (Chiu et al., arXiv 2202.01855);
            ``hubert``: clusters of cepstra (of chroma, with bands of notes), later of its own layer
            (Hsu et al., arXiv 2106.07447);
            ``swap``: prototypes that a slow copy of the encoder chooses for the same row under
            other disturbances (Chang et al., arXiv 2305.11072); best after another objective;
            ``spidr``: by each of the upper ``num_codebooks`` layers, clusters of the same layer of
            a slow copy (Poli et al., arXiv 2512.20308);
            ``chroma``: with bands of notes, the strengths of the twelve pitch classes.
        mask_share: mean share of the frames that are hidden from the encoder.
        mask_seconds: length of one hidden span.
        mask_fill: fill spans with noise or with zeros (the mean of what is normalised).
        warp: largest factor, minus 1, by which the encoder's input is stretched or squeezed over
            frequency in training (Jaitly and Hinton, 2013), while targets stay those of the row as
            it is: voices differ by such factors, words do not. Take 0 for music.
        noise: share of rows that get stationary noise in training.
        equalise: standard deviation, in nats, of smooth gains over frequencies in training. With
            normalised bands it changes only how much ``noise`` covers.
        transpose: most semitones by which bands of notes are moved up or down in training.
        seen_weight: of the loss on frames that are not hidden, where hidden ones have 1.
        num_codebooks: G, ids per frame to predict, for ``spidr`` one from each of as many layers;
            1 for ``hubert`` and ``swap``, unused by ``chroma``.
        target_codes: V, entries of each codebook (unused by ``chroma``).
        code_width: channels of a codebook's entries and of a projection (unused by ``hubert``,
            ``spidr`` and ``chroma``).
        contrastive_depth: layers of the contrastive module; those above it predict ids.
        temperature: of the contrastive loss and of ``swap``.
        diversity: weight of the loss that asks for even use of the codes.
        gumbel: temperature of the Gumbel softmax at first and at last.
        gumbel_decay: factor on that temperature at each step.
        refine_at: for ``hubert``: step from which targets are clusters of the encoder's own
            ``layer``, as it is then, instead of cepstra; None keeps the cepstra. With 0 and a
            checkpoint, a trained encoder is its own teacher from the start.
        copy_decay: for ``swap`` and ``spidr``: share of the slow copy that a step leaves unchanged.
        fresh_copy: for ``swap`` and ``spidr``: begin with random weights in the slow copy, not the
            encoder's.
    """

    of_training = frozenset(
        {"dropout", "objective", "mask_share", "mask_seconds", "mask_fill", "warp", "noise",
         "equalise", "transpose", "seen_weight", "num_codebooks", "target_codes", "code_width",
         "contrastive_depth", "temperature", "diversity", "gumbel", "gumbel_decay", "refine_at",
         "copy_decay", "fresh_copy", "fit_frames", "seed"}
    )  # fmt: skip

    num_clusters: int = Field(default=1024, ge=2)
    subframes: Literal[2, 4] = 4
    window: int = Field(default=400, ge=4)
    bands: Literal["mel", "note"] = "mel"
    lowest_note: int = Field(default=24, ge=0, le=96)
    num_mels: int = Field(default=80, ge=16)
    normalise: Literal["band", "row"] = "band"
    width: int = Field(default=144, ge=2)
    depth: Layers = 6
    heads: int = Field(default=4, ge=1)
    feed_forward: int | None = Field(default=None, ge=2)
    kernel: OddKernel = 15
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    layer: int = Field(default=5, ge=1)
    objective: Literal["w2v_bert", "best_rq", "hubert", "swap", "spidr", "chroma"] = "hubert"
    mask_share: float = Field(default=0.45, gt=0.0, lt=1.0)
    mask_seconds: float = Field(default=0.24, gt=0.0)
    mask_fill: Literal["noise", "zero"] = "noise"
    warp: float = Field(default=0.2, ge=0.0, lt=0.5)
    noise: float = Field(default=0.0, ge=0.0, le=1.0)
    equalise: float = Field(default=0.0, ge=0.0, le=3.0)
    transpose: int = Field(default=0, ge=0, le=12)
    seen_weight: float = Field(default=0.5, ge=0.0)
    num_codebooks: int = Field(default=1, ge=1)
    target_codes: int = Field(default=128, ge=2)
    code_width: int = Field(default=32, ge=1)
    contrastive_depth: Layers = 3
    temperature: float = Field(default=0.1, gt=0.0)
    diversity: float = Field(default=0.5, ge=0.0)
    gumbel: tuple[float, float] = (2.0, 0.5)
    gumbel_decay: float = Field(default=0.999, gt=0.0, le=1.0)
    refine_at: int | None = Field(default=None, ge=0)
    copy_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    fresh_copy: bool = False

    @field_validator("gumbel")
    @classmethod
    def _check_gumbel(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[1] <= value[0]:
            raise ValueError(f"gumbel must fall and stay above 0, not go from {value}")
        return value

    @model_validator(mode="after")
    def _check_sizes(self) -> SslEncoderOptions:
        check_window("window", self.window, self.hop)
        check_heads(self.width, self.heads)
        if self.layer > self.depth:
            raise ValueError(f"layer {self.layer} does not exist: depth is {self.depth}")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> SslEncoderOptions:
        if self.objective == "w2v_bert" and self.contrastive_depth >= self.depth:
            raise ValueError(
                f"contrastive_depth ({self.contrastive_depth}) leaves no layer of {self.depth} to"
                " predict ids"
            )
        if self.objective in ("hubert", "swap") and self.num_codebooks != 1:
            raise ValueError(f"{self.objective} has one codebook, not {self.num_codebooks}")
        if self.objective == "spidr" and self.num_codebooks > self.depth:
            raise ValueError(
                f"spidr has a codebook for each of the upper layers: with depth {self.depth}, set"
                f" num_codebooks to at most {self.depth}, not {self.num_codebooks}"
            )
        if self.refine_at is not None and self.objective != "hubert":
            raise ValueError(f"refine_at is for hubert, not {self.objective}")
        if self.objective == "swap" and self.layer != self.depth:
            raise ValueError(
                f"swap learns from the uppermost layer: with layer {self.layer}, set depth to"
                f" {self.layer}, not {self.depth}"
            )
        if self.bands == "mel" and (self.objective == "chroma" or self.transpose):
            what = "objective chroma" if self.objective == "chroma" else "transpose"
            raise ValueError(f"{what} needs bands of notes: set bands to note")
        if self.objective == "chroma" and self.warp:
            raise ValueError(
                f"a warp of {self.warp:g} moves notes between pitch classes: set warp to 0, and"
                " transpose by whole semitones"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Leave out what does not matter for tokens, and defaults that older fingerprints lack."""
        unused = {"depth"}  # the weights of the layers up to ``layer`` count, not those above
        if self.bands == "mel":
            unused |= {"bands", "lowest_note"}
        if self.normalise == "band":
            unused |= {"normalise"}
        return {key: value for key, value in super().identity().items() if key not in unused}

    @property
    def span(self) -> int:
        """Return the frames of one hidden span."""
        return max(1, round(self.mask_seconds * self.frame_rate))
