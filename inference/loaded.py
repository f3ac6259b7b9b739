"""Hold the parts of a pipeline: load, move, save, and take a request to its result.

Prompts are brought to the codec's rate and encoded (``transcoder``), the stages draw new tokens
(``generation``), the codec decodes them; lifecycle hooks see the request before, and the audio
after.
"""

from __future__ import annotations

import copy
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.assembly import Assembly, assemble
from segue.core.audio import Audio
from segue.core.checkpoint import build_part, checked_device, save_component
from segue.core.config import PipelineConfig, Work, replace_parts
from segue.core.config_files import load_config, write_pipeline_file
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import (
    CheckpointError,
    ConfigError,
    GenerationError,
    OutputError,
    UntrainedError,
)
from segue.core.files import atomic_directory
from segue.core.interfaces import AcousticCodec, Component, SemanticTokenizer, StageLM
from segue.core.options import Sampling
from segue.core.plugins import PluginHost, default_host
from segue.core.progress import Progress, ProgressChoice
from segue.core.spec import SEMANTIC
from segue.core.tokens import Tokens
from segue.core.validation import suggestion
from segue.inference.bars import shown
from segue.inference.filling import Gap
from segue.inference.generation import Generation, check_chooser
from segue.inference.hub import fetch, is_hub_name, model_card, publish
from segue.inference.inputs import Prompt
from segue.inference.promises import check_hooked
from segue.inference.request import (
    Drawing,
    GeneratedAudio,
    PromptAudio,
    Request,
    SamplingOverrides,
    Task,
    chosen_sampling,
    metadata_of,
)
from segue.inference.threads import survive_forks, use_threads
from segue.inference.transcoder import Transcoder

if TYPE_CHECKING:
    from typing_extensions import Self

RECORDED = object()  # stands for the length of the recording


class LoadedPipeline:
    """The parts of a pipeline with their weights, ready to generate."""

    def __init__(
        self, assembly: Assembly, parts: Mapping[str, Component], host: PluginHost
    ) -> None:
        survive_forks()
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
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        host: PluginHost | None = None,
        progress: ProgressChoice = None,
    ) -> Self:
        """Load trained weights.

        Args:
            source: a domain with shipped weights (``speech``, ``piano``), another of its pipelines
                (``speech/three_stage``), a directory that ``save_pretrained`` or ``segue train``
                wrote, or a repository of the Hugging Face Hub (``org/name``).
            overrides: ``path.to.key=value``, as ``--set`` takes them.
            device: where the weights go; ``auto`` takes a GPU if there is one.
            dtype: number format of the stages' weights while generating: ``bfloat16`` or
                ``float16`` for GPUs, ``int8`` for CPUs, ``float32``; None or ``auto`` leaves it to
                the config. Tokenizers stay exact.
            revision: branch, tag or commit of a repository of the Hub; its main branch by default.
            token: of the Hub; by default that of ``hf auth login``.
            progress: called with ``loading``, parts done and parts in all; None, True and False as
                for ``Pipeline.continue_``.

        Raises:
            SegueError: if there are no such weights, or they cannot be used.
        """
        host = host or default_host()
        if not isinstance(source, (str, Path)):
            raise CheckpointError("source", f"is {source!r}", "name a domain or a directory")
        if is_hub_name(source, host):
            source = fetch(str(source), revision, token)
        elif revision is not None:
            fix = "leave it out, or name a repository of the Hub: org/name"
            raise CheckpointError("revision", f"goes with a repository, not {source}", fix)
        config = load_config(source, host, overrides).config
        config = with_dtype(config, dtype)
        try:
            return cls.from_config(config, device=device, host=host, progress=progress)
        except UntrainedError as error:
            settings = (text for override in overrides for text in ("--set", override))
            command = shlex.join(["segue", "train", "all", "--config", str(source), *settings])
            run = "--data FOLDER -o runs/mine"
            error.fix = f"train it: {command} {run}; then name runs/mine/pipeline"
            raise

    @classmethod
    def from_config(
        cls,
        config: PipelineConfig,
        *,
        device: torch.device | str = "cpu",
        host: PluginHost | None = None,
        allow_untrained: bool = False,
        progress: ProgressChoice = None,
    ) -> Self:
        """Prove that the parts fit, then build and load them.

        Args:
            allow_untrained: permit parts without weights (to train or test them).
            progress: as for ``from_pretrained``.

        Raises:
            AssemblyError: if parts do not fit, or one that must be trained has no checkpoint.
        """
        host = host or default_host()
        use_threads(config.threads)
        device = checked_device(device)
        assembly = assemble(config, host)  # refuses what does not fit before weights are read
        parts: dict[str, Component] = {}
        with shown(progress) as report:
            for name, part in assembly.parts.items():
                built = build_part(part, host, allow_untrained=allow_untrained)
                parts[name] = built.to(device)
                if report is not None:
                    report("loading", len(parts), len(assembly.parts))
        pipeline = cls(assembly, parts, host)
        for stage in config.stages:
            pipeline.stage_lm(stage.name).decode_with(stage.decoding)
        host.call_hook("segue_pipeline_assembled", pipeline=pipeline)
        for plugin in host.statuses():  # those that a registry file names are not left out silently
            if plugin.state == "broken" and plugin.source.endswith((".yaml", ".yml")):
                warnings.warn(f"{plugin.label} is left out: {plugin.error}", stacklevel=2)
        return pipeline

    def __repr__(self) -> str:
        parts = [f"{name}={part.use}" for name, part in self.config.parts.items()]
        name = f"{type(self).__name__}({self.config.name!r}, {self.sample_rate} Hz"
        return f"{name}, {', '.join(parts)}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The host holds modules, which cannot be copied; copies share it.
        return type(self)(self.assembly, copy.deepcopy(self.parts, memo), self.host)

    def __reduce__(self) -> tuple[Any, ...]:
        # A host's plugins depend on the process: another process uses its own host.
        return _unpickled, (type(self), self.assembly, self.parts)

    def to(self, device: torch.device | str) -> Self:
        """Move all weights, with ``auto`` to a GPU if there is one, or raise ``ConfigError``."""
        if isinstance(device, torch.dtype):  # as PyTorch's modules take it
            fix = "give dtype to from_pretrained"
            raise ConfigError("to", f"takes a device, not {device}", fix)
        target = checked_device(device)
        for part in self.parts.values():
            part.to(target)
        for stage in self.config.stages:
            self.stage_lm(stage.name).decode_with(stage.decoding)
        return self

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
        directory, config = Path(directory), self.config
        replaceable = not directory.exists() or (directory / PIPELINE_FILE).is_file()
        # Saving would delete what else it holds.
        if not replaceable and (not directory.is_dir() or any(directory.iterdir())):
            fix = "name a new or an empty directory"
            raise OutputError(str(directory), "exists and holds no pipeline", fix)
        for stage in config.stages:
            if stage.decoding.halves:
                raise OutputError(
                    f"stages.{stage.name}.decoding.weights",
                    f"is {stage.decoding.weights}: the weights in memory are rounded",
                    "load the pipeline with dtype='float32' to save it",
                )
        with atomic_directory(directory) as temporary:
            saved = {}
            for name, slot in config.slots.items():
                part, component, folder = self.assembly.parts[name], self.parts[name], slot.folder
                (temporary / folder).mkdir(parents=True)
                trained = part.manifest.trained if part.manifest is not None else {}
                place = temporary / folder
                save_component(component, place, part.kind, part.use, trained, lm_dtype)
                update = {
                    "use": part.use,
                    "checkpoint": str(folder),
                    "options": part.options.model_dump(mode="json"),
                    # The weights hold what training started from; its path may exist here only.
                    "training": slot.component.training.without_start(),
                }
                saved[name] = slot.component.model_copy(update=update)
            config = config.model_copy(update={"threads": None})  # those of this machine
            write_pipeline_file(replace_parts(config, saved), temporary / PIPELINE_FILE)
        return directory

    def push_to_hub(
        self,
        name: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload pipeline",
        licence: str | None = None,
        lm_dtype: torch.dtype | None = None,
    ) -> str:
        """Save the pipeline to a repository of the Hugging Face Hub, with a model card.

        Args:
            name: ``org/name``; made if it does not exist.
            revision: branch, made if it does not exist; by default the main one.
            private: whether a new repository is private; by default as its owner's settings say.
            token: of the Hub; by default that of ``hf auth login``.
            message: of the commit.
            licence: the Hub's name of a licence for the card, such as ``apache-2.0``. A repository
                that has a card keeps it.
            lm_dtype: as for ``save_pretrained``.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: if the Hub refuses, or cannot be reached.
        """
        return publish(
            lambda directory: self.save_pretrained(directory, lm_dtype=lm_dtype),
            model_card(self.assembly, licence).replace("REPOSITORY", name),
            name,
            revision=revision,
            private=private,
            token=token,
            message=message,
        )

    # --- from a request to its result -----------------------------------------------------------

    def request(
        self,
        task: Task,
        prompts: Sequence[Prompt] = (),
        drawing: Drawing | None = None,
        *,
        seconds: object = RECORDED,
        batch: object = 1,
        chunk_seconds: object = None,
        prompt_audio: PromptAudio = "original",
        gap: tuple[object, object] | None = None,
        candidates: object = 1,
        whole: bool = False,
        work: Work | None = None,
    ) -> Request:
        """Check and complete a request, and show it to the plugins before any token is drawn.

        Args:
            task: the method of ``Pipeline`` that makes such a request.
            prompts: one recording per row, in any form that ``Pipeline.continue_`` takes.
            gap: start and end of a stretch to draw anew, in seconds; an end of None is that of the
                recording.
            whole: keep recordings of any length as they are; else their ends, cut to whole frames,
                as long as the config lets prompts be.
            work: chooses the stages that run; by default from the number of rows.

        Raises:
            AudioError: if a recording cannot be used.
            GenerationError: if a value is out of range.
        """
        settings: dict[str, Any] = dict(drawing or {})
        known = {*Drawing.__annotations__, *([] if seconds is RECORDED else ["seconds"])}
        for name in settings.keys() - known:
            raise GenerationError(name, "is not an argument", suggestion(name, known))
        if prompt_audio not in get_args(PromptAudio):
            fix = "use original, codec or none"
            raise GenerationError("prompt_audio", f"{prompt_audio!r} is unknown", fix)
        if work == "stream" and chunk_seconds is None:
            raise GenerationError("chunk_seconds", "is None", "give the length of a chunk")
        drawn = {stage.target.stream for stage in self.assembly.stages}
        if task in ("continue", "generate", "fill") and self.audio.streams.keys() - drawn:
            fix = "resynthesize a recording, or add a stage that predicts them"
            raise GenerationError(self.config.name, "has no stage for semantic tokens", fix)
        limits, rate, recordings = self.audio.limits, self.sample_rate, list[Audio]()
        if whole:
            recordings = [self.audio.recording(prompt) for prompt in prompts]
        elif prompts or task == "continue":
            recordings = self.audio.prepared(prompts, whole_units=True)
        if gap is not None:
            least, most = limits.min_seconds, limits.max_seconds
            found = Gap.of(recordings[0], *gap, self.unit_samples, least, most)
            gap, seconds = (found.start / rate, found.end / rate), found.frames / rate
        rows = len(recordings) or batch
        seed, chosen = settings.pop("seed", 0), self._sampling(**settings)
        work = work or ("continue" if rows == 1 else "batch")
        running = self.config.running(self.device.type, work)
        request = Request.checked(
            task,
            seconds=recordings[0].seconds if seconds is RECORDED else seconds,
            seed=seed,
            batch=rows,
            sampling={stage.name: chosen[stage.name] for stage in running},
            chunk_seconds=chunk_seconds,
            prompts=tuple(recordings),
            prompt_audio=prompt_audio,
            gap=gap,
            candidates=candidates,
        )
        for name, sampling in request.sampling.items():
            lm = self.stage_lm(name)
            lm.check_sampling(sampling)
            if sampling.candidates > 1:
                check_chooser(lm, self.audio.tokenizer_of(lm.stage.target.stream))
        self.host.call_hook("segue_before_generate", pipeline=self, request=request)
        return request

    def _sampling(
        self,
        sampling: SamplingOverrides | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> dict[str, Sampling]:
        """Return the sampling of each stage; see ``Drawing``."""
        values = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        shared = {name: value for name, value in values.items() if value is not None}
        return chosen_sampling(self.config.stages, sampling, shared)

    def _gains(self, request: Request) -> Float[Tensor, "B"]:
        """Return the factors between the level of each row and that of the training data."""
        return self.audio.gains(request.prompts) if request.prompts else torch.ones(request.batch)

    def _scale(self, request: Request, codes: Tokens) -> Float[Tensor, "B"]:
        """Return what decoded audio is divided by, to have the level of the prompts."""
        gains, limits = self._gains(request), self.audio.limits
        if request.task != "continue":
            return gains
        lost = self.audio.codec_gains(request.prompts, gains, codes) if limits.match_codec else 1
        return gains * lost / 10 ** (limits.make_up_db / 20)

    def _generation(self, request: Request, progress: Progress | None) -> Generation:
        """Encode the prompts; return the stages that draw every stream that is not known."""
        prompt, known = self.audio.no_prompt(request.batch), frozenset[str]()
        if request.task == "continue":
            # At the level of the training data; `run` brings the result back to the prompt's.
            prompt = self.audio.encode(request.prompts, self._gains(request))
        elif request.prompts:  # only the semantic tokens of the recording are kept
            known = frozenset({SEMANTIC})
            gains = self._gains(request)
            prompt[SEMANTIC] = self.audio.encode_stream(SEMANTIC, request.prompts, gains)
        added = self.audio.whole_seconds(request.seconds)
        tokenizer_of = self.audio.tokenizer_of
        return Generation(
            self.assembly, self.stage_lm, request, added, prompt, tokenizer_of, known, progress
        )

    def _deliver(self, request: Request, audio: GeneratedAudio, **more: Any) -> GeneratedAudio:
        """Describe the result, and let plugins mark it before anyone gets it."""
        audio.metadata = metadata_of(request, self.assembly) | more
        before = replace(audio, metadata=dict(audio.metadata))
        self.host.call_hook("segue_after_generate", pipeline=self, request=request, audio=audio)
        check_hooked(self.host.hook.segue_after_generate, audio, before)
        audio.clip()
        return audio


def with_dtype(config: PipelineConfig, dtype: torch.dtype | str | None) -> PipelineConfig:
    """Return the config with another format of the stages' weights, or raise ``ConfigError``."""
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return config
    formats = {"float32": "stored", **{each: each for each in ("bfloat16", "float16", "int8")}}
    if name not in formats:
        fix = f"use auto, {', '.join(formats)}"
        raise ConfigError("dtype", f"{dtype!r} is not a number format of stages", fix)
    weights = {"weights": formats[name]}
    stages = tuple(
        stage.model_copy(update={"decoding": stage.decoding.model_copy(update=weights)})
        for stage in config.stages
    )
    return config.model_copy(update={"stages": stages})


def _unpickled(
    kind: type[LoadedPipeline], assembly: Assembly, parts: Mapping[str, Component]
) -> LoadedPipeline:
    return kind(assembly, parts, default_host())
