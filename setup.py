"""Installation of the package and its console commands."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "unisegdiff_pipeline/core/version.py").read_text("utf-8"), re.M)
assert VERSION is not None

COMMANDS = (
    "fingerprint",
    "plan",
    "preprocess",
    "plan_and_preprocess",
    "train",
    "predict",
    "ensemble",
    "find_best",
    "evaluate",
    "convert",
    "unify",
    "export",
    "import_",
    "demo",
    "doctor",
)

ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
DICOM = ["highdicom>=0.27,<0.29"]  # brings pydicom
SERVE = ["fastapi>=0.115", "python-multipart>=0.0.12", "uvicorn>=0.30"]

setup(
    name="unisegdiff_pipeline",
    version=VERSION.group(1),
    description="Self-configuring lesion segmentation with a staged diffusion model, after UniSegDiff",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["unisegdiff_pipeline", "unisegdiff_pipeline.*", "dataset_conversion"]),
    package_data={"unisegdiff_pipeline": ["py.typed", "reports/assets/*", "training/assets/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "torch>=2.11",
        "numpy>=2.0",
        "scipy>=1.13",
        "SimpleITK>=2.3",
        "nibabel>=5.2",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.2",
        "acvl-utils>=0.2.6",
        "scikit-image>=0.24",
        "pillow>=10.3",
        "blosc2>=4.14.1",
        "connected-components-3d>=3.16",
        "tqdm>=4.66",
        "matplotlib>=3.9",
        "safetensors>=0.4.5",
        "psutil>=5.9",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "test": [
            "pytest>=8.2",
            "ruff>=0.9",
            "mypy>=1.13",
            # What the package's own operations and scores are tested against.
            "medpy>=0.5",
            "monai>=1.5",
            "scikit-learn>=1.5",
            "torchmetrics>=1.6",
            # Drives the browser in which pages are tested.
            "playwright>=1.50",
            # Export and service, with the client that asks it.
            *ONNX,
            *SERVE,
            "httpx>=0.27",
            *DICOM,
            "pyyaml>=6.0",
        ],
        "tensorboard": ["tensorboard>=2.17"],
        "wandb": ["wandb>=0.18"],
        "mlflow": ["mlflow-skinny>=2.17"],
        "onnx": ONNX,
        "serve": SERVE,
        "dicom": DICOM,
        "dask": ["distributed>=2024.5"],
        "yaml": ["pyyaml>=6.0"],
    },
    entry_points={
        "console_scripts": [
            # A module cannot be named as a word of Python's own.
            f"usd_{name.rstrip('_')} = unisegdiff_pipeline.commands.{name}:main"
            for name in COMMANDS
        ]
    },
)
