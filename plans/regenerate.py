"""Write the fingerprints and plans in this folder again.

    python plans/regenerate.py                       plans from the stored fingerprints
    python plans/regenerate.py --raw FOLDER          fingerprints from the raw data sets in FOLDER, then plans

Every data set has a folder with fingerprint.json and one plan per budget. They are reviewed by eye when they change:
tests/planning/test_replan.py plans again and compares. Stages are left out, because they need the label maps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from unisegdiff_pipeline.core.serialization import read_dataclass, write_json  # noqa: E402
from unisegdiff_pipeline.fingerprint import Fingerprint, extract_fingerprint  # noqa: E402
from unisegdiff_pipeline.io.dataset_json import DatasetDescription  # noqa: E402
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset  # noqa: E402
from unisegdiff_pipeline.planning.planner import plan_dataset  # noqa: E402
from unisegdiff_pipeline.planning.plans import Budget, Plans  # noqa: E402

BUDGETS = {
    "plans_cpu_2_cores.json": Budget("cpu", 16.0, 2),
    "plans_cuda_8_gb.json": Budget("cuda", 8.0, 16),
}


def description_of(plans: Plans) -> DatasetDescription:
    """The part of dataset.json that planning needs, as the plan remembers it."""
    return DatasetDescription(plans.channel_names, plans.labels, plans.file_ending, plans.spacing_known, None, None, {})


def write_plans(folder: Path, fingerprint: Fingerprint, description: DatasetDescription) -> None:
    """Write one plan per budget into `folder`."""
    for name, budget in BUDGETS.items():
        write_json(folder / name, plan_dataset(fingerprint, description, budget))
        print(folder / name)


def main() -> None:
    """Parse the arguments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder with raw data sets named DatasetXXX_Name")
    raw_root = parser.parse_args().raw
    if raw_root is None:
        for file in sorted(HERE.glob("*/fingerprint.json")):
            plans = read_dataclass(Plans, file.with_name(next(iter(BUDGETS))))
            write_plans(file.parent, read_dataclass(Fingerprint, file), description_of(plans))
        return
    for source in sorted(raw_root.glob("Dataset[0-9][0-9][0-9]_*")):
        raw = open_raw_dataset(source)
        fingerprint, report = extract_fingerprint(raw)
        report.require_ok()
        write_json(HERE / raw.name / "fingerprint.json", fingerprint)
        write_plans(HERE / raw.name, fingerprint, raw.description)


if __name__ == "__main__":
    main()
