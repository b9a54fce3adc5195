"""Wording that messages share."""

from __future__ import annotations

from unisegdiff_pipeline.core.words import joined, listed


def test_a_list_says_how_many_items_it_leaves_out() -> None:
    assert listed([]) == ""
    assert listed(["a", 2]) == "a, 2"
    assert listed("abc", 3) == "a, b, c"
    assert listed((name for name in "abcd"), 3) == "a, b, c, and 1 more"
    assert listed(["one is.", "two are."], 1, "; ") == "one is.; and 1 more"
    assert listed(map(str, range(23))).endswith("18, 19, and 3 more")


def test_the_last_item_stands_behind_and() -> None:
    assert [joined(list(text)) for text in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
