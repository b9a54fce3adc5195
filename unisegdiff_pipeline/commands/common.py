"""What all commands share: strict parsing, flags with one meaning everywhere, and errors as one paragraph.

This module imports nothing heavy, so that every --help answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import gc
import importlib
import os
import re
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from unisegdiff_pipeline.commands.limits import LEAST_GB, address_space_problem, soft_limit
from unisegdiff_pipeline.commands.terminal import report_error, showing
from unisegdiff_pipeline.core.errors import UsdError, chain_of
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.version import __version__

if TYPE_CHECKING:
    from types import FrameType

    from unisegdiff_pipeline.commands.nnunet import Flag
    from unisegdiff_pipeline.io.paths import Roots

EXIT_ERROR, EXIT_USAGE = 1, 2
EXIT_SIGNAL = 128  # plus the number of the signal, as shells count it
EXIT_OUTPUT_CLOSED = EXIT_SIGNAL + 13  # SIGPIPE, which not every system has
EXIT_INTERRUPTED, EXIT_TERMINATED = EXIT_SIGNAL + signal.SIGINT, EXIT_SIGNAL + signal.SIGTERM
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
REPEAT_AFTER_S = 0.02
MANY_FILES_MESSAGE = (
    "more files would have to be open at once than this process may open: raise the limit (ulimit -n 4096), or work in "
    "fewer processes (--workers 0), and run the command again; what was finished is kept."
)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_NO_PATH = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# What libraries make of the system's answers, in texts of their own.
_TOO_MANY_FILES = re.compile(r"Too many open files|received \d+ items of ancdata")
_NO_THREAD = re.compile(r"can't start new thread|Resource temporarily unavailable")
_NO_MEMORY = re.compile(r"[Cc](annot|an't|ouldn't) allocate memory|out of memory|failed to map segment|std::bad_alloc")


class CommandParser(argparse.ArgumentParser):
    """Argument parser that takes no abbreviations and answers an unknown flag with the nearest known one.

    Args:
        prog, description, epilog: as for argparse.
        nnunet: flags of nnU-Net's command that are understood, too.
        least_gb: address space without which the command ends here, with code 1.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        epilog: str | None = None,
        nnunet: Mapping[str, Flag] | None = None,
        least_gb: float = LEAST_GB,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.nnunet = nnunet or {}
        self.least_gb = least_gb
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Refuse unknown flags before anything else, so that a misspelt flag is named as such."""
        args = list(sys.argv[1:] if args is None else args)
        if self.nnunet:
            args = self._understood(args)
        for token in args:
            flag = token.split("=", 1)[0]
            # argparse would read -device as -d evice.
            is_long = re.match(r"--.|-[A-Za-z][A-Za-z_]", flag) is not None
            if is_long and flag not in self._option_string_actions:
                self.error(self._unknown_flag(flag))
        result = super().parse_known_args(args, namespace)
        if problem := address_space_problem(self.least_gb):
            report_error(problem)
            self.exit(EXIT_ERROR)
        return result

    def _understood(self, args: list[str]) -> list[str]:
        """The arguments with those of nnU-Net in our words; what they were understood as is said on stderr."""
        from unisegdiff_pipeline.commands.nnunet import NotUnderstoodError, understand

        try:
            found = understand(self, self.nnunet, args)
        except NotUnderstoodError as error:
            self.error(f"{error}.")
        if not found.is_foreign:
            return args
        report_error(found.text(self.prog), kind="note")
        return found.arguments

    def _unknown_flag(self, flag: str) -> str:
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.5)
        return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, exit with code 2."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\nSee {self.prog} --help.\n")


def run(body: Callable[[], int | None]) -> int:
    """Run a command's body and return its exit code.

    Errors that a user can fix are printed as one paragraph without a traceback (code 1), an interruption returns
    130 and SIGTERM 143, both after files under way have been removed; one whose output nobody reads any more, as after
    `| head`, returns 141; faults of the program keep their traceback.
    """
    signals = _Signals()
    try:
        with warnings.catch_warnings(), signals, showing():
            warnings.showwarning = _show_warning
            return body() or 0
    except UsdError as error:
        # A file that could not be opened for lack of descriptors was taken for a damaged one.
        return signals.exit_code() or _fail(MANY_FILES_MESSAGE if is_out_of_files(error) else str(error))
    except KeyboardInterrupt:
        signals.received = signals.received or signal.SIGINT
        return signals.exit_code()
    except SystemExit as stop:
        if signals.received:
            return signals.exit_code()
        if stop.code in (EXIT_INTERRUPTED, EXIT_TERMINATED):  # of a training, which answers signals itself
            return int(stop.code)
        raise
    except Exception as error:
        # A library that is interrupted while it is imported may answer with an error of its own.
        if signals.received:
            return signals.exit_code()
        if isinstance(error, BrokenPipeError) and _leave_closed_output():
            return EXIT_OUTPUT_CLOSED
        message = machine_message(error)
        if message is None:
            if limit := soft_limit("AS"):
                report_error(
                    f"this process may address {limit / 1e9:.2f} GB of memory (ulimit -v {limit // 1024}), and "
                    f"libraries fail in many ways for lack of it; try a higher limit.",
                    kind="note",
                )
            raise
        return _fail(message)


def import_with_torch(module: str) -> None:
    """Import a module, and torch by it, while the garbage collector rests, which never looks at them again.

    torch makes some hundred thousand objects that stay; passes over them are a tenth of a command's start. For commands
    alone: garbage of a program that imports this package would stay as well.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()


class _Signals:
    """Lets SIGINT and SIGTERM leave through all `finally` clauses, and remembers which of them came.

    By default SIGTERM ends a process where it stands. An interruption that is lost, because Python was just then in a
    finaliser, whose errors it only prints, is repeated. One that comes in the middle of an import waits for its end:
    native code that imports Python modules, as torch's does, aborts the process where an error reaches it.
    """

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, Any] = {}
        self._former_hook: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former = {n: signal.signal(n, self._leave) for n in (signal.SIGINT, signal.SIGTERM)}
            self._former_hook, sys.unraisablehook = sys.unraisablehook, self._repeat

    def __exit__(self, *_: object) -> None:
        if self._former:
            sys.unraisablehook = self._former_hook
            for number, handler in self._former.items():
                signal.signal(number, handler)
            # The work is done, and Python's own end would answer with a traceback.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def exit_code(self) -> int:
        """Of a command that a signal ended, which is said; 0 where none came."""
        if self.received:
            word = "interrupted" if self.received == signal.SIGINT else "terminated"
            print(f"{word}; what was finished is kept.", file=sys.stderr, flush=True)
            return EXIT_SIGNAL + self.received
        return 0

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number  # repeated as SIGINT, it is still what it was
        if _is_importing(frame):
            self._send_again(number)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clearing up short
        if number == signal.SIGTERM:
            raise SystemExit(EXIT_TERMINATED)
        raise KeyboardInterrupt

    def _repeat(self, lost: Any) -> None:
        if self.received and isinstance(lost.exc_value, (KeyboardInterrupt, SystemExit)):
            self._send_again(signal.SIGINT)  # raised from here it would be lost like the first one
        else:
            self._former_hook(lost)

    @staticmethod
    def _send_again(number: int) -> None:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(REPEAT_AFTER_S, signal.pthread_kill, (main, number)).start()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame, or one that led to it, is of Python's import."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def machine_message(error: BaseException) -> str | None:
    """The paragraph for a failure of the machine (full disk, permission, path) anywhere in the chain of causes."""
    for link in chain_of(error):
        where = f" ({link.filename})" if isinstance(link, OSError) and link.filename else ""
        number = link.errno if isinstance(link, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(link):
            return (
                f"the disk is full{where}: free some space, or choose a folder on another disk, and run the command "
                f"again; what was finished is kept."
            )
        if number == errno.EFBIG:
            return (
                f"a file became larger than this disk or the process allows{where}: raise the limit (ulimit -f), or "
                f"choose a folder on another disk, and run the command again; what was finished is kept."
            )
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to write or read here{where}; change the permissions, or choose another folder."
        if number in _NO_PATH:
            return (
                f"nothing can be made or opened here{where}: a file stands in the place of a folder, or a folder in "
                f"that of a file, or the path is too long; choose another one."
            )
    return shortage_message(error)


def shortage_message(error: BaseException) -> str | None:
    """The paragraph where open files, processes or memory have run out anywhere in the chain of causes."""
    for link in chain_of(error):
        number = link.errno if isinstance(link, OSError) else None
        text = str(link)
        if number in _TOO_MANY or _TOO_MANY_FILES.search(text):
            return MANY_FILES_MESSAGE
        if isinstance(link, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text):
            what = " ".join(text.split())[:200]
            return (
                f"memory ran out{f' ({what})' if what else ''}: end other programs, work in fewer processes "
                f"(--workers 0), or take a machine with more; a training needs less with a smaller --batch-size or a "
                f"plan for less (--memory-gb). What was finished is kept; the same command goes on."
            )
        if _NO_THREAD.search(text):
            return (
                "the system allows no further process or thread: raise the limits (ulimit -u and -v), end other "
                "programs, or work in fewer processes (--workers 0), and run the command again; what was finished is "
                "kept."
            )
    return None


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error was caused by there being too many open files."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _TOO_MANY:
            return True
        link = link.__cause__
    return False


def _leave_closed_output() -> bool:
    """Whether the reader of what is printed, as `head`, has ended; pipes between processes break, too.

    What is still to be printed then goes nowhere, or Python would complain of it when it ends.
    """
    if not hasattr(select, "poll"):  # of Windows, which answers with another error there
        return False
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file
            poll.register(stream.fileno(), 0)
    closed = [file for file, event in poll.poll(0) if event & select.POLLERR]
    for file in closed:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), file)
    return bool(closed)


def _fail(message: str) -> int:
    report_error(message)
    return EXIT_ERROR


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    report_error(str(message), kind="warning")


def duration(text: str) -> float:
    """Parse 90s, 15m, 2h or plain seconds; returns seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 15m, 2h or plain seconds")
    return float(match.group(1)) * SECONDS[match.group(2)]


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Parser of whole numbers from `minimum` to `maximum`, or upwards."""

    def parse(text: str) -> int:
        known = re.fullmatch(r"[+-]?\d+", text)
        if not known or int(text) < minimum or (maximum is not None and int(text) > maximum):
            bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number {bounds}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Parse a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above zero")
    return value


def device_name(text: str) -> str:
    """Parse auto, cpu, cuda, cuda:N or mps."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no device; write auto, cpu, cuda, cuda:1 or mps")
    return text


def add_roots(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of the root folders named: raw, preprocessed, results."""
    group = parser.add_argument_group("root folders")
    also = {"raw": " (or nnUNet_raw)"}
    for name in names:
        group.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"instead of the variable usd_{name}{also.get(name, '')}"
        )


def roots_of(args: argparse.Namespace) -> Roots:
    """Root folders from the flags, else from the environment."""
    from unisegdiff_pipeline.io.paths import resolve_roots

    return resolve_roots(**{name: getattr(args, name, None) for name in ("raw", "preprocessed", "results")})


def root_flags(args: argparse.Namespace, *names: str) -> str:
    """The flags of these root folders as they were given, with a space before each, for a command that comes next."""
    given = {name: getattr(args, name, None) for name in names}
    return "".join(f" --{name} {quoted(folder)}" for name, folder in given.items() if folder is not None)


def dataset_parser(prog: str, description: str, *flags: Callable[[argparse.ArgumentParser], None]) -> CommandParser:
    """Parser of a command over raw data sets: -d for one or several of them, its own flags, and the root folders."""
    from unisegdiff_pipeline.commands.nnunet import PLAN_AND_PREPROCESS

    parser = CommandParser(prog, description, nnunet=PLAN_AND_PREPROCESS)
    parser.add_argument(
        "-d",
        "--dataset",
        nargs="+",
        required=True,
        metavar="ID",
        help="data sets: 4, 004, Hippocampus or Dataset004_Hippocampus",
    )
    for add_flags in flags:
        add_flags(parser)
    add_roots(parser, "raw", "preprocessed")
    return parser


def add_configurations(parser: argparse.ArgumentParser) -> None:
    """Add -c for the configurations to preprocess; all planned ones without it."""
    parser.add_argument(
        "-c",
        "--configuration",
        nargs="+",
        metavar="CONFIG",
        choices=("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"),
        help="preprocess only these of 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres (default: all that are planned)",
    )


def add_case_workers(parser: argparse.ArgumentParser) -> None:
    """Add the flags of work over cases."""
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        metavar="N",
        help="processes; 0 works in this one (default: by cores and memory)",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="work on the Dask cluster at this address instead")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a plan has to fit."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that will train (default: auto)"
    )
    parser.add_argument(
        "--memory-gb",
        type=positive_number,
        metavar="GB",
        help="memory to plan for (default: what is free, of a GPU 90 %% and at most 8)",
    )
    parser.add_argument(
        "--preset",
        choices=("M", "L", "XL"),
        help="nnU-Net's residual encoder for a GPU of 8, 24 or 40 GB, whatever this machine has; --plans NAME keeps "
        "such a plan beside others (default: the plain network)",
    )


def add_plans(parser: argparse.ArgumentParser) -> None:
    """Add --plans."""
    parser.add_argument(
        "--plans", metavar="NAME", help="the plan with this name, plans_NAME.json (default: plans.json)"
    )


def add_for_weights(parser: argparse.ArgumentParser) -> None:
    """Add --for-weights."""
    parser.add_argument(
        "--for-weights",
        type=Path,
        metavar="SOURCE",
        help="plan what usd_train --pretrained SOURCE can start: architecture, patch and spacing follow these weights",
    )


def add_splits(parser: argparse.ArgumentParser) -> None:
    """Add --splits."""
    parser.add_argument(
        "--splits",
        choices=("default", "nnunet", "by-group"),
        default="default",
        help="folds of a data set that has none yet; nnunet: the ones that nnU-Net makes, without regard to groups; "
        "by-group: a fold for each group of groups.csv, which it is validated on",
    )
    parser.add_argument(
        "--by-group",
        dest="splits",
        action="store_const",
        const="by-group",
        help="leave one group out: --splits by-group",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device for commands that compute with a network."""
    parser.add_argument(
        "--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="random seed (default: 0)")
