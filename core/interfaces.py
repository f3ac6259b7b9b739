"""The contracts that plugins fulfil: tokenizers make tokens of audio, stage models continue them.

Start here. Audio becomes two token streams: a ``SemanticTokenizer`` emits one token per frame that
says what is said or played, an ``AcousticCodec`` emits Q tokens per frame that say how it sounds,
and turns them back into audio. A ``StageLM`` predicts some levels of a stream from others. A
pipeline (``segue.inference.pipeline``) is one tokenizer of each kind and a list of stages;
``segue.core.assembly`` proves that they fit, ``segue.inference.generation`` runs the stages.

Shape legend, used everywhere: B batch, T samples, N frames, Q levels, D width, V codebook size.
``segue.testing`` checks each promise made here for anyone's plugin.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segue.core.adversary import Adversary as Adversary
from segue.core.errors import GenerationError
from segue.core.fingerprints import token_digest
from segue.core.options import (
    Decoding,
    DetectorOptions,
    GuidedConfig,
    Options,
    Sampling,
    TokenizerOptions,
)
from segue.core.spec import StageSpec, TokenSpec
from segue.core.streaming import StreamingDecoder as StreamingDecoder
from segue.core.streaming import StreamingEncoder as StreamingEncoder
from segue.core.streaming import WindowedDecoder as WindowedDecoder
from segue.core.tokens import Ids as Ids
from segue.core.tokens import Lengths as Lengths
from segue.core.tokens import StageBatch as StageBatch
from segue.core.tokens import StageLoss as StageLoss
from segue.core.tokens import Tokens as Tokens
from segue.core.tokens import Wave as Wave
from segue.core.tokens import WaveBatch as WaveBatch

#: The origins of audio, in the order of a detector's probabilities: a recording, a recording that
#: went through a codec, audio that a pipeline generated.
ORIGINS = ("real", "coded", "generated")


class Component(nn.Module, ABC):
    """Anything a config can name: built from its options, saved as a state dict.

    Everything a component learns lies in its parameters and buffers, so that ``state_dict`` holds
    all of it. Ranks that train together average gradients; what ``training_step`` counts in buffers
    it adds up over them with ``segue.core.collectives.summed``. A component that needs both kinds
    of learning is trained first, then fitted.
    """

    #: Whether the component learns by gradient before it can be used.
    needs_training: bool = True
    #: Whether the component learns from one pass over the data, as k-means does.
    needs_fitting: bool = False
    #: Whether it has a network that is not trained here: weights must be given.
    needs_weights: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        needs = cls.__dict__.get("needs")
        if isinstance(needs, str):  # written for the first plugin API; read for one more version
            warnings.warn(
                f"{cls.__qualname__}.needs is deprecated: set needs_training and needs_fitting",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.needs_training, cls.needs_fitting = "training" in needs, "fitting" in needs

    def __init__(self, config: Options) -> None:
        super().__init__()
        self.config = config

    def __setattr__(self, name: str, value: Any) -> None:
        kind, functional = type(self), callable(value) and not isinstance(value, nn.Module)
        owner = next((base for base in kind.__mro__ if name in vars(base)), None)
        taken = vars(owner)[name] if owner is not None and owner.__module__ == __name__ else None
        # A method or property of the contract would win: the value could not be read back.
        if owner and not functional and (isinstance(taken, property) or callable(taken)):
            what = f"{kind.__name__}.{name} belongs to the contract of {owner.__name__}"
            raise TypeError(f"{what}: give this attribute another name, such as _{name}")
        super().__setattr__(name, value)

    @property
    def learns(self) -> bool:
        """Return whether the component must learn anything before it can be used."""
        return self.needs_training or self.needs_fitting

    @property
    def device(self) -> torch.device:
        """The device of the component's tensors; the CPU for a component without any."""
        tensor = next(chain(self.parameters(), self.buffers()), None)  # the first, without a list
        return torch.device("cpu") if tensor is None else tensor.device

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        """Return named scalar losses of one batch; the one named ``loss`` is minimised.

        Required of components that need training. One that needs fitting as well forgets here, in
        train mode, what it was fitted to.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient")

    def adversary(self) -> Adversary | None:
        """Return a new adversary with random weights, or None if training uses none."""
        return None

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        """Do as ``training_step``, against an adversary; return its ``adversary_loss`` as well."""
        raise NotImplementedError(f"{type(self).__name__} has no adversary")

    def weight_of(self, batch: WaveBatch | StageBatch) -> float:
        """Return how many items the losses of a batch average.

        Losses of ranks and of accumulated pieces are combined in these proportions, as if the whole
        batch had been learnt from at once. By default the number of valid samples of a
        ``WaveBatch``, or of valid and counted target frames of a ``StageBatch``.
        """
        if isinstance(batch, WaveBatch):
            return float(batch.lengths.sum())
        mask = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        return float(mask.sum())

    def blocks(self) -> Sequence[nn.Module]:
        """Return the modules that hold most of the weights, such as the layers of a transformer.

        Training may recompute their activations, compile them or shard their weights over ranks,
        one by one; so each must be called as a module, not by its methods. None by default.
        """
        return ()

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        """Return why training is failing, or None.

        ``figures`` are those of ``training_step``, averaged over recent steps. The trainer asks now
        and then, and goes back to an earlier checkpoint if training is failing.
        """
        return None

    def fit(self, batches: Iterable[Any]) -> Mapping[str, float]:
        """Learn from one pass over ``batches`` without gradients; return figures for the log.

        Required of components that need fitting. A tokenizer gets ``WaveBatch`` items, each a
        recording or a piece of one; a stage model gets ``StageBatch`` items.
        """
        raise NotImplementedError(f"{type(self).__name__} is not fitted")

    @property
    def is_fitted(self) -> bool:
        """Return whether ``fit`` was called, or weights of a fitted component were loaded."""
        return True


class Tokenizer(Component):
    """Turn audio into tokens: the base of semantic tokenizers and acoustic codecs."""

    config: TokenizerOptions

    def __init__(self, config: TokenizerOptions) -> None:
        super().__init__(config)
        self._fingerprint = ""
        self._saved_as: dict[str, str] = {}  # digest of tokens -> fingerprint they were saved with

    @property
    def spec(self) -> TokenSpec:
        """The spec of the emitted tokens, with a fingerprint once ``seal`` was called."""
        return self.config.spec().with_fingerprint(self._fingerprint)

    def seal(self, name: str) -> str:
        """Compute, keep and return the fingerprint; call it whenever weights were loaded or learnt.

        It is ``token_digest``, or what the same tokens were called when they were saved. A
        tokenizer that learns nothing keeps constant tables in non-persistent buffers: assembly then
        knows its fingerprint from its name and options alone.
        """
        digest = self.token_digest(name)
        self._fingerprint = self._saved_as.get(digest, digest)
        return self._fingerprint

    def token_digest(self, name: str) -> str:
        """Return the hash of the registered name, the options and ``token_state``."""
        return token_digest(name, self.config, self.token_state())

    def keep_fingerprint(self, name: str, fingerprint: str) -> None:
        """Keep the fingerprint that these tokens were saved with, while they stay the same."""
        self._saved_as[self.token_digest(name)] = self._fingerprint = fingerprint

    def token_state(self) -> Mapping[str, Tensor]:
        """Return the tensors that determine what a token means; by default all of them."""
        return self.state_dict()

    def training_state(self) -> Mapping[str, Tensor]:
        """Return the tensors that a checkpoint may leave out, as only training needs them."""
        return {}

    @abstractmethod
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        """Return the tokens of a ragged batch of audio.

        Args:
            wave: ``[B, T]`` mono audio in [-1, 1] at ``spec.sample_rate``; samples beyond a row's
                length are ignored.
            lengths: ``[B]`` samples.

        Returns:
            ids ``[B, spec.num_levels, N]`` with ``spec.num_frames(length)`` valid frames a row;
            each row equals the result for that row alone.
        """

    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"] | None:
        """Return the point that the first levels' codes of each frame stand for, or None.

        Distances of points are meaningful: they are centroids or sums of residual codes.
        """
        return None

    def likeness(self, known: Tokens, new: Tokens) -> Float[Tensor, "B"]:
        """Return how much new frames are like those before them; for ``sampling.candidates``."""
        raise NotImplementedError


class SemanticTokenizer(Tokenizer):
    """Turn audio into tokens that capture content rather than sound: mostly one per frame."""


class AcousticCodec(Tokenizer):
    """Turn audio into Q residual levels of tokens per frame, and back."""

    #: Frames to the left and right of a frame that its decoded samples depend on; None if
    #: ``decode`` looks at the whole sequence or the number is unknown.
    decode_context: tuple[int, int] | None = None

    @property
    def can_stream(self) -> bool:
        """Return whether ``streaming_decoder`` works: by default if ``decode_context`` is known."""
        return self.decode_context is not None

    @abstractmethod
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        """Return the audio of a ragged batch of codes.

        Args:
            codes: ``[B, q, N]`` with ``1 <= q <= spec.num_levels``: the first q levels.
            lengths: ``[B]`` frames.

        Returns:
            ``[B, N * spec.frame_size]`` samples, zero beyond a row's length; each row equals the
            result for that row alone.
        """

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder that takes codes chunk by chunk; all chunks together equal ``decode``.

        A codec whose decoder carries its own state overrides this and ``can_stream``.
        """
        if self.decode_context is None:
            raise NotImplementedError(f"{type(self).__name__} cannot stream")
        return WindowedDecoder(self, *self.decode_context)

    def streaming_encoder(self) -> StreamingEncoder | None:
        """Return an encoder that takes audio chunk by chunk, or None if the codec has none.

        The codes of all chunks together equal those of ``encode``.
        """
        return None


class StageLM(Component):
    """Model p(target | given) for one stage, frame by frame."""

    #: Whether ``generate`` draws each token from the distribution that ``score`` evaluates, and
    #: ``loss`` is the negated mean of the scores. False for models that fill masks in passes.
    autoregressive: bool = True

    def __init__(self, config: Options, stage: StageSpec) -> None:
        super().__init__(config)
        self.stage = stage
        self.decoding = Decoding()

    def decode_with(self, decoding: Decoding) -> None:
        """Choose how the model computes while it generates.

        ``bfloat16`` and ``float16`` replace the parameters; buffers stay as they are. A model is
        free in how it computes with ``backend: auto``.

        Raises:
            ConfigError: if this model or its device cannot do it.
        """
        self.decoding = decoding
        if decoding.halves:
            for parameter in self.parameters():
                parameter.data = parameter.data.to(getattr(torch, decoding.weights))

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse sampling that this model cannot do, before any stage draws a token.

        By default guidance, iterations and repeats, which a model has to implement.

        Raises:
            GenerationError: naming the value.
        """
        place, fix = f"stages.{self.stage.name}.sampling", "set guidance to 1, the others to null"
        for name in ("guidance", "prompt_guidance", "iterations", "repeats"):
            if getattr(sampling, name) != getattr(Sampling(), name):
                raise GenerationError(f"{place}.{name}", "this model does not know it", fix)

    @property
    def unbounded(self) -> bool:
        """Return whether the model continues any length in constant memory, without windows.

        Only possible for a stage that is given nothing.
        """
        return False

    @abstractmethod
    def loss(self, batch: StageBatch) -> StageLoss:
        """Return the mean negative log-likelihood in nats per valid token, padding excluded.

        A model that learns where recordings end adds that term to ``total`` only.
        """

    @abstractmethod
    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        """Return the log-likelihood in nats of every target token given all before it.

        It is 0 at padding, and conditioned on the length: the end of the audio is not scored.
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
            prompt: ``[B, Q, N]`` known target frames, ragged, possibly without frames.
            num_frames: frames to add to each row.
            generators: one random generator per row, so that a row does not depend on its batch.

        Returns:
            The new frames only: ids ``[B, Q, num_frames]`` in ``[0, V)``. A row is shorter only if
            the model learnt where recordings end and drew an end.
        """

    def stream(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        """Yield the result of ``generate`` in pieces along time, as they become known.

        Joined row by row, the pieces equal ``generate``; they hold fewer than ``num_frames`` frames
        if all rows have ended. By default there is one piece. A model that needs long for one may
        yield pieces without frames before it: between pieces the work can be stopped.
        """
        yield self.generate(given, prompt, num_frames, sampling, generators)

    def guided_loss(self, batch: StageBatch, teacher: StageLM, guided: GuidedConfig) -> StageLoss:
        """Return how far the model is from the guided distribution of ``teacher``, in nats."""
        raise NotImplementedError

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, StageBatch)
        return self.loss(batch).named()


class Detector(Component):
    """Distinguish recordings, recordings that went through a codec, and generated audio."""

    config: DetectorOptions

    @abstractmethod
    def score(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B 3"]:
        """Return the probability of each of ``ORIGINS`` for each row, whatever its level.

        Args:
            wave: ``[B, T]`` at ``config.sample_rate``, of any length; best at
                ``config.window_seconds``. Samples beyond a row's length are ignored.
            lengths: ``[B]`` samples.
        """

    def origin_loss(self, batch: WaveBatch, origins: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """Return the loss of rows that come from ``ORIGINS[origins]``.

        Required of detectors that `segue train-detector` trains.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by Segue")

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch) and batch.origins is not None
        return {"loss": self.origin_loss(batch, batch.origins)}

    def weight_of(self, batch: WaveBatch | StageBatch) -> float:
        """Return the number of rows: each counts alike, however long it is."""
        assert isinstance(batch, WaveBatch)
        return float(len(batch.lengths))


class Metric(ABC):
    """Measure how close audio is to a reference.

    Attributes:
        unit: shown beside the figure.
        higher_is_better: the direction of better figures.
        costly: takes seconds per pair, so it runs only if it is named.
        domains: domains it is made for, such as ``("speech",)``; empty for any audio.
    """

    domains: tuple[str, ...] = ()
    unit: str = ""
    higher_is_better: bool = True
    costly: bool = False

    @abstractmethod
    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        """Return the figure of one pair of equal length and rate.

        Return NaN if the reference leaves nothing to measure (no speech, too short). Faults of the
        audio never give NaN: silence in place of speech has the worst figure.
        """
