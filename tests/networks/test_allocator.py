"""Freed tensors stay with the process. In a process of its own, since the setting cannot be taken back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
import psutil, torch
from unisegdiff_pipeline.networks.allocator import keep_freed_memory

set_up = keep_freed_memory() if sys.argv[1] == "keep" else None
memory = psutil.Process(os.getpid()).memory_info
before = memory().rss
tensor = torch.ones(16 * 2**20)  # 64 MiB
del tensor
print(json.dumps([set_up, (memory().rss - before) / 2**20]))
"""


def grown_mb(how: str) -> tuple[bool | None, float]:
    """What `keep_freed_memory` said, and by how many MiB the process has grown after a tensor came and went."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    said, grown = json.loads(done.stdout)
    return said, grown


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_freed_tensors_stay_with_the_process() -> None:
    said, grown = grown_mb("keep")
    assert said is True
    assert grown > 60
    assert grown_mb("default")[1] < 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from unisegdiff_pipeline.networks.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert keep_freed_memory() is False
