"""The sources of a unified data set: which data sets it is made of, and what their classes become.

A unified data set is a raw folder that holds a dataset.json alone. Its `sources` name data sets beside it; no image is
copied. Cases are named SOURCE__CASE.
"""

from __future__ import annotations

from dataclasses import dataclass

SEPARATOR = "__"  # between source and case
BACKGROUND, IGNORE = "background", "ignore"  # what a label map may turn a class into, besides the unified classes


@dataclass(frozen=True)
class Source:
    """One data set of a unified one.

    Attributes:
        name: in front of its cases; unique, without SEPARATOR.
        dataset: its folder beside the unified data set.
        modality: what its images are, for people ("US", "CT", "MR").
        label_map: class of the source => class of the unified data set, BACKGROUND or IGNORE; every class is named.
        hash: of its dataset.json and of names and sizes of its files when the unified data set was made.
        excluded: cases of the source that are left out.
    """

    name: str
    dataset: str
    modality: str
    label_map: dict[str, str]
    hash: str
    excluded: tuple[str, ...] = ()


def unified_case_id(source: str, case_id: str) -> str:
    """Name of a source's case in the unified data set."""
    return f"{source}{SEPARATOR}{case_id}"


def source_of_case(case_id: str) -> str:
    """The source that the name of a unified data set's case begins with."""
    return case_id.split(SEPARATOR, 1)[0]
