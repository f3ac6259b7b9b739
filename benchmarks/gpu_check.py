"""Check in one run what only a GPU can show, and write one JSON file.

    tools/gpu_check.sh [--seconds 540] [--device cuda] [--small] [--then COMMAND]

Parts: parity of every stage model, tokenizer and codec with the CPU; tokens a second of every
backend against memory bandwidth; masked decoding of 30 s; training in bfloat16, its share of the
GPU's peak and its memory against what `segue train --plan` says. Each part that fails is noted and
the next one begins; the file is written after each, so that a run that is cut leaves what it found.
What is left of the time goes to ``--then``, such as a training on prepared tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import stages
from benchmarks.data_and_training import (
    SEGUE,
    TOKENIZERS,
    make_recordings,
    quiet,
    run,
    step_seconds,
    train,
)
from benchmarks.report import Report
from benchmarks.timing import median_seconds
from segue.core.errors import SegueError
from segue.core.interfaces import AcousticCodec, StageLM, Tokenizer, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.plugins import default_host
from segue.core.sampling import row_generators
from segue.plugins.layers.config import SIZES
from segue.testing.subject import Subject
from segue.testing.synthetic import ragged_audio

GREEDY = Sampling(temperature=0)
CASES = (("flat", "coarse"), ("delay", "all"), ("depth", "all"), ("masked", "all"))
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The device that is checked.

    Attributes:
        device: ``cuda``, or ``cpu`` to try the script itself.
        small: whether models are tiny and few, to try the script in seconds.
    """

    device: str
    small: bool

    @property
    def backends(self) -> tuple[str, ...]:
        return ("torch", "graph", "compile") if self.device.startswith("cuda") else ("torch",)

    def size(self, name: str) -> dict[str, object]:
        return dict(SIZES["tiny" if self.small else name])

    def wait(self) -> None:
        """Wait for the device: what was asked of a GPU may not be done yet."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        def done() -> None:
            call()
            self.wait()

        return median_seconds(done, repeats)

    def peak_memory(self) -> float:
        """Return the most memory since the last call, in GiB; 0 on a CPU."""
        if not self.device.startswith("cuda"):
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / GIB
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def on(device: str, lm: StageLM, weights: str = "stored", backend: str = "auto") -> StageLM:
    """Return a copy on a device that decodes in one way."""
    moved = copy.deepcopy(lm).to(device)
    moved.decode_with(Decoding.model_validate({"weights": weights, "backend": backend}))
    return moved


def greedy(lm: StageLM, given: tuple[Tokens, ...], frames: int) -> torch.Tensor:
    device = lm.device
    rows = len(given[0].lengths)
    prompt = Tokens.empty(rows, lm.stage.target.num_levels, device)
    context = tuple(tokens.to(device) for tokens in given)
    return lm.generate(context, prompt, frames, GREEDY, row_generators(0, rows)).ids.cpu()


def stage_parity(report: Report, machine: Machine) -> None:
    """Compare log-likelihoods and greedy tokens of every family with the CPU's."""
    seconds = 0.2 if machine.small else 2.0
    for family, name in CASES:
        lm = stages.build(family, name, **machine.size("base"))
        batch = stages.batch_of(lm.stage, seconds, 2)
        wanted = lm.score(batch)
        for weights in ("stored", "bfloat16"):
            moved = on(machine.device, lm, weights)
            found = moved.score(batch.to(torch.device(machine.device))).float().cpu()
            error = (found - wanted).abs()
            report.note(f"{family}_{weights}_error", float(error.max()), "nats, largest")
            report.note(f"{family}_{weights}_mean_error", float(error.mean()), "nats, mean")
        if family == "masked":
            continue  # what it fills first depends on near ties
        frames = round(seconds * lm.stage.target.frame_rate)
        tokens = greedy(lm, batch.given, frames)
        for backend in machine.backends:
            same = greedy(on(machine.device, lm, backend=backend), batch.given, frames) == tokens
            report.ratio(
                f"{family}_{backend}_tokens", float(same.float().mean()), "equal the CPU's"
            )


def tokenizer_parity(report: Report, machine: Machine) -> None:
    """Compare codes and audio of every tokenizer and codec that builds here with the CPU's."""
    host = default_host()
    kinds = {"semantic_tokenizer", "codec"}
    records = [record for record in host.records() if record.kind in kinds]
    few = {"mel_kmeans.v1", "spectral_codec.v1"}
    for record in records:
        if machine.small and record.name not in few:
            continue
        try:
            component = Subject(record.kind, record.name, host=host).create()
        except (SegueError, ImportError) as error:
            report.raw[f"{record.name}_skipped"] = str(error)
            continue
        assert isinstance(component, Tokenizer)
        rate = component.spec.sample_rate
        batch = ragged_audio((rate, 2 * rate), rate)
        wanted = component.encode(batch.wave, batch.lengths)
        moved = copy.deepcopy(component).to(machine.device)
        found = moved.encode(batch.wave.to(machine.device), batch.lengths.to(machine.device))
        same = (found.ids.cpu() == wanted.ids).float().mean()
        report.ratio(f"{record.name}_codes", float(same), "equal the CPU's")
        if isinstance(component, AcousticCodec):
            assert isinstance(moved, AcousticCodec)
            wave = moved.decode(wanted.ids.to(machine.device), wanted.lengths.to(machine.device))
            error = (wave.float().cpu() - component.decode(wanted.ids, wanted.lengths)).abs()
            report.note(f"{record.name}_audio_error", float(error.max()), "of full scale, largest")


def decoding(report: Report, machine: Machine) -> None:
    """Measure tokens a second of the flat coarse stage at the paper's size, and memory read."""
    copied = torch.empty(2**20 if machine.small else GIB, dtype=torch.uint8, device=machine.device)
    taken = machine.seconds(copied.clone)
    bandwidth = report.note("bandwidth", 2 * copied.numel() / taken / 1e9, "GB/s, read and written")
    seconds = 0.2 if machine.small else 3.0
    lm = stages.build("flat", "coarse", **machine.size("paper"))
    tokens = stages.num_tokens(lm.stage, seconds)
    for weights, size in (("stored", 4), ("bfloat16", 2)):
        read = size * stages.parameters(lm.transformer) / 1e9  # type: ignore[arg-type]
        for backend in machine.backends:
            moved = on(machine.device, lm, weights, backend)
            for rows in (1, 16):
                took = machine.seconds(lambda m=moved, n=rows: generate(m, seconds, n))  # type: ignore[misc]
                name = f"{backend}_{weights}_{rows}_rows"
                rate = report.note(name, rows * tokens / took, "tokens/s")
                share = rate / rows * read / bandwidth
                report.ratio(f"{name}_vs_bandwidth", share, "of the speed of reading weights")


def generate(lm: StageLM, seconds: float, rows: int) -> Tokens:
    frames = round(seconds * lm.stage.target.frame_rate)
    given = tuple(tokens.to(lm.device) for tokens in stages.given(lm.stage, seconds, rows))
    prompt = Tokens.empty(rows, lm.stage.target.num_levels, lm.device)
    return lm.generate(given, prompt, frames, Sampling(), row_generators(0, rows))


def masked(report: Report, machine: Machine) -> None:
    """Decode all levels of 30 s in masked passes (SoundStorm: 0.5 s on a TPU-v4)."""
    seconds = 1.0 if machine.small else 30.0
    lm = stages.build("masked", "all", **machine.size("medium") | {"position_encoding": "rotary"})
    report.note("masked_parameters", stages.parameters(lm) / 1e6, "M")
    for weights in ("stored", "bfloat16"):
        moved = on(machine.device, lm, weights)
        took = machine.seconds(lambda m=moved: generate(m, seconds, 1))  # type: ignore[misc]
        report.note(f"masked_{weights}", took, f"s for {seconds:g} s of audio")


def training(report: Report, machine: Machine) -> None:
    """`segue tokenize` and `segue train` as users type them, against their own plan."""
    minutes, steps = (0.4, 20) if machine.small else (10.0, 60)
    part, place = "stages.semantic", "stages.semantic.lm"
    size = machine.size("paper")
    rotary = size | {"position_encoding": "rotary"}  # which FlashAttention can compute
    runs = (("32-true", size, ""), ("bf16-mixed", size, ""), ("bf16-mixed", rotary, "_rotary"))
    device = ("--device", machine.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_recordings(root / "audio", minutes)
        audio = ("--config", TOKENIZERS, "--data", str(root / "audio"))
        start = time.perf_counter()
        run((*SEGUE, "tokenize", *audio, "-o", str(root / "tokens-1"), *device), threads=2)
        took = time.perf_counter() - start
        report.note("tokenize", minutes * 60 / took, "audio s per second, whole command")
        options = quiet(f"{place}.training", steps) | {"stages.semantic.crop_seconds": 2}
        options |= {f"{place}.training.batch_size": 2 if machine.small else 64}
        for precision, size, suffix in runs:
            name = precision + suffix
            options |= {f"{place}.options.{key}": value for key, value in size.items()}
            options[f"{place}.training.precision"] = precision
            lines = train(root, f"run-{name}", part, options, more=device)
            report.note(f"train_{name}", step_seconds(lines), "s per step")
            report.note(f"train_{name}_rate", lines[-1]["tokens_per_second"], "tokens/s")
            if "mfu" in lines[-1]:
                report.ratio(f"mfu_{name}", lines[-1]["mfu"], "of the peak, goal .45 in bf16")
            peak = report.note(f"peak_{name}", lines[-1]["peak_memory_gib"], "GiB")
            planned = report.note(f"planned_{name}", plan(part, audio, options), "GiB")
            report.ratio(f"peak_vs_plan_{name}", peak / planned, "memory, measured / planned")


def plan(part: str, audio: tuple[str, ...], options: dict[str, object]) -> float:
    """Return the GiB that `segue train --plan` says the training takes."""
    sets = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    command = [*SEGUE, "train", part, *audio, *sets, "--plan", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    [cost] = json.loads(done.stdout)["parts"]
    return float(sum(cost["memory"]["ddp"].values()) + cost["activations"]["kept"])


PARTS: dict[str, Callable[[Report, Machine], None]] = {
    "stage_parity": stage_parity,
    "tokenizer_parity": tokenizer_parity,
    "decoding": decoding,
    "masked": masked,
    "training": training,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no part after them")
    parser.add_argument("--then", help="a command for the rest of the time")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    machine, report = Machine(arguments.device, arguments.small), Report()
    if machine.device.startswith("cuda"):
        report.raw["gpu"] = torch.cuda.get_device_name(machine.device)
    failed: dict[str, str] = {}
    for name in arguments.only:
        if time.monotonic() > end:
            failed[name] = "no time was left"
            continue
        print(f"{name}, {end - time.monotonic():.0f} s left", flush=True)
        try:
            with torch.no_grad():
                PARTS[name](report, machine)
            report.note(f"{name}_memory", machine.peak_memory(), "GiB")
        except Exception:  # the next part may still show something
            failed[name] = traceback.format_exc()
            print(failed[name], flush=True)
        report.raw["failed"] = failed
        report.write(arguments.json)
    left = end - time.monotonic()
    if arguments.then and left > 0:
        print(f"{arguments.then}, {left:.0f} s left", flush=True)
        try:
            subprocess.run(shlex.split(arguments.then), timeout=left, check=False)
        except subprocess.TimeoutExpired:
            print("stopped at the end of the time; its last checkpoint stays")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
