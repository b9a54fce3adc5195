"""Several plausible masks of one image, and what they say: uncertainty, confidence of lesions, interval of the size.

python samples_and_uncertainty.py MODEL_FOLDER IMAGE
"""

import sys

import unisegdiff_pipeline as usd


def main(model_folder: str, image: str) -> None:
    """The image is a file here; a SimpleITK or nibabel image or an array is taken as well."""
    prediction = usd.Predictor(model_folder).predict(image, num_samples=8)
    print(f"most uncertain voxel: {prediction.uncertainty.max():.2f} of 1")
    print(f"fraction of the samples that hold each voxel, at most {(prediction.samples > 0).mean(axis=0).max():.2f}")
    for lesion in prediction.lesions:
        print(f"{lesion.class_name} {lesion.lesion}: {lesion.voxels} voxels, in {lesion.confidence:.0%} of the samples")
    for size in prediction.volumes:
        interval = f"90 % between {size.quantile_05:.1f} and {size.quantile_95:.1f}"
        print(f"{size.class_name}: {size.volume:.1f} {size.unit}, {interval}")


if __name__ == "__main__":
    main(*sys.argv[1:])
