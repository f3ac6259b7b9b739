"""Continue, generate, fill and resynthesize audio with assembled parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal

import torch

from segue.core.audio import Audio
from segue.core.errors import GenerationError
from segue.core.filling import Gap, fill_gap
from segue.core.loaded import JOIN_SECONDS, LoadedPipeline
from segue.core.progress import Progress
from segue.core.request import (
    GeneratedAudio,
    PromptAudio,
    Request,
    SamplingOverrides,
    Task,
)
from segue.core.spec import ACOUSTIC
from segue.core.transcoder import gains_to
from segue.core.validation import whole_number

MAX_CANDIDATES = 64


class Pipeline(LoadedPipeline):
    """An assembled pipeline. Make one with ``from_pretrained`` or ``from_config``."""

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
            self.audio.prepared(prompts, whole_units=True),
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
        prompts = [] if wave is None else [_prompt(wave, sample_rate)]
        request = self._request(
            "continue" if prompts else "generate",
            self.audio.prepared(prompts, whole_units=True) if prompts else (),
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

    def fill(
        self,
        wave: object,
        sample_rate: int = 0,
        start: float = 0.0,
        end: float | None = None,
        *,
        seed: int = 0,
        candidates: int = 8,
        sampling: SamplingOverrides | None = None,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Draw a stretch of a recording anew, and keep what is before and after it.

        A masked stage draws the stretch from both sides. Any other stage continues the left side
        ``candidates`` times, and the one stays after which the right side is likeliest. The result
        says which way each stage went, in ``notes`` and in ``metadata["ways"]``. Nothing that is
        drawn depends on what was in the stretch.

        Args:
            wave: the recording, of any length; as for ``continue_``.
            sample_rate: of ``wave``; not needed with ``Audio``.
            start, end: of the stretch in seconds. It is widened to whole frames of every stream;
                ``metadata["gap"]`` holds what was drawn. None for the end of the recording.
            seed: the same seed gives the same audio.
            candidates: continuations drawn by each stage that cannot look both ways.
            sampling: as for ``continue_``.
            progress: called with a stage's name, frames done and frames in all.

        Returns:
            A batch of one: the whole recording at the pipeline's rate, the same samples as before
            but for the stretch and a cross-fade of 20 ms on each side of it. ``continuation()`` is
            the stretch. The tokens are those of the stretch and of the sides that were looked at.

        Raises:
            AudioError: if the recording cannot be used.
            GenerationError: if a value is out of range, or too little is kept.
        """
        most = whole_number(candidates)
        if most is None or not 1 <= most <= MAX_CANDIDATES:
            fix = f"use 1 to {MAX_CANDIDATES}"
            raise GenerationError("candidates", f"{candidates!r} is out of range", fix)
        limits, rate, unit = self.audio.limits, self.sample_rate, self.unit_samples
        recording = self.audio.recording(_prompt(wave, sample_rate))
        gap = Gap.of(recording, start, end, unit, limits.min_seconds, limits.max_seconds)
        request = self._request(
            "fill",
            [recording],
            seconds=gap.frames / rate,
            seed=seed,
            sampling=sampling,
            gap=(gap.start / rate, gap.end / rate),
        )
        gain = gains_to(limits.level, [torch.cat([gap.left, gap.right])])
        left, right = (
            self.audio.encode([Audio(side, rate)], gain)
            if side.numel()
            else self.audio.no_prompt(1)
            for side in (gap.left, gap.right)
        )
        length = Fraction(gap.frames, rate)
        streams, ways = fill_gap(
            self.assembly, self.stage_lm, request, length, (left, right), most, progress
        )
        drawn = self.audio.decode(streams[ACOUSTIC])[0] / gain
        joined = gap.joined(drawn, round(JOIN_SECONDS * rate))[None]
        audio = GeneratedAudio.of(request, joined, rate, streams)
        audio.prompt_samples = torch.tensor([gap.start])
        audio.suffix_samples = torch.tensor([joined.shape[1] - gap.end])
        audio.note(0, f"drew {gap.start / rate:.2f} to {gap.end / rate:.2f} s anew")
        for stage, way in ways.items():
            audio.note(0, f"{stage}: {way}")
        return self._deliver(request, audio, candidates=most, ways=ways)

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
        prompts = self.audio.prepared([prompt], whole_units=False)
        request = self._request("resynthesize", prompts)
        gains, length = self._gains(request), request.prompts[0].wave.shape[0]
        codes = self.audio.encode_stream(ACOUSTIC, request.prompts, gains).levels(0, count)
        made = self.audio.decode(codes)[:, :length] / gains
        audio = GeneratedAudio.of(request, made, self.sample_rate, {ACOUSTIC: codes})
        return self._deliver(request, audio)

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
        prompts = self.audio.prepared([prompt], whole_units=True)
        request = self._request(task, prompts, seed=seed, sampling=sampling)
        generation = self._generation(request, progress)
        return self._drawn(request, generation.finish(), generation.ended)


def _prompt(wave: object, sample_rate: int) -> tuple[object, int] | Audio:
    return wave if isinstance(wave, Audio) else (wave, sample_rate)
