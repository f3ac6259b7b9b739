"""The script for GPUs runs on a CPU, up to CUDA itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_check_runs_on_a_cpu(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [str(ROOT / "tools" / "gpu_check.sh"), "--device", "cpu", "--small"]
    command += ["--json", str(found), "--then", f"{sys.executable} -c \"print('trained')\""]
    environment = os.environ | {"PYTHON": sys.executable, "LOG": str(tmp_path / "log")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(found.read_text())
    assert report["raw"]["failed"] == {}
    ratios = report["ratios"]
    for key in ("flat_torch_tokens", "delay_torch_tokens", "depth_torch_tokens"):
        assert ratios[key] >= 0.99
    assert ratios["spectral_codec.v1_codes"] == 1.0
    assert report["raw"]["train_bf16-mixed_rotary_rate"]["value"] > 0
    assert "trained" in (tmp_path / "log").read_text()
