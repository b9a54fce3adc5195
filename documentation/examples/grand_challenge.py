"""Entry point of an algorithm on grand-challenge.org: images below /input, masks and results below /output.

python grand_challenge.py [INPUT OUTPUT]

/input/images/SLUG/NAME.mha                    one image a socket; several sockets are the channels of one case
/output/images/MASK_SLUG/NAME.mha              the mask
/output/images/UNCERTAINTY_SLUG/NAME.mha       0 (sure) to 1, where the variable is set
/output/results.json                           lesions and volumes of each case

Variables: USD_MODEL (default: the one model below /opt/ml/model or /opt/app/model), USD_CHANNELS (slugs of the channels
in the order of the training, with commas between; not needed for one), USD_MASK_SLUG, USD_UNCERTAINTY_SLUG,
USD_SAMPLES.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import SimpleITK

import unisegdiff_pipeline as usd

MODEL_PLACES = (Path("/opt/ml/model"), Path("/opt/app/model"))
ENDINGS = (".mha", ".tif", ".tiff", ".nii.gz")


def find_model(places: tuple[Path, ...]) -> Path:
    """The one model folder or archive (usd_export) below the places."""
    found = [
        path if path.suffix == ".zip" else path.parent
        for place in places
        for pattern in ("**/plans.json", "*.zip")
        for path in sorted(place.glob(pattern))
    ]
    if len(found) != 1:
        there = ", ".join(map(str, found)) or "none"
        raise usd.UsdError(f"{' and '.join(map(str, places))} hold {there}, not one model; set USD_MODEL to it.")
    return found[0]


def find_cases(folder: Path, slugs: list[str]) -> dict[str, list[Path]]:
    """The files of each case in the order of the channels, by the name that its mask gets.

    Raises:
        UsdError: no image, several sockets without an order, or a socket without an image.
    """
    sockets = {path.name: images_in(path) for path in sorted(folder.glob("images/*")) if path.is_dir()}
    slugs = slugs or list(sockets)
    if len(slugs) > 1 and not os.environ.get("USD_CHANNELS"):
        raise usd.UsdError(f"{folder}/images has {', '.join(slugs)}; set USD_CHANNELS to their order in the training.")
    channels = [sockets.get(slug, []) for slug in slugs]
    if not channels or not all(channels) or (len(slugs) > 1 and any(len(files) != 1 for files in channels)):
        counts = ", ".join(f"{slug}: {len(files)}" for slug, files in zip(slugs, channels, strict=True)) or "no socket"
        raise usd.UsdError(f"{folder}/images holds {counts} images; give one of each channel, or several of one.")
    if len(slugs) > 1:
        return {name_of(channels[0][0]): [files[0] for files in channels]}
    return {name_of(path): [path] for path in channels[0]}


def images_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]


def name_of(path: Path) -> str:
    return path.name[: -len(next(ending for ending in ENDINGS if path.name.lower().endswith(ending)))]


def write(array, like: SimpleITK.Image, path: Path) -> None:
    """An array (Z, Y, X) on the grid of an image, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.CopyInformation(like)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def main(source: str = "/input", output: str = "/output") -> int:
    """Predict all cases; the exit code is 1 where something cannot be predicted, with the reason on stderr."""
    options = os.environ.get
    try:
        model = usd.Predictor(options("USD_MODEL") or find_model(MODEL_PLACES))
        slugs = [slug.strip() for slug in options("USD_CHANNELS", "").split(",") if slug.strip()]
        cases = find_cases(Path(source), slugs)
        samples = int(options("USD_SAMPLES", "-1"))
        results = []
        for name, paths in cases.items():
            images = [SimpleITK.ReadImage(str(path)) for path in paths]
            image = images if len(images) > 1 else images[0]
            prediction = model.predict(image, num_samples=None if samples < 0 else samples, case_id=name)
            maps = {options("USD_MASK_SLUG", "segmentation"): prediction.mask}
            if slug := options("USD_UNCERTAINTY_SLUG"):
                maps[slug] = prediction.uncertainty.astype("float32")
            for slug, array in maps.items():
                write(array, images[0], Path(output) / "images" / slug / f"{name}.mha")
            rows = {"lesions": prediction.lesions, "volumes": prediction.volumes}
            results.append({"case": name, **{key: [dataclasses.asdict(row) for row in rows[key]] for key in rows}})
            print(f"{name}: {len(prediction.lesions)} lesions", flush=True)
    except usd.UsdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (Path(output) / "results.json").write_text(json.dumps(results, indent=2, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
