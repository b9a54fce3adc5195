"""plans.json as frozen dataclasses, in the order in which the pipeline uses them.

Axis order is (Z, Y, X) after `axis_order` has been applied; 2D images have Z = 1. Training never changes a plan.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from unisegdiff_pipeline.fingerprint import IntensityStatistics as IntensityStatistics
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import text_hash
from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.io.orientation import Direction

SCHEMA_VERSION = 1
PLANS_PREFIX = "plans_"
Normalization = Literal["ct", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1"]


@dataclass(frozen=True)
class PreprocessingPlan:
    """How an image becomes a network input. A change here, and only here, makes preprocessed cases stale.

    Attributes:
        axis_order: permutation that puts the coarsest axis first, applied to (Z, Y, X).
        target_spacing_mm: voxel size after resampling (Z, Y, X); None keeps an axis as it is (slices of a 2d plan).
        normalization: scheme of each channel.
        use_nonzero_mask: per channel, whether statistics are taken and zeros kept outside the non-zero region.
        intensities: per channel; used by "ct".
        image_order: spline order of image resampling, 3 or 1.
        separate_z: "auto" resamples the first axis apart (nearest) where its spacing is over 3 times the others.
        direction: of the axes x, y, z (LPS, row major as in `Geometry`) that volumes are turned to before all else, by
            permuting and flipping axes; None takes them as they are stored, as for 2D images and in plans of earlier
            versions.
        training_spacing_mm: median of the training images (Z, Y, X), which images are compared with; no part of what is
            done to them. None in plans of earlier versions.
    """

    axis_order: tuple[int, int, int]
    target_spacing_mm: tuple[float | None, float, float]
    normalization: tuple[Normalization, ...]
    use_nonzero_mask: tuple[bool, ...]
    intensities: tuple[IntensityStatistics, ...]
    image_order: int = 3
    separate_z: Literal["auto", "always", "never"] = "auto"
    direction: Direction | None = None
    training_spacing_mm: tuple[float, float, float] | None = None

    def fields(self) -> dict[str, Any]:
        """All fields that do something to an image, for hashes: plans of before a field was there keep theirs."""
        fields = asdict(self)
        del fields["training_spacing_mm"]
        if self.direction is None:
            del fields["direction"]
        return fields

    def hash(self) -> str:
        """Hash of what images are treated with; part of the key that says whether a preprocessed case is current.

        Intensities count only where "ct" uses them: else every new case would make all others stale.
        """
        fields = self.fields()
        if "ct" not in self.normalization:
            del fields["intensities"]
        return text_hash(json.dumps(fields, sort_keys=True))


@dataclass(frozen=True)
class LevelPlan:
    """One resolution of the U-Net; `stride` leads into the level, all ones for the first."""

    features: int
    stride: tuple[int, ...]
    kernel: tuple[int, ...]
    num_convs: int


@dataclass(frozen=True)
class NetworkPlan:
    """The segmenter: `dims` is 2 or 3 and equals the length of patch_size, strides and kernels."""

    dims: int
    patch_size: tuple[int, ...]
    num_input_channels: int
    levels: tuple[LevelPlan, ...]
    encoder: Literal["plain", "residual"] = "plain"


@dataclass(frozen=True)
class ReadabilityCurve:
    """Chance-corrected readability S_c(lam) of a noised mask of one class (documentation/explanation/stages.md)."""

    class_name: str
    lam: tuple[float, ...]
    readability: tuple[float, ...]
    lam_a: float
    lam_c: float
    num_patches: int


@dataclass(frozen=True)
class StagePlan:
    """Edges of the stages on lam: A below lam_a, B between, C above lam_c.

    `input_scale` holds one factor b per coded channel; all ones unless the classes' edges span over 10 nats.
    """

    lam_a: float
    lam_c: float
    input_scale: tuple[float, ...]
    curves: tuple[ReadabilityCurve, ...]


@dataclass(frozen=True)
class DenoiserPlan:
    """The denoiser: a U-Net on space-to-depth of the noised mask by the first stride of the segmenter."""

    features: tuple[int, ...] = (16, 32, 64)
    noise_levels_per_patch: int = 6


@dataclass(frozen=True)
class TrainingPlan:
    """Numbers of the training; flags of usd_train override single fields.

    `mirror_axes` are axes of (Z, Y, X); a 2D network leaves Z out.
    """

    batch_size: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    num_epochs: int = 1000
    iterations_per_epoch: int = 250
    foreground_share: float = 0.33
    phase_1_share: float = 0.75
    ema_decay: float = 0.999
    batch_dice: bool = False
    deep_supervision: bool = True
    dummy_2d_augmentation: bool = False
    mirror_axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if len({*self.mirror_axes} & {0, 1, 2}) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes is {list(self.mirror_axes)}; allowed are 0, 1 and 2 (Z, Y, X), each once")


@dataclass(frozen=True)
class ConfigurationPlan:
    """One way to treat the data set: 2d, 3d_fullres or 3d_lowres."""

    name: str
    preprocessing: PreprocessingPlan
    median_shape: tuple[int, int, int]
    network: NetworkPlan
    denoiser: DenoiserPlan
    training: TrainingPlan
    stages: StagePlan | None = None  # planned from the preprocessed labels, at the end of preprocessing

    @property
    def patch_mirror_axes(self) -> tuple[int, ...]:
        """The training's `mirror_axes` as axes of a patch, which lacks Z where the network is a 2D one."""
        missing = 3 - self.network.dims
        return tuple(axis - missing for axis in self.training.mirror_axes if axis >= missing)


@dataclass(frozen=True)
class Budget:
    """What the plan was made to fit: the device's kind, its memory, and on a CPU the cores and seconds."""

    device: Literal["cpu", "cuda"]
    memory_gb: float
    num_cores: int


@dataclass(frozen=True)
class Plans:
    """All decisions for one data set, with a reason for each in `decisions` (key = path of the field)."""

    schema_version: int
    dataset_name: str
    labels: LabelScheme
    channel_names: tuple[str, ...]
    file_ending: str
    spacing_known: bool
    budget: Budget
    recommended_configuration: str
    configurations: dict[str, ConfigurationPlan]
    decisions: dict[str, str] = field(default_factory=dict)


def plans_file(name: str | None) -> str:
    """Name of the file of a data set's plan: plans.json, or plans_NAME.json of one with a name."""
    return "plans.json" if name is None else f"{PLANS_PREFIX}{name}.json"


def configuration_folder(configuration: str, plans_name: str | None) -> str:
    """Name of the folder that the cases lie in which were preprocessed for a configuration of a plan."""
    return configuration if plans_name is None else f"{configuration}__{PLANS_PREFIX}{plans_name}"


def require_plans(folder: Path, name: str | None) -> Path:
    """The file of a plan in the folder of a preprocessed data set.

    Raises:
        UsdError: there is no such plan; lists those that are there.
    """
    path = folder / plans_file(name)
    if path.is_file():
        return path
    named = sorted(p.stem.removeprefix(PLANS_PREFIX) for p in folder.glob(f"{PLANS_PREFIX}*.json"))
    there = f"; it has plans named {', '.join(named)}" if named else ""
    flag = "" if name is None else f" --plans {name}"
    raise UsdError(f"{folder} holds no {path.name}{there}. Run usd_plan -d {folder.name}{flag} first.")
