"""The contracts: what a semantic tokenizer, an acoustic codec and a stage language model promise.

Shape legend, used everywhere: B batch, T samples, N frames, Q levels, D width, V codebook size.
``segue.testing`` checks each promise made here for anyone's plugin.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.options import (
    FINGERPRINT_DIGITS,
    Decoding,
    DetectorOptions,
    Options,
    Sampling,
    TokenizerOptions,
    options_digest,
)
from segue.core.spec import StageSpec, TokenSpec

Wave = Float[Tensor, "B T"]
Lengths = Int64[Tensor, "B"]
Ids = Int64[Tensor, "B Q N"]

#: Where audio can come from, in the order of a detector's probabilities: a recording, a recording
#: that went through a codec, a pipeline that generated it.
ORIGINS = ("real", "coded", "generated")


@dataclass(frozen=True)
class Tokens:
    """A ragged batch of token frames, padded at the end of each row.

    Attributes:
        ids: ``[B, Q, N]``, each in ``[0, V)``; padding holds 0 and means nothing.
        lengths: ``[B]``, valid frames of each row.
    """

    ids: Ids
    lengths: Lengths

    @classmethod
    def full(cls, ids: Ids) -> Tokens:
        """A batch whose every frame is valid."""
        return cls(ids, torch.full((ids.shape[0],), ids.shape[2], device=ids.device))

    @classmethod
    def empty(cls, batch: int, num_levels: int, device: torch.device | str = "cpu") -> Tokens:
        """A batch of rows without frames: the prompt of unconditional generation."""
        return cls.full(torch.zeros(batch, num_levels, 0, dtype=torch.long, device=device))

    @classmethod
    def stack(cls, rows: Sequence[Int64[Tensor, "Q N"]]) -> Tokens:
        """Pad rows of unequal length into one batch."""
        lengths = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
        ids = rows[0].new_zeros(len(rows), rows[0].shape[0], int(lengths.max()))
        for index, row in enumerate(rows):
            ids[index, :, : row.shape[1]] = row
        return cls(ids, lengths)

    @property
    def num_levels(self) -> int:
        return self.ids.shape[1]

    @property
    def mask(self) -> Bool[Tensor, "B N"]:
        """True at valid frames."""
        return torch.arange(self.ids.shape[2], device=self.ids.device) < self.lengths[:, None]

    @property
    def repeats(self) -> Bool[Tensor, "B N"]:
        """True at valid frames that are the same, at every level, as the one before."""
        same = (self.ids[:, :, 1:] == self.ids[:, :, :-1]).all(dim=1)
        return functional.pad(same, (1, 0)) & self.mask

    def row(self, index: int) -> Int64[Tensor, "Q N"]:
        """The valid frames of one row."""
        return self.ids[index, :, : int(self.lengths[index])]

    def rows(self) -> Iterator[Int64[Tensor, "Q N"]]:
        return (self.row(index) for index in range(self.ids.shape[0]))

    def levels(self, start: int, stop: int) -> Tokens:
        """Levels ``start .. stop - 1`` of every frame."""
        return Tokens(self.ids[:, start:stop], self.lengths)

    def cut(self, lengths: Lengths) -> Tokens:
        """At most ``lengths`` ``[B]`` frames of each row; padding is 0, as wide as it must be."""
        kept = torch.minimum(self.lengths, lengths)
        longest = int(kept.max()) if len(kept) else 0
        cut = Tokens(self.ids[:, :, :longest], kept)
        return Tokens(cut.ids.masked_fill(~cut.mask[:, None], 0), kept)

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.lengths.to(device))

    def append(self, other: Tokens) -> Tokens:
        """Row by row, the frames of ``other`` after the valid frames of this batch."""
        pairs = zip(self.rows(), other.rows(), strict=True)
        return Tokens.stack([torch.cat(pair, dim=1) for pair in pairs])


@dataclass(frozen=True)
class WaveBatch:
    """A ragged batch of mono audio.

    Attributes:
        wave: ``[B, T]`` in [-1, 1].
        lengths: ``[B]`` samples.
        origins: ``[B]`` indices into ``ORIGINS``, where a detector is to learn; None elsewhere.
    """

    wave: Wave
    lengths: Lengths
    origins: Int64[Tensor, "B"] | None = None

    @classmethod
    def pad(cls, rows: Sequence[Float[Tensor, "T"]]) -> WaveBatch:
        """Pad rows of unequal length with zeros into one batch."""
        lengths = torch.tensor([row.shape[0] for row in rows])
        wave = torch.zeros(len(rows), int(lengths.max()))
        for index, row in enumerate(rows):
            wave[index, : row.shape[0]] = row
        return cls(wave, lengths)

    def to(self, device: torch.device | str) -> WaveBatch:
        return WaveBatch(
            self.wave.to(device),
            self.lengths.to(device),
            None if self.origins is None else self.origins.to(device),
        )


@dataclass(frozen=True)
class StageBatch:
    """What a stage learns from: its target and its given slices, aligned at frame 0.

    Attributes:
        target: what is predicted.
        given: what it is predicted from, one batch per given slice.
        ends: ``[B, N]``, True where a target frame is the last one of its recording (and not just
            the last one of a crop); None if that is not known.
        counted: ``[B, N]``, True at target frames whose loss counts; None counts all valid ones.
    """

    target: Tokens
    given: tuple[Tokens, ...] = ()
    ends: Bool[Tensor, "B N"] | None = None
    counted: Bool[Tensor, "B N"] | None = None

    def to(self, device: torch.device | str) -> StageBatch:
        return StageBatch(
            self.target.to(device),
            tuple(given.to(device) for given in self.given),
            None if self.ends is None else self.ends.to(device),
            None if self.counted is None else self.counted.to(device),
        )


@dataclass(frozen=True)
class StageLoss:
    """``total`` is minimised (mean nats per token); ``per_level`` [Q] is for the log."""

    total: Float[Tensor, ""]
    per_level: Float[Tensor, "Q"]


class Adversary(nn.Module, ABC):
    """What a codec learns to deceive (Goodfellow et al., arXiv 1406.2661): its discriminators.

    It lives while the codec is trained and is no part of the codec.
    """

    @abstractmethod
    def forward(self, real: Wave, made: Wave) -> Mapping[str, Tensor]:
        """Losses of one batch.

        Args:
            real: ``[B, T]`` recordings.
            made: ``[B, T]`` what the codec made of them, with gradients.

        Returns:
            ``adversary_loss``, which the adversary minimises, and terms of the codec's loss, such
            as ``adversarial`` and ``feature_matching``; further figures are for the log. Each
            loss's gradient is taken for those who minimise it only.
        """


class Component(nn.Module, ABC):
    """Anything a config can name: built from its options, saved as a state dict.

    A component holds all that it learnt in parameters and buffers, so ``state_dict`` is the whole
    of it.
    """

    #: What the component needs before it can be used: "none", "training" (by gradient), "fitting"
    #: (one pass over the data) or "training and fitting", in that order.
    needs: str = "training"

    def __init__(self, config: Options) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the component's tensors live; the CPU for a component that has none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        """Named scalar losses of one batch; the one named ``loss`` is minimised.

        Only for components that need training. One that needs fitting as well forgets here, in
        train mode, what it was fitted to.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient")

    def adversary(self) -> Adversary | None:
        """A new adversary to be trained against, with random weights; None if there is none."""
        return None

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        """Like ``training_step``, against an adversary, whose ``adversary_loss`` is among them."""
        raise NotImplementedError(f"{type(self).__name__} has no adversary")

    def weight_of(self, batch: WaveBatch | StageBatch) -> float:
        """How much a batch counts beside others: what its losses are means over.

        Ranks, and pieces that gradients are accumulated over, are put together in these
        proportions. By default the valid samples of a ``WaveBatch``, and the target frames of a
        ``StageBatch`` that are valid and counted: all is then as if the whole batch had been
        learnt from at once, if losses are means over these.
        """
        if isinstance(batch, WaveBatch):
            return float(batch.lengths.sum())
        mask = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        return float(mask.sum())

    def blocks(self) -> Sequence[nn.Module]:
        """Modules that hold most of the weights, such as the layers of a transformer.

        A training may compute their activations again in place of keeping them, compile them, and
        share their weights out to ranks, one by one; each must be called as a module, not by its
        methods. By default there are none.
        """
        return ()

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        """What is wrong with a training whose figures, averaged over recent steps, are these.

        The trainer asks now and then, and goes back to an earlier checkpoint if something is.
        """
        return None

    def fit(self, batches: Iterable[WaveBatch]) -> Mapping[str, float]:
        """Learn from one pass over ``batches`` without gradients (k-means); returns figures for
        the log. Only for components that need fitting."""
        raise NotImplementedError(f"{type(self).__name__} is not fitted")

    @property
    def is_fitted(self) -> bool:
        """Whether ``fit`` was called, or weights were loaded of a component whose was."""
        return True


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and values to a hash, whatever the order they are given in."""
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())


class Tokenizer(Component):
    """What semantic tokenizers and acoustic codecs share: audio in, tokens out."""

    config: TokenizerOptions

    def __init__(self, config: TokenizerOptions) -> None:
        super().__init__(config)
        self._fingerprint = ""

    @property
    def spec(self) -> TokenSpec:
        """The emitted tokens' spec; carries a fingerprint once ``seal`` was called."""
        return self.config.spec().with_fingerprint(self._fingerprint)

    def seal(self, name: str) -> str:
        """Compute and keep the fingerprint: the hash of the registered name, the options and
        every tensor of ``token_state``. Called whenever weights were loaded or learnt.

        A weight-free tokenizer keeps constant tables in non-persistent buffers: its fingerprint is
        then known from its name and options alone, as assembly needs it."""
        digest = options_digest(name, self.config)
        add_tensors(digest, self.token_state())
        self._fingerprint = digest.hexdigest()[:FINGERPRINT_DIGITS]
        return self._fingerprint

    def token_state(self) -> Mapping[str, Tensor]:
        """The tensors that determine what a token means; by default all of them."""
        return self.state_dict()

    def training_state(self) -> Mapping[str, Tensor]:
        """The tensors that only training needs, which a checkpoint may leave out; by default
        none."""
        return {}

    @abstractmethod
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        """Tokens of a ragged batch of audio.

        Args:
            wave: ``[B, T]`` mono audio in [-1, 1] at ``spec.sample_rate``; what lies beyond a
                row's length is ignored.
            lengths: ``[B]`` samples.

        Returns:
            ids ``[B, spec.num_levels, N]`` with ``spec.num_frames(length)`` valid frames a row,
            equal to what each row alone would give.
        """

    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"] | None:
        """What the codes of each frame stand for, such as centroids or the sum of residual codes.

        Args:
            ids: ``[B, q, N]`` with ``1 <= q <= spec.num_levels``: the first q levels.

        Returns:
            Points whose distances mean something; None if the tokenizer has none to show.
        """
        return None


class SemanticTokenizer(Tokenizer):
    """Audio to one token per frame that captures content rather than sound.

    ``spec.num_levels`` is 1.
    """


class AcousticCodec(Tokenizer):
    """Audio to Q residual levels of tokens per frame, and back."""

    #: Frames to the left and right of a frame that its decoded samples depend on; None when
    #: ``decode`` looks at the whole sequence, or when nothing is said about it.
    decode_context: tuple[int, int] | None = None

    @property
    def can_stream(self) -> bool:
        """Whether there is a ``streaming_decoder``: by default if ``decode_context`` is known."""
        return self.decode_context is not None

    @abstractmethod
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        """Audio of a ragged batch of codes.

        Args:
            codes: ``[B, q, N]`` with ``1 <= q <= spec.num_levels``: the first q levels.
            lengths: ``[B]`` frames.

        Returns:
            ``[B, N * spec.frame_size]`` samples; zero beyond a row's length. Each row equals what
            it alone would give.
        """

    def streaming_decoder(self) -> StreamingDecoder:
        """A decoder that takes codes chunk by chunk; all chunks together equal ``decode``.

        A codec whose decoder carries a state of its own overrides this and ``can_stream``.
        """
        if self.decode_context is None:
            raise NotImplementedError(f"{type(self).__name__} cannot stream")
        return WindowedDecoder(self, *self.decode_context)

    def streaming_encoder(self) -> StreamingEncoder | None:
        """An encoder that takes audio chunk by chunk; all chunks together equal ``encode``. None
        if the codec has none."""
        return None


class StreamingDecoder(ABC):
    """Codes in, audio out, chunk by chunk. Each instance holds the state of one stream."""

    @abstractmethod
    def push(self, codes: Ids) -> Wave:
        """Take ``[B, q, n]`` further frames; return the samples that became certain ``[B, t]``."""

    @abstractmethod
    def finish(self) -> Wave:
        """The samples still withheld; the stream is over and the decoder is as it was when new."""


class StreamingEncoder(ABC):
    """Audio in, codes out, chunk by chunk. Each instance holds the state of one stream."""

    @abstractmethod
    def push(self, wave: Wave) -> Ids:
        """Take ``[B, t]`` further samples; return the frames that became certain ``[B, Q, n]``."""

    @abstractmethod
    def finish(self) -> Ids:
        """The frames still withheld, the last, partial one included; the stream is over and the
        encoder is as it was when new."""


class WindowedDecoder(StreamingDecoder):
    """Chunked decoding for any codec whose decoder has a finite receptive field.

    Samples of a frame are emitted once ``right`` further frames are known; ``left`` frames are
    kept as context and decoded again.
    """

    def __init__(self, codec: AcousticCodec, left: int, right: int) -> None:
        self._codec = codec
        self._left, self._right = left, right
        self._codes: Tensor | None = None
        self._emitted = 0  # frames of self._codes whose samples were returned

    def push(self, codes: Ids) -> Wave:
        known = codes if self._codes is None else torch.cat([self._codes, codes], dim=2)
        return self._advance(known, known.shape[2] - self._right)

    def finish(self) -> Wave:
        if self._codes is None:
            return torch.zeros(0, 0)
        rest = self._advance(self._codes, self._codes.shape[2])
        self._codes, self._emitted = None, 0
        return rest

    def _advance(self, known: Ids, until: int) -> Wave:
        size = self._codec.spec.frame_size
        if until <= self._emitted:
            self._codes = known
            return torch.zeros(known.shape[0], 0, device=known.device)
        wave = self._codec.decode(known, Tokens.full(known).lengths)
        chunk = wave[:, self._emitted * size : until * size]
        drop = max(0, until - self._left)
        self._codes, self._emitted = known[:, :, drop:], until - drop
        return chunk


class StageLM(Component):
    """A language model of one stage: p(target | given), frame by frame."""

    #: Whether ``generate`` draws each token from what ``score`` says of it and ``loss`` is the mean
    #: of the scores, negated. False for models that fill masks in several passes.
    autoregressive: bool = True

    def __init__(self, config: Options, stage: StageSpec) -> None:
        super().__init__(config)
        self.stage = stage
        self.decoding = Decoding()

    def decode_with(self, decoding: Decoding) -> None:
        """Choose how the model computes while it generates.

        A model may do so in its own way where a backend says nothing to it. Number formats of half
        the size replace the parameters; buffers stay as they are.

        Raises:
            ConfigError: if this model or its device cannot do it.
        """
        self.decoding = decoding
        if decoding.halves:
            for parameter in self.parameters():
                parameter.data = parameter.data.to(getattr(torch, decoding.weights))

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse what this model cannot do; asked before any token of any stage is drawn.

        Raises:
            GenerationError: naming the value.
        """

    @property
    def unbounded(self) -> bool:
        """Whether the model continues any length at once, in constant memory; then it is not run
        in windows of the training crop. Only for a stage that is given nothing."""
        return False

    @abstractmethod
    def loss(self, batch: StageBatch) -> StageLoss:
        """Mean negative log-likelihood in nats per valid token; padding does not count.

        A model that learns where recordings end adds that term to ``total`` only.
        """

    @abstractmethod
    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        """Log-likelihood in nats of every target token given all before it; 0 at padding.

        Where the audio ends is no part of it: it is the likelihood given the length.
        """

    @abstractmethod
    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        """Continue every row of ``prompt`` by ``num_frames`` frames.

        Args:
            given: one batch per given slice, aligned with frame 0 of the prompt; row i covers at
                least ``prompt.lengths[i] + num_frames`` target frames in time.
            prompt: ``[B, Q, N]`` target frames already known, ragged, possibly of no frame.
            num_frames: frames to add to each row.
            sampling: temperature, top-k, top-p.
            generators: one random generator per row, so that a row does not depend on its batch.

        Returns:
            The new frames only: ids ``[B, Q, num_frames]``, every id in ``[0, V)``. A row is
            shorter than ``num_frames`` only if the model learnt where recordings end and drew an
            end there.
        """

    def stream(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        """What ``generate`` returns, in pieces along time as they become known.

        Appended row by row they equal ``generate``; there are fewer than ``num_frames`` frames if
        all rows have ended. By default there is one piece.
        """
        yield self.generate(given, prompt, num_frames, sampling, generators)

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        if not isinstance(batch, StageBatch):
            raise TypeError("a stage language model is trained on a StageBatch")
        loss = self.loss(batch)
        levels = {f"level_{q}": value.detach() for q, value in enumerate(loss.per_level)}
        return {"loss": loss.total, **levels}


class Detector(Component):
    """Tells recordings from what a codec made of them and from what a pipeline generated."""

    config: DetectorOptions

    @abstractmethod
    def score(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B 3"]:
        """The probability of each of ``ORIGINS`` for each row, whatever its level.

        Args:
            wave: ``[B, T]`` at ``config.sample_rate``, of any length; made for
                ``config.window_seconds``. What lies beyond a row's length is ignored.
            lengths: ``[B]`` samples.
        """

    def origin_loss(self, batch: WaveBatch, origins: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """The loss of rows that come from ``ORIGINS[origins]``; only for detectors that
        `segue train-detector` is to train."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by Segue")

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch) and batch.origins is not None
        return {"loss": self.origin_loss(batch, batch.origins)}

    def weight_of(self, batch: WaveBatch | StageBatch) -> float:
        """Its rows: each counts alike, however long it is."""
        assert isinstance(batch, WaveBatch)
        return float(len(batch.lengths))


class Metric(ABC):
    """A figure of how close audio is to a reference.

    Attributes:
        unit: shown beside the figure.
        higher_is_better: which way is up.
        costly: takes seconds a pair, so it is left out unless it is named.
        domains: the domains whose audio it is for, such as ``("speech",)``; none: any audio.
    """

    domains: tuple[str, ...] = ()
    unit: str = ""
    higher_is_better: bool = True
    costly: bool = False

    @abstractmethod
    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        """The figure for one pair of equal length and rate.

        NaN where the reference leaves nothing to measure (no speech, too short). What the audio
        lacks is no reason for NaN: silence in place of speech has the lowest figure.
        """
