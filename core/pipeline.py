"""A semantic tokenizer, a codec and a cascade of stages, assembled: audio in, audio out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.assembly import AssemblyPlan, plan
from segue.core.audio import Audio
from segue.core.building import build_part, checked_device, pretrained_path, write_pipeline_file
from segue.core.cascade import Cascade
from segue.core.checkpoint import save_component
from segue.core.config.load import load_config, replace_parts
from segue.core.config.schema import PipelineConfig
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import CheckpointError, GenerationError, OutputError
from segue.core.files import atomic_directory
from segue.core.generated import (
    GeneratedAudio,
    GenerationRequest,
    PromptAudio,
    Task,
    keep_recording,
    without_prompt,
)
from segue.core.interfaces import AcousticCodec, Component, SemanticTokenizer, StageLM, Tokens
from segue.core.options import Sampling
from segue.core.plugins import PluginHost, default_host
from segue.core.progress import Progress
from segue.core.spec import ACOUSTIC, SEMANTIC
from segue.core.transcoder import Transcoder
from segue.core.validation import real_number, validate, whole_number

SamplingOverrides = Mapping[str, Mapping[str, Any]]

MAX_SECONDS = 3600.0
MIN_CHUNK = 0.02
MAX_BATCH = 1024
JOIN_SECONDS = 0.02  # cross-fade from the recorded prompt to decoded audio


class Pipeline:
    """An assembled pipeline. Make one with ``from_pretrained`` or ``from_config``."""

    def __init__(
        self, assembly: AssemblyPlan, parts: Mapping[str, Component], host: PluginHost
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
            source: a domain that ships weights (``speech``, ``piano``), another of its pipelines
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
        assembly = plan(config, host)
        stages = {f"stages.{stage.name}": stage for stage in assembly.stages}
        parts: dict[str, Component] = {}
        for name, part in assembly.parts.items():
            arguments = (stages[name],) if name in stages else ()
            parts[name] = build_part(part, arguments, host, allow_untrained).to(device)
        for stage in config.stages:
            lm = parts[f"stages.{stage.name}"]
            assert isinstance(lm, StageLM)
            lm.decode_with(stage.decoding)
        pipeline = cls(assembly, parts, host)
        host.call_hook("segue_pipeline_assembled", pipeline=pipeline)
        return pipeline

    @property
    def sample_rate(self) -> int:
        """Samples per second of what the pipeline returns."""
        return self.audio.sample_rate

    @property
    def device(self) -> torch.device:
        return self.audio.device

    @property
    def unit_samples(self) -> int:
        """Samples after which every stream has a whole number of frames."""
        return self.audio.unit_samples

    def prepared(self, wave: object, sample_rate: int) -> Float[Tensor, "T"]:
        """Audio as the pipeline takes it in: mono, at its own rate, no longer than its prompts."""
        return self.audio.prepared([(wave, sample_rate)], whole_units=False)[0].wave

    def stage_lm(self, name: str) -> StageLM:
        lm = self.parts[f"stages.{name}"]
        assert isinstance(lm, StageLM)
        return lm

    # --- what a pipeline does ---------------------------------------------------------------

    def continue_(
        self,
        wave: object,
        sample_rate: int,
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
            wave: ``[T]`` or ``[C, T]`` tensor or array, any rate.
            sample_rate: of ``wave``.
            seconds: of audio to add.
            seed: the same seed gives the same audio.
            sampling: per stage, changes to the config's sampling: ``{"coarse": {"top_k": 50}}``.
            prompt_audio: what the result starts with: the recording, its codec version, or nothing.
            chunk_seconds: most new audio that a stage draws in one window; less gives ``stream``
                something to say sooner and costs more. None: as much as fits a training crop.
            progress: called with a stage's name, frames done and frames in all.

        Returns:
            A batch of one.

        Raises:
            AudioError: if the prompt cannot be used.
            GenerationError: if ``seconds``, ``seed`` or ``sampling`` is out of range.
        """
        return self.continue_batch(
            [(wave, sample_rate)],
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
        """Continue prompts of any lengths together; row i equals prompt i alone with seed + i."""
        if prompt_audio not in ("original", "codec", "none"):
            raise GenerationError(
                "prompt_audio", f"{prompt_audio!r} is unknown", "use original, codec or none"
            )
        audios = self.audio.prepared(prompts, whole_units=True)
        request = self._request("continue", seconds, seed, len(audios), sampling, chunk_seconds)
        gains = self.audio.gains(audios)
        prompt = self.audio.encode(audios, gains)
        streams, notes = self._sampled(request, prompt, [a.notes for a in audios], progress)
        lengths = torch.tensor([audio.wave.shape[0] for audio in audios])
        wave = self.audio.decode(streams[ACOUSTIC]) / gains[:, None]
        if prompt_audio == "original":
            wave = keep_recording(wave, audios, round(JOIN_SECONDS * self.sample_rate))
        result = self._result(request, wave, lengths, streams, notes)
        return self._finish(request, without_prompt(result) if prompt_audio == "none" else result)

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
        """Unconditional generation: every token is sampled."""
        rows = whole_number(batch)
        if rows is None or not 1 <= rows <= MAX_BATCH:
            raise GenerationError("batch", f"{batch!r} is out of range", f"use 1 to {MAX_BATCH}")
        request = self._request("generate", seconds, seed, batch, sampling, chunk_seconds)
        nothing = self.audio.no_prompt(batch)
        streams, notes = self._sampled(request, nothing, [()] * batch, progress)
        wave = self.audio.decode(streams[ACOUSTIC])
        none = torch.zeros(batch, dtype=torch.long)
        return self._finish(request, self._result(request, wave, none, streams, notes))

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
        """Continue a prompt, or generate from nothing, and return audio while more is computed.

        Together the chunks are the continuation that ``continue_`` (or ``generate``) makes with
        the same seed and ``chunk_seconds``. Lifecycle hooks see every chunk on its own.

        Args:
            wave: the prompt, as for ``continue_``; None: there is none.
            sample_rate: of ``wave``.
            seconds: of audio to add.
            chunk_seconds: of audio per chunk, and most new audio of one window of a stage. The
                first chunk is shorter by what the codec looks ahead, which comes last.
            seed, sampling, progress: as for ``continue_``.

        Returns:
            Batches of one, without the prompt; their tokens are the acoustic ones of the chunk.

        Raises:
            AudioError: if the prompt cannot be used.
            GenerationError: if a value is out of range or the codec cannot stream.
        """
        if not self.codec.can_stream:
            codec = self.config.codec.use
            raise GenerationError("codec", f"{codec} cannot stream", "use continue_ or generate")
        audios = (
            [] if wave is None else self.audio.prepared([(wave, sample_rate)], whole_units=True)
        )
        task: Task = "continue" if audios else "generate"
        request = self._request(task, seconds, seed, 1, sampling, chunk_seconds)
        return self._chunks(request, audios, progress)

    def _chunks(
        self, request: GenerationRequest, audios: Sequence[Audio], progress: Progress | None
    ) -> Iterator[GeneratedAudio]:
        gains = self.audio.gains(audios) if audios else torch.ones(1)
        prompt = self.audio.encode(audios, gains) if audios else self.audio.no_prompt(1)
        notes: list[tuple[str, ...]] = [audios[0].notes] if audios else [()]
        cascade = self._cascade(request, prompt, progress)
        decoder, skip = self.codec.streaming_decoder(), 0
        if audios:
            with torch.inference_mode():
                skip = -decoder.push(prompt[ACOUSTIC].ids).shape[1]
            skip += audios[0].wave.shape[0]  # samples of the prompt that are still to come
        assert request.chunk_seconds is not None
        pieces = cascade.acoustic_pieces(Fraction(request.chunk_seconds).limit_denominator(10**6))
        waiting = prompt[ACOUSTIC].ids[:, :, :0]  # frames whose samples the codec still withholds
        for piece in itertools.chain(pieces, [None]):
            with torch.inference_mode():
                wave = decoder.finish() if piece is None else decoder.push(piece.ids)
                wave, skip = wave[:, skip:], max(0, skip - wave.shape[1])
            if piece is not None:
                waiting = torch.cat([waiting, piece.ids], dim=2)
            if wave.shape[1]:
                frames = wave.shape[1] // self.codec.spec.frame_size
                tokens = {ACOUSTIC: Tokens.full(waiting[:, :, :frames])}
                waiting, none = waiting[:, :, frames:], torch.zeros(1, dtype=torch.long)
                result = GeneratedAudio(
                    wave.float().cpu() / gains, torch.tensor([wave.shape[1]]), self.sample_rate,
                    none, tokens, list(notes), self._metadata(request),
                )  # fmt: skip
                yield self._finish(request, result)

    def acoustic_generation(
        self,
        wave: object,
        sample_rate: int,
        *,
        seed: int = 0,
        sampling: SamplingOverrides | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Keep what is said or played, sample how it sounds: acoustic tokens are drawn given the
        semantic tokens of ``wave`` (AudioLM, arXiv 2209.03143, section III-D)."""
        return self._from_semantic(
            "acoustic_generation", wave, sample_rate, seed, sampling, progress
        )

    def resynthesize(
        self,
        wave: object,
        sample_rate: int,
        *,
        through: Literal["codec", "semantic"] = "codec",
        levels: int | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Take audio through tokens and back, without randomness.

        Args:
            through: ``codec``: encode and decode; ``semantic``: keep the semantic tokens alone and
                take the most likely acoustic tokens given them.
            levels: with ``codec``, decode so many levels; None: those that the stages predict.
        """
        if through == "semantic":
            if levels is not None:
                raise GenerationError("levels", "goes with through='codec' only", "leave it out")
            greedy = {stage.name: {"temperature": 0} for stage in self.config.stages}
            return self._from_semantic("resynthesize", wave, sample_rate, 0, greedy, progress)
        if through != "codec":
            raise GenerationError("through", f"{through!r} is unknown", "use codec or semantic")
        total = self.codec.spec.num_levels
        predicted = self.assembly.streams[ACOUSTIC].num_levels
        count = predicted if levels is None else whole_number(levels)
        if count is None or not 1 <= count <= total:
            raise GenerationError("levels", f"{levels!r} is out of range", f"use 1 to {total}")
        audios = self.audio.prepared([(wave, sample_rate)], whole_units=False)
        request = self._request("resynthesize", audios[0].seconds, 0, 1, None)
        gains = self.audio.gains(audios)
        codes = self.audio.encode_stream(ACOUSTIC, audios, gains).levels(0, count)
        decoded = self.audio.decode(codes)[:, : audios[0].wave.shape[0]] / gains
        return self._finish(
            request,
            GeneratedAudio(
                decoded,
                torch.tensor([decoded.shape[1]]),
                self.sample_rate,
                torch.zeros(1, dtype=torch.long),
                {ACOUSTIC: codes},
                [audios[0].notes],
                self._metadata(request),
            ),
        )

    def save_pretrained(
        self, directory: Path | str, *, lm_dtype: torch.dtype | None = None
    ) -> Path:
        """Write the whole pipeline: ``pipeline.yaml`` (the resolved config) and all weights.

        Args:
            directory: made, or replaced as a whole if it holds a pipeline; anything else that
                is there is left alone.
            lm_dtype: store the stages' weights in this type: float16 halves the files, int8 keeps
                a code of eight bits per weight, and either rounds them. Tokenizers stay as they
                are.
        """
        directory = Path(directory)
        _check_replaceable(directory)
        for stage in self.config.stages:
            if stage.decoding.halves:
                raise OutputError(
                    f"stages.{stage.name}.decoding.weights",
                    f"is {stage.decoding.weights}: the weights in memory are rounded",
                    "load the pipeline with decoding.weights=stored to save it",
                )
        with atomic_directory(directory) as temporary:
            refs = {}
            for name, component in self.parts.items():
                part = self.assembly.parts[name]
                relative = Path(*name.split("."))
                (temporary / relative).mkdir(parents=True)
                trained = part.manifest.trained if part.manifest is not None else {}
                save_component(
                    component, temporary / relative, part.kind, part.use, trained, lm_dtype
                )
                options = {} if component.state_dict() else part.options.model_dump(mode="json")
                checkpoint = str(relative) if component.state_dict() else None
                ref = self.config.parts[name]
                # What a training started from is in the weights, and may not lie where these go.
                training = ref.training.model_copy(update={"start_from": None})
                refs[name] = ref.model_copy(
                    update={"checkpoint": checkpoint, "options": options, "training": training}
                )
            write_pipeline_file(replace_parts(self.config, refs), temporary / PIPELINE_FILE)
        return directory

    # --- how it does it ---------------------------------------------------------------------

    def _request(
        self,
        task: Task,
        seconds: float,
        seed: int,
        batch: int,
        sampling: SamplingOverrides | None,
        chunk_seconds: float | None = None,
    ) -> GenerationRequest:
        """Check what was asked for, and tell the plugins before any token is drawn."""
        length = real_number(seconds)
        if length is None or not 0 < length <= MAX_SECONDS:
            raise GenerationError(
                "seconds",
                f"{seconds!r} is out of range",
                f"use more than 0, at most {MAX_SECONDS:g}",
            )
        number_seed = whole_number(seed)
        if number_seed is None or not 0 <= number_seed < 2**62:
            raise GenerationError("seed", f"{seed!r} is no seed", "use a whole number from 0 on")
        chunk = None if chunk_seconds is None else real_number(chunk_seconds)
        if chunk_seconds is not None and (chunk is None or not MIN_CHUNK <= chunk <= MAX_SECONDS):
            raise GenerationError(
                "chunk_seconds",
                f"{chunk_seconds!r} is out of range",
                f"use {MIN_CHUNK:g} to {MAX_SECONDS:g}",
            )
        chosen = self._sampling(sampling)
        request = GenerationRequest(task, length, number_seed, batch, chosen, chunk)
        self.host.call_hook("segue_before_generate", pipeline=self, request=request)
        return request

    def _sampling(self, overrides: SamplingOverrides | None) -> dict[str, Sampling]:
        chosen = {stage.name: stage.sampling for stage in self.config.stages}
        for name, changes in _mapping(overrides or {}, "sampling").items():
            changes = _mapping(changes, f"sampling.{name}")
            if name not in chosen:
                raise GenerationError(
                    f"sampling.{name}", "is no stage", f"choose one of {', '.join(chosen)}"
                )
            merged = chosen[name].model_dump() | dict(changes)
            chosen[name] = validate(Sampling, merged, f"sampling.{name}")
        for name, asked in chosen.items():
            self.stage_lm(name).check_sampling(asked)
        return chosen

    def _cascade(
        self,
        request: GenerationRequest,
        prompt: Mapping[str, Tokens],
        progress: Progress | None,
        known: frozenset[str] = frozenset(),
    ) -> Cascade:
        """The stages that sample every stream but the ``known`` ones."""
        # Exact: a float product may lie a hair above a whole number of units.
        seconds = Fraction(request.seconds).limit_denominator(self.sample_rate)
        units = math.ceil(seconds * self.sample_rate / self.unit_samples)
        added = Fraction(units * self.unit_samples, self.sample_rate)  # seconds, whole frames
        return Cascade(self.assembly, self.stage_lm, request, added, prompt, known, progress)

    def _sampled(
        self,
        request: GenerationRequest,
        prompt: Mapping[str, Tokens],
        notes: Sequence[tuple[str, ...]],
        progress: Progress | None,
        known: frozenset[str] = frozenset(),
    ) -> tuple[dict[str, Tokens], list[tuple[str, ...]]]:
        """All streams, stage by stage; and the notes, with where audio ended by itself."""
        cascade = self._cascade(request, prompt, progress, known)
        streams = cascade.finish()
        frames = streams[ACOUSTIC].lengths - prompt[ACOUSTIC].lengths
        seconds = [float(n / self.codec.spec.frame_rate) for n in frames.tolist()]
        rows = zip(notes, cascade.ended, seconds, strict=True)
        return streams, [
            (*row, f"ended by itself after {length:.2f} s") if ended else row
            for row, ended, length in rows
        ]

    def _from_semantic(
        self,
        task: Task,
        wave: object,
        sample_rate: int,
        seed: int,
        sampling: SamplingOverrides | None,
        progress: Progress | None,
    ) -> GeneratedAudio:
        if self.semantic_tokenizer is None:
            raise GenerationError(
                self.config.name, "has no semantic tokenizer", "use a pipeline that has one"
            )
        audios = self.audio.prepared([(wave, sample_rate)], whole_units=True)
        request = self._request(task, audios[0].seconds, seed, 1, sampling)
        gains = self.audio.gains(audios)
        prompt = self.audio.no_prompt(1) | {
            SEMANTIC: self.audio.encode_stream(SEMANTIC, audios, gains)
        }
        known = frozenset({SEMANTIC})
        streams, notes = self._sampled(request, prompt, [audios[0].notes], progress, known)
        decoded = self.audio.decode(streams[ACOUSTIC]) / gains
        none = torch.zeros(1, dtype=torch.long)
        result = self._result(request, decoded, none, streams, notes)
        return self._finish(request, result)

    def _result(
        self,
        request: GenerationRequest,
        wave: Tensor,
        prompt_samples: Tensor,
        streams: Mapping[str, Tokens],
        notes: list[tuple[str, ...]],
    ) -> GeneratedAudio:
        lengths = streams[ACOUSTIC].lengths.cpu() * self.codec.spec.frame_size
        return GeneratedAudio(
            wave,
            lengths,
            self.sample_rate,
            prompt_samples,
            dict(streams),
            notes,
            self._metadata(request),
        )

    def _metadata(self, request: GenerationRequest) -> dict[str, Any]:
        return {
            "generator": "segue",
            "pipeline": self.config.name,
            "description": self.config.description,
            "task": request.task,
            "seconds": request.seconds,
            "seed": request.seed,
            "chunk_seconds": request.chunk_seconds,
            "sampling": {name: s.model_dump() for name, s in request.sampling.items()},
            "fingerprints": {n: spec.fingerprint for n, spec in self.assembly.streams.items()},
            "config": self.config.model_dump(mode="json"),
        }

    def _finish(self, request: GenerationRequest, audio: GeneratedAudio) -> GeneratedAudio:
        """Keep the audio within full scale, and let plugins mark it before anyone gets it."""
        for row, peak in enumerate(audio.wave.abs().amax(dim=1).tolist()):
            if peak > 1.0:
                audio.notes[row] = (*audio.notes[row], f"clipped a peak of {peak:.2f}")
        audio.wave = audio.wave.clamp(-1.0, 1.0)
        self.host.call_hook("segue_after_generate", pipeline=self, request=request, audio=audio)
        return audio


def _mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise GenerationError(place, f"is {value!r}", "give a mapping, as {'temperature': 0.7}")
    return value


def _check_replaceable(directory: Path) -> None:
    """Raise ``OutputError`` if saving would delete what is no pipeline."""
    if not directory.exists() or (directory / PIPELINE_FILE).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise OutputError(
            str(directory), "exists and holds no pipeline", "name a new or an empty directory"
        )
