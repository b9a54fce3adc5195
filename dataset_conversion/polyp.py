"""Five colonoscopy sets in the split of PraNet (Fan et al. 2020, MICCAI), which most polyp papers use.

Published by PraNet's authors as TrainDataset/{images,masks} (900 of Kvasir-SEG, 550 of CVC-ClinicDB) and
TestDataset/SET/{images,masks} (100 Kvasir, 62 CVC-ClinicDB, 380 CVC-ColonDB, 196 ETIS-LaribPolypDB, 60 CVC-300).
Early archives name the training folders image and mask. Frames of CVC-ClinicDB keep their numbers, which tell the
sequence.
"""

from __future__ import annotations

from bisect import bisect
from pathlib import Path

from dataset_conversion.finding import Request, images_in, pairs, picture_ending
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import RGB, Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError

_SEQUENCES = (  # first frame of each of CVC-ClinicDB's 29 sequences
    *(1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298),
    *(318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592),
)
_TEST_SETS = ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir")
_ORIGIN = Origin(
    "Kvasir-SEG, CVC-ClinicDB, CVC-ColonDB, ETIS-LaribPolypDB and CVC-300 in PraNet's split",
    "https://github.com/DengPingFan/PraNet",
    "each set has its own: Kvasir-SEG and the CVC sets for research and education, with citation; ask for ETIS-Larib",
    "Fan et al. 2020 (split); Jha et al. 2020; Bernal et al. 2015 and 2012; Silva et al. 2014; Vazquez et al. 2017",
)


def find(request: Request) -> Conversion:
    """See the module."""
    (source,) = request.sources
    if not (source / "TrainDataset").is_dir() or not (source / "TestDataset").is_dir():
        raise UsdError(f"{source} must hold TrainDataset and TestDataset of PraNet's authors; name their parent.")
    cases = [_training_case(stem, *paths) for stem, paths in _pairs(source / "TrainDataset").items()]
    for name in _TEST_SETS:
        cases += [
            Case(f"{name}_{stem}", (image,), (mask,), held_out=True)
            for stem, (image, mask) in _pairs(source / "TestDataset" / name).items()
        ]
    return Conversion(
        number=204,
        name="Polyp",
        channels=RGB,
        labels={"background": 0, "polyp": 1},
        file_ending=picture_ending([path for case in cases for path in case.images if isinstance(path, Path)], RGB),
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=Above(127),
        published={"training": 1450, "test": 798},
    )


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    def either(*names: str) -> Path:
        return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])

    return pairs(images_in(either("images", "image")), images_in(either("masks", "mask")))


def _training_case(stem: str, image: Path, mask: Path) -> Case:
    """Names that are numbers are of CVC-ClinicDB, the others of Kvasir-SEG, of which no patients are known."""
    if not stem.isdigit():
        return Case(f"Kvasir_{stem}", (image,), (mask,))
    sequence = bisect(_SEQUENCES, int(stem))
    return Case(f"CVC-ClinicDB_{stem}", (image,), (mask,), group=f"CVC-ClinicDB_sequence_{sequence:02d}")
