"""Generated data sets whose law is known: what every rater would draw, and so the true probability of each pixel.

The law. A case shows a textured organ with lesions k. A reader marks lesion k with probability q_k ("existence",
lower for faint lesions) and, independently, puts its boundary where the radial distance d_k equals an offset
delta ~ N(0, s_k^2), with d_k(x) = |x - c_k| - R_k(direction) in mm, negative inside. So

    P(x is marked) = 1 - prod_k (1 - q_k Phi(-d_k(x) / s_k)).                                              (1)

q_k is a fixed function of the lesion's contrast, and s_k is the width of its blurred edge in the image: both can be
read from the image, so a network can learn (1). Four raters are four independent draws. labelsTr and labelsTs hold
the consensus: pixels that at least two of the four raters marked, as in the common use of LIDC-IDRI.

No threshold finds the lesions: they are brighter or darker than the organ; outside the organ lie blobs with the
grey values of the bright ones in a surrounding with those of the dark ones, and bright vessels cross the organ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.npz import read_npz
from unisegdiff_pipeline.core.serialization import read_object, to_jsonable, write_json
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.paths import dataset_name

NUM_RATERS = 4
CONSENSUS_VOTES = 2
SIZE_2D = (96, 96)
SIZE_3D = (32, 64, 64)
SPACING_3D_MM = (1.5, 1.0, 1.0)
EMPTY_FRACTION = 0.125
_REFERENCE_SIZE_MM = 96.0  # lengths below are for an image of this size and scale with it

# (fraction of lesions, contrast to the organ, existence probability q): the fainter, the less often it is marked.
CONTRASTS = ((0.45, 0.30, 1.0), (0.35, 0.21, 0.97), (0.20, 0.11, 0.70))
# (fraction of lesions, boundary spread s in mm): sharp and blurred edges.
BOUNDARIES = ((0.6, 0.5), (0.4, 1.5))
RADIUS_MM = (4.0, 9.0)
_NUM_WAVES = 3

_OUTSIDE, _ORGAN = 0.30, 0.52
_GREY_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Blob:
    """A star-shaped body: the radius in direction u is radius_mm * (1 + sum_i a_i sin(w_i . u + phi_i)).

    Attributes:
        centre_mm: position (Z, Y, X), or (Y, X) in 2D.
        radius_mm: mean radius.
        waves: one (a, phi, w) for each wave, w with as many entries as the centre.
    """

    centre_mm: tuple[float, ...]
    radius_mm: float
    waves: tuple[tuple[float, float, tuple[float, ...]], ...]

    def distance_mm(self, grid_mm: np.ndarray) -> np.ndarray:
        """Radial distance d to the boundary, negative inside; grid_mm is (dims, *shape), result (*shape)."""
        offset = grid_mm - np.reshape(self.centre_mm, (-1, *(1,) * (grid_mm.ndim - 1)))
        length = np.sqrt((offset**2).sum(axis=0))
        direction = offset / np.maximum(length, 1e-6)
        factor = np.ones_like(length)
        for amplitude, phase, wave in self.waves:
            factor += amplitude * np.sin(np.tensordot(wave, direction, axes=1) + phase)
        return length - self.radius_mm * factor


@dataclass(frozen=True)
class PhantomLesion:
    """A lesion and the law of its annotation.

    Attributes:
        body: its shape.
        contrast: grey value minus the organ's, negative for dark lesions.
        existence: probability q that a reader marks it.
        boundary_sd_mm: spread s of the readers' boundary offsets, and width of its edge in the image.
    """

    body: Blob
    contrast: float
    existence: float
    boundary_sd_mm: float


def make_phantom_dataset(
    folder_root: Path,
    dataset_id: int,
    dims: int,
    num_train: int,
    num_test: int,
    seed: int,
    size: Sequence[int] | None = None,
) -> Path:
    """Write a phantom data set in the raw layout and return its folder.

    Beside imagesTr, labelsTr, ratersTr there are imagesTs, labelsTs, ratersTs for the held-out cases, and
    truth/CASE.npz (`probability`, float32 (Z, Y, X)) with truth/law.json (the lesions of each case).
    Every eighth case has no lesion. A folder that these very arguments made is returned as it is.

    Args:
        folder_root: raw root, the data set becomes a folder of it.
        dataset_id: number of the data set.
        dims: 2 for grey PNG files, 3 for NIfTI files with a spacing of 1.5 x 1 x 1 mm.
        num_train: training cases.
        num_test: held-out cases.
        seed: case i depends on the seed and i alone.
        size: pixels (Y, X) or (Z, Y, X); lesions scale with it.

    Raises:
        UsdError: a folder of that name with other content is there.
    """
    size = _checked_size(dims, size)
    if num_train < 1 or num_test < 0:
        raise ValueError(f"num_train is {num_train} and num_test {num_test}; use at least 1 and 0")
    folder = Path(folder_root) / dataset_name(dataset_id, f"Phantom{dims}D")
    settings = {"dims": dims, "num_train": num_train, "num_test": num_test, "seed": seed, "size": list(size)}
    if folder.exists():
        law = folder / "truth" / "law.json"
        if law.is_file() and read_object(law).get("settings") == settings:
            return folder
        raise UsdError(f"{folder} exists and holds something else; remove it, or choose another place or number.")
    with atomic_path(folder) as temporary:
        _write_dataset(temporary, folder.name, dims, num_train, num_test, seed, size, settings)
    return folder


def true_probability(folder: Path, case_id: str) -> np.ndarray:
    """Probability (Z, Y, X), float32, that a reader marks a voxel of a phantom case, after equation (1)."""
    path = Path(folder) / "truth" / f"{case_id}.npz"
    if not path.is_file():
        raise UsdError(f"{path} does not exist; name a case of a data set made by make_phantom_dataset.")
    return read_npz(path, ("probability",), "Remove the data set and make it again.")["probability"]


def marking_probability(lesions: Sequence[PhantomLesion], grid_mm: np.ndarray) -> np.ndarray:
    """Equation (1) on the points grid_mm (dims, *shape); result (*shape)."""
    missed = np.ones(grid_mm.shape[1:])
    for lesion in lesions:
        missed *= 1 - lesion.existence * _normal_cdf(-lesion.body.distance_mm(grid_mm) / lesion.boundary_sd_mm)
    return 1 - missed


def draw_raters(
    lesions: Sequence[PhantomLesion], grid_mm: np.ndarray, rng: np.random.Generator, num_raters: int = NUM_RATERS
) -> np.ndarray:
    """Independent draws of the law, uint8 (num_raters, *shape)."""
    masks = np.zeros((num_raters, *grid_mm.shape[1:]), np.uint8)
    for lesion in lesions:
        distance = lesion.body.distance_mm(grid_mm)
        seen = rng.random(num_raters) < lesion.existence
        offset_mm = rng.normal(0.0, lesion.boundary_sd_mm, num_raters)
        for mask, is_seen, offset in zip(masks, seen, offset_mm, strict=True):
            if is_seen:
                mask |= distance < offset
    return masks


# --------------------------------------------------------------------------------------------------------- writing


def _checked_size(dims: int, size: Sequence[int] | None) -> tuple[int, ...]:
    if dims not in (2, 3):
        raise ValueError(f"dims is {dims}; phantoms are 2D or 3D")
    checked = tuple(size) if size is not None else SIZE_2D if dims == 2 else SIZE_3D
    if len(checked) != dims or min(checked) < 16:
        raise ValueError(f"size is {checked}; expected {dims} numbers of at least 16")
    return checked


def _write_dataset(
    folder: Path, name: str, dims: int, num_train: int, num_test: int, seed: int, size: tuple[int, ...], settings: dict
) -> None:
    ending = ".png" if dims == 2 else ".nii.gz"
    geometry = Geometry(is_2d=True) if dims == 2 else Geometry(SPACING_3D_MM)
    grid_mm = _grid_mm(size, geometry.spacing_mm[-dims:])
    total = num_train + num_test
    # Spread evenly, so that training and held-out cases both have their share; the first case always has lesions.
    empty = {i for i in range(total) if math.floor((i + 1) * EMPTY_FRACTION) > math.floor(i * EMPTY_FRACTION)}
    law: dict[str, list] = {}
    for index in range(total):
        case_id, part = f"phantom_{index:04d}", "Tr" if index < num_train else "Ts"
        rng = np.random.default_rng([seed, index])
        organ = _draw_organ(rng, grid_mm)
        organ_mm = organ.distance_mm(grid_mm)
        lesions = () if index in empty else _draw_lesions(rng, organ, organ_mm, grid_mm)
        image = _render(rng, organ, organ_mm, lesions, grid_mm)
        raters = draw_raters(lesions, grid_mm, rng)
        consensus = (raters.sum(axis=0) >= CONSENSUS_VOTES).astype(np.uint8)
        law[case_id] = to_jsonable(lesions)
        _write_image(folder / f"images{part}" / f"{case_id}_0000{ending}", _3d(image), geometry)
        write_labels(folder / f"labels{part}" / f"{case_id}{ending}", _3d(consensus), geometry)
        for number, mask in enumerate(raters, start=1):
            path = folder / f"raters{part}" / f"{case_id}_rater{number}{ending}"
            write_labels(path, _3d(mask), geometry)
        truth = folder / "truth" / f"{case_id}.npz"
        truth.parent.mkdir(exist_ok=True)
        np.savez_compressed(truth, probability=_3d(marking_probability(lesions, grid_mm)).astype(np.float32))
    write_json(folder / "truth" / "law.json", {"settings": settings, "lesions": law})
    write_json(folder / "dataset.json", _dataset_json(name, num_train, ending))


def _dataset_json(name: str, num_train: int, ending: str) -> dict:
    return {
        "name": name,
        "description": "generated phantoms with a known law of annotation; see truth/law.json",
        "channel_names": {"0": "phantom"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": num_train,
        "file_ending": ending,
        "spacing_known": ending != ".png",
    }


def _write_image(path: Path, image: np.ndarray, geometry: Geometry) -> None:
    low, high = _GREY_RANGE
    grey = np.clip((image - low) / (high - low), 0.0, 1.0)
    if geometry.is_2d:
        write_labels(path, np.rint(grey * 255).astype(np.uint8), geometry)  # 8-bit grey PNG
    else:
        write_map(path, np.rint(grey * 1000), geometry)


def _3d(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array


# ------------------------------------------------------------------------------------------------------ the picture


def _grid_mm(size: tuple[int, ...], spacing_mm: Sequence[float]) -> np.ndarray:
    """Position of each voxel, (dims, *size), relative to the image's middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _scale(grid_mm: np.ndarray) -> float:
    """Size of the image in the plane, relative to the one that the lengths above are for."""
    extent = min(float(np.ptp(axis)) for axis in grid_mm[-2:])
    return extent / _REFERENCE_SIZE_MM


def _draw_blob(rng: np.random.Generator, centre_mm: np.ndarray, radius_mm: float, amplitude: float) -> Blob:
    dims = len(centre_mm)
    waves = tuple(
        (float(rng.uniform(0, amplitude)), float(rng.uniform(0, 2 * math.pi)), tuple(rng.normal(0, 1.8, dims).tolist()))
        for _ in range(_NUM_WAVES)
    )
    return Blob(tuple(centre_mm.tolist()), radius_mm, waves)


def _draw_organ(rng: np.random.Generator, grid_mm: np.ndarray) -> Blob:
    half_mm = np.array([float(np.ptp(axis)) / 2 for axis in grid_mm])
    centre = rng.uniform(-0.08, 0.08, len(grid_mm)) * half_mm
    return _draw_blob(rng, centre, float(half_mm[-2:].min() * rng.uniform(0.62, 0.72)), amplitude=0.07)


def _draw_lesions(
    rng: np.random.Generator, organ: Blob, organ_mm: np.ndarray, grid_mm: np.ndarray
) -> tuple[PhantomLesion, ...]:
    """One to four lesions inside the organ that do not touch each other; organ_mm is the organ's distance map."""
    scale = _scale(grid_mm)
    inside = np.argwhere(organ_mm < -2 * scale)
    lesions: list[PhantomLesion] = []
    wanted = int(rng.integers(1, 5))
    for _ in range(200):
        if len(lesions) == wanted:
            break
        radius = scale * float(rng.uniform(*RADIUS_MM))
        spread = scale * float(_choose(rng, BOUNDARIES)[0])
        contrast, existence = _choose(rng, CONTRASTS)
        sign = 1.0 if rng.random() < 0.5 else -1.0
        centre = grid_mm[(slice(None), *inside[rng.integers(len(inside))])]
        body = _draw_blob(rng, centre, radius, amplitude=0.12)
        if _fits(body, spread, organ, lesions):
            lesions.append(PhantomLesion(body, sign * contrast, existence, spread))
    return tuple(lesions)


def _choose(rng: np.random.Generator, table: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    row = rng.choice(len(table), p=[row[0] for row in table])
    return table[row][1:]


def _fits(body: Blob, spread_mm: float, organ: Blob, lesions: Sequence[PhantomLesion]) -> bool:
    """Whether a lesion lies in the organ and apart from the others, so that equation (1) holds for the image too."""
    centre = np.array(body.centre_mm)
    reach = 1.2 * body.radius_mm + spread_mm
    if float(organ.distance_mm(centre[:, None])[0]) > -reach:
        return False
    return all(
        float(np.linalg.norm(centre - other.body.centre_mm))
        > reach + 1.2 * other.body.radius_mm + 2 * other.boundary_sd_mm + 2 * spread_mm
        for other in lesions
    )


def _render(
    rng: np.random.Generator, organ: Blob, organ_mm: np.ndarray, lesions: Sequence[PhantomLesion], grid_mm: np.ndarray
) -> np.ndarray:
    """Grey values around 0..1, (*size)."""
    scale = _scale(grid_mm)
    in_organ = _normal_cdf(-organ_mm / (0.8 * scale))
    image = _OUTSIDE + (_ORGAN - _OUTSIDE) * in_organ
    image += 0.035 * in_organ * _texture(rng, grid_mm, 1.2 * scale)
    image += 0.025 * (1 - in_organ) * _texture(rng, grid_mm, 3.0 * scale)
    image += _distractors(rng, organ_mm, grid_mm)
    vessels = in_organ * _vessels(rng, organ, grid_mm)
    for lesion in lesions:
        # The edge is as blurred as the readers disagree about it: the picture shows the law.
        profile = _normal_cdf(-lesion.body.distance_mm(grid_mm) / lesion.boundary_sd_mm)
        vessels *= 1 - profile
        image += lesion.contrast * profile
    image += 0.28 * vessels
    slope = rng.uniform(-0.08, 0.08, len(grid_mm))
    shading = 1 + np.tensordot(slope, grid_mm / np.abs(grid_mm).max(), axes=1)
    return image * shading * rng.uniform(0.92, 1.08) + rng.normal(0, 0.025, image.shape)


def _texture(rng: np.random.Generator, grid_mm: np.ndarray, length_mm: float) -> np.ndarray:
    """Smooth Gaussian noise of unit variance."""
    from scipy.ndimage import gaussian_filter

    steps = [float(np.diff(np.moveaxis(axis, i, 0)[:2], axis=0).flat[0]) for i, axis in enumerate(grid_mm)]
    noise = gaussian_filter(rng.normal(size=grid_mm.shape[1:]), [length_mm / step for step in steps], mode="wrap")
    return noise / noise.std()


def _distractors(rng: np.random.Generator, organ_mm: np.ndarray, grid_mm: np.ndarray) -> np.ndarray:
    """Blobs outside the organ that look like bright lesions and reach their grey values."""
    scale = _scale(grid_mm)
    outside = np.argwhere(organ_mm > 5 * scale)
    image = np.zeros(grid_mm.shape[1:])
    if len(outside) == 0:
        return image
    for _ in range(int(rng.integers(4, 8))):
        centre = grid_mm[(slice(None), *outside[rng.integers(len(outside))])]
        body = _draw_blob(rng, centre, scale * float(rng.uniform(*RADIUS_MM)), amplitude=0.12)
        contrast = _ORGAN - _OUTSIDE + float(_choose(rng, CONTRASTS)[0])
        spread = scale * float(_choose(rng, BOUNDARIES)[0])
        image = np.maximum(image, contrast * _normal_cdf(-body.distance_mm(grid_mm) / spread))
    return image * (organ_mm > 1.5 * scale)


def _vessels(rng: np.random.Generator, organ: Blob, grid_mm: np.ndarray) -> np.ndarray:
    """Two to four straight tubes through the organ, values 0..1."""
    scale, dims = _scale(grid_mm), len(grid_mm)
    image = np.zeros(grid_mm.shape[1:])
    for _ in range(int(rng.integers(2, 5))):
        direction = rng.normal(size=dims)
        direction /= np.linalg.norm(direction)
        point = np.array(organ.centre_mm) + rng.normal(0, 0.4 * organ.radius_mm, dims)
        offset = grid_mm - np.reshape(point, (-1, *(1,) * dims))
        along = np.tensordot(direction, offset, axes=1)
        across = np.sqrt(np.maximum((offset**2).sum(axis=0) - along**2, 0))
        image = np.maximum(image, _normal_cdf((1.3 * scale - across) / (0.4 * scale)))
    return image


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(x)
