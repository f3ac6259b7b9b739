"""Continue, generate, fill and resynthesize audio with assembled parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from segue.core.audio import Audio
from segue.core.errors import GenerationError
from segue.core.progress import ProgressChoice
from segue.core.spec import ACOUSTIC
from segue.core.tokens import Tokens
from segue.core.validation import whole_number
from segue.inference.bars import shown
from segue.inference.filling import Gap, fill_gap
from segue.inference.inputs import Prompt, with_rate
from segue.inference.loaded import LoadedPipeline
from segue.inference.recoding import survey
from segue.inference.request import (
    Drawing,
    GeneratedAudio,
    PromptAudio,
    Request,
    Task,
    with_recordings,
)
from segue.inference.transcoder import gains_of, gains_to
from segue.sound.open_audio import open_audio

if TYPE_CHECKING:
    from typing_extensions import Unpack

JOIN_SECONDS = 0.02  # cross-fade from a recording to decoded audio


class Pipeline(LoadedPipeline):
    """An assembled pipeline. Make one with ``from_pretrained`` or ``from_config``.

    Each method makes a ``Request``, which ``run`` or ``chunks`` turns into audio.
    """

    def continue_(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        seconds: float = 5.0,
        prompt_audio: PromptAudio = "original",
        chunk_seconds: float | None = None,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> GeneratedAudio:
        """Continue one prompt; return a batch of one.

        Args:
            wave: a path, a file opened in binary mode or its bytes, a tensor or array ``[T]``,
                ``[C, T]`` or ``[T, C]`` (float, int16 or int32) at any rate,
                ``(wave, sample_rate)``, ``Audio``, or an earlier result.
            seconds: length of audio to add.
            prompt_audio: what the result starts with: the recording, its codec version, or nothing.
            chunk_seconds: most new audio that a stage draws in its first window; each further
                window may hold four times as much. None: as much as fits a training crop.
            progress: called with a stage's name, frames done and frames in all. None shows bars in
                a terminal or notebook once work takes a second; True and False decide.
            drawing: ``seed``, ``sampling``, ``temperature``, ``top_k`` and ``top_p``: see
                ``segue.inference.request.Drawing``.

        Raises:
            AudioError: if the prompt cannot be used.
            GenerationError: if ``seconds``, ``seed`` or ``sampling`` is out of range.
        """
        return self.continue_batch(
            [with_rate(wave, sample_rate)],
            seconds=seconds,
            prompt_audio=prompt_audio,
            chunk_seconds=chunk_seconds,
            progress=progress,
            **drawing,
        )

    def continue_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        seconds: float = 5.0,
        prompt_audio: PromptAudio = "original",
        chunk_seconds: float | None = None,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> GeneratedAudio:
        """Continue prompts of any lengths together; row i equals prompt i alone with its seed.

        Args:
            prompts: each as ``wave`` of ``continue_``, with arrays in pairs with their rates. Other
                arguments are as for ``continue_``.
        """
        request = self.request(
            "continue",
            prompts,
            drawing,
            seconds=seconds,
            prompt_audio=prompt_audio,
            chunk_seconds=chunk_seconds,
        )
        return self.run(request, progress)

    def generate(
        self,
        seconds: float = 5.0,
        *,
        batch: int = 1,
        chunk_seconds: float | None = None,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> GeneratedAudio:
        """Generate audio without a prompt; row i equals a batch of one with its seed."""
        request = self.request(
            "generate", (), drawing, seconds=seconds, batch=batch, chunk_seconds=chunk_seconds
        )
        return self.run(request, progress)

    def stream(
        self,
        wave: object = None,
        sample_rate: int = 0,
        *,
        seconds: float = 5.0,
        chunk_seconds: float = 1.0,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> Iterator[GeneratedAudio]:
        """Continue a prompt, or generate without one, and yield audio while more is computed.

        Joined, the chunks are the continuation that ``continue_`` (or ``generate``) makes with the
        same seed and ``chunk_seconds``. Lifecycle hooks see every chunk on its own.

        Args:
            wave: the prompt; None for no prompt. Other arguments are as for ``continue_``.
            chunk_seconds: length of a chunk, and most new audio of a stage's first window; each
                further window may hold four times as much. The first chunk is shorter by the
                codec's look-ahead, which comes last.

        Returns:
            Batches of one, without the prompt; their tokens are the acoustic ones of the chunk.

        Raises:
            GenerationError: if the codec cannot stream, and errors as for ``continue_``.
        """
        if not self.codec.can_stream:
            codec = self.config.codec.use
            raise GenerationError("codec", f"{codec} cannot stream", "use continue_ or generate")
        prompts = [] if wave is None else [with_rate(wave, sample_rate)]
        task: Task = "continue" if prompts else "generate"
        request = self.request(
            task, prompts, drawing, seconds=seconds, chunk_seconds=chunk_seconds, work="stream"
        )
        return self.chunks(request, progress)

    def chunks(self, request: Request, progress: ProgressChoice = None) -> Iterator[GeneratedAudio]:
        """Draw what a request of ``stream`` asks for, chunk by chunk."""
        assert request.chunk_seconds is not None
        with shown(progress) as report:
            generation = self._generation(request, report)
            prompt, start = generation.prompt[ACOUSTIC], 0
            scale = self._scale(request, prompt)
            seconds = Fraction(request.chunk_seconds).limit_denominator(10**6)
            pieces = generation.acoustic_pieces(seconds)
            for wave, codes in self.audio.decode_pieces(prompt, pieces):
                tokens = {ACOUSTIC: codes}
                audio = GeneratedAudio.of(request, wave / scale, self.sample_rate, tokens)
                yield self._deliver(request, audio, start_sample=start)
                start += wave.shape[1]

    def fill(
        self,
        wave: object,
        sample_rate: int = 0,
        start: float = 0.0,
        end: float | None = None,
        *,
        candidates: int = 8,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> GeneratedAudio:
        """Redraw a stretch of a recording, and keep what is before and after it.

        A masked stage draws the stretch from both sides. Any other stage continues the left side
        ``candidates`` times, and the one stays after which the right side is likeliest. The result
        says which way each stage went, in ``notes`` and in ``metadata["ways"]``. Nothing that is
        drawn depends on what was in the stretch.

        Args:
            wave: the recording, of any length; as for ``continue_``.
            start: where the stretch begins, in seconds. It is widened to whole frames of every
                stream; ``metadata["gap"]`` holds what was drawn.
            end: where it ends, in seconds; None for the end of the recording.
            candidates: continuations drawn by each stage that cannot look both ways. Other
                arguments are as for ``continue_``.

        Returns:
            A batch of one: the whole recording at the pipeline's rate, the same samples as before
            but for the stretch and a cross-fade of 20 ms on each side of it. ``continuation()`` is
            the stretch. The tokens are those of the stretch and of the sides that were looked at.

        Raises:
            AudioError: if the recording cannot be used.
            GenerationError: if a value is out of range, or too little is kept.
        """
        recording = with_rate(wave, sample_rate)
        request = self.request(
            "fill", [recording], drawing, gap=(start, end), candidates=candidates, whole=True
        )
        return self.run(request, progress)

    def acoustic_generation(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        progress: ProgressChoice = None,
        **drawing: Unpack[Drawing],
    ) -> GeneratedAudio:
        """Keep what is said or played and draw how it sounds: acoustic tokens given the semantic
        tokens of ``wave`` (AudioLM, arXiv 2209.03143, section III-D)."""
        prompt = with_rate(wave, sample_rate)
        return self._from_semantic("acoustic_generation", prompt, drawing, progress)

    def resynthesize(
        self,
        wave: object,
        sample_rate: int = 0,
        *,
        through: Literal["codec", "semantic"] = "codec",
        levels: int | None = None,
        progress: ProgressChoice = None,
    ) -> GeneratedAudio:
        """Take audio through tokens and back, without randomness.

        Args:
            through: ``codec``: encode and decode all of it, in pieces; ``semantic``: keep only the
                semantic tokens of its end, and take the most likely acoustic tokens given them.
            levels: with ``codec``, decode this many levels; None for those that stages predict.
        """
        prompt = with_rate(wave, sample_rate)
        if through == "semantic":
            if levels is not None:
                raise GenerationError("levels", "goes with through='codec' only", "leave it out")
            # Temperature 0: what is heard is due to the semantic tokens, not to a draw.
            return self._from_semantic("resynthesize", prompt, {"temperature": 0}, progress)
        if through != "codec":
            raise GenerationError("through", f"{through!r} is unknown", "use codec or semantic")
        count = self._levels(levels)
        request = self.request("resynthesize", [prompt], whole=True)
        gains, length = self._gains(request), request.prompts[0].wave.shape[0]
        codes = self.audio.encode_whole(request.prompts[0], gains[0]).levels(0, count)
        made = self.audio.decode(codes)[:, :length] / gains
        audio = GeneratedAudio.of(request, made, self.sample_rate, {ACOUSTIC: codes})
        return self._deliver(request, audio)

    def recode(
        self,
        path: Path | str,
        *,
        levels: int | None = None,
        place: str | None = None,
        progress: ProgressChoice = None,
    ) -> Iterator[GeneratedAudio]:
        """Take a file of any length through the codec, and yield it in pieces of 20 s.

        Joined, they are the audio of ``resynthesize(path)``, but only a few pieces are in memory at
        a time. Lifecycle hooks see every piece on its own; notes are those of the first one.

        Args:
            levels: decode this many; None for those that stages predict.
            place: the file's name in errors.

        Raises:
            AudioError: if the file cannot be used.
        """
        count, audio, rate = self._levels(levels), self.audio, self.sample_rate
        with open_audio(Path(path), place) as opened, shown(progress) as report:
            found = survey(opened, rate, place or str(path))
            request = self.request("resynthesize", seconds=found.samples / rate)
            gain = gains_of(audio.limits.level, torch.tensor([found.rms]))
            blocks = (block / found.scale - found.offset for block in opened.blocks_at(rate))
            pieces = (
                Tokens.full(ids).levels(0, count)
                for ids in audio.encode_pieces(blocks, found.samples, gain[0])
            )
            left, notes = found.samples, found.notes
            for wave, codes in audio.decode_all(pieces, count, found.samples):
                wave = wave[:, :left] / gain
                made = GeneratedAudio.of(request, wave, rate, {ACOUSTIC: codes})
                made.notes[0], notes = (*notes, *made.notes[0]), ()
                start = found.samples - left
                left -= wave.shape[1]
                if report is not None:
                    report("recode", found.samples - left, found.samples)
                yield self._deliver(request, made, start_sample=start)

    def _levels(self, levels: object) -> int:
        """Return how many of the codec's levels to decode."""
        total = self.codec.spec.num_levels
        predicted = self.assembly.streams[ACOUSTIC].num_levels
        count = predicted if levels is None else whole_number(levels)
        if count is None or not 1 <= count <= total:
            raise GenerationError("levels", f"{levels!r} is out of range", f"use 1 to {total}")
        return count

    def _from_semantic(
        self, task: Task, prompt: Prompt, drawing: Drawing, progress: ProgressChoice
    ) -> GeneratedAudio:
        """Keep the semantic tokens of a recording, and draw all acoustic ones."""
        if self.semantic_tokenizer is None:
            raise GenerationError(
                self.config.name, "has no semantic tokenizer", "use a pipeline that has one"
            )
        return self.run(self.request(task, [prompt], drawing), progress)

    def run(self, request: Request, progress: ProgressChoice = None) -> GeneratedAudio:
        """Draw what a request asks for: run all stages to the end, and decode what they drew."""
        if request.gap is not None:
            return self._fill(request, progress)
        with shown(progress) as report:
            generation = self._generation(request, report)
            for stage in generation.runs:
                generation.advance(stage)
        streams, ended = generation.streams(), generation.ended
        scale = self._scale(request, streams[ACOUSTIC])
        wave = self.audio.decode(streams[ACOUSTIC]) / scale[:, None]
        lengths = streams[ACOUSTIC].lengths.cpu() * self.codec.spec.frame_size
        kept = torch.zeros_like(lengths)
        if request.task == "continue":
            kept = torch.tensor([audio.wave.shape[0] for audio in request.prompts])
            if request.prompt_audio == "original":
                join = round(JOIN_SECONDS * self.sample_rate)
                wave = with_recordings(wave, request.prompts, join)
        audio = GeneratedAudio.of(request, wave, self.sample_rate, streams, lengths, kept, ended)
        return self._deliver(request, audio)

    def _fill(self, request: Request, progress: ProgressChoice) -> GeneratedAudio:
        """Draw the gap of a recording from both of its sides, and join it to them."""
        limits, rate = self.audio.limits, self.sample_rate
        assert request.gap is not None
        gap = Gap.of(
            request.prompts[0],
            *request.gap,
            self.unit_samples,
            limits.min_seconds,
            limits.max_seconds,
        )
        gain = gains_to(limits.level, [torch.cat([gap.left, gap.right])])
        left, right = (
            self.audio.encode([Audio(side, rate)], gain)
            if side.numel()
            else self.audio.no_prompt(1)
            for side in (gap.left, gap.right)
        )
        length = Fraction(gap.frames, rate)
        with shown(progress) as report:
            streams, ways = fill_gap(
                self.assembly, self.stage_lm, request, length, (left, right), report
            )
        drawn = self.audio.decode(streams[ACOUSTIC])[0] / gain
        joined = gap.joined(drawn, round(JOIN_SECONDS * rate))[None]
        audio = GeneratedAudio.of(request, joined, rate, streams)
        audio.prompt_samples = torch.tensor([gap.start])
        audio.suffix_samples = torch.tensor([joined.shape[1] - gap.end])
        audio.note(0, f"drew {gap.start / rate:.2f} to {gap.end / rate:.2f} s anew")
        for stage, way in ways.items():
            audio.note(0, f"{stage}: {way}")
        return self._deliver(request, audio, candidates=request.candidates, ways=ways)
