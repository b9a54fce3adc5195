"""Lets nnU-Net see the cores that it may use (taskset), not all of the machine.

On a CPU it starts `multiprocessing.cpu_count()` threads; pinned to fewer cores they would wait for each other. Python
imports this module at its start where the folder is in PYTHONPATH.
"""

import os

os.cpu_count = lambda: len(os.sched_getaffinity(0))
