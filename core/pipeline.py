"""Continue, generate and resynthesize audio with assembled parts.

A request goes: prompts are brought to the codec's rate and encoded (``segue.core.transcoder``), the
stages draw new tokens (``segue.core.generation``), the codec decodes them, and lifecycle hooks see
the request before, and the audio after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.assembly import Assembly, assemble
from segue.core.audio import Audio
from segue.core.checkpoint import build_part, checked_device, save_pipeline
from segue.core.config import PipelineConfig
from segue.core.config_files import load_config, pretrained_path
from segue.core.errors import CheckpointError, GenerationError
from segue.core.generation import Generation
from segue.core.interfaces import AcousticCodec, Component, SemanticTokenizer, StageLM
from segue.core.plugins import PluginHost, default_host
from segue.core.progress import Progress
from segue.core.promises import check_hooked_wave
from segue.core.request import (
    GeneratedAudio,
    PromptAudio,
    Request,
    SamplingOverrides,
    Task,
    chosen_sampling,
    metadata_of,
    with_recordings,
)
from segue.core.spec import ACOUSTIC, SEMANTIC
from segue.core.tokens import Tokens
from segue.core.transcoder import Transcoder
from segue.core.validation import whole_number

JOIN_SECONDS = 0.02  # cross-fade from the recorded prompt to decoded audio


class Pipeline:
    """An assembled pipeline. Make one with ``from_pretrained`` or ``from_config``."""

    def __init__(
        self, assembly: Assembly, parts: Mapping[str, Component], host: PluginHost
    ) -> None:
        self.config = assembly.config
        self.assembly = assembly
        self.parts = dict(parts)
        self.host = host
        codec, semantic = parts["codec"], parts.get("semantic_tokenizer")
        assert isinstance(codec, AcousticCodec)
        assert semantic is None or isinstance(semantic, SemanticTokenizer)
        self.codec, self.semantic_tokenizer = codec, semantic
        self.audio = Transcoder(codec, semantic, assembly.streams, assembly.config.prompt)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        overrides: Sequence[str] = (),
        device: torch.device | str = "cpu",
        host: PluginHost | None = None,
    ) -> Pipeline:
        """Load trained weights.

        Args:
            source: a domain with shipped weights (``speech``, ``piano``), another of its pipelines
                (``speech/three_stage``), or a directory that ``save_pretrained`` or
                ``segue train`` wrote.
            overrides: ``path.to.key=value``, as ``--set`` takes them.
            device: where the weights go.

        Raises:
            SegueError: if there are no such weights, or they cannot be used.
        """
        host = host or default_host()
        if not isinstance(source, (str, Path)):
            raise CheckpointError("source", f"is {source!r}", "name a domain or a directory")
        config = load_config(pretrained_path(source, host), host, overrides).config
        return cls.from_config(config, device=device, host=host)

    @classmethod
    def from_config(
        cls,
        config: PipelineConfig,
        *,
        device: torch.device | str = "cpu",
        host: PluginHost | None = None,
        allow_untrained: bool = False,
    ) -> Pipeline:
        """Prove that the parts fit, then build and load them.

        Args:
            allow_untrained: permit parts without weights (to train or test them).

        Raises:
            AssemblyError: if parts do not fit, or one that must be trained has no checkpoint.
        """
        host = host or default_host()
        device = checked_device(device)
        assembly = assemble(config, host)  # refuses what does not fit before weights are read
        parts = {
            name: build_part(part, host, allow_untrained=allow_untrained).to(device)
            for name, part in assembly.parts.items()
        }
        pipeline = cls(assembly, parts, host)
        for stage in config.stages:
            pipeline.stage_lm(stage.name).decode_with(stage.decoding)
        host.call_hook("segue_pipeline_assembled", pipeline=pipeline)
        return pipeline

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio that the pipeline returns."""
        return self.audio.sample_rate

    @property
    def device(self) -> torch.device:
        return self.audio.device

    @property
    def unit_samples(self) -> int:
        """Samples after which every stream has a whole number of frames."""
        return self.audio.unit_samples

    def stage_lm(self, name: str) -> StageLM:
        """Return the model of a stage."""
        lm = self.parts[f"stages.{name}"]
        assert isinstance(lm, StageLM)
        return lm

    def save_pretrained(
        self, directory: Path | str, *, lm_dtype: torch.dtype | None = None
    ) -> Path:
        """Write the whole pipeline: ``pipeline.yaml`` (the resolved config) and all weights.

        Args:
            directory: made, or replaced as a whole if it holds a pipeline; a directory with
                anything else in it is refused.
            lm_dtype: store the stages' weights in this type: float16 halves the files, int8 keeps
                an eight-bit code per weight, and either rounds them. Tokenizers stay exact.

        Raises:
            OutputError: if it cannot be written there, or the weights in memory are rounded.
        """
        return save_pipeline(self.assembly, self.parts, Path(directory), lm_dtype)

    # --- tasks ----------------------------------------------------------------------------------

    def continue_(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        seconds: float = 5.0,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        prompt_audio: PromptAudio = "original",
        chunk_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Continue one prompt.

        Args:
            wave: ``[T]`` or ``[C, T]`` tensor or array at any rate, or ``Audio``.
            sample_rate: of ``wave``; not needed with ``Audio``.
            seconds: length of audio to add.
            seed: the same seed gives the same audio.
            sampling: changes to the config's sampling by stage: ``{"coarse": {"top_k": 50}}``.
            prompt_audio: what the result starts with: the recording, its codec version, or nothing.
            chunk_seconds: most new audio that a stage draws in one window. ``stream`` returns
                smaller chunks earlier at a higher cost. None: as much as fits a training crop.
            progress: called with a stage's name, frames done and frames in all.

        Returns:
            A batch of one.

        Raises:
            AudioError: if the prompt cannot be used.
            GenerationError: if ``seconds``, ``seed`` or ``sampling`` is out of range.
        """
        return self.continue_batch(
            [_prompt(wave, sample_rate)],
            seconds=seconds,
            seed=seed,
            sampling=sampling,
            prompt_audio=prompt_audio,
            chunk_seconds=chunk_seconds,
            progress=progress,
        )

    def continue_batch(
        self,
        prompts: Sequence[tuple[object, int] | Audio],
        *,
        seconds: float = 5.0,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        prompt_audio: PromptAudio = "original",
        chunk_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Continue prompts of any lengths together; row i equals prompt i alone with seed + i.

        Args:
            prompts: ``Audio``, or pairs of a wave and its sample rate; else as for ``continue_``.
        """
        request = self._request(
            "continue",
            prompts,
            seconds=seconds,
            seed=seed,
            sampling=sampling,
            prompt_audio=prompt_audio,
            chunk_seconds=chunk_seconds,
        )
        generation = self._generation(request, progress)
        return self._drawn(request, generation.finish(), generation.ended)

    def generate(
        self,
        seconds: float = 5.0,
        *,
        batch: int = 1,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        chunk_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Generate audio without a prompt; row i equals a batch of one with seed + i."""
        request = self._request(
            "generate",
            seconds=seconds,
            batch=batch,
            seed=seed,
            sampling=sampling,
            chunk_seconds=chunk_seconds,
        )
        generation = self._generation(request, progress)
        return self._drawn(request, generation.finish(), generation.ended)

    def stream(
        self,
        wave: object = None,
        sample_rate: int = 0,
        *,
        seconds: float = 5.0,
        chunk_seconds: float = 1.0,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        progress: Progress | None = None,
    ) -> Iterator[GeneratedAudio]:
        """Continue a prompt, or generate without one, and yield audio while more is computed.

        Joined, the chunks are the continuation that ``continue_`` (or ``generate``) makes with the
        same seed and ``chunk_seconds``. Lifecycle hooks see every chunk on its own.

        Args:
            wave: the prompt; None for no prompt. Other arguments are as for ``continue_``.
            chunk_seconds: length of a chunk, and most new audio of one window of a stage. The
                first chunk is shorter by the codec's look-ahead, which comes last.

        Returns:
            Batches of one, without the prompt; their tokens are the acoustic ones of the chunk.

        Raises:
            GenerationError: if the codec cannot stream, and errors as for ``continue_``.
        """
        if not self.codec.can_stream:
            codec = self.config.codec.use
            raise GenerationError("codec", f"{codec} cannot stream", "use continue_ or generate")
        request = self._request(
            "generate" if wave is None else "continue",
            None if wave is None else [_prompt(wave, sample_rate)],
            seconds=seconds,
            seed=seed,
            sampling=sampling,
            chunk_seconds=chunk_seconds,
        )
        return self._chunks(request, progress)

    def _chunks(self, request: Request, progress: Progress | None) -> Iterator[GeneratedAudio]:
        generation, gains = self._generation(request, progress), self._gains(request)
        assert request.chunk_seconds is not None
        pieces = generation.acoustic_pieces(
            Fraction(request.chunk_seconds).limit_denominator(10**6)
        )
        for wave, codes in self.audio.decode_pieces(generation.prompt[ACOUSTIC], pieces):
            tokens = {ACOUSTIC: codes}
            audio = GeneratedAudio.of(request, wave / gains, self.sample_rate, tokens)
            yield self._deliver(request, audio)

    def acoustic_generation(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Keep what is said or played and draw how it sounds: acoustic tokens given the semantic
        tokens of ``wave`` (AudioLM, arXiv 2209.03143, section III-D)."""
        prompt = _prompt(wave, sample_rate)
        return self._from_semantic("acoustic_generation", prompt, seed, sampling, progress)

    def resynthesize(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        through: Literal["codec", "semantic"] = "codec",
        levels: int | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Take audio through tokens and back, without randomness.

        Args:
            through: ``codec``: encode and decode; ``semantic``: keep only the semantic tokens and
                take the most likely acoustic tokens given them.
            levels: with ``codec``, decode this many levels; None for those that stages predict.
        """
        prompt = _prompt(wave, sample_rate)
        if through == "semantic":
            if levels is not None:
                raise GenerationError("levels", "goes with through='codec' only", "leave it out")
            # Temperature 0: what is heard is due to the semantic tokens, not to a draw.
            greedy = {stage.name: {"temperature": 0} for stage in self.config.stages}
            return self._from_semantic("resynthesize", prompt, 0, greedy, progress)
        if through != "codec":
            raise GenerationError("through", f"{through!r} is unknown", "use codec or semantic")
        total = self.codec.spec.num_levels
        predicted = self.assembly.streams[ACOUSTIC].num_levels
        count = predicted if levels is None else whole_number(levels)
        if count is None or not 1 <= count <= total:
            raise GenerationError("levels", f"{levels!r} is out of range", f"use 1 to {total}")
        request = self._request("resynthesize", [prompt], whole_units=False)
        gains, length = self._gains(request), request.prompts[0].wave.shape[0]
        codes = self.audio.encode_stream(ACOUSTIC, request.prompts, gains).levels(0, count)
        made = self.audio.decode(codes)[:, :length] / gains
        audio = GeneratedAudio.of(request, made, self.sample_rate, {ACOUSTIC: codes})
        return self._deliver(request, audio)

    # --- from a request to its result -----------------------------------------------------------

    def _request(
        self,
        task: Task,
        prompts: Sequence[tuple[object, int] | Audio] | None = None,
        *,
        seconds: object = None,
        batch: object = 1,
        seed: object = 0,
        sampling: SamplingOverrides | None = None,
        chunk_seconds: object = None,
        prompt_audio: PromptAudio = "original",
        whole_units: bool = True,
    ) -> Request:
        """Check a request, and show it to the plugins before any token is drawn."""
        if prompt_audio not in get_args(PromptAudio):
            fix = "use original, codec or none"
            raise GenerationError("prompt_audio", f"{prompt_audio!r} is unknown", fix)
        audios: Sequence[Audio] = ()
        if prompts is not None:
            audios = self.audio.prepared(prompts, whole_units=whole_units)
        request = Request.checked(
            task,
            seconds=audios[0].seconds if seconds is None else seconds,
            seed=seed,
            batch=batch if prompts is None else len(audios),
            sampling=chosen_sampling(self.config.stages, sampling),
            chunk_seconds=chunk_seconds,
            prompts=tuple(audios),
            prompt_audio=prompt_audio,
        )
        for name, chosen in request.sampling.items():
            self.stage_lm(name).check_sampling(chosen)
        self.host.call_hook("segue_before_generate", pipeline=self, request=request)
        return request

    def _from_semantic(
        self,
        task: Task,
        prompt: tuple[object, int] | Audio,
        seed: int,
        sampling: SamplingOverrides | None,
        progress: Progress | None,
    ) -> GeneratedAudio:
        """Keep the semantic tokens of a recording, and draw all acoustic ones."""
        if self.semantic_tokenizer is None:
            raise GenerationError(
                self.config.name, "has no semantic tokenizer", "use a pipeline that has one"
            )
        request = self._request(task, [prompt], seed=seed, sampling=sampling)
        generation = self._generation(request, progress)
        return self._drawn(request, generation.finish(), generation.ended)

    def _gains(self, request: Request) -> Float[Tensor, "B"]:
        """Return the factors between the level of each row and that of the training data."""
        return self.audio.gains(request.prompts) if request.prompts else torch.ones(request.batch)

    def _generation(self, request: Request, progress: Progress | None) -> Generation:
        """Encode the prompts; return the stages that draw every stream that is not known."""
        prompt, known = self.audio.no_prompt(request.batch), frozenset[str]()
        if request.task == "continue":
            # At the level of the training data; `_drawn` brings the result back to the prompt's.
            prompt = self.audio.encode(request.prompts, self._gains(request))
        elif request.prompts:  # only the semantic tokens of the recording are kept
            known = frozenset({SEMANTIC})
            gains = self._gains(request)
            prompt[SEMANTIC] = self.audio.encode_stream(SEMANTIC, request.prompts, gains)
        added = self.audio.whole_seconds(request.seconds)
        return Generation(self.assembly, self.stage_lm, request, added, prompt, known, progress)

    def _drawn(
        self, request: Request, streams: Mapping[str, Tokens], ended: Sequence[bool]
    ) -> GeneratedAudio:
        """Decode the streams that were drawn, and join them to the recorded prompts."""
        wave = self.audio.decode(streams[ACOUSTIC]) / self._gains(request)[:, None]
        lengths = streams[ACOUSTIC].lengths.cpu() * self.codec.spec.frame_size
        kept = torch.zeros_like(lengths)
        if request.task == "continue":
            kept = torch.tensor([audio.wave.shape[0] for audio in request.prompts])
            if request.prompt_audio == "original":
                join = round(JOIN_SECONDS * self.sample_rate)
                wave = with_recordings(wave, request.prompts, join)
        audio = GeneratedAudio.of(request, wave, self.sample_rate, streams, lengths, kept, ended)
        return self._deliver(request, audio)

    def _deliver(self, request: Request, audio: GeneratedAudio) -> GeneratedAudio:
        """Describe the result, and let plugins mark it before anyone gets it."""
        audio.metadata = metadata_of(request, self.config, self.assembly.streams)
        shape = audio.wave.shape
        self.host.call_hook("segue_after_generate", pipeline=self, request=request, audio=audio)
        check_hooked_wave(self.host.hook.segue_after_generate, audio.wave, shape)
        return audio


def _prompt(wave: object, sample_rate: int) -> tuple[object, int] | Audio:
    return wave if isinstance(wave, Audio) else (wave, sample_rate)
