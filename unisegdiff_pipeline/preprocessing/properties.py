"""What has to be remembered of a case to bring a prediction back to the grid of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unisegdiff_pipeline.core.bounds import Count, Length, OneOf, SpacingMm, VoxelCount
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.orientation import Reorientation

Shape = tuple[VoxelCount, VoxelCount, VoxelCount]
CropBox = Annotated[tuple[tuple[Count, Count], ...], Length(3, 3)]
Axis = Annotated[int, OneOf((0, 1, 2))]


@dataclass(frozen=True)
class CaseProperties:
    """The way of one case from its image file to the plan grid.

    Attributes:
        case_id: name of the case; empty for an array that has none.
        group: cases of one group (a patient, say) stay in one fold.
        geometry: geometry of the image file, in its own axes.
        shape_original: (Z, Y, X) of the image file.
        axis_order: permutation applied to (Z, Y, X) of the file first: into the plan's orientation, then its own.
        crop_box: (first, one past last) voxel of each axis that was kept.
        shape_cropped: shape inside the crop box.
        shape: shape on the plan grid.
        spacing_mm: voxel size on the plan grid.
        separate_axis: axis that is resampled apart from the others by nearest neighbour, None where there is none.
        flipped: axes that are reversed after the permutation. All fields but the first three are in the new axes.
        source: that the case belongs to, of a unified data set; None where it is unknown or there is none.
        missing_channels: names of those that the case lacks.
    """

    case_id: str
    group: str | None
    geometry: Geometry
    shape_original: Shape
    axis_order: tuple[Axis, Axis, Axis]
    crop_box: CropBox
    shape_cropped: Shape
    shape: Shape
    spacing_mm: tuple[SpacingMm, SpacingMm, SpacingMm]
    separate_axis: Axis | None = None
    flipped: tuple[bool, bool, bool] = (False, False, False)
    source: str | None = None
    missing_channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order is {list(self.axis_order)}; allowed is 0, 1 and 2 in any order, each once")
        boxes = zip(self.crop_box, self.shape_cropped, self.shape_permuted, strict=True)
        if any(high - low != size or high > whole for (low, high), size, whole in boxes):
            raise ValueError(
                f"crop_box is {self.crop_box}; it must have the shape_cropped {self.shape_cropped} within the image "
                f"{self.shape_permuted}"
            )

    @property
    def reorientation(self) -> Reorientation:
        """From the axes of the file to those of the plan."""
        return Reorientation(self.axis_order, self.flipped)

    @property
    def shape_permuted(self) -> Shape:
        """Shape of the whole image in permuted axes."""
        z, y, x = (self.shape_original[axis] for axis in self.axis_order)
        return z, y, x
