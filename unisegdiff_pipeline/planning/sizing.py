"""What a budget allows: features, patch and batch, by memory on a GPU and by multiply-adds on a CPU.

On a CPU the time of an iteration decides, not memory: an iteration costs about three forward passes of the batch
(forward, gradient of inputs, gradient of weights), and two cores do about 115 GMAC per second in bf16. The plan allows
15 GMAC per core and iteration, so that an epoch of 250 iterations takes about a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.planning.plans import MAX_BATCH, Budget, NetworkPlan
from unisegdiff_pipeline.planning.presets import PRESETS, RESENC_BLOCKS
from unisegdiff_pipeline.planning.topology import (
    Topology,
    build_network,
    feature_map_values,
    fit_patch,
    initial_patch,
    multiply_adds,
    pooling_topology,
)

# nnU-Net's reference: 8 GB hold a batch of this size whose feature maps have this many values per example
_REFERENCE_VALUES = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_REFERENCE_GB = 8.0
_CUDA_BASE_FEATURES = 32
_CUDA_MAX_FEATURES = {2: 512, 3: 320}
_MIN_BATCH = 2
_MAX_FRACTION_OF_DATASET = 0.05  # a batch of more would see the whole data set too soon

_CPU_GMAC_PER_CORE = 15.0
_CPU_MAX_CORES = 16  # more cores do not speed up one small network
_CPU_BASE_FEATURES = 16
_CPU_MAX_FEATURES = {2: (256, 128), 3: (128,)}
_CPU_BATCH = {2: 8, 3: 2}
_PASSES_PER_ITERATION = 3


@dataclass(frozen=True)
class Sizer:
    """Sizes networks for one data set and one machine."""

    budget: Budget
    num_inputs: int
    num_outputs: int
    num_cases: int

    @property
    def on_cpu(self) -> bool:
        """Whether multiply-adds are counted besides memory."""
        return self.budget.device == "cpu"

    @property
    def cores(self) -> int:
        """Cores that count."""
        return min(self.budget.num_cores, _CPU_MAX_CORES)

    @property
    def gmac_limit(self) -> float:
        """GMAC that an iteration may cost on the CPU."""
        return _CPU_GMAC_PER_CORE * self.cores

    def reason(self) -> str:
        """What the budget is, for `decisions`."""
        if self.budget.preset is not None:
            return (
                f"nnU-Net's residual encoder preset {self.budget.preset}: its rules for {self.budget.memory_gb:g} GB "
                f"of GPU memory"
            )
        if not self.on_cpu:
            return f"nnU-Net's rules for {self.budget.memory_gb:g} GB of GPU memory"
        return (
            f"no GPU: an iteration may cost {self.gmac_limit:.0f} GMAC ({_CPU_GMAC_PER_CORE:g} a core, at most "
            f"{_CPU_MAX_CORES} cores count), a quarter of a second on two cores, so that 250 iterations take about a "
            f"minute; and it must fit {self.budget.memory_gb:g} GB"
        )

    def gmac(self, network: NetworkPlan) -> float:
        """Cost of one forward pass of one patch."""
        return multiply_adds(network, self.num_outputs) / 1e9

    def iteration_gmac(self, network: NetworkPlan, batch_size: int) -> float:
        """Cost of one training iteration."""
        return _PASSES_PER_ITERATION * batch_size * self.gmac(network)

    def fits(self, network: NetworkPlan) -> bool:
        """Whether the smallest allowed batch (GPU) or the default one (CPU) is within the budget."""
        batch = _CPU_BATCH[network.dims] if self.on_cpu else _MIN_BATCH
        if batch > self._batch_by_memory(network):
            return False
        return not self.on_cpu or self.iteration_gmac(network, batch) <= self.gmac_limit

    def fit_network(self, spacing: Sequence[float], median_shape: Sequence[float]) -> NetworkPlan:
        """The largest patch that the budget allows; of the caps on features that reach it the widest."""
        networks = [
            fit_patch(spacing, median_shape, build, self.fits, keep_short_axes=self.on_cpu)
            for build in self._builders(len(spacing))
        ]
        return max(networks, key=lambda network: math.prod(network.patch_size))

    def whole_image_network(self, spacing: Sequence[float], shape: Sequence[float]) -> NetworkPlan | None:
        """The widest network within the budget whose patch covers an image of `shape`, None if there is none."""
        whole = tuple(max(1, round(n)) for n in shape)
        if initial_patch(spacing, shape) != whole:  # larger than any patch that is tried
            return None
        topology = pooling_topology(spacing, whole)
        networks = (build(topology) for build in self._builders(len(spacing)))
        return next((network for network in networks if self.fits(network)), None)

    def batch_size(self, network: NetworkPlan, median_shape: Sequence[float]) -> tuple[int, str]:
        """Examples in a batch, and the reason; `median_shape` is that of whole images (Z, Y, X)."""
        by_data = self._batch_by_data(network, median_shape)
        if self.on_cpu:
            return self._cpu_batch_size(network, by_data)
        by_memory = round(self._batch_by_memory(network))  # as nnU-Net does
        batch = max(min(by_memory, by_data, MAX_BATCH), _MIN_BATCH)
        bound = f"at least {_MIN_BATCH}" if batch < MAX_BATCH else f"at most {MAX_BATCH}"
        return batch, (
            f"{by_memory} examples fit {self.budget.memory_gb:g} GB, {by_data} are 5 % of the data set's voxels; the "
            f"smaller one, {bound}"
        )

    def _cpu_batch_size(self, network: NetworkPlan, by_data: int) -> tuple[int, str]:
        """The default batch, up to four times it where patches are so small that time and memory allow it."""
        default = _CPU_BATCH[network.dims]
        affordable = int(self.gmac_limit / self.iteration_gmac(network, 1))
        by_memory = int(self._batch_by_memory(network))
        batch = max(default, min(affordable, by_memory, by_data, 4 * default))
        batch -= batch % (default // 2)
        return batch, (
            f"{batch} examples: an iteration costs {self.iteration_gmac(network, batch):.1f} of the "
            f"{self.gmac_limit:.0f} GMAC that {counted(self.cores, 'core')} {'is' if self.cores == 1 else 'are'} given"
        )

    def _batch_by_memory(self, network: NetworkPlan) -> float:
        """Examples whose feature maps the memory holds."""
        return self._value_limit(network.dims) / feature_map_values(network, self.num_outputs)

    def _batch_by_data(self, network: NetworkPlan, median_shape: Sequence[float]) -> int:
        voxels = math.prod(median_shape) * self.num_cases
        return round(voxels * _MAX_FRACTION_OF_DATASET / math.prod(network.patch_size))

    def _value_limit(self, dims: int) -> float:
        """Values in the feature maps of a whole batch that the memory holds."""
        if self.budget.preset is None:
            return _REFERENCE_VALUES[dims] * _REFERENCE_BATCH[dims] * self.budget.memory_gb / _REFERENCE_GB
        preset = PRESETS[self.budget.preset]
        return preset.feature_map_values[dims] * _REFERENCE_BATCH[dims] * self.budget.memory_gb / preset.memory_gb

    def _builders(self, dims: int) -> list[Callable[[Topology], NetworkPlan]]:
        """Networks to try, the widest first."""
        base = _CPU_BASE_FEATURES if self.on_cpu else _CUDA_BASE_FEATURES
        caps = _CPU_MAX_FEATURES[dims] if self.on_cpu else (_CUDA_MAX_FEATURES[dims],)

        blocks = None if self.budget.preset is None else RESENC_BLOCKS

        def builder(cap: int) -> Callable[[Topology], NetworkPlan]:
            return lambda topology: build_network(topology, self.num_inputs, base, cap, blocks)

        return [builder(cap) for cap in caps]
