"""What the label values of two folders mean, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.inputs import find_masks


@dataclass(frozen=True)
class Meaning:
    """Classes of label maps.

    Attributes:
        scheme: classes or regions.
        spacing_known: False marks volumes and distances as nominal, of 2D images in pixels.
        check_values: refuse label values that the scheme does not know.
    """

    scheme: LabelScheme
    spacing_known: bool = True
    check_values: bool = True


def find_meaning(
    reference: Path, prediction: Path, dataset_json: Path | None = None, labels: Sequence[int] | None = None
) -> Meaning:
    """What the values in two folders (or files) mean.

    Args:
        reference, prediction: what is compared.
        dataset_json: says it; by default the one in or above the prediction or the reference.
        labels: score these values instead, a class each, and look for no dataset.json.

    Raises:
        UsdError: no such folder or file, or no dataset.json is found.
        ValueError: see `scheme_of_values`.
    """
    for path in (reference, prediction):
        if not path.exists():
            raise UsdError(f"{path} does not exist; give two folders of label files, or two files.")
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json, with_spacing_of
    from unisegdiff_pipeline.io.images import spacing_known

    references = [(path,) for path in _masks_of(reference)]
    if labels is not None:
        return Meaning(scheme_of_values(labels), all(map(spacing_known, references)), check_values=False)
    description = read_dataset_json(dataset_json or find_dataset_json(reference, prediction))
    description = with_spacing_of(description, references)
    return Meaning(description.labels, description.spacing_known)


def scheme_of_values(labels: Sequence[int]) -> LabelScheme:
    """A class for each label value, named after it.

    Raises:
        ValueError: a value that is no class.
    """
    if any(value < 1 for value in labels):
        raise ValueError(f"labels are {list(labels)}; allowed are whole numbers from 1 on, for 0 is the background")
    values = tuple(sorted(set(labels)))
    return LabelScheme(
        tuple(map(str, values)), tuple((v,) for v in values), "binary" if len(values) == 1 else "softmax", values
    )


def find_dataset_json(reference: Path, prediction: Path) -> Path:
    """The dataset.json in the prediction folder or the two above it, else beside or above the references."""
    prediction, reference = prediction.resolve(), reference.resolve()
    for folder in (prediction, *prediction.parents[:2], reference, *reference.parents[:2]):
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise UsdError(
        f"no dataset.json in or above {prediction} or {reference}, so that the meaning of the label values is not "
        f"known; give it with --dataset-json FILE, or name the values to score with --labels 1 2 ..."
    )


def _masks_of(reference: Path) -> list[Path]:
    return list(find_masks(reference).values()) if reference.is_dir() else [reference]
