"""plans.json as frozen dataclasses, in the order in which the pipeline uses them.

Axis order is (Z, Y, X) after `axis_order` has been applied; 2D images have Z = 1. Training never changes a plan.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.bounds import (
    Count,
    Fraction,
    Length,
    LogSignalToNoise,
    OneOf,
    Range,
    SpacingMm,
    VoxelCount,
)
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import text_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import quoted, require_name, require_text
from unisegdiff_pipeline.core.serialization import formerly
from unisegdiff_pipeline.fingerprint import IntensityStatistics as IntensityStatistics
from unisegdiff_pipeline.io.endings import SUPPORTED_ENDINGS
from unisegdiff_pipeline.io.orientation import Direction

SCHEMA_VERSION = 1
PLANS_PREFIX = "plans_"
MAX_CHANNELS = 1000
MAX_BATCH = 4096
MAX_PATCH_VOXELS = 512**3  # beyond any memory that a network of this kind can have
Augmentation = Literal["default", "nnunet"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
MEMORY_GB = Range(0, 1e6, low_open=True)  # of a budget
InputScale = Annotated[float, Range(1e-3, 1e3)]
PresetName = Literal["M", "L", "XL"]
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
        separate_z: "auto" resamples the coarsest axis apart (nearest) where its spacing is over 3 times another's; a 2d
            plan keeps its slices, and interpolates within them.
        direction: of the axes x, y, z (LPS, row major as in `Geometry`) that volumes are turned to before all else, by
            permuting and flipping axes; None takes them as they are stored, as for 2D images and in plans of earlier
            versions.
        training_spacing_mm: median of the training images (Z, Y, X), which images are compared with; no part of what is
            done to them. None in plans of earlier versions.
        missing_channels: images may lack some channels; the network is told which are there, see
            `preprocessing.presence`.
    """

    axis_order: tuple[int, int, int]
    target_spacing_mm: tuple[SpacingMm | None, SpacingMm, SpacingMm]
    normalization: Annotated[tuple[Normalization, ...], Length(1, MAX_CHANNELS)]
    use_nonzero_mask: tuple[bool, ...]
    intensities: tuple[IntensityStatistics, ...]
    image_order: Annotated[int, OneOf((3, 1))] = 3
    separate_z: Literal["auto", "always", "never"] = "auto"
    direction: Direction | None = None
    training_spacing_mm: tuple[SpacingMm, SpacingMm, SpacingMm] | None = None
    missing_channels: bool = False

    @property
    def num_inputs(self) -> int:
        """Channels of the network's input: those of the image and, where some may be missing, the presence of each."""
        return len(self.normalization) * (2 if self.missing_channels else 1)

    def __post_init__(self) -> None:
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order is {list(self.axis_order)}; allowed is 0, 1 and 2 in any order, each once")
        for name, may_be_empty in (("use_nonzero_mask", False), ("intensities", "ct" not in self.normalization)):
            count = len(getattr(self, name))
            if count != len(self.normalization) and not (count == 0 and may_be_empty):
                raise ValueError(
                    f"{name} has {count} values for {len(self.normalization)} channels; give one for each, as in "
                    f"normalization"
                )
        if self.direction is not None:
            matrix = np.reshape(self.direction, (3, 3))
            if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
                raise ValueError(
                    f"direction is {list(self.direction)}; allowed are the nine cosines of three axes at right angles "
                    f"to each other, as in an image's header"
                )

    def fields(self) -> dict[str, Any]:
        """All fields that do something to an image, for hashes: plans of before a field was there keep theirs."""
        fields = asdict(self)
        del fields["training_spacing_mm"]
        if self.direction is None:
            del fields["direction"]
        if not self.missing_channels:
            del fields["missing_channels"]
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

    features: Annotated[int, Range(1, 4096)]
    stride: tuple[Annotated[int, Range(1, 8)], ...]
    kernel: tuple[Annotated[int, OneOf((1, 3, 5, 7))], ...]
    num_convs: Annotated[int, Range(1, 20)]


@dataclass(frozen=True)
class NetworkPlan:
    """The segmenter: `dims` is 2 or 3 and equals the length of patch_size, strides and kernels.

    Attributes:
        encoder: "plain" is nnU-Net's default network; "resenc" is its residual encoder U-Net, where a level's
            `num_convs` are blocks of two convolutions; "residual" is a simpler one, kept for models of earlier versions
            (no convolution in front of the first block, no norm on projected skips).
    """

    dims: Annotated[int, OneOf((2, 3))]
    patch_size: tuple[VoxelCount, ...]
    num_input_channels: Annotated[int, Range(1, MAX_CHANNELS)]
    levels: Annotated[tuple[LevelPlan, ...], Length(1, 12)]
    encoder: Literal["plain", "residual", "resenc"] = "plain"

    def __post_init__(self) -> None:
        lists = {"patch_size": self.patch_size}
        for i, level in enumerate(self.levels):
            lists |= {f"levels[{i}].stride": level.stride, f"levels[{i}].kernel": level.kernel}
        for name, values in lists.items():
            if len(values) != self.dims:
                raise ValueError(f"{name} is {list(values)}; with dims {self.dims} it needs {self.dims} values")
        if any(stride != 1 for stride in self.levels[0].stride):
            raise ValueError(
                f"levels[0].stride is {list(self.levels[0].stride)}; the first level has the resolution of the image, "
                f"so that its strides are all 1"
            )
        for axis, edge in enumerate(self.patch_size):
            step = math.prod(level.stride[axis] for level in self.levels)
            if edge % step:
                nearest = [size for size in (edge // step * step, -(-edge // step) * step) if size]
                raise ValueError(
                    f"patch_size[{axis}] is {edge}; it must be a multiple of {step}, the product of the strides of "
                    f"this axis: nearest are {' and '.join(map(str, nearest))}"
                )
        if math.prod(self.patch_size) > MAX_PATCH_VOXELS:
            raise ValueError(
                f"patch_size is {list(self.patch_size)}, {math.prod(self.patch_size):.3g} voxels; allowed are "
                f"{MAX_PATCH_VOXELS:.3g}, such as {[_largest_edge(self.dims)] * self.dims}"
            )

    def decoder_convs(self, level: LevelPlan) -> int:
        """Convolutions of the decoder after the concatenation at a level: those of the encoder, or one if residual."""
        return level.num_convs if self.encoder == "plain" else 1


def _largest_edge(dims: int) -> int:
    """Edge of the largest patch that is allowed, a multiple of 64."""
    return int(MAX_PATCH_VOXELS ** (1 / dims) + 1e-6) // 64 * 64


@dataclass(frozen=True)
class ReadabilityCurve:
    """Chance-corrected readability S_c(lam) of a noised mask of one class (documentation/explanation/stages.md)."""

    class_name: str
    lam: Annotated[tuple[LogSignalToNoise, ...], Length(2, 10_000)]
    readability: tuple[Fraction, ...]
    lam_a: LogSignalToNoise
    lam_c: LogSignalToNoise
    num_patches: Count

    def __post_init__(self) -> None:
        if len(self.lam) != len(self.readability) or any(a >= b for a, b in itertools.pairwise(self.lam)):
            raise ValueError(
                f"lam has {len(self.lam)} values and readability {len(self.readability)}; lam must rise from value to "
                f"value, with one readability for each"
            )


@dataclass(frozen=True)
class StagePlan:
    """Edges of the stages on lam: A below lam_a, B between, C above lam_c.

    `input_scale` holds one factor b per coded channel; all ones unless the classes' edges span over 10 nats.
    """

    lam_a: LogSignalToNoise
    lam_c: LogSignalToNoise
    input_scale: tuple[InputScale, ...]
    curves: tuple[ReadabilityCurve, ...]

    def __post_init__(self) -> None:
        if not self.lam_a < self.lam_c:
            raise ValueError(f"lam_a is {self.lam_a:g} and lam_c {self.lam_c:g}; lam_a must lie below lam_c")


@dataclass(frozen=True)
class DenoiserPlan:
    """The denoiser: a U-Net on space-to-depth of the noised mask by the first stride of the segmenter."""

    features: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], Length(1, 12)] = (16, 32, 64)
    noise_levels_per_patch: Annotated[int, Range(3, 96)] = 6

    def __post_init__(self) -> None:
        if self.noise_levels_per_patch % 3:
            raise ValueError(
                f"noise_levels_per_patch is {self.noise_levels_per_patch}; it must be a multiple of 3, a third for "
                f"each stage"
            )


@dataclass(frozen=True)
class TrainingPlan:
    """Numbers of the training; flags of usd_train override single fields.

    `mirror_axes` are axes of (Z, Y, X); a 2D network leaves Z out. `augmentation` "nnunet" is nnU-Net's recipe by its
    own library, "default" nearly the same by this package (`training/data/augmentation.py`).
    `pretrained_encoder_rate` is a factor on the learning rate of an encoder that starts from other weights than random
    ones, and `pretrained_warmup_fraction` the part of phase 1 over which its rate rises from zero, so that new heads
    settle first. `channel_dropout` is the probability with which each channel of an example is hidden, but for one.
    """

    batch_size: Annotated[int, Range(1, MAX_BATCH)]
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Range(0, 10, low_open=True)] = 2e-3
    weight_decay: Annotated[float, Range(0, 10)] = 1e-2
    num_epochs: Annotated[int, Range(1, 1_000_000)] = 1000
    iterations_per_epoch: Annotated[int, Range(1, 1_000_000)] = 250
    foreground_fraction: Fraction = field(default=0.33, metadata=formerly("foreground_share"))
    phase_1_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = field(
        default=0.75, metadata=formerly("phase_1_share")
    )
    ema_decay: Annotated[float, Range(0, 1, high_open=True)] = 0.999
    batch_dice: bool = False
    deep_supervision: bool = True
    augmentation: Augmentation = "default"
    dummy_2d_augmentation: bool = False
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    pretrained_encoder_rate: Annotated[float, Range(0, 1)] = 1.0
    pretrained_warmup_fraction: Fraction = 0.0
    channel_dropout: Annotated[float, Range(0, 1, high_open=True)] = 0.0

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {self.augmentation!r}; allowed are {' and '.join(AUGMENTATIONS)}")
        if len({*self.mirror_axes} & {0, 1, 2}) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes is {list(self.mirror_axes)}; allowed are 0, 1 and 2 (Z, Y, X), each once")


@dataclass(frozen=True)
class SourcePlan:
    """How images of one source of a unified data set become inputs of the network that all sources share.

    Attributes:
        modality: as the unified data set names it.
        channel_names: of the source's own images.
        file_ending, spacing_known: as the source's dataset.json has them.
        preprocessing: of the source's own channels; what comes out is brought to the network's channels afterwards.
        annotated: per coded channel of the labels, whether the source says anything about it; where it does not, there
            is no loss.
        num_images: training images, or slices for a 2D network on volumes; the square root of it (see
            `SourcesPlan.temperature`) says how often the source is drawn.
        stages: planned from the source's own labels; its `input_scale` brings them to the mixture's.
        labels, label_map: classes of the source's own label maps, and what becomes of each in the unified data set.
    """

    modality: str
    channel_names: Annotated[tuple[str, ...], Length(1, MAX_CHANNELS)]
    file_ending: str
    spacing_known: bool
    preprocessing: PreprocessingPlan
    annotated: tuple[bool, ...]
    num_images: Count
    stages: StagePlan | None = None
    labels: LabelScheme | None = None
    label_map: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourcesPlan:
    """What a network that several sources share needs to know of them.

    Attributes:
        plans: of each source, by its name; their order is that of the network's embeddings, which begin with that of
            an unknown source.
        grid: "physical" where all sources know their spacing, "relative" where images are brought to the size of the
            median image.
        channel_rule: "replicate" repeats the channels of an image up to the network's, "adapter" also mixes them by a
            matrix of the source's own.
        conditioning: "film" scales and shifts features by source, "none" does not tell the network.
        unknown_fraction: training examples whose source is hidden, so that images of no known source can be predicted.
        temperature: sources are drawn with the probability of their number of images to this power.
        learning_rate_factor: on the learning rate of what the network learns of single sources, which sees the examples
            of one alone.
    """

    plans: dict[str, SourcePlan]
    grid: Literal["physical", "relative"] = "relative"
    channel_rule: Literal["replicate", "adapter"] = "replicate"
    conditioning: Literal["film", "none"] = "film"
    unknown_fraction: Fraction = 0.1
    temperature: Fraction = 0.5
    learning_rate_factor: Annotated[float, Range(0, 1000)] = 1.0

    def index(self, source: str | None) -> int:
        """Row of a source in the network's embeddings; 0 for an unknown one."""
        return 0 if source is None else 1 + list(self.plans).index(source)

    def annotated_classes(self, source: str | None, labels: LabelScheme) -> frozenset[str]:
        """Classes that a source says anything about; all of an unknown one, and of a softmax."""
        if source is None or labels.coding == "softmax":
            return frozenset(labels.names)
        flags = self.plans[source].annotated
        return frozenset(name for name, flag in zip(labels.names, flags, strict=True) if flag)


@dataclass(frozen=True)
class CascadePlan:
    """What a network that refines masks of another one takes from other configurations.

    Attributes:
        masks_of: whose masks are further input channels, one for each class.
        cases_of: whose preprocessed cases it reads; images are treated alike.
    """

    masks_of: str
    cases_of: str


@dataclass(frozen=True)
class ConfigurationPlan:
    """One way to treat the data set: 2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres.

    Of a unified data set `sources` says how images of each source are treated; `preprocessing` is then for images of no
    known source, and has the network's number of channels.
    """

    name: str
    preprocessing: PreprocessingPlan
    median_shape: tuple[VoxelCount, VoxelCount, VoxelCount]
    network: NetworkPlan
    denoiser: DenoiserPlan
    training: TrainingPlan
    stages: StagePlan | None = None  # planned from the preprocessed labels, at the end of preprocessing
    sources: SourcesPlan | None = None  # of a unified data set
    cascade: CascadePlan | None = None  # of a network that takes masks of another one

    @property
    def cases_of(self) -> str:
        """Name of the configuration whose preprocessed cases it reads."""
        return self.name if self.cascade is None else self.cascade.cases_of

    def field_spacing_mm(self, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Voxel size (Z, Y, X) that lengths of sampling are meant in, of a case with this one on the plan's grid.

        On a relative grid the millimetres of sources do not compare, so that a length is as many voxels in each.
        """
        if self.sources is None:
            return spacing_mm
        pairs = zip(spacing_mm, self.preprocessing.target_spacing_mm, strict=True)
        z, y, x = (own if common is None else common for own, common in pairs)
        return z, y, x

    def knows_spacing(self, source: str | None, of_data_set: bool) -> bool:
        """Whether millimetres of a case are real ones, by its source, or by the data set where that is not unified."""
        return of_data_set if self.sources is None or source is None else self.sources.plans[source].spacing_known

    @property
    def patch_mirror_axes(self) -> tuple[int, ...]:
        """The training's `mirror_axes` as axes of a patch, which lacks Z where the network is a 2D one."""
        missing = 3 - self.network.dims
        return tuple(axis - missing for axis in self.training.mirror_axes if axis >= missing)


@dataclass(frozen=True)
class Budget:
    """What a plan is made to fit: the kind of device, its memory, and the cores of the CPU.

    Example:
        >>> usd.Budget("cuda", memory_gb=24.0, num_cores=8)
        Budget(device='cuda', memory_gb=24.0, num_cores=8, preset=None)

    Attributes:
        device: what trains.
        memory_gb: that training may use, of the GPU or for a CPU of the machine.
        num_cores: that this process may use.
        preset: of nnU-Net's residual encoders; None plans the plain network.
    """

    device: Literal["cpu", "cuda"]
    memory_gb: Annotated[float, MEMORY_GB]
    num_cores: Annotated[int, Range(1, 100_000)]
    preset: PresetName | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.device != "cuda":
            raise ValueError(f"preset is {self.preset!r} for a CPU; presets are for the memory of a GPU (device cuda)")


@dataclass(frozen=True)
class Plans:
    """All decisions for one data set, with a reason for each in `decisions` (key = path of the field).

    Example:
        >>> plans = usd.plan_and_preprocess(raw / "Dataset902_Phantom2D", preprocessed).plans
        >>> plans.configurations["2d"].network.dims, plans.channel_names
        (2, ('phantom',))
    """

    schema_version: int
    dataset_name: str
    labels: LabelScheme
    channel_names: Annotated[tuple[str, ...], Length(1, MAX_CHANNELS)]
    file_ending: str
    spacing_known: bool
    budget: Budget
    recommended_configuration: str
    configurations: dict[str, ConfigurationPlan]
    decisions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names, which become paths, and what must fit together across configurations.

        Raises:
            UsdError: names the key, its value and what is allowed.
        """
        if self.schema_version != SCHEMA_VERSION:
            raise UsdError(
                f"schema_version is {self.schema_version}, this program reads {SCHEMA_VERSION}; use the version of the "
                f"program that wrote the file, or plan (and train) again."
            )
        require_name(self.dataset_name, "dataset_name")
        for name in (*self.channel_names, *self.labels.names):
            require_text(name, "a name in channel_names or labels")
        if self.file_ending.lower() not in SUPPORTED_ENDINGS:
            allowed = ", ".join(SUPPORTED_ENDINGS)
            raise UsdError(f"file_ending is {self.file_ending!r:.80}, allowed is one of {allowed}; correct the value.")
        for name, configuration in self.configurations.items():
            require_name(name, "a configuration")
            if problem := self._problem(name, configuration):
                raise UsdError(f"configurations.{name}.{problem}; correct the value.")

    def __repr__(self) -> str:
        return (
            f"Plans({self.dataset_name}, channels: {', '.join(self.channel_names)}, "
            f"classes: {', '.join(self.labels.names)}, {', '.join(map(self._shown, self.configurations))})"
        )

    def _shown(self, name: str) -> str:
        configuration = self.configurations[name]
        spacing = ", ".join("own" if s is None else f"{s:.6g}" for s in configuration.preprocessing.target_spacing_mm)
        mark = ", recommended" if name == self.recommended_configuration else ""
        unit = "mm" if self.in_mm(configuration) else "as the images have it"
        return f"{name} (patch {tuple(configuration.network.patch_size)}, spacing ({spacing}) {unit}{mark})"

    def _problem(self, name: str, configuration: ConfigurationPlan) -> str | None:
        """What of a configuration does not fit its name, the channels or the classes."""
        channels, stages = len(self.channel_names), configuration.stages
        if configuration.name != name:
            return f"name is {configuration.name!r:.80}; it must be {name!r}, as its key"
        if len(configuration.preprocessing.normalization) != channels:
            found = len(configuration.preprocessing.normalization)
            return f"preprocessing.normalization has {found} values; channel_names has {channels} channels"
        missing = configuration.preprocessing.missing_channels
        if missing and (configuration.sources is not None or channels == 1):
            return "preprocessing.missing_channels is true; it goes with one data set of several channels"
        if configuration.training.channel_dropout and not missing:
            dropout = configuration.training.channel_dropout
            return f"training.channel_dropout is {dropout:g}; without preprocessing.missing_channels it is 0"
        inputs = configuration.preprocessing.num_inputs + self.num_masks(configuration)
        if configuration.network.num_input_channels != inputs:
            found = configuration.network.num_input_channels
            twice = ", twice as many inputs where some may be missing" if missing else ""
            masks = f", a cascade one for each of {len(self.labels.names)} classes" if configuration.cascade else ""
            return (
                f"network.num_input_channels is {found}; channel_names has {channels} channels{twice}{masks} ({inputs})"
            )
        if stages is not None and len(stages.input_scale) not in (0, self.labels.num_channels):
            found = len(stages.input_scale)
            return f"stages.input_scale has {found} values; the labels are coded in {self.labels.num_channels} channels"
        if configuration.cascade is not None:
            return self._problem_of_cascade(configuration, configuration.cascade)
        return None if configuration.sources is None else self._problem_of_sources(configuration.sources)

    def in_mm(self, configuration: ConfigurationPlan) -> bool:
        """Whether the spacing of a configuration is in known millimetres; it may use only sources that know theirs."""
        sources = configuration.sources
        return self.spacing_known if sources is None else sources.grid == "physical"

    def num_masks(self, configuration: ConfigurationPlan) -> int:
        """Inputs of the network of a configuration after those of the image: in a cascade one for each class."""
        return 0 if configuration.cascade is None else len(self.labels.names)

    def _problem_of_cascade(self, configuration: ConfigurationPlan, cascade: CascadePlan) -> str | None:
        """What of a cascade does not fit the configurations that it stands on."""
        for key, other in asdict(cascade).items():
            found = self.configurations.get(other)
            if found is None or found.cascade is not None:
                there = ", ".join(name for name, plan in self.configurations.items() if plan.cascade is None)
                return f"cascade.{key} is {other!r:.80}; allowed is another configuration that is no cascade: {there}"
        if configuration.sources is not None:
            return "sources is set beside cascade; a cascade takes images of one data set, set one of the two to null"
        if configuration.preprocessing != self.configurations[cascade.cases_of].preprocessing:
            return f"preprocessing differs from that of {cascade.cases_of}, whose cases it reads; make both the same"
        return None

    def _problem_of_sources(self, sources: SourcesPlan) -> str | None:
        """What of the plans of a unified data set's sources does not fit the channels or the classes."""
        if not sources.plans:
            return "sources.plans is empty; it holds a plan for each source"
        coded = self.labels.num_channels
        for name, plan in sources.plans.items():
            key, channels = f"sources.plans.{name}", len(plan.channel_names)
            for text in (name, plan.modality, *plan.channel_names, *plan.label_map, *plan.label_map.values()):
                require_text(text, f"{key}: a name, modality, channel_names or label_map")
            if plan.file_ending.lower() not in SUPPORTED_ENDINGS:
                return (
                    f"{key}.file_ending is {plan.file_ending!r:.80}; allowed is one of {', '.join(SUPPORTED_ENDINGS)}"
                )
            if len(plan.preprocessing.normalization) != channels:
                found = len(plan.preprocessing.normalization)
                return f"{key}.preprocessing.normalization has {found} values; channel_names has {channels} channels"
            if channels > len(self.channel_names):
                return f"{key}.channel_names has {channels} channels; the network takes {len(self.channel_names)}"
            if len(plan.annotated) != coded:
                return f"{key}.annotated has {len(plan.annotated)} values; the labels are coded in {coded} channels"
            if plan.stages is not None and len(plan.stages.input_scale) not in (0, coded):
                found = len(plan.stages.input_scale)
                return f"{key}.stages.input_scale has {found} values; the labels are coded in {coded} channels"
        return None


def plans_file(name: str | None) -> str:
    """Name of the file of a data set's plan: plans.json, or plans_NAME.json of one with a name."""
    return "plans.json" if name is None else f"{PLANS_PREFIX}{require_name(name, 'the plan')}.json"


def configuration_folder(configuration: str, plans_name: str | None) -> str:
    """Name of the folder that the cases lie in which were preprocessed for a configuration of a plan."""
    require_name(configuration, "the configuration")
    if plans_name is None:
        return configuration
    return f"{configuration}__{PLANS_PREFIX}{require_name(plans_name, 'the plan')}"


def plan_of_folder(folder_name: str) -> tuple[str, str | None]:
    """The configuration and the name of the plan that `configuration_folder` named a folder by."""
    configuration, _, plans_name = folder_name.partition(f"__{PLANS_PREFIX}")
    return configuration, plans_name or None


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
    flag = "" if name is None else f" --plans {quoted(name)}"
    raise UsdError(f"{folder} holds no {path.name}{there}. Run usd_plan -d {quoted(folder.name)}{flag} first.")
