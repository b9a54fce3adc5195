"""What there is to plan for."""

from __future__ import annotations

import pytest

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.planning import budget
from unisegdiff_pipeline.planning.budget import detect_budget


def test_memory_that_is_given_is_taken() -> None:
    found = detect_budget("cpu", 5.5)
    assert (found.device, found.memory_gb) == ("cpu", 5.5)
    assert found.num_cores >= 1


@pytest.mark.parametrize(("on_device", "planned"), [(80.0, 8.0), (6.0, 5.4)])
def test_a_gpu_gives_nnunet_s_target_or_what_it_has(
    monkeypatch: pytest.MonkeyPatch, on_device: float, planned: float
) -> None:
    monkeypatch.setattr(budget, "_cuda_memory_gb", lambda: on_device)
    assert detect_budget("auto").device == "cuda"
    assert detect_budget("cuda").memory_gb == planned
    assert detect_budget("cuda", 24.0).memory_gb == 24.0
    assert detect_budget("cpu").device == "cpu"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_cuda_memory_gb", lambda: None)
    assert detect_budget("auto").device == "cpu"
    assert detect_budget("cuda", 8.0).memory_gb == 8.0  # planning here, training elsewhere
    with pytest.raises(UsdError, match="--memory-gb 8"):
        detect_budget("cuda")


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsdError, match="must be above 0"):
        detect_budget("cpu", 0.0)
    with pytest.raises(UsdError, match="allowed are auto, cpu and cuda"):
        detect_budget("gpu")  # type: ignore[arg-type]
