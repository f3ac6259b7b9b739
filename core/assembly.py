"""Prove that the parts of a pipeline fit together, before any weight is loaded. Imports no torch.

``plan`` reads configs and ``component.json`` files only. Every refusal names both parts and the
way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from segue.core.component_manifest import ComponentManifest, read_manifest
from segue.core.config.load import kind_of
from segue.core.config.schema import ComponentConfig, PipelineConfig, StageConfig
from segue.core.errors import AssemblyError
from segue.core.options import FINGERPRINT_DIGITS, Options, TokenizerOptions, options_digest
from segue.core.plugins import PluginHost
from segue.core.records import Kind
from segue.core.spec import ACOUSTIC, SEMANTIC, SliceSpec, StageSpec, StreamSlice, TokenSpec
from segue.core.validation import below

TOKENIZER_OF = {SEMANTIC: "semantic_tokenizer", ACOUSTIC: "codec"}


@dataclass(frozen=True)
class PartPlan:
    """One component that is to be built, and the weights it is to be given."""

    part: str
    kind: Kind
    use: str
    options: Options
    checkpoint: Path | None
    manifest: ComponentManifest | None

    @property
    def to_be_fitted(self) -> bool:
        """Whether its checkpoint was fitted with other options than these."""
        if self.manifest is None:
            return False
        then, now = self.manifest.options, self.options.model_dump(mode="json")
        return any(then.get(key, now[key]) != now[key] for key in self.options.of_fitting)


@dataclass(frozen=True)
class AssemblyPlan:
    """A pipeline whose parts are known to fit.

    Attributes:
        streams: the tokens of each stream that stages predict: of a codec maybe its first levels.
    """

    config: PipelineConfig
    parts: Mapping[str, PartPlan]
    streams: Mapping[str, TokenSpec]
    stages: tuple[StageSpec, ...]


def plan(config: PipelineConfig, host: PluginHost) -> AssemblyPlan:
    """Check every promise that one part of ``config`` relies on another for.

    Raises:
        AssemblyError: if parts do not fit: streams that do not chain, levels predicted twice or
            never, frame rates without a whole ratio, codebook sizes or fingerprints that differ.
        CheckpointError: if a checkpoint's description cannot be read.
        ConfigError, PluginError: if a part cannot be described at all.
    """
    parts = {part: plan_part(part, ref, host) for part, ref in config.parts.items()}
    streams = {
        stream: _token_spec(parts[part]) for stream, part in TOKENIZER_OF.items() if part in parts
    }
    _check_streams(streams)
    stages = tuple(bind_stage(stage, streams) for stage in config.stages)
    predicted = _predicted(stages, streams)
    _check_chain(stages)
    for stage in stages:
        _check_rates(stage)
        _check_trained_on(stage, parts[f"stages.{stage.name}"], streams)
    return AssemblyPlan(config, parts, predicted, stages)


def plan_part(part: str, ref: ComponentConfig, host: PluginHost) -> PartPlan:
    """What one part is built from; it is held against nothing but its own checkpoint.

    Raises:
        AssemblyError: if its checkpoint is of another plugin or of other options.
        CheckpointError: if its checkpoint's description cannot be read.
        ConfigError, PluginError: if the plugin or its options cannot be had.
    """
    kind = kind_of(part)
    place = f"{part}.lm" if kind == "stage_lm" else part
    if ref.checkpoint is None:
        options = host.options(kind, ref.use, ref.options, f"{place}.options")
        return PartPlan(part, kind, ref.use, options, None, None)
    directory = Path(ref.checkpoint)
    manifest = read_manifest(directory)
    if (manifest.kind, manifest.use) != (kind, ref.use):
        raise AssemblyError(
            f"{place}.use",
            f"is {ref.use}, but the checkpoint {directory} holds a {manifest.kind} {manifest.use}",
            f"set {place}.use={manifest.use}, or name another checkpoint",
        )
    options = host.options(kind, ref.use, manifest.options, f"{directory}/component.json")
    if ref.options:  # what must be given was given when the checkpoint was trained
        asked = host.options(kind, ref.use, ref.options, f"{place}.options")
        changed = _changed(place, asked, options, directory)
        options = host.options(kind, ref.use, changed, f"{place}.options")
    return PartPlan(part, kind, ref.use, options, directory, manifest)


def _changed(place: str, asked: Options, trained: Options, directory: Path) -> dict[str, Any]:
    """The checkpoint's options, with those that the config says explicitly.

    They must be what the checkpoint was trained with, apart from those that only say how it is
    trained further or fitted.
    """
    free = asked.of_training | asked.of_fitting
    values = trained.model_dump(mode="json")
    wanted = _overlaid(trained, asked)
    for key in sorted(asked.model_fields_set):
        if wanted[key] != values[key] and key not in free:
            raise AssemblyError(
                f"{place}.options.{key}",
                f"is {getattr(asked, key)!r}, but the checkpoint {directory} was trained with"
                f" {getattr(trained, key)!r}",
                f"drop the option, or train anew: --set {place}.checkpoint=null",
            )
    return wanted


def _overlaid(base: Options, asked: Options) -> dict[str, Any]:
    """The values of ``base``, with what is said explicitly in ``asked``, however deep."""
    values, said = base.model_dump(mode="json"), asked.model_dump(mode="json")
    for key in asked.model_fields_set:
        had, wanted = getattr(base, key), getattr(asked, key)
        nested = isinstance(had, Options) and isinstance(wanted, Options)
        values[key] = _overlaid(had, wanted) if nested else said[key]
    return values


def _token_spec(part: PartPlan) -> TokenSpec:
    """The spec that a tokenizer's options promise, with its checkpoint's fingerprint."""
    if not isinstance(part.options, TokenizerOptions):
        raise AssemblyError(
            f"{part.part}.use",
            f"{part.use} has options without a spec()",
            "let its options model extend segue.core.options.TokenizerOptions",
        )
    recorded = None
    if part.manifest is not None and not part.to_be_fitted:
        recorded = part.manifest.token_spec
    with below(f"{part.part}.options"):
        spec = part.options.spec()
        if recorded is None:
            # Right for a tokenizer that learns nothing; matches no trained stage if weights are
            # still to come.
            digest = options_digest(part.use, part.options).hexdigest()
            return spec.with_fingerprint(digest[:FINGERPRINT_DIGITS])
    if recorded.with_fingerprint("") != spec.with_fingerprint(""):
        raise AssemblyError(
            f"{part.part}.checkpoint",
            f"{part.checkpoint} was saved with {_shape(recorded)}, {part.use} now says "
            f"{_shape(spec)}",
            f"install the version of {part.use} that made the checkpoint",
        )
    return recorded


def _shape(spec: TokenSpec) -> str:
    return f"{spec.num_levels} x {spec.codebook_size} codes at {spec.frame_rate} Hz"


def _check_streams(streams: Mapping[str, TokenSpec]) -> None:
    for stream, spec in streams.items():
        part = TOKENIZER_OF[stream]
        if (Fraction(spec.sample_rate) / spec.frame_rate).denominator != 1:
            raise AssemblyError(
                part,
                f"its {spec.frame_rate} frames/s do not divide its {spec.sample_rate} samples/s",
                "choose a frame rate that divides the sample rate",
            )
        if min(spec.num_levels, spec.codebook_size, spec.sample_rate) < 1:
            raise AssemblyError(part, f"promises {_shape(spec)}", "mend the plugin's spec()")
    semantic = streams.get(SEMANTIC)
    if semantic is not None and semantic.num_levels != 1:
        raise AssemblyError(
            "semantic_tokenizer",
            f"emits {semantic.num_levels} levels",
            "a semantic stream has one level: use it as a codec, or another tokenizer",
        )


def bind_stage(stage: StageConfig, streams: Mapping[str, TokenSpec]) -> StageSpec:
    """The stage with its slices bound to the tokenizers that emit them."""
    place = f"stages.{stage.name}"
    target = _bind(stage.predicts, streams, f"{place}.predicts")
    given = tuple(_bind(text, streams, f"{place}.given") for text in stage.given)
    return StageSpec(stage.name, target, given)


def _bind(text: str, streams: Mapping[str, TokenSpec], place: str) -> SliceSpec:
    part = StreamSlice.parse(text, place)
    spec = streams.get(part.stream)
    if spec is None:
        raise AssemblyError(
            place,
            f"needs {part.stream} tokens, but the pipeline has no {TOKENIZER_OF[part.stream]}",
            f"add {TOKENIZER_OF[part.stream]}: {{use: ...}}, or take {text!r} out",
        )
    stop = spec.num_levels if part.stop is None else part.stop
    if stop > spec.num_levels:
        raise AssemblyError(
            place,
            f"{text!r} ends at level {stop}, but {TOKENIZER_OF[part.stream]} emits "
            f"{spec.num_levels}",
            f"write {part.stream}[{part.start}:{spec.num_levels}], or set "
            f"{TOKENIZER_OF[part.stream]}.options.num_levels={stop}",
        )
    return SliceSpec(
        part.stream, part.start, stop, spec.codebook_size, spec.frame_rate, spec.fingerprint
    )


def _predicted(
    stages: tuple[StageSpec, ...], streams: Mapping[str, TokenSpec]
) -> dict[str, TokenSpec]:
    """The streams cut to the levels that stages predict, each level by exactly one.

    A codec decodes its first levels alone, so those after the last predicted one may be left out;
    none may be left out before it.
    """
    owner: dict[tuple[str, int], str] = {}
    for stage in stages:
        for level in range(stage.target.start, stage.target.stop):
            key = (stage.target.stream, level)
            if key in owner:
                raise AssemblyError(
                    f"stages.{stage.name}.predicts",
                    f"{key[0]} level {level} is predicted by stage {owner[key]} already",
                    f"let each level be predicted by one stage; a file that extends another takes "
                    f"a stage out by {{name: {owner[key]}, drop: true}}",
                )
            owner[key] = stage.name
    found = {}
    for stream, spec in streams.items():
        levels = {level for name, level in owner if name == stream}
        count = max(levels, default=0) + 1
        missing = sorted(set(range(count)) - levels)
        if missing:
            raise AssemblyError(
                "stages",
                f"no stage predicts level {missing[0]} of the {spec.num_levels} {stream} levels "
                f"that {TOKENIZER_OF[stream]} emits",
                f"add a stage that predicts {stream}[{missing[0]}:{missing[-1] + 1}]",
            )
        found[stream] = replace(spec, num_levels=count)
    return found


def _check_chain(stages: tuple[StageSpec, ...]) -> None:
    """What a stage is given was predicted by the stages before it."""
    known: set[tuple[str, int]] = set()
    for stage in stages:
        for given in stage.given:
            for level in range(given.start, given.stop):
                if (given.stream, level) not in known:
                    raise AssemblyError(
                        f"stages.{stage.name}.given",
                        f"{given} holds level {level}, which no earlier stage predicts",
                        f"put the stage that predicts it before {stage.name}",
                    )
        target = stage.target
        known |= {(target.stream, level) for level in range(target.start, target.stop)}


def _check_rates(stage: StageSpec) -> None:
    for index, given in enumerate(stage.given):
        ratio = stage.frames_per_target_frame(index)
        if 1 not in (ratio.numerator, ratio.denominator):
            raise AssemblyError(
                f"stages.{stage.name}",
                f"{TOKENIZER_OF[stage.target.stream]} emits {stage.target.frame_rate} frames/s and "
                f"{TOKENIZER_OF[given.stream]} {given.frame_rate}: no whole ratio",
                "choose tokenizers of which one frame rate is a multiple of the other",
            )


def _check_trained_on(stage: StageSpec, part: PartPlan, streams: Mapping[str, TokenSpec]) -> None:
    """A trained stage runs only on the tokens it was trained on."""
    trained = part.manifest.stage_spec if part.manifest is not None else None
    if trained is None:
        return
    place = f"stages.{stage.name}"
    now, then = (stage.target, *stage.given), (trained.target, *trained.given)
    if [str(s) for s in now] != [str(s) for s in then]:
        raise AssemblyError(
            place,
            f"predicts {now[0]} given {_list(now[1:])}, but its checkpoint {part.checkpoint} was "
            f"trained to predict {then[0]} given {_list(then[1:])}",
            "restore predicts and given, or train the stage anew",
        )
    for ours, theirs in zip(now, then, strict=True):
        _check_slice(place, part, ours, theirs)


def _check_slice(place: str, part: PartPlan, now: SliceSpec, then: SliceSpec) -> None:
    tokenizer = TOKENIZER_OF[now.stream]
    for field, label in (("codebook_size", "codes per level"), ("frame_rate", "frames/s")):
        if getattr(now, field) != getattr(then, field):
            raise AssemblyError(
                place,
                f"was trained on {now.stream} tokens with {getattr(then, field)} {label}, "
                f"but {tokenizer} emits {getattr(now, field)}",
                f"use the {tokenizer} it was trained with, or train the stage anew",
            )
    if now.fingerprint != then.fingerprint:
        raise AssemblyError(
            place,
            f"{part.checkpoint} was trained on tokens of the {tokenizer} {then.fingerprint}, "
            f"but {tokenizer} is {now.fingerprint or 'untrained'}",
            f"use the {tokenizer} it was trained with, or train the stage anew on the new tokens",
        )


def _list(slices: tuple[SliceSpec, ...]) -> str:
    return ", ".join(str(part) for part in slices) or "nothing"
