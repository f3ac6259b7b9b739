"""Ctrl-C and SIGTERM end a training after its step, with a checkpoint that it goes on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.test_loop import (
    StubHost,
    Tiny,
    batch_of,
    config,
    logged,
    not_a_number,
    run,
    trained,
)

from segue.apps.cli.train import stopped
from segue.core.checkpoint_files import newest_checkpoint
from segue.core.interfaces import WaveBatch
from segue.data.epochs import WHOLE, Share
from segue.training import loop
from segue.training.loop import train
from segue.training.stopping import Stopped, StopSignals


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_goes_on_with_the_same_command(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    whole = train(run(tmp_path / "whole"))
    parts = tmp_path / "parts"
    with pytest.raises(Stopped) as caught:
        train(run(parts, host=StubHost(at={13: send(number)})))
    assert newest_checkpoint(parts) == parts / "step-00000013"
    assert str(parts / "step-00000013") in str(caught.value)
    assert caught.value.signal_number == number
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    said: list[str] = []
    last = train(run(parts, component=Tiny(seed=99), say=said.append))
    assert len(said) == 1 and "resumed at step 13" in said[0]
    assert trained(last) == trained(whole)
    assert logged(parts) == logged(tmp_path / "whole")


def test_a_run_that_stops_while_its_losses_are_not_finite_saves_nothing_new(
    tmp_path: Path,
) -> None:
    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return not_a_number(step) if step == 6 else batch_of(step)

    host = StubHost(at={7: send(signal.SIGTERM)})
    with pytest.raises(Stopped, match="step-00000005"):
        train(run(tmp_path, host=host, train_batches=batches))
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000005"


def test_the_last_step_may_be_stopped_too(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(run(tmp_path, host=StubHost(at={6: send(signal.SIGINT)}), config=config(steps=6)))
    assert train(run(tmp_path, config=config(steps=6))) == tmp_path / "step-00000006"


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopSignals() as signals:
        send(signal.SIGINT)()
        send(signal.SIGTERM)()  # torchrun sends this after a Ctrl-C
        assert signals.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt), StopSignals():
        send(signal.SIGINT)()
        send(signal.SIGINT)()


@pytest.mark.parametrize(
    ("error", "code"),
    [(Stopped("codec: stopped", signal.SIGTERM), 143), (KeyboardInterrupt(), 130)],
)
def test_the_command_says_so(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, stopped(quiet=False):
        raise error
    assert caught.value.code == code and "stopped" in capsys.readouterr().err
