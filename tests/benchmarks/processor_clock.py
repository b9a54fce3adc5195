"""Run a command of this package in whose budgets the seconds are those of its own processor time.

    python -m tests.benchmarks.processor_clock usd_train 101 0 --max-time 300s --workers 0

Budgets of `--max-time` then hold whatever else the machine does, as long as the command is one process of one thread
(`--workers 0`, one core), so that trainings of one table may run beside other work. Only for benchmarks: a user's
budget is of wall time.
"""

from __future__ import annotations

import signal
import sys
import time
from importlib.metadata import entry_points


def main() -> None:
    command, *arguments = sys.argv[1:]
    (entry,) = entry_points(group="console_scripts", name=command)
    sys.argv[0] = command
    time.monotonic = time.perf_counter = time.process_time
    signal.ITIMER_REAL, signal.SIGALRM = signal.ITIMER_PROF, signal.SIGPROF  # of limits of single steps
    sys.exit(entry.load()(arguments))


if __name__ == "__main__":
    main()
