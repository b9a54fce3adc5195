"""All tests of inference compute in fp32 on one thread."""

from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.networks import precision


@pytest.fixture(autouse=True)
def fp32_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 results agree to 2e-2 only, and measuring whether it is fast takes a second."""
    monkeypatch.setattr(precision, "bf16_in_hardware", lambda device_type: False)
    torch.set_num_threads(1)
