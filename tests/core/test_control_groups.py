"""Limits of control groups, from folders written by hand."""

from __future__ import annotations

from pathlib import Path

from unisegdiff_pipeline.core.control_groups import cpu_quota, memory_left


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/job\n")
    write(tmp_path / "job")
    assert cpu_quota(tmp_path, membership) is None
    assert memory_left(tmp_path, membership) is None
    write(tmp_path / "job", cpu__max="250000 100000\n", memory__max="max\n")
    write(tmp_path, memory__max="8000\n", memory__current="5000\n", memory__stat="anon 1\ninactive_file 1500\n")
    assert cpu_quota(tmp_path, membership) == 2.5
    assert memory_left(tmp_path, membership) == 4500
    write(tmp_path, cpu__max="150000 100000\n")  # of all jobs together
    assert cpu_quota(tmp_path, membership) == 1.5


def test_version_1_has_a_hierarchy_a_controller(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("5:cpu,cpuacct:/job\n3:memory:/job\n")
    write(tmp_path / "cpu" / "job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "cpu", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    assert cpu_quota(tmp_path, membership) == 1.5
    write(tmp_path / "cpu" / "job", cpu__cfs_quota_us="600000\n")
    assert cpu_quota(tmp_path, membership) == 1.5
    write(tmp_path / "memory" / "job", memory__limit_in_bytes="9000\n", memory__usage_in_bytes="2000\n")
    write(tmp_path / "memory", memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="0\n")
    assert memory_left(tmp_path, membership) == 7000
