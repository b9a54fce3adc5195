"""Processes that read images, ended while they are asked."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from unisegdiff_pipeline.io import reading_process


def kill_the_reader_of(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Kill the process that is asked for the image or series at `path`, each time.

    It dies behind the look whether it is alive, which would start another one, and before it can answer.
    """
    ask = reading_process._ask

    def killed(process: Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
        folder = request.get("series", {}).get("folder")
        if os.fspath(path) in [folder, *request.get("paths", [])]:
            process.kill()
        return ask(process, request)

    monkeypatch.setattr(reading_process, "_ask", killed)
