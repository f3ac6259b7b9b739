"""Prove that the parts of a pipeline fit together, before any weight is loaded.

``assemble`` turns a config into an ``Assembly``: one ``Part`` per component, each stage's slices
bound to the tokenizers that emit them. It reads configs and ``component.json`` files only and
imports no torch, so `segue config validate` answers at once. What it proves:

- every level of a stream is predicted by one stage, and stages are given only what earlier ones
  predict;
- frame rates have a whole ratio;
- a checkpoint was made by the plugin and the options that the config names;
- a trained stage runs only on the tokens it was trained on. A tokenizer's *fingerprint* identifies
  its tokens, and a stage's checkpoint records the fingerprints of its training tokens.

Each error names both parts and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.checkpoint_files import ComponentManifest, holding_weights, read_manifest
from segue.core.config import PipelineConfig, Slot, StageConfig
from segue.core.errors import AssemblyError, CheckpointError
from segue.core.options import FINGERPRINT_DIGITS, Options, TokenizerOptions, options_digest
from segue.core.plugins import PluginHost
from segue.core.records import Kind
from segue.core.spec import (
    ACOUSTIC,
    SEMANTIC,
    SliceSpec,
    StageSpec,
    StreamSlice,
    TokenSpec,
    common_samples,
)
from segue.core.validation import below

if TYPE_CHECKING:
    from segue.core.interfaces import Component

#: Largest levels, codes per level and samples a second of a stream.
MOST_LEVELS, MOST_CODES, MOST_SAMPLES = 1024, 1 << 24, 768_000
LONGEST_UNIT = 60  # seconds after which all streams have a whole number of frames

#: The part that emits each stream.
TOKENIZER_OF = {SEMANTIC: "semantic_tokenizer", ACOUSTIC: "codec"}


@dataclass(frozen=True)
class Part:
    """One component of a pipeline: which plugin to build with which options and weights.

    ``name``, ``kind`` and ``place`` are those of the slot in the config that it fills.
    """

    name: str
    kind: Kind
    use: str  # registered name of the plugin: that of the checkpoint, which its fingerprint hashes
    options: Options  # the plugin's options, validated
    place: str
    checkpoint: Path | None = None  # directory of its weights, if any
    manifest: ComponentManifest | None = None  # the description of those weights
    # The slices of a stage, bound to the tokenizers; None for a tokenizer.
    stage: StageSpec | None = None

    def build(self, host: PluginHost) -> Component:
        """Build the component with new weights; ``segue.core.checkpoint.build_part`` loads them."""
        arguments = () if self.stage is None else (self.stage,)
        return host.create(self.kind, self.use, self.options, *arguments, place=self.name)

    @property
    def must_be_refitted(self) -> bool:
        """Return whether the checkpoint was fitted with other options than these."""
        if self.manifest is None:
            return False
        then, now = self.manifest.options, self.options.model_dump(mode="json")
        return any(then.get(key, now[key]) != now[key] for key in self.options.of_fitting)


@dataclass(frozen=True)
class Assembly:
    """A pipeline whose parts are known to fit."""

    config: PipelineConfig  # the config it was made from
    parts: Mapping[str, Part]  # every part under its name
    # The tokens of each stream that stages predict: of a codec possibly only its first levels.
    streams: Mapping[str, TokenSpec]

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The bound stages, in the order they run."""
        return tuple(part.stage for part in self.parts.values() if part.stage is not None)


def assemble(config: PipelineConfig, host: PluginHost) -> Assembly:
    """Check every promise that one part of ``config`` relies on another for.

    Raises:
        AssemblyError: if parts do not fit: streams that do not chain, levels predicted twice or
            never, frame rates without a whole ratio, codebook sizes or fingerprints that differ.
        CheckpointError: if a checkpoint's description cannot be read.
        ConfigError, PluginError: if a plugin or its options cannot be used.
    """
    parts = {name: resolve_part(slot, host) for name, slot in config.slots.items()}
    streams = {
        stream: _token_spec(parts[name]) for stream, name in TOKENIZER_OF.items() if name in parts
    }
    _check_streams(streams)
    for stage in config.stages:
        name = f"stages.{stage.name}"
        target = _bound_slice(stage.predicts, streams, f"{name}.predicts")
        given = tuple(_bound_slice(text, streams, f"{name}.given") for text in stage.given)
        parts[name] = replace(parts[name], stage=StageSpec(stage.name, target, given))
    bound = {name: part.stage for name, part in parts.items() if part.stage is not None}
    for stage in config.stages:
        _check_replaces(config, stage, bound)
    own = [bound[f"stages.{stage.name}"] for stage in config.stages if not config.replaces(stage)]
    predicted = _predicted_streams(tuple(own), streams)
    for name, spec in bound.items():
        _check_rates(spec)
        _check_trained_on(parts[name], spec)
    return Assembly(config, parts, predicted)


def resolve_part(slot: Slot, host: PluginHost) -> Part:
    """Find the plugin, options and checkpoint of one part, without looking at other parts.

    Raises:
        AssemblyError: if its checkpoint is of another plugin or of other options.
        CheckpointError: if its checkpoint's description cannot be read.
        ConfigError, PluginError: if the plugin or its options cannot be used.
    """
    chosen, place = slot.component, slot.place
    if chosen.checkpoint is None:
        options = host.options(slot.kind, chosen.use, chosen.options, f"{place}.options")
        return Part(slot.name, slot.kind, chosen.use, options, place)
    directory = holding_weights(Path(chosen.checkpoint))
    manifest = read_manifest(directory)
    use = manifest.use
    if not is_of(manifest, slot, host):
        raise AssemblyError(
            f"{place}.use",
            f"is {chosen.use}, but the checkpoint {directory} is of the {manifest.kind} "
            f"{manifest.use}",
            f"use it: --set {place}.use={manifest.use}, or name another checkpoint",
        )
    if (manifest.stage if slot.kind == "stage_lm" else manifest.spec) is None:
        # It would stay unnoticed that parts do not fit.
        problem = "names neither the tokens of a tokenizer nor the slices of a stage"
        raise CheckpointError(f"{directory}/component.json", problem, "restore the file")
    options = host.options(slot.kind, use, manifest.options, f"{directory}/component.json")
    if chosen.options:
        asked = host.options(slot.kind, use, chosen.options, f"{place}.options")
        changed = _with_asked(place, asked, options, directory)
        options = host.options(slot.kind, use, changed, f"{place}.options")
    return Part(slot.name, slot.kind, use, options, place, directory, manifest)


def is_of(manifest: ComponentManifest, slot: Slot, host: PluginHost) -> bool:
    """Return whether a checkpoint is of the plugin that a slot names, if under another name."""
    if manifest.kind != slot.kind:
        return False
    place = f"{slot.place}.use"
    chosen = host.find(slot.kind, slot.component.use, place, manifest.made_by)
    if manifest.use == chosen.name:
        return True
    known = {record.name for record in host.records(slot.kind)}
    if manifest.use not in known:
        return False
    saved = host.find(slot.kind, manifest.use, place)
    return (saved.target, saved.config) == (chosen.target, chosen.config)


def _with_asked(place: str, asked: Options, trained: Options, directory: Path) -> dict[str, Any]:
    """Return the checkpoint's options, with those that the config names explicitly.

    They must equal those of the checkpoint, unless they only say how it is trained or fitted.
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
                f"drop the option, or train the part again: --set {place}.checkpoint=null",
            )
    return wanted


def _overlaid(base: Options, asked: Options) -> dict[str, Any]:
    """Return the values of ``base``, overwritten by those that ``asked`` sets, however deep."""
    values, said = base.model_dump(mode="json"), asked.model_dump(mode="json")
    for key in asked.model_fields_set:
        if key in asked.filled_in and getattr(asked, key) is None:
            continue  # a resolved config writes empty values as well
        had, wanted = getattr(base, key), getattr(asked, key)
        nested = isinstance(had, Options) and isinstance(wanted, Options)
        values[key] = _overlaid(had, wanted) if nested else said[key]
    return values


# --- streams ----------------------------------------------------------------------------------


def _token_spec(part: Part) -> TokenSpec:
    """Return the spec that a tokenizer's options promise, with its checkpoint's fingerprint."""
    if not isinstance(part.options, TokenizerOptions):
        raise AssemblyError(
            f"{part.name}.use",
            f"{part.use} has options without a spec()",
            "let its options model extend segue.core.options.TokenizerOptions",
        )
    with below(f"{part.name}.options"):
        spec, saved = part.options.spec(), None if part.manifest is None else part.manifest.spec
        if saved is None or part.must_be_refitted:
            # The true fingerprint of a tokenizer that learns nothing. One whose weights are still
            # to come has another then, so that no trained stage can match this one.
            digest = options_digest(part.use, part.options).hexdigest()
            return spec.with_fingerprint(digest[:FINGERPRINT_DIGITS])
    recorded = TokenSpec.from_json(saved)
    if recorded.with_fingerprint("") != spec.with_fingerprint(""):
        raise AssemblyError(
            f"{part.name}.checkpoint",
            f"{part.checkpoint} was saved with {_shape(recorded)}, but {part.use} now has "
            f"{_shape(spec)}",
            f"install the version of {part.use} that made the checkpoint",
        )
    return recorded


def _shape(spec: TokenSpec) -> str:
    codes = f"{spec.num_levels} x {spec.codebook_size} codes at {spec.frame_rate} Hz"
    return f"{codes} for audio of {spec.sample_rate} Hz"


def _check_streams(streams: Mapping[str, TokenSpec]) -> None:
    for stream, spec in streams.items():
        name = TOKENIZER_OF[stream]
        if (Fraction(spec.sample_rate) / spec.frame_rate).denominator != 1:
            raise AssemblyError(
                name,
                f"its {spec.frame_rate} frames/s do not divide its {spec.sample_rate} samples/s",
                "choose a frame rate that divides the sample rate",
            )
        sizes = (spec.num_levels, spec.codebook_size, spec.sample_rate)
        limits = (MOST_LEVELS, MOST_CODES, MOST_SAMPLES)
        if not all(1 <= size <= most for size, most in zip(sizes, limits, strict=True)):
            most = f"at most {MOST_LEVELS} x {MOST_CODES} codes of {MOST_SAMPLES} Hz are possible"
            raise AssemblyError(name, f"has {_shape(spec)}", f"change its options: {most}")
    unit = common_samples(list(streams.values()), 1)
    if unit > LONGEST_UNIT:
        rates = " and ".join(str(spec.frame_rate) for spec in streams.values())
        raise AssemblyError(
            "codec",
            f"frames of {rates} Hz begin together every {unit} s only",
            f"choose frame rates that share an instant within {LONGEST_UNIT} s",
        )


def _bound_slice(text: str, streams: Mapping[str, TokenSpec], place: str) -> SliceSpec:
    part = StreamSlice.parse(text, place)
    tokenizer, spec = TOKENIZER_OF[part.stream], streams.get(part.stream)
    if spec is None:
        raise AssemblyError(
            place,
            f"needs {part.stream} tokens, but the pipeline has no {tokenizer}",
            f"add {tokenizer}: {{use: ...}}, or take {text!r} out",
        )
    stop = spec.num_levels if part.stop is None else part.stop
    if stop > spec.num_levels:
        raise AssemblyError(
            place,
            f"{text!r} ends at level {stop}, but {tokenizer} emits {spec.num_levels}",
            f"write {part.stream}[{part.start}:{spec.num_levels}], or use another {tokenizer}",
        )
    return SliceSpec(
        part.stream, part.start, stop, spec.codebook_size, spec.frame_rate, spec.fingerprint
    )


def _predicted_streams(
    stages: tuple[StageSpec, ...], streams: Mapping[str, TokenSpec]
) -> dict[str, TokenSpec]:
    """Cut the streams to the levels that stages predict, and check the stages' order.

    Each level must be predicted exactly once. Only the last levels of a stream may be left out, as
    a codec can decode its first levels alone, and all semantic ones that stages are given: then
    they can come from recordings.
    """
    owner: dict[tuple[str, int], str] = {}  # the stage that predicts each level
    given = {part.stream for stage in stages for part in stage.given}
    if SEMANTIC in given - {stage.target.stream for stage in stages}:
        owner = {(SEMANTIC, level): "" for level in range(streams[SEMANTIC].num_levels)}
    for stage in stages:
        for part in stage.given:
            for level in range(part.start, part.stop):
                if (part.stream, level) not in owner:
                    raise AssemblyError(
                        f"stages.{stage.name}.given",
                        f"{part} has level {level}, which no earlier stage predicts",
                        f"put the stage that predicts it before {stage.name}",
                    )
        for level in range(stage.target.start, stage.target.stop):
            other = owner.setdefault((stage.target.stream, level), stage.name)
            if other != stage.name:
                raise AssemblyError(
                    f"stages.{stage.name}.predicts",
                    f"{stage.target.stream} level {level} is predicted by stage {other} already",
                    "let one stage predict each level; a file that extends another takes a stage "
                    f"out by {{name: {other}, drop: true}}",
                )
    predicted = {}
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
        predicted[stream] = replace(spec, num_levels=count)
    return predicted


def _check_replaces(
    config: PipelineConfig, stage: StageConfig, bound: Mapping[str, StageSpec]
) -> None:
    """Check that a stage which can replace another is given and predicts what that one does."""
    other = config.replaces(stage)
    if other is None:
        return
    names = [one.name for one in config.stages]
    here, there = bound[f"stages.{stage.name}"], bound[f"stages.{other.name}"]
    place = f"stages.{stage.name}.instead_of"
    if other.instead_of is not None or names.index(other.name) >= names.index(stage.name):
        problem = f"is {other.name}, which does not stand before it in its own right"
        raise AssemblyError(place, problem, "name a stage before it that has no instead_of")
    if (here.target, here.given) != (there.target, there.given):
        raise AssemblyError(
            place,
            f"is {other.name}, which predicts {there.target} given {_list(there.given)}, not "
            f"{here.target} given {_list(here.given)}",
            f"let both predict the same from the same, or set {place}=null",
        )


def _check_rates(stage: StageSpec) -> None:
    for index, given in enumerate(stage.given):
        # Windows must start where frames of both streams start: one rate must divide the other.
        ratio = stage.frames_per_target_frame(index)
        if 1 not in (ratio.numerator, ratio.denominator):
            raise AssemblyError(
                f"stages.{stage.name}",
                f"{TOKENIZER_OF[stage.target.stream]} emits {stage.target.frame_rate} frames/s and "
                f"{TOKENIZER_OF[given.stream]} {given.frame_rate}: no whole ratio",
                "choose tokenizers whose frame rates divide one another",
            )


def _check_trained_on(part: Part, stage: StageSpec) -> None:
    """Check that a trained stage gets the slices and the tokens it was trained on."""
    trained = part.manifest.stage_spec if part.manifest is not None else None
    if trained is None:
        return
    now, then = (stage.target, *stage.given), (trained.target, *trained.given)
    if list(map(str, now)) != list(map(str, then)):
        raise AssemblyError(
            part.name,
            f"predicts {now[0]} given {_list(now[1:])}, but its checkpoint {part.checkpoint} was "
            f"trained to predict {then[0]} given {_list(then[1:])}",
            f"restore predicts and given, or train the stage again: {_anew(part)}",
        )
    for ours, theirs in zip(now, then, strict=True):
        tokenizer = TOKENIZER_OF[ours.stream]
        for field, unit in (
            ("codebook_size", " codes per level"),
            ("frame_rate", " frames/s"),
            ("fingerprint", " as fingerprint"),
        ):
            wanted, found = getattr(theirs, field), getattr(ours, field)
            if wanted != found:
                raise AssemblyError(
                    part.name,
                    f"{part.checkpoint} was trained on {ours.stream} tokens with {wanted}{unit}, "
                    f"but {tokenizer} has {found}",
                    f"use the {tokenizer} it was trained with, or train again: {_anew(part)}",
                )


def _anew(part: Part) -> str:
    return f"--set {part.place}.checkpoint=null"


def _list(slices: tuple[SliceSpec, ...]) -> str:
    return ", ".join(map(str, slices)) or "nothing"
