"""Names that may become paths, and those that may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import file_of, quoted, require_name

GOOD = (
    "a",
    "BRATS_001",
    "case 1 (left)",
    "größe",
    "x.y",
    "-a",
    "a_labels",
    "manifest",
    "c%s{0}",
    "=1+1",
    "common",
    "console",
    "a" * 200,
)
BAD = {
    "": "be empty",
    " ": "be empty",
    "..": "begin with a dot",
    "../../x": "begin with a dot",
    "/etc/passwd": "hold /",
    "a/b": "hold /",
    "a\\b": "hold ",
    "C:x": "hold :",
    "a*": "hold ",
    ".hidden": "begin with a dot",
    ".tmp-1-a": "begin with a dot",
    "a\nb": "hold line breaks",
    "a\x00": "hold line breaks",
    "a\x1b[31m": "hold line breaks",
    "a\u202egnp": "hold line breaks",
    "caf\udce9": "hold line breaks",
    "CON": "Windows keeps for devices",
    "nul.tar": "Windows keeps for devices",
    "com1": "Windows keeps for devices",
    "a" * 201: "longer than 200 bytes",
    "ü" * 101: "longer than 200 bytes",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_that_stay_in_their_folder(name: str) -> None:
    assert file_of(Path("folder"), name, ".json").parent == Path("folder")


@pytest.mark.parametrize("name", BAD)
def test_others_are_refused_in_one_printable_line(name: str) -> None:
    with pytest.raises(UsdError, match=r"the case is named .*rename it") as caught:
        require_name(name, "the case")
    assert BAD[name] in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("word", "shown"), [("Dataset004_X", "Dataset004_X"), ("/my results/a&b", "'/my results/a&b'"), ("#1", "'#1'")]
)
def test_names_in_commands_to_copy_are_one_word_for_a_shell(word: str, shown: str) -> None:
    assert quoted(word) == shown
