"""Limits that the system sets this process, as ulimit and batch systems give them."""

from __future__ import annotations

LEAST_GB = 1.0  # of address space, below which numeric libraries fail to load, hang or end the process
LEAST_WITH_NETWORK_GB = 2.0  # where torch computes: below it, it aborts in native code


def soft_limit(name: str) -> int | None:
    """The limit RLIMIT_`name` in force, for example "AS" in bytes; None where there is none, or none is known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is None:
        return None
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY or soft < 0 else soft


def address_space_problem(least_gb: float) -> str:
    """What is wrong where this process may address less than `least_gb` GB, with the remedy; else empty.

    Libraries answer a lack of it in native code, where nothing can be said any more; so it is said before they load.
    """
    limit = soft_limit("AS")
    if limit is None or limit >= least_gb * 1e9:
        return ""
    return (
        f"this process may address {limit / 1e9:.2f} GB of memory (ulimit -v {limit // 1024}), and needs "
        f"{least_gb:g} GB at the least to begin; raise the limit (ulimit -v unlimited), or ask the batch system for "
        f"more virtual memory."
    )
