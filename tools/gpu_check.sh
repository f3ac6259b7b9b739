#!/bin/sh
# Check on a GPU what a CPU cannot show, within ten minutes: writes gpu_check.json and gpu_check.log.
#   tools/gpu_check.sh [--seconds 540] [--device cuda] [--small] [--then 'COMMAND']
# Run it from the root of the checkout. PYTHON, LOG and LIMIT (seconds) may be set.
set -u
LOG=${LOG:-gpu_check.log}
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000
timeout --kill-after=10 "${LIMIT:-590}" "${PYTHON:-.venv/bin/python}" benchmarks/gpu_check.py "$@" > "$LOG" 2>&1
code=$?
tail -n 60 "$LOG"
exit $code
