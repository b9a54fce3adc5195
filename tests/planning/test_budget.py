"""What there is to plan for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning import budget
from unisegdiff_pipeline.planning.budget import detect_budget


@pytest.mark.parametrize("memory_gb", [0.0, -3.0, float("nan"), float("inf"), 1e30])
def test_a_memory_that_plans_json_may_not_hold_is_refused(memory_gb: float) -> None:
    with pytest.raises(UsdError, match=r"must be above 0 to 1e\+06; give it as --memory-gb 8"):
        detect_budget("cpu", memory_gb)


def test_memory_that_is_given_is_taken() -> None:
    found = detect_budget("cpu", 5.5)
    assert (found.device, found.memory_gb) == ("cpu", 5.5)
    assert found.num_cores >= 1


@pytest.mark.parametrize(("on_device", "planned"), [(80.0, 8.0), (6.0, 5.4)])
def test_a_gpu_gives_nnunet_s_target_or_what_it_has(
    monkeypatch: pytest.MonkeyPatch, on_device: float, planned: float
) -> None:
    monkeypatch.setattr(budget, "cuda_memory_gb", lambda: on_device)
    assert detect_budget("auto").device == "cuda"
    assert detect_budget("cuda").memory_gb == planned
    assert detect_budget("cuda", 24.0).memory_gb == 24.0
    assert detect_budget("cpu").device == "cpu"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "cuda_memory_gb", lambda: None)
    assert detect_budget("auto").device == "cpu"
    assert detect_budget("cuda", 8.0).memory_gb == 8.0  # planning here, training elsewhere
    with pytest.raises(UsdError, match="--memory-gb 8"):
        detect_budget("cuda")


def test_torch_is_asked_only_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 6 * 2**30}))
    monkeypatch.setattr(budget, "has_gpu_driver", lambda: True)
    assert detect_budget("auto").memory_gb == 5.4
    monkeypatch.setattr(budget, "has_gpu_driver", lambda: False)
    assert detect_budget("auto").device == "cpu"


def test_without_a_driver_torch_is_not_imported() -> None:
    if budget.has_gpu_driver():
        pytest.skip("this machine has a GPU driver, which only torch can ask for memory")
    code = "import sys; from unisegdiff_pipeline.planning.budget import detect_budget; detect_budget()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsdError, match="must be above 0"):
        detect_budget("cpu", 0.0)
    with pytest.raises(UsdError, match="allowed are auto, cpu and cuda"):
        detect_budget("gpu")  # type: ignore[arg-type]
