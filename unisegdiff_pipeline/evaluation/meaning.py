"""What the label values of two folders mean, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object
from unisegdiff_pipeline.evaluation.inputs import find_masks
from unisegdiff_pipeline.evaluation.unified import SourceLabels, is_unified, source_of_references
from unisegdiff_pipeline.io.paths import places_above
from unisegdiff_pipeline.io.prediction_files import MANIFEST

_REMEDY = "give references in the classes of the model, or say with --dataset-json what the values of all masks mean."


@dataclass(frozen=True)
class Meaning:
    """Classes of label maps.

    Attributes:
        scheme: classes or regions.
        spacing_known: False marks volumes and distances as nominal, of 2D images in pixels.
        check_values: refuse label values that the scheme does not know.
        source: what all references are read by, where the prediction is of a unified data set and they are not.
    """

    scheme: LabelScheme
    spacing_known: bool = True
    check_values: bool = True
    source: SourceLabels | None = None


def find_meaning(
    reference: Path,
    prediction: Path,
    dataset_json: Path | None = None,
    labels: Sequence[int] | None = None,
    against: Sequence[Path] = (),
) -> Meaning:
    """What the values in two folders (or files) mean.

    Args:
        reference, prediction: what is compared.
        dataset_json: says it; by default the one in or above the prediction or the reference.
        labels: score these values instead, a class each, and look for no dataset.json.
        against: other predictions, which must be of the same classes by what they say themselves.

    Where the reference is the raw folder of a unified data set, its own dataset.json says it. Where the prediction is
    of one, and the references are label maps of one of its sources, they are read in the classes that they become.

    Raises:
        UsdError: no such folder or file, no dataset.json is found, or masks are of other classes than it says.
        ValueError: see `scheme_of_values`.
    """
    for path in (reference, prediction):
        if not path.exists():
            remedy = "give two folders of label files, or two files"
            if path.name == "cross_validation":
                remedy = "usd_train DATASET cv makes it when all folds are finished"
            elif path.name == "labelsTr" and is_unified(path.parent):
                remedy = f"{path.parent} is a unified data set, whose labels lie in its sources: name the folder itself"
            raise UsdError(f"{path} does not exist; {remedy}.")
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json, with_spacing_of
    from unisegdiff_pipeline.io.images import spacing_known

    if is_unified(reference):
        given = labels is not None or dataset_json is not None
        return _meaning_of_unified(reference, (prediction, *against), given)
    references = [(path,) for path in _masks_of(reference)]
    if labels is not None:
        return Meaning(scheme_of_values(labels), all(map(spacing_known, references)), check_values=False)
    if dataset_json is None:
        _require_classes_of_unified(reference, prediction)
    if dataset_json is None and (own := _meaning_of_manifest(reference, prediction)) is not None:
        _require_agreement((reference, *against), _manifest_path(prediction), own.scheme)
        return own
    path = dataset_json or find_dataset_json(reference, prediction)
    description = read_dataset_json(path)
    source = None if dataset_json is not None else source_of_references(description, reference)
    if dataset_json is None:
        _require_agreement((prediction, *against), path, description.labels)
        _require_same_values(reference, path, description.labels)  # a prediction, too, of two time points
        if source is None:
            _require_no_contradiction(_dataset_json_above(reference), path, description.labels)
    if source is None:
        description = with_spacing_of(description, references)
        return Meaning(description.labels, description.spacing_known)
    known = source.spacing_known or all(map(spacing_known, references))
    return Meaning(description.labels, known, source=replace(source, spacing_known=known))


def _meaning_of_unified(reference: Path, predictions: Sequence[Path], given: bool) -> Meaning:
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json

    if given:
        raise UsdError(
            f"{reference} is a unified data set, whose own dataset.json says what labels mean; leave --dataset-json "
            f"and --labels (dataset_json and labels) out."
        )
    description = read_dataset_json(reference / "dataset.json")
    for prediction in predictions:
        _require_classes(
            prediction,
            description.labels,
            f"{reference} has {description.labels.in_words()}; give the data set that the model was trained on.",
        )
    return Meaning(description.labels, description.spacing_known)


def _require_classes_of_unified(reference: Path, prediction: Path) -> None:
    """Refuse masks of other classes where those that a unified model made stand as reference, as at baseline.

    Label maps of a source may have the same values with another meaning, under names that contradict none.
    """
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json

    path = _dataset_json_of(reference)
    if path is None or not is_unified(path.parent):
        return
    unified = read_dataset_json(path).labels
    _require_classes(
        prediction,
        unified,
        f"{reference} was predicted by a model of the unified classes {unified.in_words()}; predict both with one "
        f"model, or say with --dataset-json what the values of all masks mean.",
    )


def _require_classes(prediction: Path, expected: LabelScheme, otherwise: str) -> None:
    """Refuse masks whose own dataset.json, else their manifest.json, says other classes; `otherwise` says the rest."""
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json

    found = _dataset_json_of(prediction)
    labels = _labels_of_manifest(prediction) if found is None else read_dataset_json(found).labels
    if labels is not None and labels != expected:
        raise UsdError(
            f"{prediction} has the classes {labels.in_words()} by {found or f'its {MANIFEST}'}, but {otherwise}"
        )


def _dataset_json_above(masks: Path) -> Path | None:
    """The dataset.json in a folder of masks, or in one of the two above it."""
    paths = (folder / "dataset.json" for folder in places_above(masks, 2))
    return next((path for path in paths if path.is_file()), None)


def _dataset_json_of(prediction: Path) -> Path | None:
    """The dataset.json in or above a prediction, else that of the model of a unified data set that made it."""
    found = _dataset_json_above(prediction)
    if found is not None:
        return found
    model = _manifest_of(prediction).get("model")
    return Path(model) / "dataset.json" if isinstance(model, str) and is_unified(Path(model)) else None


def _manifest_path(prediction: Path) -> Path:
    """Where the manifest.json of a prediction, a folder or one of its files, would lie."""
    return (prediction if prediction.is_dir() else prediction.parent) / MANIFEST


def _manifest_of(prediction: Path) -> dict[str, Any]:
    """What the manifest.json of a prediction says; nothing where there is none, or one of another program."""
    path = _manifest_path(prediction)
    try:
        return read_object(path) if path.is_file() else {}
    except UsdError:
        return {}


def _labels_of_manifest(prediction: Path) -> LabelScheme | None:
    """What the manifest.json of a prediction says of its values; None of an earlier version or another program."""
    try:
        return from_jsonable(LabelScheme, _manifest_of(prediction).get("labels"), MANIFEST)
    except UsdError:
        return None


def _meaning_of_manifest(reference: Path, prediction: Path) -> Meaning | None:
    """What the manifest.json of a prediction says; None where there is none, or a dataset.json."""
    own = _labels_of_manifest(prediction)
    if own is None or (_dataset_json_of(prediction) or _dataset_json_above(reference)) is not None:
        return None
    return Meaning(own, bool(_manifest_of(prediction).get("spacing_known", True)))


def _require_agreement(folders: Sequence[Path], described: Path, labels: LabelScheme) -> None:
    """Refuse masks whose values mean something else by what lies at them than by what describes all masks."""
    for masks in folders:
        _require_same_values(masks, described, labels)
        _require_no_contradiction(_dataset_json_of(masks), described, labels)


def _require_same_values(masks: Path, described: Path, labels: LabelScheme) -> None:
    """Refuse masks whose values mean something else by their own manifest.json than by what describes all masks."""
    own = _labels_of_manifest(masks)
    if own is None:
        return
    one, other = ({value for values in scheme.members for value in values} for scheme in (own, labels))
    if one != other or _contradict(own, labels):
        raise UsdError(
            f"{masks} has the classes {own.in_words()} by its {MANIFEST}, but {described} has {labels.in_words()}; "
            f"{_REMEDY}"
        )


def _require_no_contradiction(found: Path | None, described: Path, labels: LabelScheme) -> None:
    """Refuse masks of whose classes one has other values by the dataset.json at them than by what describes all masks.

    Further classes are none: values that are not known are refused where masks are read.
    """
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json

    if found is None or found == described:
        return
    try:
        own = read_dataset_json(found).labels
    except UsdError:  # of another program, such as those of the Medical Segmentation Decathlon
        return
    if _contradict(own, labels):
        raise UsdError(f"{found} has the classes {own.in_words()}, but {described} has {labels.in_words()}; {_REMEDY}")


def _contradict(one: LabelScheme, other: LabelScheme) -> bool:
    """Whether a class of both has other values in the one than in the other."""
    named = dict(zip(other.names, other.members, strict=True))
    return (one.coding == "regions") == (other.coding == "regions") and any(
        set(named.get(name, values)) != set(values) for name, values in zip(one.names, one.members, strict=True)
    )


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
    """The dataset.json in the prediction folder or the two above it, else beside or above the references.

    Of masks that a model of a unified data set has made, it is that of the model: no source has all of its classes.
    """
    found = _dataset_json_of(prediction) or _dataset_json_above(reference)
    if found is not None:
        return found
    raise UsdError(
        f"no dataset.json in or above {prediction} or {reference}, so that the meaning of the label values is not "
        f"known; give it with --dataset-json FILE, or name the values to score with --labels 1 2 ..."
    )


def _masks_of(reference: Path) -> list[Path]:
    return list(find_masks(reference).values()) if reference.is_dir() else [reference]
