"""What a training says: lines for people, JSON lines for programs, a report, and a logger on request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object, to_jsonable
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.inference.settings import FILE_NAME as SETTINGS_NAME
from unisegdiff_pipeline.inference.settings import read_settings
from unisegdiff_pipeline.inference.settings_words import settings_in_words
from unisegdiff_pipeline.io.prediction_files import scores_of_fold
from unisegdiff_pipeline.reports.training_log import LOG_NAME, read_log
from unisegdiff_pipeline.training.loggers import LoggerName, ScalarLogger, open_logger
from unisegdiff_pipeline.training.schedule import Allowance

LOGGER = logging.getLogger(__name__)
REPORT_FRACTION = 0.01  # of the training time may go into refreshing the report


class RunLog:
    """Log of one fold; entries of earlier sessions stay, those after the checkpoint are dropped on resuming.

    Args:
        folder: results folder of the fold.
        logger: where numbers go besides; None: nowhere.
        settings: that the logger keeps beside them.

    Attributes:
        report_s: seconds that the last report took.
    """

    def __init__(
        self, folder: Path, logger: LoggerName | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.path = folder / LOG_NAME
        self.report_s = 0.0
        self._report_allowance = Allowance(REPORT_FRACTION)
        self._logger_name, self._settings = logger, settings or {}
        self._logger: ScalarLogger | None = None

    def open(self) -> None:
        """Make the folder, and begin the logger's run on request.

        Raises:
            UsdError: see `open_logger`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_half_line(self.path)
        if self._logger_name is not None:
            self._logger = open_logger(self._logger_name, self.path.parent, self._settings)

    def say(self, text: str) -> None:
        """Tell people, by the log of this module; commands show each line with the time of day."""
        LOGGER.info("%s", text)

    def record(self, kind: str, **values: Any) -> None:
        """Append one entry, for example kind "train" with phase, iteration, loss."""
        entry = {"kind": kind, **to_jsonable(values)}
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if "iteration" in values:
            phase, iteration = values.get("phase"), values["iteration"]
            numbers = {
                name: float(value)
                for name, value in values.items()
                if isinstance(value, (int, float)) and name not in ("iteration", "phase")
            }
            if numbers:
                self._to_logger(lambda logger: logger.add_scalars(f"phase_{phase}", numbers, iteration))

    def _to_logger(self, act: Callable[[ScalarLogger], None]) -> None:
        """A training is worth more than its logger: one that fails is not asked again."""
        if self._logger is None:
            return
        try:
            act(self._logger)
        except Exception as error:
            self._logger = None
            self.say(
                f"warning: {self._logger_name} failed and gets no further numbers, {LOG_NAME} has them all: {error}"
            )

    def entries(self) -> list[dict[str, Any]]:
        """All entries; a last line cut off by a kill is left out."""
        return read_log(self.path)

    @property
    def num_entries(self) -> int:
        """Entries so far; a checkpoint keeps the number."""
        return len(self.entries())

    def keep(self, num_entries: int) -> None:
        """Drop what was logged after a checkpoint, so that a resumed training does not log it twice."""
        self._rewrite(self.entries()[:num_entries])

    def forget_phase(self, phase: int) -> None:
        """Drop what a phase, or a later one, that begins from its start now has logged before it was killed."""
        kept = [entry for entry in self.entries() if entry.get("phase", 0) < phase]
        self._rewrite(kept)

    def _rewrite(self, entries: Sequence[dict[str, Any]]) -> None:
        if not self.path.is_file():
            return
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")

    def refresh_report(self) -> None:
        """Write report.html of a training that goes on, unless that would take more than REPORT_FRACTION of it."""
        if self._report_allowance.is_due:
            self._write_report(is_running=True)

    def final_report(self) -> None:
        """Write report.html of a training that has ended or failed; none of one that has not begun."""
        if self.path.is_file():
            self._write_report(is_running=False)

    def _write_report(self, is_running: bool) -> None:
        from unisegdiff_pipeline.reports.training_report import write_training_report

        start = time.monotonic()
        with self._report_allowance.spent():
            try:
                write_training_report(self.path.parent, is_running, _chosen_in_words(self.path.parent))
            except Exception as error:  # a training is worth more than its report
                self.say(f"{self.path.parent / 'report.html'} could not be written: {error}")
        self.report_s = time.monotonic() - start

    def close(self) -> None:
        """End the logger's run."""
        self._to_logger(lambda logger: logger.close())
        self._logger = None


def _chosen_in_words(folder: Path) -> list[str]:
    """What a fold's inference.json says, in sentences; none before it is there."""
    if not (folder / SETTINGS_NAME).is_file():
        return []
    try:
        settings = read_settings(folder)
    except UsdError:  # of another version
        return []
    scores = scores_of_fold(folder)
    units = read_object(scores).get("units") if scores.is_file() else None
    return settings_in_words(settings, VOLUMES if units is None else from_jsonable(Units, units, f"{scores}: units"))


def _drop_half_line(path: Path) -> None:
    """Remove a last line that a kill cut off, so that the next entry does not become part of it."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content[: content.rfind(b"\n") + 1])
