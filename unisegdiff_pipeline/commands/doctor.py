"""usd_doctor: what machine is this, what is set, and what will not work."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline import __version__
from unisegdiff_pipeline.commands.common import EXIT_ERROR, CommandParser, run
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB, address_space_problem, soft_limit
from unisegdiff_pipeline.commands.terminal import say, wrap

OPTIONAL_PACKAGES = {
    "tensorboard": "usd_train --logger tensorboard",
    "wandb": "usd_train --logger wandb",
    "mlflow": "usd_train --logger mlflow",
    "onnxruntime": "usd_export --onnx",
    "distributed": "--scheduler",
    "pyyaml": "usd_unify --label-map FILE.yaml",
}
VARIABLES = ("usd_raw", "usd_preprocessed", "usd_results", "nnUNet_raw")
SMALL_SHM_GB, SMALL_DISK_GB, SMALL_MEMORY_GB, FEW_FILES = 0.5, 5.0, 3.0, 1024


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic, value: what was looked at and what was found.
        trouble: what will not work because of it, with the remedy; "" where all is well.
        fatal: nothing works until this is fixed.
    """

    topic: str
    value: str
    trouble: str = ""
    fatal: bool = False


def build_parser() -> CommandParser:
    """Parser of usd_doctor."""
    return CommandParser(
        "usd_doctor",
        "Say what machine this is, which versions are installed, which variables are set, and what will not work.\n"
        "Exits with 1 where something is missing without which nothing works.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_doctor."""
    build_parser().parse_args(argv)
    return run(_examine)


def _examine() -> int:
    findings = []
    for check in CHECKS:
        for finding in check():
            say(f"{finding.topic:<26} {finding.value}")
            findings.append(finding)
    troubles = [finding for finding in findings if finding.trouble]
    say("\nEverything will work here." if not troubles else "\nWhat will not work, or not well:")
    for finding in troubles:
        say(wrap(f"- {finding.topic}: {finding.trouble}"))
    return EXIT_ERROR if any(finding.fatal for finding in troubles) else 0


def check_machine() -> Iterator[Finding]:
    """System, cores and memory."""
    from unisegdiff_pipeline.core.parallel import available_memory_gb, usable_cores

    yield Finding("unisegdiff_pipeline", __version__)
    yield Finding("Python", f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}")
    yield Finding("cores for this process", f"{usable_cores()} of {os.cpu_count()}")
    memory_gb = available_memory_gb()
    yield Finding(
        "memory available",
        f"{memory_gb:.1f} GB",
        "training needs about 3 GB; close other programs." if memory_gb < SMALL_MEMORY_GB else "",
    )


def check_packages() -> Iterator[Finding]:
    """Versions of what setup.py requires, and of the optional packages."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        required = [
            re.split(r"[^\w.-]", line)[0] for line in requires("unisegdiff_pipeline") or () if "extra" not in line
        ]
    except PackageNotFoundError:
        required = []
        yield Finding("installation", "not installed", "run pip install -c constraints.txt -e . in the source folder.")
    for name in (*required, *OPTIONAL_PACKAGES):
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            if name in OPTIONAL_PACKAGES:
                yield Finding(name, f"not installed; only {OPTIONAL_PACKAGES[name]} needs it")
            else:
                yield Finding(name, "not installed", f"install it: pip install -c constraints.txt {name}.", fatal=True)


def check_compute() -> Iterator[Finding]:
    """What torch can compute on."""
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "cannot be imported", f"{error}; install it again.", fatal=True)
        return
    from unisegdiff_pipeline.networks.precision import bf16_in_hardware

    yield Finding("torch threads", str(torch.get_num_threads()))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    for index in devices:
        facts = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU cuda:{index}", f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB")
    if not devices:
        yield Finding("GPU", "none", why_no_gpu(torch.version.cuda))
    if torch.backends.mps.is_available():
        yield Finding("GPU mps", "available; not tested by this package")
    kind = "cuda" if devices else "cpu"
    text = "in hardware, used where it is faster" if bf16_in_hardware(kind) else "not in hardware, fp32 is used"
    yield Finding(f"bf16 on the {kind}", text)


def why_no_gpu(cuda_version: str | None) -> str:
    """Why torch sees no GPU; "" on a machine that has none, where plans simply fit the CPU."""
    if shutil.which("nvidia-smi") is None:
        return ""
    if cuda_version is None:
        return "this torch is a CPU build although a driver is installed; install a CUDA build from PyTorch's index."
    return f"torch was built for CUDA {cuda_version} but sees no device; check the driver with nvidia-smi."


def check_folders() -> Iterator[Finding]:
    """The variables of the root folders, and the room where they point."""
    from unisegdiff_pipeline.io.paths import list_datasets

    for name in VARIABLES:
        value = os.environ.get(name)
        if not value:
            trouble = _unset(name)
            yield Finding(name, "not set", trouble)
            continue
        folder = Path(value).expanduser()
        yield Finding(name, f"{folder} ({_content(folder, list_datasets)})", _folder_trouble(name, folder))


def _unset(name: str) -> str:
    if name == "nnUNet_raw" or (name == "usd_raw" and os.environ.get("nnUNet_raw")):
        return ""
    return f"not set; export {name}=FOLDER, or give --{name.removeprefix('usd_')} FOLDER to each command."


def _content(folder: Path, list_datasets: Callable[[Path], list[str]]) -> str:
    if not folder.is_dir():
        return "does not exist yet"
    return f"{len(list_datasets(folder))} data sets, {_free_gb(folder):.0f} GB free"


def _folder_trouble(name: str, folder: Path) -> str:
    if name in ("usd_raw", "nnUNet_raw"):
        return "" if folder.is_dir() else f"{folder} does not exist; correct the variable."
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return f"{existing} cannot be written; change its permissions or the variable."
    if _free_gb(existing) < SMALL_DISK_GB:
        return f"only {_free_gb(existing):.1f} GB free; preprocessed data and checkpoints may not fit."
    return ""


def check_limits() -> Iterator[Finding]:
    """Limits of containers that make the workers of a training die."""
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = _free_gb(shm)
        yield Finding(
            "shared memory /dev/shm",
            f"{free:.2f} GB free",
            "workers hand over patches through it and may be killed; raise it (docker run --shm-size=2g) or train "
            "with --workers 0."
            if free < SMALL_SHM_GB
            else "",
        )
    files, space = soft_limit("NOFILE"), soft_limit("AS")
    trouble = "large data sets may hit it; raise it with ulimit -n 4096." if files and files < FEW_FILES else ""
    yield Finding("open files allowed", "unlimited" if files is None else str(files), trouble)
    allowed = "unlimited" if space is None else f"{space / 1e9:.2f} GB"
    yield Finding("address space allowed", allowed, address_space_problem(LEAST_WITH_NETWORK_GB))


def _free_gb(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 1e9


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_machine,
    check_packages,
    check_compute,
    check_folders,
    check_limits,
)
