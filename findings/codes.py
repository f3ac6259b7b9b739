"""Compare frame rates, levels and codebook sizes of a codec by sound and by how predictable its
tokens are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from segue.core.errors import ConfigError
from segue.data.token_store import TokenStore
from segue.evaluation.codec import evaluate_codec, kbit_per_second
from segue.evaluation.likelihood import evaluate_likelihood
from segue.evaluation.subjects import spread_evenly
from segue.findings.finding import Figures, Finding, InapplicableError, Table, better
from segue.findings.measures import FLOPS
from segue.findings.study import Study
from segue.findings.suite import Direction
from segue.findings.variants import (
    Variant,
    Workshop,
    acoustic_stages,
    assignments,
    short_training,
    swapped,
)
from segue.inference.pipeline import Pipeline
from segue.training.workspace import TOKENS

PATTERN = re.compile(r"(\d+(?:\.\d+)?)x(\d+)x(\d+)", re.ASCII)
EXAMPLE = "write 25x16x1024,50x8x1024: frames per second, levels, codes per level"
WINDOW_HOPS = 2  # least samples of a codec's window, in frames


@dataclass(frozen=True)
class CodeShape:
    """One candidate."""

    frame_rate: Fraction  # frames per second
    num_levels: int  # residual levels Q
    codebook_size: int  # codes per level V

    @classmethod
    def parse(cls, text: str) -> CodeShape:
        """Read a shape such as ``50x8x1024``."""
        found = PATTERN.fullmatch(text)
        if found is None:
            raise ConfigError("codes", f"{text!r} is not a shape of codes", EXAMPLE)
        shape = cls(Fraction(found[1]), int(found[2]), int(found[3]))
        if not shape.frame_rate or not shape.num_levels or shape.codebook_size < 2:
            problem = f"{text!r} has no frames, no levels or fewer than 2 codes"
            raise ConfigError("codes", problem, EXAMPLE)
        return shape

    def __str__(self) -> str:
        return f"{float(self.frame_rate):.15g}x{self.num_levels}x{self.codebook_size}"

    @property
    def label(self) -> str:
        return f"{float(self.frame_rate):g} Hz, {self.num_levels} levels of {self.codebook_size}"

    def options(self, codec: Mapping[str, Any]) -> dict[str, int]:
        """Return the codec options that give its tokens this shape.

        The window is the codec's own, or two frames if that is longer.
        """
        hop = codec["sample_rate"] / self.frame_rate
        if hop.denominator != 1 or hop.numerator % 2:
            problem = f"{self} is of frames of {float(hop):g} samples at {codec['sample_rate']} Hz"
            raise ConfigError("codes", problem, "take a frame rate of an even whole number of them")
        samples = hop.numerator
        return {
            "hop": samples,
            "window": max(codec["window"], WINDOW_HOPS * samples),
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
        }


def read_shapes(texts: Sequence[str]) -> tuple[str, ...]:
    """Read candidates, each once, or raise ``ConfigError`` if one is not a shape of codes."""
    return tuple(dict.fromkeys(str(CodeShape.parse(text)) for text in texts))


NEEDED = {"sample_rate", "hop", "window", "num_levels", "codebook_size"}
NO_ADVERSARY: dict[str, list[int]] = {"wave_scales": [], "stft_windows": []}
RATE, ENTROPY, USED = "kbit/s", "kbit/s by entropy", "least codes used"
MODELLED, SHARE, PER_TOKEN = "LM kbit/s", "LM share", "LM bits per token"
COUNTS = ("count", "left_out")  # of an estimate, which have no unit


def variants(study: Study) -> dict[str, Variant]:
    """Return, for each shape, a codec and a model of all its levels, both from random weights."""
    model = _model(study)
    return {
        shape.label: Variant(f"codes-{shape}", (*_codec(study, shape), *model), own_tokens=True)
        for shape in map(CodeShape.parse, study.settings.codes)
    }


def _codec_options(study: Study) -> Mapping[str, Any]:
    """Return the options of the pipeline's codec if it can be trained in any shape."""
    ref = study.config.codec
    found = study.host.options("codec", ref.use, ref.options, "codec.options").model_dump()
    if not set(found) >= NEEDED:
        raise InapplicableError(f"the codec, {ref.use}, is none to be trained at any frame rate")
    return found


def _codec(study: Study, shape: CodeShape) -> list[str]:
    """Give the pipeline's codec another shape, to be trained for reconstruction alone."""
    own = _codec_options(study)
    options = shape.options(own) | ({"adversary": NO_ADVERSARY} if "adversary" in own else {})
    training = short_training(study.config.codec.training, study.settings.codec_steps)
    return [
        *assignments("codec", {"checkpoint": None}),
        *assignments("codec.options", options),
        *assignments("codec.training", {"start_from": None, **training}),
    ]


def _model(study: Study) -> list[str]:
    """Replace the stages by a small one that predicts all acoustic levels, given nothing."""
    config, asked = study.config, study.settings
    first = acoustic_stages(config)[0]
    place = f"stages.{first.name}"
    return [
        *(f"stages.{stage.name}.drop=true" for stage in config.stages if stage is not first),
        "semantic_tokenizer=null",
        f"{place}.predicts=acoustic",
        f"{place}.given=[]",
        *swapped(study.host, first, study.suite.autoregressive, {}),
        *assignments(f"{place}.lm.options", {"width": asked.lm_width, "depth": asked.lm_depth}),
        *assignments(f"{place}.lm.training", short_training(first.lm.training, asked.steps)),
    ]


def make(study: Study) -> Finding:
    """Train and measure each shape once."""
    made, pairs = variants(study), list(study.metrics("metric", study.suite.pairs))
    shown = (RATE, *pairs, USED, ENTROPY, MODELLED, SHARE, PER_TOKEN, FLOPS)
    shop, found = Workshop(study), Finding(shown=shown)
    for name, variant in made.items():
        settings = study.asked(()) | {"variant": list(variant.overrides), "metrics": pairs}
        measure = partial(_measured, study, shop, variant, pairs)
        found.rows[name] = study.row(name, settings, measure)
        found.commands += _commands(study, shop, variant, pairs)
    judged: dict[str, Direction] = {pairs[0]: study.suite.pairs[pairs[0]], MODELLED: "low"}
    _judge(study, found, judged)
    return found


def _measured(study: Study, shop: Workshop, variant: Variant, pairs: Sequence[str]) -> Figures:
    pipeline = study.load(shop.trained(variant))
    return {
        FLOPS: shop.flops(variant.overrides) / 1e12,
        **_of_sound(study, pipeline, pairs),
        **_of_model(study, pipeline, shop.directory(variant) / TOKENS),
    }


def _of_sound(study: Study, pipeline: Pipeline, pairs: Sequence[str]) -> Figures:
    """Measure held-out recordings that went through all levels of the codec."""
    codec, metrics = pipeline.codec, study.metrics("metric", pairs)
    heard = spread_evenly(study.settings.data, study.settings.items, "valid")
    levels = codec.spec.num_levels
    found = evaluate_codec(codec, pipeline.config.prompt, heard, metrics, [levels], study.progress)
    study.missing |= found["failed"]
    figures, books = found["levels"][str(levels)], found["codebooks"]
    return {
        RATE: figures["kbit_per_second"],
        **{name: figures[name] for name in pairs if name in figures},
        USED: min(book["used"] for book in books),
        ENTROPY: sum(book["entropy_kbit_per_second"] for book in books),
    }


def _of_model(study: Study, pipeline: Pipeline, tokens: Path) -> Figures:
    """Return the cross entropy of held-out tokens over all levels."""
    found = evaluate_likelihood(
        pipeline, TokenStore(tokens, "valid"), study.settings.items, study.progress
    )
    (figures,) = found.values()
    spec = pipeline.codec.spec
    bits, rate = figures.pop("bits_per_second"), kbit_per_second(spec, spec.num_levels)
    return {
        MODELLED: _times(bits, 1e-3),
        SHARE: _times(bits, 1e-3 / rate),
        PER_TOKEN: _times(bits, 1 / float(spec.num_levels * spec.frame_rate)),
        **{f"LM nats of {level}": figure for level, figure in figures.items()},
    }


def _times(figure: Figures, factor: float) -> Figures:
    """Scale an estimate to another unit."""
    return {k: v if k in COUNTS or v is None else v * factor for k, v in figure.items()}


def _commands(study: Study, shop: Workshop, variant: Variant, pairs: Sequence[str]) -> list[str]:
    asked, trained = study.settings, shop.directory(variant)
    levels = shop.config(variant.overrides).codec.options["num_levels"]
    return [
        *shop.commands(variant),
        study.command(
            "evaluate codec", trained / "pipeline", data=asked.data, items=asked.items,
            levels=levels, metrics=",".join(pairs),
        ),
        study.command(
            "evaluate likelihood", trained / "pipeline", data=trained / TOKENS, items=asked.items
        ),
    ]  # fmt: skip


def _judge(study: Study, found: Finding, judged: Mapping[str, Direction]) -> None:
    """Compare the pipeline's own shape, or else the first, with each other; name the unbeaten
    shapes."""
    own = _codec_options(study)
    rate = Fraction(own["sample_rate"], own["hop"])
    name = CodeShape(rate, own["num_levels"], own["codebook_size"]).label
    name = name if name in found.rows else next(iter(found.rows))
    learnt = {other: row[MODELLED]["mean"] < row[ENTROPY] for other, row in found.rows.items()}
    found.claims = [
        better(
            f"{name} is better than {other} by {figure}",
            found.rows[name][figure] if figure != MODELLED or learnt[name] else None,
            row[figure] if figure != MODELLED or learnt[other] else None,
            direction,
        )
        for other, row in found.rows.items()
        for figure, direction in judged.items()
        if other != name
    ]  # fmt: skip
    asked, (sound, modelled) = study.settings, judged
    found.notes += [
        f"No other shape is as good by both {sound} and {modelled} as: "
        f"**{'; '.join(unbeaten(found.rows, judged))}**.",
        f"Each codec is trained for {asked.codec_steps} steps for reconstruction alone, each model "
        f"(width {asked.lm_width}, depth {asked.lm_depth}) for {asked.steps} steps of as many "
        "seconds of audio. So a higher frame rate takes more arithmetic, and its codebooks see "
        "more frames.",
        f"`{MODELLED}` is the cross entropy of held-out tokens, all levels together; `{SHARE}` is "
        "what it is of the tokens' own rate.",
        "Intervals are over recordings and batches, not over trainings.",
    ]
    if idle := [other for other, there in learnt.items() if not there]:
        found.notes.append(
            f"The model of {'; '.join(idle)} has not learnt more than how often each code occurs: "
            f"its `{MODELLED}` decides nothing."
        )


def unbeaten(rows: Mapping[str, Figures], judged: Mapping[str, Direction]) -> list[str]:
    """Return the rows that no other row equals or beats by every figure's mean."""
    costs = {
        name: [row[key]["mean"] * (1 if way == "low" else -1) for key, way in judged.items()]
        for name, row in rows.items()
    }
    return [
        name
        for name, own in costs.items()
        if not any(
            cost != own and all(a <= b for a, b in zip(cost, own, strict=True))
            for cost in costs.values()
        )
    ]


TABLE = Table(
    "Frame rate, levels and codes per level of a codec, at about the same rate: what its sound "
    "loses, and how well a language model predicts its tokens.",
    ("codes", "codec_steps", "steps", "lm_width", "lm_depth"),
    make,
)
