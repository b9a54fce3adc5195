"""Everything that the package reads from files: for each kind a sound file, and the function that reads it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.images import read_header, read_image, read_labels, write_labels, write_map

SPACING_MM = (2.0, 0.75, 0.5)


@dataclass(frozen=True)
class Parser:
    """One kind of file.

    Attributes:
        name: of the file, whose ending may decide how it is read.
        write: writes a sound file.
        read: reads it and returns what it read as bytes; a UsdError is the only exception that it may raise.
        is_checked: damage must be noticed: what is read from a damaged file is refused or equal to the sound content.
        wrap: applied to the damaged bytes before they are written, for example compression.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], bytes]
    is_checked: bool = False
    wrap: Callable[[bytes], bytes] | None = None


def _labels() -> np.ndarray:
    labels = np.zeros((5, 9, 12), np.uint8)
    labels[1:4, 2:6, 3:9] = 1
    return labels


def _write_labels(path: Path) -> None:
    is_2d = path.suffix in (".png", ".bmp")
    geometry = Geometry(is_2d=True) if is_2d else Geometry(SPACING_MM, (10.0, -20.0, 30.0))
    write_labels(path, _labels()[2:3] if is_2d else _labels(), geometry)


def _write_map(path: Path) -> None:
    rng = np.random.default_rng(0)
    write_map(path, rng.random((5, 9, 12)).astype(np.float32), Geometry(SPACING_MM, (10.0, -20.0, 30.0)))


def _write_photograph(path: Path) -> None:
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr((array.shape, array.dtype)).encode() + array.tobytes()).digest()


def _read_labels(path: Path) -> bytes:
    read_header(path)
    return _digest(read_labels(path).array)


def _read_image(path: Path) -> bytes:
    read_header(path)
    return _digest(read_image([path]).array)


def _write_dataset_json(path: Path) -> None:
    path.write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "FLAIR"},
                "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
                "regions_class_order": [1, 2],
                "numTraining": 2,
                "file_ending": ".nii.gz",
                "dataset": {"a": {"images": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a.nii.gz"}},
            },
            indent=1,
        )
    )


def _read_dataset_json(path: Path) -> bytes:
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json

    return repr(read_dataset_json(path)).encode()


def _write_groups(path: Path) -> None:
    path.write_text("case,group\na,patient 1\nb,patient 1\nc,patient 2\n")


def _read_groups(path: Path) -> bytes:
    from unisegdiff_pipeline.io.raw_dataset import read_groups

    return repr(read_groups(path)).encode()


def _write_inference(path: Path) -> None:
    from unisegdiff_pipeline.core.serialization import write_json
    from unisegdiff_pipeline.inference.settings import InferenceSettings

    write_json(path, InferenceSettings(lam_a=-6.0, lam_c=-1.0))


def _read_inference(path: Path) -> bytes:
    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.inference.settings import InferenceSettings

    return repr(read_dataclass(InferenceSettings, path)).encode()


def _plans_path() -> Path:
    return Path(__file__).parents[2] / "plans" / "Dataset004_Hippocampus" / "plans_cpu_2_cores.json"


def _write_plans(path: Path) -> None:
    path.write_bytes(_plans_path().read_bytes())


def _read_plans(path: Path) -> bytes:
    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.planning.plans import Plans

    return repr(read_dataclass(Plans, path)).encode()


def _write_log(path: Path) -> None:
    entries = ({"kind": "iteration", "phase": 1, "iteration": i, "loss": 1 / (i + 1)} for i in range(6))
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _read_log(path: Path) -> bytes:
    from unisegdiff_pipeline.reports.training_log import read_log

    return repr(read_log(path)).encode()


def _write_weights(path: Path) -> None:
    import torch

    from unisegdiff_pipeline.inference.model_folder import save_weights

    torch.manual_seed(0)
    save_weights(path, torch.nn.Conv2d(2, 3, 3), {"plan_hash": "0" * 16})


def _read_weights(path: Path) -> bytes:
    from unisegdiff_pipeline.inference.model_folder import read_weights

    tensors, _ = read_weights(path)
    return b"".join(_digest(tensor.numpy()) for _, tensor in sorted(tensors.items()))


def _write_probabilities(path: Path) -> None:
    np.savez_compressed(path, probabilities=np.random.default_rng(0).random((2, 5, 9, 12)).astype(np.float16))


def _read_probabilities(path: Path) -> bytes:
    from unisegdiff_pipeline.core.npz import read_npz

    found = read_npz(path, ("probabilities", "softmax"), "Predict again.", any_of=True, max_bytes=10_000_000)
    return b"".join(_digest(array) for array in found.values())


def _write_case_record(path: Path) -> None:
    from unisegdiff_pipeline.core.serialization import write_json
    from unisegdiff_pipeline.inference.export import PredictionRecord

    write_json(
        path, PredictionRecord("case", "0" * 16, ("case_0000.nii.gz",), ("0" * 16,), {"read": 0.5}, {"num_tiles": 3.0})
    )


def _read_case_record(path: Path) -> bytes:
    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.inference.export import PredictionRecord

    return repr(read_dataclass(PredictionRecord, path)).encode()


PARSERS = (
    Parser("labels.nii", _write_labels, _read_labels),
    Parser("labels.nii.gz", _write_labels, _read_labels, is_checked=True),
    Parser("map.nii.gz", _write_map, _read_image, wrap=gzip.compress),
    Parser("labels.nrrd", _write_labels, _read_labels, is_checked=True),
    Parser("map.nrrd", _write_map, _read_image),
    Parser("labels.mha", _write_labels, _read_labels, is_checked=True),
    Parser("map.mha", _write_map, _read_image),
    Parser("labels.gipl", _write_labels, _read_labels),
    Parser("labels.png", _write_labels, _read_labels, is_checked=True),
    Parser("photograph.png", _write_photograph, _read_image),
    Parser("photograph.jpg", _write_photograph, _read_image),
    Parser("photograph.bmp", _write_photograph, _read_image),
    Parser("labels.tif", _write_labels, _read_labels),
    Parser("photograph.tif", _write_photograph, _read_image),
    Parser("dataset.json", _write_dataset_json, _read_dataset_json),
    Parser("groups.csv", _write_groups, _read_groups),
    Parser("plans.json", _write_plans, _read_plans),
    Parser("inference.json", _write_inference, _read_inference),
    Parser("log.jsonl", _write_log, _read_log),
    Parser("probabilities.npz", _write_probabilities, _read_probabilities, is_checked=True),
    Parser("case_record.json", _write_case_record, _read_case_record),
    Parser("weights.safetensors", _write_weights, _read_weights, is_checked=True),
)
