"""Compute what `golden.py` records of shipped pipelines, commands, configs and plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import golden_training as training
import numpy
import soundfile
from golden_describe import (
    RATE,
    Json,
    configs,
    load,
    plain,
    prompt,
    result,
    segue,
    sound,
    stored,
    streamed,
    uses,
)


def shipped(names: Sequence[str]) -> Json:
    """Use shipped pipelines in every way: first on the fastest backend, then on plain torch and
    with other sampling."""
    found = {}
    for name in names:
        wave = prompt(name.partition("/")[0])
        pipeline = load(name)
        stages = uses(pipeline)
        found[f"{name}, seed 0"] = every_way(pipeline, wave, 0, {})
        found[f"{name}, resynthesis"] = every_resynthesis(pipeline, wave[:, :20000])
        pipeline = load(name, [f"stages.{stage}.decoding.backend=torch" for stage in stages])
        drawn = {stage: {"temperature": 0.8, "top_k": 50, "top_p": 0.9} for stage in stages}
        found[f"{name}, seed 7"] = every_way(pipeline, wave, 7, drawn)
    return found


def every_way(pipeline: Any, wave: Any, seed: int, drawn: Json) -> Json:
    """Generate in every way that draws tokens."""
    more = {"seed": seed, "sampling": drawn}
    asked = {**more, "seconds": 1.0}
    short, stereo = wave[:, :20000], numpy.concatenate([wave, wave * 0.5])
    ragged = [(wave[:, :9000], RATE), (stereo[:, 4000:40000], 22_050), (wave[0, :RATE], RATE)]
    batch = {**asked, "prompt_audio": "codec", "chunk_seconds": 0.4}
    return {
        "continue": result(pipeline.continue_(wave[:, :24000], RATE, **asked)),
        "batch": result(pipeline.continue_batch(ragged, **batch)),
        "generate": result(pipeline.generate(1.0, batch=2, **more)),
        "stream": streamed(pipeline.stream(short, RATE, chunk_seconds=0.3, **asked)),
        "stream from nothing": streamed(pipeline.stream(**asked)),
        "acoustic": result(pipeline.acoustic_generation(short, RATE, **more)),
    }


def every_resynthesis(pipeline: Any, wave: Any) -> Json:
    """Take audio through tokens and back in every way."""
    return {
        "codec": result(pipeline.resynthesize(wave, RATE)),
        "two levels": result(pipeline.resynthesize(wave, RATE, levels=2)),
        "semantic": result(pipeline.resynthesize(wave, RATE, through="semantic")),
    }


def commands() -> Json:
    """Run what generates through the command line, and tokenize with every shipped tokenizer."""
    found: dict[str, Json] = {}
    soundfile.write("prompt.wav", prompt("speech")[0, :24000], RATE)
    tasks = {
        "continue": ("continue", "prompt.wav", "-o", "out.wav", "--seconds", 1, "--seed", 3),
        "generate": ("generate", "-o", "out.wav", "--seconds", 1, "--set",
                     "stages.acoustic.decoding.weights=int8"),
        "resynthesize": ("resynthesize", "prompt.wav", "-o", "out.wav"),
        "sampled": ("resynthesize", "prompt.wav", "-o", "out.wav", "--through", "sampled"),
    }  # fmt: skip
    for name, arguments in tasks.items():
        printed = json.loads(segue(*arguments, "--json"))
        wave, rate = soundfile.read("out.wav")
        found[name] = {"audio": sound(wave, rate), "printed": sorted(printed)}
        description = json.loads(Path("out.wav.json").read_text())
        found[name]["description"] = sorted(description)
    raw = segue("stream", "prompt.wav", "--seconds", 1, "--chunk-seconds", 0.5)
    found["stream"] = sound(numpy.frombuffer(raw, "<i2") / 32767, RATE)
    for config in ("speech/textless_tokenizers", "piano/trained_tokenizers"):
        data = Path(config)
        data.mkdir(parents=True)
        wave = prompt(config.partition("/")[0])[0]
        soundfile.write(data / "a.wav", wave[:40000], RATE)
        soundfile.write(data / "b.wav", wave[40000:], RATE)
        segue("tokenize", "--config", config, "--data", data, "-o", data / "run", "--json")
        found[f"tokens of {config}"] = stored(data / "run" / "tokens")
    return found


def evaluation() -> Json:
    """Measure shipped parts on two recordings."""
    found = {}
    for domain, own in (("speech", ""), ("piano", ",chroma.v1,onsets.v1")):
        data, wave = Path(domain), prompt(domain)[0]
        words = ["path,label,speaker,start,end,context"]
        pairs = ["id,filename,correct"]
        for take in range(2):
            data.joinpath(f"s{take}").mkdir(parents=True)
            file = f"s{take}/{take}.wav"
            soundfile.write(data / file, wave[take * 40000 :][:40000], RATE)
            words += [f"{file},{n % 3},{take},{0.3 * n},{0.3 * n + 0.3},c" for n in range(6)]
            pairs.append(f"one,{file},{take}")
        Path(data, "words.csv").write_text("\n".join(words) + "\n")
        Path(data, "pairs.csv").write_text("\n".join(pairs) + "\n")
        shipped_tokens = ("--config", f"{domain}/trained_tokenizers", "-o", data / "run")
        segue("tokenize", *shipped_tokens, "--data", data, "--json")
        items = ("--data", data, "--items", 2, "--split", "all")
        order = ("--shuffled", data, "--split", "train", "--prompt-seconds", 0.5, "--seconds", 1.5)
        calls = {
            "codec": (*items, "--levels", "2,4", "--metrics", "log_mel.v1,si_sdr.v1"),
            "continuations": (*items, "--metrics", f"health.v1,frechet.v1{own}",
                              "--prompt-seconds", 1, "--seconds", 1),
            "resynthesis": (*items, "--metrics", "log_mel.v1,si_sdr.v1,health.v1"),
            "semantic": ("--data", data / "words.csv"),
            "likelihood": ("--data", data / "run/tokens", "--pairs", data / "pairs.csv",
                           "--items", 2, *order),
        }  # fmt: skip
        for name, arguments in calls.items():
            printed = segue("evaluate", name, "--domain", domain, *arguments, "--json")
            found[f"{domain}, {name}"] = plain(json.loads(printed))
    return found


def plans(names: Sequence[str]) -> Json:
    """Print what training each config would take."""
    size = ("--ranks", 8, "--gpu", "A100", "--hours-of-audio", 1000)
    calls = {name: ("train", "all", "--config", name, "--plan", *size) for name in names}
    return {name: segue(*call).decode().splitlines() for name, call in calls.items()}


def shown() -> Json:
    """Print every config, resolved and assembled, and every component."""
    found: dict[str, Json] = {}
    for name in configs():
        found[name] = plain(json.loads(segue("config", "show", name, "--json")))
        printed = segue("config", "validate", name, "--json")
        found[f"{name}, assembled"] = plain(json.loads(printed))
    components = json.loads(segue("plugins", "list", "--json"))["components"]
    found["components"] = sorted(f"{record['kind']}/{record['name']}" for record in components)
    return found


def sections() -> dict[str, Callable[[], Json]]:
    """Return what there is to record; each runs in a process and an empty folder of its own."""
    names = configs()
    return {
        "families": training.families,
        "tokenizers": training.tokenizers,
        "speech": partial(shipped, ("speech", "speech/textless", "speech/three_stage")),
        "piano": partial(shipped, ("piano",)),
        "evaluation": evaluation,
        **{f"plans {n + 1}": partial(plans, names[n::2]) for n in range(2)},
        "commands": commands,
        "saved": training.saved,
        "configs": shown,
    }
