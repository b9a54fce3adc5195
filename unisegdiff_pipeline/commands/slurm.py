"""SLURM: job arrays that run a command in parts, and which part of one this process is."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.core.errors import UsdError

TASK = '"$SLURM_ARRAY_TASK_ID"'
WARNED_S = 120  # before the time limit SIGTERM comes, after which a training saves a checkpoint


def array_part(
    num_parts: int | None, part_id: int | None, environment: Mapping[str, str] | None = None
) -> tuple[int, int, str]:
    """(number of parts, this part, where they come from in words) of a run that may be a task of a SLURM job array.

    Args:
        num_parts, part_id: what flags say; None takes SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_ID where both are
            set, else one part. A single part needs no number, whatever task of an array this is.
        environment: variables; by default those of this process.

    Raises:
        UsdError: the task's number is no part, because the array does not begin at 0 or has gaps.
    """
    array = _array(environment)
    if array is None or num_parts == 1 or (num_parts is not None and part_id is not None):
        number, part = num_parts or 1, part_id or 0
        return number, part, f"part {part} of {number}" if number > 1 else ""
    count, task = array
    number, part = num_parts or int(count), int(task) if part_id is None else part_id
    if part >= number:
        raise UsdError(
            f"this is task {task} of a SLURM array of {count}, but parts are numbered from 0 to {number - 1}: submit "
            f"the array as --array=0-{number - 1}, say which part this is with --num-parts and --part-id, or give "
            f"--num-parts 1 where each task is to do all of its input."
        )
    ways_out = "other parts: --num-parts, --part-id; all in each task: --num-parts 1"
    return number, part, f"part {part} of {number}, by the SLURM job array ({ways_out})" if number > 1 else ""


def in_array() -> bool:
    """Whether this process is a task of a SLURM job array, which then numbers the parts."""
    return _array() is not None


def _array(environment: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Number of tasks of the SLURM job array, and which one this is; None outside of one."""
    variables = os.environ if environment is None else environment
    count, task = (variables.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("COUNT", "ID"))
    return (count, task) if count.isdigit() and task.isdigit() else None


@dataclass(frozen=True)
class JobArray:
    """A batch script of one task for each number from 0 on.

    Attributes:
        name: of the job.
        num_tasks: of the array.
        command: what each task runs; words in which TASK stands are quoted already.
        with_gpu: ask for a GPU.
        afterwards: what to run once all tasks have ended, for a comment; empty for nothing.
    """

    name: str
    num_tasks: int
    command: str
    with_gpu: bool
    afterwards: str = ""

    def script(self) -> str:
        """The text for sbatch. A task that is stopped, by preemption or its time limit, is queued again and goes on."""
        gpu = "#SBATCH --gres=gpu:1\n" if self.with_gpu else ""
        after = f"\n# Once all tasks have ended: {self.afterwards}" if self.afterwards else ""
        return f"""\
#!/bin/bash
#SBATCH --job-name={self.name}
#SBATCH --array=0-{self.num_tasks - 1}
{gpu}#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%a.log
#SBATCH --signal=B:TERM@{WARNED_S}
# Check memory, time and partition for your cluster. usd_raw, usd_preprocessed and usd_results must be set when this is
# submitted, or in the command.{after}

{self.command} &
task=$!
stopped=1
trap 'stopped=1; kill -TERM "$task" 2>/dev/null' TERM
while [ "$stopped" = 1 ]; do # each signal ends a wait, but what is under way has to be saved
    stopped=0
    wait "$task"
    code=$?
done
if [ "$code" = 143 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" # the same command goes on
fi
exit "$code"
"""


def command_line(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    changed: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> str:
    """The command that gives these arguments, quoted for bash; what has its default value is left out.

    Args:
        parser, args: of a command.
        changed: argument => text in its place, quoted already.
        without: arguments to leave out.
    """
    changed = changed or {}
    words: list[str] = []
    positional: list[str] = []
    for action in parser._actions:
        name, value = action.dest, getattr(args, action.dest, None)
        if name in without or name in ("help", "version"):
            continue
        flag = action.option_strings[-1] if action.option_strings else ""
        if name in changed:
            (words if flag else positional).append(f"{flag} {changed[name]}".strip())
        elif not flag:
            positional.append(_quoted(value))
        elif isinstance(action, argparse.BooleanOptionalAction):
            words += [] if value == action.default else [action.option_strings[0 if value else -1]]
        elif action.nargs == 0:
            words += [flag] if value == action.const and value != action.default else []
        elif value is not None and value != action.default:
            words.append(f"{flag} {_quoted(value)}")
    return " ".join([parser.prog, *positional, *words])


def _quoted(value: object) -> str:
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    # Whole numbers without a point or an exponent, which durations do not have; :g would round the others.
    texts = (str(int(one)) if isinstance(one, float) and one.is_integer() else str(one) for one in values)
    return " ".join(shlex.quote(text) for text in texts)
