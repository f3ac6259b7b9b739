"""Share among the golden scripts how they reach Segue, what they record, what they read."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ROOT / "plugins" / "domains"
RATE = 16_000
#: Keys that depend on a clock or on memory; and prose, whose wording may change.
VOLATILE = re.compile(
    r"(^|_)data_seconds$|^seconds$|(?<!kbit)_per_second$|_speed$|_memory_gib$|^mfu$|real_time|^description$"
)
Json = Any

# --- the only places where this script touches Segue -------------------------------------------


def segue(*arguments: object) -> bytes:
    """Run a command in this process and return what it printed."""
    main = importlib.import_module("segue.apps.cli.main").main
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before, sys.argv = sys.argv, ["segue", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        if end.code:
            err.flush()
            message = err.buffer.getvalue().decode()
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {end.code}: {message}") from end
    finally:
        sys.argv = before
    out.flush()
    return out.buffer.getvalue()


def load(source: Path | str, overrides: Sequence[str] = ()) -> Any:
    """Load a pipeline."""
    return importlib.import_module("segue").Pipeline.from_pretrained(source, overrides=overrides)


def uses(pipeline: Any) -> dict[str, str]:
    """Return the language model of each stage."""
    return {stage.name: stage.lm.use for stage in pipeline.config.stages}


def result(audio: Any) -> Json:
    """Describe generated audio: tokens, sound and where the prompt ends, row by row."""
    found: dict[str, Json] = {"fingerprints": audio.metadata["fingerprints"]}
    for name, tokens in audio.tokens.items():
        lengths = tokens.lengths.tolist()
        rows = [row[:, :length] for row, length in zip(tokens.ids, lengths, strict=True)]
        found[f"{name}_tokens"] = [ids(row) for row in rows]
    found["audio"] = [sound(audio.row(row), audio.sample_rate) for row in range(len(audio.wave))]
    found["prompt_samples"] = audio.prompt_samples.tolist()
    return found


def streamed(chunks: Iterator[Any]) -> Json:
    """Describe the chunks of a stream together, and how long each is."""
    parts = list(chunks)
    rows = [torch.cat([part.tokens["acoustic"].ids[0] for part in parts], 1)]
    wave = torch.cat([part.row() for part in parts])
    lengths = [part.row().shape[0] for part in parts]
    return {"chunks": lengths, "tokens": ids(*rows), "audio": sound(wave, parts[0].sample_rate)}


# --- what is written down ----------------------------------------------------------------------


def number(value: float) -> float | str:
    """Round to six significant digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def ids(tokens: Any) -> Json:
    """Describe token ids ``[Q, N]``: a hash, and the first ones to look at."""
    array = numpy.ascontiguousarray(numpy.asarray(tokens)).astype("<i8")
    first = array.T[:3].reshape(-1)[:12].tolist()
    return {"shape": list(array.shape), "first": first, "sha256": digest(array.tobytes())}


def sound(wave: Any, rate: int) -> Json:
    """Describe audio: a hash of it rounded to 1e-4, its peak, and its level over eight parts."""
    samples = numpy.asarray(wave, dtype=numpy.float64).reshape(-1)
    levels = [math.sqrt(float(numpy.mean(part**2))) for part in numpy.array_split(samples, 8)]
    rounded = numpy.round(samples * 1e4).astype("<i4").tobytes()
    return {
        "samples": len(samples), "rate": rate, "audio_sha256": digest(rounded),
        "peak": number(float(abs(samples).max())), "rms": [number(level) for level in levels],
    }  # fmt: skip


def plain(value: Json) -> Json:
    """Round figures, leave out what a clock decides, and name no place on this machine."""
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if not VOLATILE.search(str(k))}
        return {key: plain(item) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.replace(str(Path.cwd()), "<work>").replace(str(ROOT), "<root>")
    return number(value) if isinstance(value, float) else value


def losses(run: Path) -> Json:
    """Read the logs of every part of a training directory, each figure as a column."""
    found: dict[str, dict[str, list[Json]]] = {}
    for log in sorted(run.rglob("log.jsonl")):
        columns = found.setdefault(".".join(log.parent.relative_to(run).parts), {})
        for line in log.read_text().splitlines():
            for key, value in plain(json.loads(line)).items():
                columns.setdefault(key, []).append(value)
    return found


def stored(tokens: Path) -> Json:
    """Describe a token store: its tokenizers' fingerprints and every stream's ids."""
    from safetensors.numpy import load_file

    streams = json.loads((tokens / "store.json").read_text())["streams"]
    shards = {path.stem: load_file(path) for path in sorted(tokens.glob("*.safetensors"))}
    found = {shard: {name: ids(array[name]) for name in streams} for shard, array in shards.items()}
    return {"fingerprints": {n: s["fingerprint"] for n, s in streams.items()}, "shards": found}


# --- material ----------------------------------------------------------------------------------


def melody(seconds: float, seed: int) -> numpy.ndarray[Any, Any]:
    """Make notes with overtones and a little noise."""
    random = numpy.random.RandomState(seed)
    time = numpy.arange(round(0.2 * RATE)) / RATE
    notes = []
    for pitch in 110 * 2 ** (random.randint(24, size=math.ceil(seconds / 0.2)) / 12):
        partials = sum(numpy.sin(2 * numpy.pi * pitch * k * time) / k for k in (1, 2, 3))
        notes.append(0.25 * partials * numpy.exp(-6 * time))
    wave = numpy.concatenate(notes)[: round(seconds * RATE)]
    return wave + 0.005 * random.standard_normal(len(wave))


def recordings(folder: str = "data") -> None:
    """Write four groups of two synthetic recordings."""
    for group in range(4):
        Path(folder, f"group{group}").mkdir(parents=True)
        for take in range(2):
            wave = melody(3.0, 10 * group + take)
            soundfile.write(f"{folder}/group{group}/{take}.wav", wave, RATE)


def prompt(domain: str) -> numpy.ndarray[Any, Any]:
    """Read the recording that a domain ships, ``[1, T]``."""
    return soundfile.read(DOMAINS / domain / "prompt.flac", dtype="float32", always_2d=True)[0].T


def configs() -> list[str]:
    """Name every config that ships."""
    found = [path.relative_to(DOMAINS).with_suffix("") for path in sorted(DOMAINS.glob("*/*.yaml"))]
    return [str(path.parent if path.name == "config" else path) for path in found]
