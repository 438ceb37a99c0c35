#!/bin/sh
# Runs the live tests in a machine, as root, with the project in /project.
#
# usage: vagrant/run-tests.sh [SLOW [MINUTES [PYTEST ARGUMENTS...]]]
#   SLOW     factor for timeouts: 1 under KVM, 10 under emulation
#   MINUTES  time limit, 0 for none; results of finished tests are kept
#   default pytest arguments: tests/live
#
# Writes to build/results: junit.xml, kernel.json (recording, see `netbpf doctor --record`),
# facts.json (versions), dmesg. Exits with pytest's status, or 124 after the time limit.
set -eu
cd "$(dirname "$0")/.."
RESULTS=build/results
PYTHON=.venv/bin/python

NETBPF_TEST_SLOW=${1:-10}
NETBPF_TEST_OWN_MACHINE=1
export NETBPF_TEST_SLOW NETBPF_TEST_OWN_MACHINE
if [ $# -gt 0 ]; then shift; fi
MINUTES=${1:-0}
if [ $# -gt 0 ]; then shift; fi
if [ $# -eq 0 ]; then set -- tests/live; fi

# QEMU (7.2) caches translated code by virtual address. Without address space randomization, clang
# is translated once instead of once per process, which halves the time to compile.
if [ "$NETBPF_TEST_SLOW" != 1 ]; then echo 0 >/proc/sys/kernel/randomize_va_space; fi

rm -rf "$RESULTS"
mkdir -p "$RESULTS"
dmesg --clear
"$PYTHON" - >"$RESULTS/facts.json" <<'END'
import json, os, platform
import bcc

print(json.dumps({
    "release": os.uname().release,
    "bcc": getattr(bcc, "__version__", "unknown"),
    "python": platform.python_version(),
}))
END

status=0
"$PYTHON" -m netbpf doctor --record "$RESULTS/kernel.json" || status=$?
timeout --signal=INT --kill-after=2m "${MINUTES}m" \
    "$PYTHON" -m pytest -vv -p no:cacheprovider --junitxml="$RESULTS/junit.xml" "$@" || status=$?
dmesg >"$RESULTS/dmesg"
exit "$status"
