"""Sample masks of one patch with onnxruntime and numpy alone; FOLDER is what the export to ONNX wrote.

python onnx_masks.py FOLDER IMAGE.npy MASKS.npy [SAMPLES]

IMAGE.npy is (channels, *patch_size), prepared as onnx.json says; MASKS.npy is (samples, label channels, *patch_size).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def normal(index, part, shape):
    """Standard normal numbers, the same for the same index of a step and part (0: noise, then the fields)."""
    return np.random.default_rng([index, part]).standard_normal(shape)


def smooth_field(index, part, shape, lengths):
    """A field (N, channels, *patch) of unit variance that is smooth over these lengths in voxels."""
    radii = [int(np.ceil(3.5 * length)) for length in lengths]
    field = normal(index, part, (*shape[:2], *(n + 2 * r for n, r in zip(shape[2:], radii, strict=True))))
    for axis, (r, length) in enumerate(zip(radii, lengths, strict=True), start=2):
        kernel = np.exp(-0.5 * (np.arange(-r, r + 1) / max(length, 1e-8)) ** 2)
        field = np.apply_along_axis(np.convolve, axis, field, kernel / np.sqrt((kernel**2).sum()), mode="valid")
    return field


def last_probabilities(sampler, p, denoise, draw):
    """What the calls of a sampler end with, from p_det on; documentation/reference/onnx.md has the formulas."""
    state, x, a, s = 2 * p - 1, None, 0.0, 1.0
    for i, call in enumerate(sampler["calls"]):
        a0, s0 = a, s
        a, s = (np.reshape(call[name], (-1, *[1] * (p.ndim - 2))) for name in ("signal", "noise"))
        if i and sampler["method"] == "ddim":
            x = s / s0 * x + (a - a0 * s / s0) * state
        else:
            if i and sampler["method"] == "hard":
                state = 2 * draw(sampler, p, 0 * p, i - 1) - 1
            x = a * state + s * normal(i, 0, p.shape)
        p, state = denoise(x, -np.inf if call["lam"] is None else call["lam"])
    return p


def main(folder, image_file, masks_file, samples=8):
    """Probabilities instead of masks are written for a model whose sampler does not draw."""
    about = json.loads((Path(folder) / "onnx.json").read_text())
    graphs = {name: onnxruntime.InferenceSession(Path(folder) / file) for name, file in about["graphs"].items()}

    def run(name, *inputs):
        names = [argument.name for argument in graphs[name].get_inputs()]
        return graphs[name].run(None, {n: np.asarray(v, np.float32) for n, v in zip(names, inputs, strict=True)})

    def draw(sampler, p, reported, index):
        shapes = [((len(p), f["channels"], *p.shape[2:]), f["length_voxels"]) for f in sampler["fields"]]
        fields = [smooth_field(index, part, *of_field) for part, of_field in enumerate(shapes, start=1)]
        return run(sampler["masks"], p, np.concatenate(fields, axis=1), reported)[0]

    logits, p_det, *features = (np.repeat(v, int(samples), 0) for v in run("segmenter", np.load(image_file)[None]))
    samplers = [sampler for sampler in (about["sampler"], about["mask_sampler"]) if sampler]  # the last samples masks

    def denoise(x, lam):
        return run("denoiser", x, [lam], logits, *features)

    ends = [last_probabilities(sampler, p_det, denoise, draw) for sampler in samplers]
    reported = about["segmenter_weight"] * p_det + (1 - about["segmenter_weight"]) * ends[0]
    last, p = samplers[-1], ends[-1]
    np.save(masks_file, draw(last, p, reported, len(last["calls"])) if last["draw"] else p)


if __name__ == "__main__":
    main(*sys.argv[1:])
