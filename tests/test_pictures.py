"""Pictures of the documentation are what their code draws."""

from __future__ import annotations

import pytest

from tests.pictures import PAGES, PICTURES, coherent_masks, import_arrows, lesion_probability
from tests.test_import_arrows import HEIGHT


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_code_draws(name: str) -> None:
    assert (PAGES / name).read_text("utf-8") == PICTURES[name](), "run python -m tests.pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_shown_by_a_page(name: str) -> None:
    path = PAGES / name
    assert any(f"]({path.name})" in page.read_text("utf-8") for page in path.parent.glob("*.md"))


def test_all_arrows_lead_down() -> None:
    assert import_arrows()
    assert all(HEIGHT[room] > HEIGHT[other] for room, other in import_arrows())


def test_the_lesion_in_doubt_is_in_about_half_of_the_samples_as_a_whole() -> None:
    masks = coherent_masks(lesion_probability(), 60)
    core = masks[:, 19:26, 51:58].mean(axis=(1, 2))  # of the lesion of probability 0.5
    assert 0.3 < core.mean() < 0.7
    assert ((core == 0) | (core == 1)).mean() > 0.6
    assert masks[:, 24, 20].all()  # the certain lesion is in every mask
