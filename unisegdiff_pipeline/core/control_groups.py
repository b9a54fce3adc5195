"""What the control group of this process (a container, a job of a cluster) grants it of the machine.

Limits of either version of Linux's control groups are read, from the process's own group up to the root.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")  # lists the groups of this process, a line a hierarchy


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs under the tightest limit of the control group and those around it (v2, else v1), None without one."""
    quotas = []
    for folder in _folders(root, membership):
        words = (_read_text(folder / "cpu.max") or "").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _folders(root, membership, "cpu"):
        quota, period = _read_number(folder / "cpu.cfs_quota_us"), _read_number(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_left(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes left under the tightest memory limit (v2, else v1), None without one.

    Cached file pages count as usage but are given up on demand, so inactive ones are taken as free.
    """
    left = []
    for folder in _folders(root, membership):
        left.append(_left_in(folder, "memory.max", "memory.current", "inactive_file"))
    for folder in _folders(root, membership, "memory"):
        left.append(_left_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    known = [value for value in left if value is not None]
    return min(known) if known else None


def _left_in(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    limit, usage = _read_number(folder / limit_name), _read_number(folder / usage_name)
    if limit is None or usage is None or limit >= 1 << 60:  # v1 writes a huge number for "no limit"
        return None
    lines = (_read_text(folder / "memory.stat") or "").splitlines()
    cached = dict(line.split(maxsplit=1) for line in lines if " " in line).get(cache_name, "0")
    return max(0, limit - usage + int(cached))


def _folders(root: Path, membership: Path, controller: str = "") -> list[Path]:
    """Folders of this process's control group, from its own up to the root; `controller` names a v1 hierarchy."""
    for line in (_read_text(membership) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if (controller in controllers.split(",")) if controller else number == "0":
            base = root / controller
            own = base / path.lstrip("/")
            return [p for p in (own, *own.parents) if p == base or base in p.parents]
    return [root / controller] if root.is_dir() else []


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _read_number(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text and text.strip().lstrip("-").isdigit() else None
