"""How fast audio is generated: every family, next to its peers and to what the machine can do.

    python benchmarks/generation.py [--json FILE] [--only PART ...] [--repeats 5]

Peers are optional; how to install them is printed when they are missing. All figures of one line
are medians of the same run; run it on an otherwise idle machine. With the peers it takes about 25
minutes on two cores, most of it audiolm-pytorch's fine stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks import stages
from benchmarks.peers import hugging_face
from benchmarks.peers.packages import use_packages
from benchmarks.pipelines import long_audio, real_time, rows, same_greedy_tokens
from benchmarks.report import Report, reported
from benchmarks.timing import measured_bandwidth, median_seconds
from segue.core.interfaces import AcousticCodec, StageLM
from segue.core.options import Decoding
from segue.core.plugins import default_host
from segue.plugins.models.flat_transformer.model import FlatTransformer

SECONDS = 3.0  # of audio that stages are compared at
CODEC_SECONDS = 5.0


def rate(lm: StageLM, seconds: float, repeats: int, decoding: Decoding | None = None) -> float:
    """Measure tokens per second, batch 1."""
    took = median_seconds(lambda: stages.generate(lm, seconds, decoding), repeats)
    return stages.num_tokens(lm.stage, seconds) / took


def families(report: Report, repeats: int) -> None:
    """Measure every family on its own stages: tokens/s and audio seconds per second."""
    print(f"Families, {stages.SIZE}, {SECONDS:g} s of audio")
    cases = [("flat", "semantic"), ("flat", "coarse"), ("flat", "fine")]
    cases += [(family, "all") for family in ("delay", "depth", "masked")] + [("masked", "fine")]
    cases += [("hf_causal", "semantic")]
    for family, name in cases:
        try:
            lm = stages.build(family, name)
        except ImportError as error:
            print(f"  {family} skipped: {error}; pip install 'segue[hf]'")
            continue
        per_second = rate(lm, SECONDS, repeats)
        report.note(f"{family}_{name}_tokens_per_second", per_second, "tokens/s")
        per_audio_second = lm.stage.target.num_levels * float(lm.stage.target.frame_rate)
        report.note(f"{family}_{name}_real_time", per_second / per_audio_second, "x real time")


def limits(report: Report, repeats: int) -> None:
    """Compare the flat coarse stage with memory bandwidth, and eight-bit weights with fp32."""
    print("Limits")
    lm = stages.build("flat", "coarse")
    assert isinstance(lm, FlatTransformer)
    head = lm.heads.weight[0]
    read = 4 * (stages.parameters(lm.transformer) + head.numel())
    report.note("weight_bytes_per_token", read / 1e6, "MB")
    rate(lm, SECONDS, 1)
    rate(lm, SECONDS, 1, Decoding(weights="int8"))
    # In turn, so that a machine whose speed drifts is compared with itself.
    turns = [
        (
            measured_bandwidth(repeats=3),
            rate(lm, SECONDS, 1),
            rate(lm, SECONDS, 1, Decoding(weights="int8")),
        )
        for _ in range(repeats)
    ]
    for column, (name, unit, scale) in enumerate(
        (("bandwidth", "GB/s", 1e-9), ("fp32", "tokens/s", 1), ("int8", "tokens/s", 1))
    ):
        report.note(name, median(turn[column] for turn in turns) * scale, unit)
    report.ratio(
        "flat_vs_memory_bandwidth",
        median(full * read / bandwidth for bandwidth, full, _ in turns),
        "share of the speed of reading weights",
    )
    report.ratio("int8_vs_fp32", median(small / full for _, full, small in turns), "tokens/s")
    eager = rate(lm, SECONDS, repeats, Decoding(backend="torch"))
    report.note("fp32_torch_backend", eager, "tokens/s")
    same_greedy_tokens(report)


def against_transformers(report: Report, repeats: int) -> None:
    """Compare a decoder of one level with GPT-2 and Llama of as many weights in their layers."""
    print("transformers")
    if not use_packages("transformers"):
        return
    tokens = 300
    lm = stages.build("flat", "semantic")
    ours = report.note("segue", rate(lm, tokens / 25, repeats), "tokens/s")
    theirs = 0.0
    for kind in ("gpt2", "llama"):
        model = hugging_face.build(kind, **stages.SIZE, vocabulary=stages.SEMANTIC_CODES)  # type: ignore[arg-type]
        found = hugging_face.generation_rate(model, tokens, repeats)
        report.note(f"transformers_{kind}", found.tokens_per_second, f"tokens/s ({found.setting})")
        theirs = max(theirs, found.tokens_per_second)
    report.ratio(
        "flat_vs_transformers", ours / theirs, "tokens/s, against the faster of the two, both eager"
    )


def against_audio_decoders(report: Report, repeats: int) -> None:
    """Compare delay and depth stage with MusicGen's and CSM's decoders of as many levels."""
    print("transformers' audio decoders")
    if not use_packages("transformers"):
        return
    from benchmarks.peers import hugging_face_audio

    peers = {"delay": hugging_face_audio.musicgen(), "depth": hugging_face_audio.csm()}
    for family, draw in peers.items():
        frames = round(SECONDS * stages.FRAME_RATE)
        lm = stages.build(family, "all")
        theirs = median_seconds(lambda d=draw, n=frames: d(n), repeats)  # type: ignore[misc]
        ours = median_seconds(lambda lm=lm: stages.generate(lm, SECONDS), repeats)  # type: ignore[misc]
        report.note(f"{family}_seconds", ours, f"s for {SECONDS:g} s of all levels")
        report.note(f"{family}_peer_seconds", theirs, f"s for {SECONDS:g} s of all levels")
        report.ratio(f"{family}_vs_transformers", theirs / ours, "time, peers eager")


def against_codecs(report: Report, repeats: int) -> None:
    """Encode and decode five seconds: our codecs against EnCodec, DAC and Mimi."""
    print("Codecs")
    took = {}
    for name in ("spectral_codec.v1", "soundstream.v1"):
        codec = default_host().create("codec", name, {}, place=name).eval()
        wave = torch.randn(1, round(CODEC_SECONDS * codec.spec.sample_rate))

        def call(codec: AcousticCodec = codec, wave: Tensor = wave) -> None:
            tokens = codec.encode(wave, torch.tensor([wave.shape[1]]))
            codec.decode(tokens.ids, tokens.lengths)

        seconds = median_seconds(call, repeats)
        took[name] = report.note(f"{name}_codec", CODEC_SECONDS / seconds, "x real time")
    if not use_packages("transformers"):
        return
    from benchmarks.peers import hugging_face_audio

    for name, (rate_, peer) in hugging_face_audio.codecs().items():
        wave = torch.randn(1, 1, round(CODEC_SECONDS * rate_))
        seconds = median_seconds(lambda peer=peer, wave=wave: peer(wave), repeats)  # type: ignore[misc]
        theirs = report.note(f"{name}_codec", CODEC_SECONDS / seconds, f"x real time at {rate_} Hz")
        for own, ours in took.items():
            report.ratio(f"{own}_vs_{name}", ours / theirs, "audio encoded and decoded a second")


def against_audiolm_pytorch(report: Report, repeats: int) -> None:
    """Compare coarse and fine stage, and masked decoding of 30 s of both."""
    print("audiolm-pytorch")
    if not use_packages("audiolm_pytorch"):
        return
    from benchmarks.peers import audiolm_pytorch as peer

    sizes = peer.Sizes(semantic_codes=stages.SEMANTIC_CODES)
    per_audio_second = 0.0
    for name in ("coarse", "fine"):
        stage = peer.build(name, sizes)  # type: ignore[arg-type]
        theirs = peer.generation_rate(stage, SECONDS, repeats=repeats)
        report.note(f"audiolm_pytorch_{name}", theirs, "tokens/s")
        lm = stages.build("flat", name)
        report.note(f"audiolm_pytorch_{name}_parameters", stage.parameters / 1e6, "M")
        report.note(f"flat_{name}_parameters", stages.parameters(lm) / 1e6, "M")
        ours = report.note(f"flat_{name}", rate(lm, SECONDS, repeats), "tokens/s")
        report.ratio(f"flat_{name}_vs_audiolm_pytorch", ours / theirs, "tokens/s")
        per_audio_second += stages.num_tokens(lm.stage, 1.0) / theirs
    for family in ("delay", "depth", "masked"):
        lm = stages.build(family, "all")
        took = median_seconds(lambda lm=lm: stages.generate(lm, SECONDS), repeats)  # type: ignore[misc]
        report.ratio(
            f"{family}_vs_audiolm_pytorch",
            SECONDS * per_audio_second / took,
            f"time for {SECONDS:g} s of all levels",
        )
    masked = stages.build("masked", "all")
    took = median_seconds(lambda: stages.generate(masked, 30.0), repeats)
    report.note("masked_30s", took, "s")
    report.note("masked_parameters", stages.parameters(masked) / 1e6, "M")
    # Its speed falls with length; what it needs for 3 s is taken ten times, in its favour.
    report.ratio(
        "masked_30s_vs_audiolm_pytorch",
        30 * per_audio_second / took,
        "time for 30 s, coarse and fine, theirs scaled up from 3 s",
    )


PARTS: dict[str, Callable[[Report, int], None]] = {
    "families": families,
    "limits": limits,
    "transformers": against_transformers,
    "pipelines": real_time,
    "rows": rows,
    "length": long_audio,
    "audio-decoders": against_audio_decoders,
    "codecs": against_codecs,
    "audiolm-pytorch": against_audiolm_pytorch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    with reported(parser) as (arguments, report), torch.inference_mode():
        for name in arguments.only:
            PARTS[name](report, arguments.repeats)


if __name__ == "__main__":
    main()
