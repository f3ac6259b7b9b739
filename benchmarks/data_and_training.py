"""How fast recordings become tokens, and tokens a trained stage.

    python benchmarks/data_and_training.py [--json FILE] [--minutes 40] [--steps 60]

The commands that users type, timed whole or by their own logs: `segue tokenize` with one and with
two processes; `segue train` of a stage and of a codec, and the share of a step that it waits for
data; codecs and tokenizers in fp32 and in bf16, on two threads; one process against two ranks under
torchrun; and against audiolm-pytorch, which makes the tokens anew in every step, on all threads.
All else has one thread a process. Recordings are the speech domain's prompt in light noise, another
for each. The peer is optional. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soundfile
import torch

from benchmarks import stages
from benchmarks.peers.packages import use_packages
from benchmarks.report import Report, reported
from benchmarks.timing import median_seconds, seconds
from segue.core.config_files import find_domain
from segue.core.plugins import default_host
from segue.plugins.layers.config import SIZES
from segue.training.loop import LOG_EVERY

FILE_SECONDS = 10.0
CROP_SECONDS, BATCH = 3.0, 2  # of the comparison with audiolm-pytorch
TOKENIZERS = "speech/textless_tokenizers"
#: Name, part and options of what ``speeds`` trains, on crops of this number and length.
TRAINABLE: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("spectral_codec", "codec", {"codec.training.adversary_from": 10**6}),
    ("spectral_codec_and_adversary", "codec", {"codec.training.adversary_from": 0}),
    *(
        (
            objective,
            "semantic_tokenizer",
            {
                "semantic_tokenizer.use": "ssl_encoder.v1",
                "semantic_tokenizer.options.objective": objective,
            },
        )
        for objective in ("hubert", "w2v_bert")
    ),
)
TRAINED_CROPS, TRAINED_SECONDS = 8, 2.0
SEGUE = (sys.executable, "-m", "segue")
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "segue"),
)


def make_recordings(folder: Path, minutes: float) -> None:
    """Write files of ten seconds, no two the same."""
    prompt = find_domain("speech", default_host()).prompt
    assert prompt is not None
    wave, rate = soundfile.read(prompt, dtype="float32")
    length = round(FILE_SECONDS * rate)
    wave = np.tile(wave, -(-2 * length // len(wave)))
    draws = np.random.default_rng(0)
    folder.mkdir()
    for index in range(max(2, round(minutes * 60 / FILE_SECONDS))):
        start = draws.integers(length)
        noise = 0.003 * draws.standard_normal(length, dtype=np.float32)
        soundfile.write(folder / f"{index:05d}.flac", wave[start : start + length] + noise, rate)


def run(command: Sequence[str], threads: int) -> None:
    """Run a command with so many threads in each process.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def tokenizing(report: Report, folder: Path, minutes: float) -> None:
    """Measure audio seconds per second of the whole command, start and loading included."""
    audio = minutes * 60
    took = {}
    for workers in (1, 2):
        command = (*SEGUE, "tokenize", "--config", TOKENIZERS, "--data", str(folder / "audio"))
        options = ("-o", str(folder / f"tokens-{workers}"), "--workers", str(workers))
        took[workers] = seconds(lambda c=(*command, *options): run(c, threads=1))  # type: ignore[misc]
        report.note(f"tokenize_{workers}_processes", audio / took[workers], "audio s per second")
    report.ratio("tokenize_scaling", took[1] / took[2], "two processes against one, whole commands")


def train(
    folder: Path, name: str, part: str, options: dict[str, object], program: Sequence[str] = SEGUE,
    threads: int = 1, config: str = TOKENIZERS, more: Sequence[str] = (),
) -> list[dict[str, float]]:  # fmt: skip
    """Train on what ``tokenizing`` left; return the lines of its log after the first."""
    run_folder = folder / name
    run_folder.mkdir()
    (run_folder / "tokens").symlink_to(folder / "tokens-1" / "tokens")
    command = [*program, "train", part, "--config", config, "-o", str(run_folder)]
    command += ["--data", str(folder / "audio"), *more]
    for key, value in options.items():
        command += ["--set", f"{key}={value}"]
    run(command, threads)
    log = (run_folder / part.replace(".", "/") / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if "seconds" in line][1:]


def step_seconds(lines: Sequence[dict[str, float]]) -> float:
    return median(line["seconds"] for line in lines)


def waiting(report: Report, folder: Path, steps: int) -> None:
    """Measure the share of a step that a training waits for its batch, on tokens and audio."""
    parts = (
        ("tokens", "stages.acoustic", "stages.acoustic.lm.training", TOKENIZERS),
        ("audio", "codec", "codec.training", "speech/baseline"),
    )
    for data, part, place, config in parts:
        lines = train(folder, f"waiting-{data}", part, quiet(place, steps), config=config)
        waited = sum(line["data_seconds"] for line in lines)
        share = waited / sum(line["seconds"] for line in lines)
        report.note(f"step_on_{data}", step_seconds(lines), "s per step")
        report.ratio(f"waiting_for_{data}", share, "of a step's time, goal below 0.02")


def quiet(place: str, steps: int) -> dict[str, object]:
    """Return settings of so many steps, without validation and checkpoints in between."""
    return {f"{place}.{key}": steps for key in ("steps", "save_every", "validate_every")}


def speeds(report: Report, folder: Path, steps: int) -> None:
    """Measure how much audio codecs and tokenizers learn from in a second, in fp32 and bf16."""
    for name, part, options in TRAINABLE:
        training, audio, rate = f"{part}.training", TRAINED_CROPS * TRAINED_SECONDS, {}
        for precision in ("32-true", "bf16-mixed"):
            asked = quiet(training, steps) | options | {f"{training}.precision": precision}
            asked |= {f"{training}.batch_size": TRAINED_CROPS}
            asked |= {f"{training}.crop_seconds": TRAINED_SECONDS}
            run_name = f"{name}-{precision}"
            lines = train(folder, run_name, part, asked, threads=2, config="speech/baseline")
            rate[precision] = report.note(
                f"train_{name}_{precision}", audio / step_seconds(lines), "audio s per second"
            )
        ratio = rate["bf16-mixed"] / rate["32-true"]
        report.ratio(f"train_{name}_bf16_vs_fp32", ratio, "audio learnt from a second")


def ranks(report: Report, folder: Path, steps: int) -> None:
    """Compare the same global batch in one process and in two ranks, one thread each."""
    options = quiet("stages.acoustic.lm.training", steps)
    programs = {"one_process": SEGUE, "two_ranks": TORCHRUN}
    took = {
        name: report.note(
            f"train_{name}",
            step_seconds(train(folder, name, "stages.acoustic", options, program)),
            "s per step",
        )
        for name, program in programs.items()
    }
    report.ratio("two_ranks_vs_one", took["one_process"] / took["two_ranks"], "steps per second")


def against_audiolm_pytorch(report: Report, folder: Path, steps: int, repeats: int) -> None:
    """Compare stages of equal width, depth, heads, crops and tokens; all threads to both."""
    from benchmarks.peers.audiolm_pytorch import Sizes
    from benchmarks.peers.audiolm_pytorch_online import training_steps

    for size in ("small", "base"):
        width, depth, heads = (SIZES[size][key] for key in ("width", "depth", "heads"))
        peer = Sizes(width, depth, heads, semantic_codes=512, fine_quantizers=4)
        print(f"audiolm-pytorch, {depth} layers of width {width}")
        ours, online, decoupled, levels = 0.0, 0.0, 0.0, 0.0
        for name in ("semantic", "coarse", "fine"):
            own = report.note(
                f"segue_{name}_{size}", segue_step(folder, name, size, steps), "s per step"
            )
            on_waves, on_tokens = training_steps(name, BATCH, CROP_SECONDS, peer)  # type: ignore[arg-type]
            theirs = report.note(
                f"peer_{name}_{size}_on_waves", median_seconds(on_waves, repeats), "s per step"
            )
            tokens = report.note(
                f"peer_{name}_{size}_on_tokens", median_seconds(on_tokens, repeats), "s per step"
            )
            report.ratio(f"{name}_{size}_vs_online", theirs / own, "time per step")
            ours, online, decoupled = ours + own, online + theirs, decoupled + tokens
            levels += 0.0 if name == "semantic" else theirs
        report.ratio(f"peer_{size}_online_vs_tokens", online / decoupled, "the peer's own steps")
        report.ratio(f"training_{size}_vs_online", online / ours, "a step of each, goal 5")
        delay = report.note(f"segue_delay_{size}", delay_step(folder, size, steps), "s per step")
        report.ratio(f"delay_{size}_vs_online", levels / delay, "all levels in one stage")


def delay_step(folder: Path, size: str, steps: int) -> float:
    """Measure a step of one stage that learns all levels with a delay between them."""
    options = {"stages.acoustic.predicts": "acoustic"}
    options |= {f"stages.acoustic.lm.options.{key}": v for key, v in SIZES[size].items()}
    return crop_step(folder, f"delay-{size}", "acoustic", steps, options, TOKENIZERS)


def segue_step(folder: Path, name: str, size: str, steps: int) -> float:
    """Measure a step of one of the paper's stages, on the same tokens."""
    trained = find_domain("speech", default_host()).pretrained
    options = {
        f"stages.{name}.lm.options.size": size,
        "stages.fine.predicts": f"acoustic[{stages.COARSE}:8]",
        "semantic_tokenizer.use": "ssl_encoder.v1",
        "semantic_tokenizer.checkpoint": f"{trained}/semantic_tokenizer",
        "codec.options.num_levels": 8,
        "codec.checkpoint": f"{trained}/codec",
    }
    return crop_step(folder, f"{name}-{size}", name, steps, options, "speech/cascade")


def crop_step(
    folder: Path, run_name: str, stage: str, steps: int, options: dict[str, object], config: str
) -> float:
    """Measure a step of `segue train` on the peer's crops, waiting included."""
    place = f"stages.{stage}"
    asked = quiet(f"{place}.lm.training", steps) | options
    asked |= {f"{place}.crop_seconds": CROP_SECONDS, f"{place}.lm.training.batch_size": BATCH}
    threads = torch.get_num_threads()
    return step_seconds(train(folder, run_name, place, asked, threads=threads, config=config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40.0, help="of audio to tokenize")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--repeats", type=int, default=5, help="of the peer's steps")
    parser.add_argument(
        "--only-speeds", action="store_true", help="train codec and tokenizer, measure no more"
    )
    with reported(parser) as (arguments, report), tempfile.TemporaryDirectory() as folder:
        root, least = Path(folder), 2 * LOG_EVERY
        if arguments.steps < least:
            parser.error(f"--steps {arguments.steps}: fewer than {least} leave nothing to read")
        make_recordings(root / "audio", arguments.minutes)
        speeds(report, root, arguments.steps)
        if arguments.only_speeds:
            return
        tokenizing(report, root, arguments.minutes)
        waiting(report, root, arguments.steps)
        ranks(report, root, arguments.steps)
        if use_packages("audiolm_pytorch"):
            against_audiolm_pytorch(report, root, arguments.steps, arguments.repeats)


if __name__ == "__main__":
    main()
