"""What a training says: lines for people, JSON lines for programs, a figure, and TensorBoard on request."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.io.files import atomic_path
from unisegdiff_pipeline.io.serialization import to_jsonable

LOG_NAME = "log.jsonl"
FIGURE_NAME = "progress.png"


class RunLog:
    """Log of one fold; entries of earlier sittings stay, those behind the checkpoint are dropped on continuing.

    Args:
        folder: results folder of the fold.
        tensorboard: also write events to folder/tensorboard.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = folder / LOG_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = _tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def say(self, text: str) -> None:
        """Print a line with the time of day."""
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def record(self, kind: str, **values: Any) -> None:
        """Append one entry, for example kind "train" with phase, iteration, loss."""
        entry = {"kind": kind, **to_jsonable(values)}
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if self._writer is not None and "iteration" in values:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("iteration", "phase"):
                    self._writer.add_scalar(f"phase_{values.get('phase')}/{name}", value, values["iteration"])

    def entries(self) -> list[dict[str, Any]]:
        """All entries; a last line cut off by a kill is left out."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def forget_after(self, phase: int, iteration: int) -> None:
        """Drop what was logged behind a checkpoint, so that a continued training does not log it twice."""
        kept = [e for e in self.entries() if (e.get("phase", 0), e.get("iteration", 0)) <= (phase, iteration)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")

    def draw(self) -> None:
        """Draw progress.png: losses, Dice on held-out whole cases and the learning rate over time."""
        draw_progress(self.entries(), self.path.with_name(FIGURE_NAME))

    def close(self) -> None:
        """Flush TensorBoard events."""
        if self._writer is not None:
            self._writer.close()


def draw_progress(entries: list[dict[str, Any]], path: Path) -> None:
    """Write the progress figure; does nothing before the first entry."""
    train = [e for e in entries if e["kind"] == "train"]
    if not train:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    loss_axis, dice_axis, rate_axis = figure.subplots(3, 1, sharex=True)
    for phase in sorted({e["phase"] for e in train}):
        mine = [e for e in train if e["phase"] == phase]
        minutes = [e["seconds"] / 60 for e in mine]
        loss_axis.plot(minutes, [e["loss"] for e in mine], color=f"C{phase - 1}", label=f"loss, phase {phase}")
        rate_axis.plot(minutes, [e["learning_rate"] for e in mine], color=f"C{phase - 1}")
        for index, stage in enumerate("abc"):
            values = [e.get(f"loss_{stage}") for e in mine]
            if any(v is not None for v in values):
                shown = [float("nan") if v is None else v for v in values]
                loss_axis.plot(minutes, shown, color=f"C{index + 2}", lw=1, label=f"stage {stage.upper()}, unweighted")
        scored = [e for e in entries if e["kind"] == "validation" and e["phase"] == phase]
        names = [k for k in (scored[-1] if scored else {}) if k.startswith("dice_")]
        for index, name in enumerate(names):
            dice_axis.plot(
                [e["seconds"] / 60 for e in scored],
                [float("nan") if e.get(name) is None else e[name] for e in scored],
                "o-" if name == "dice_mean" else ".--",
                color=f"C{index}",
                alpha=1.0 if phase == 1 else 0.6,
                label=name.removeprefix("dice_").replace("_", " ") if phase == 1 else None,
            )
    for axis, label in ((loss_axis, "loss"), (dice_axis, "Dice, held-out\nwhole cases"), (rate_axis, "learning rate")):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="best")
    rate_axis.set_xlabel("minutes of training")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _tensorboard_writer(folder: Path) -> Any:
    from unisegdiff_pipeline.io.errors import UsdError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsdError(
            "--tensorboard needs the package tensorboard, which is not installed; "
            "install it (pip install tensorboard) or leave the flag out."
        ) from None
    return SummaryWriter(str(folder))
