"""Deterministic weights for the golden files: a state dict from names and shapes alone.

Every tensor is drawn from its own `numpy.random.RandomState`, a stream that NumPy keeps frozen,
so the same names, shapes and seed give the same weights on every machine, at any model size.
"""

import zlib

import numpy as np


# Scale of a layer's weight and bias, and an offset of its bias, so that keypoints, poses, stitching
# offsets and pixels come out in the range that trained models give.
SCALES = {
    "fc_kp": (0.07, 0.0),
    "fc_exp": (0.01, 0.0),
    "fc_t": (0.03, 0.0),
    "fc_scale": (0.05, 1.3),
    "mlp.last": (0.01, 0.0),
    "conv_img": (0.25, 0.0),
}


def scale_of(name: str, names) -> tuple:
    """(scale, bias offset) of the layer that the tensor `name` belongs to; (1, 0) for most."""
    layer = name.rsplit(".", 1)[0]
    mlp = [int(n.split(".")[1]) for n in names if n.startswith("mlp.")]
    if mlp and layer == f"mlp.{max(mlp)}":
        return SCALES["mlp.last"]
    if layer.startswith("conv_img"):
        return SCALES["conv_img"]
    return SCALES.get(layer.rsplit(".", 1)[-1], (1.0, 0.0))


def spectral_vectors(weight: np.ndarray, rng: np.random.RandomState, iterations: int = 20):
    """Left and right singular-vector estimates (u, v) of `weight` flattened to (out, rest), by power iteration."""
    matrix = weight.reshape(weight.shape[0], -1).astype(np.float64)
    u = rng.standard_normal(matrix.shape[0])
    for _ in range(iterations):
        v = matrix.T @ u
        v /= np.linalg.norm(v)
        u = matrix @ v
        u /= np.linalg.norm(u)
    return u, v


def make_state_dict(shapes: dict, seed: str) -> dict:
    """State dict of float32 arrays (int64 for `num_batches_tracked`) for `shapes`: name -> shape.

    `seed` separates sets: the tensor called `name` is drawn from RandomState(crc32(f"{seed}/{name}")).
    """
    out = {}
    for name, shape in shapes.items():
        rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
        leaf = name.rsplit(".", 1)[-1]
        scale, offset = scale_of(name, shapes)
        if leaf == "num_batches_tracked":
            out[name] = np.zeros(shape, np.int64)
        elif leaf == "running_mean":
            out[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        elif leaf == "running_var":
            out[name] = (0.5 + rng.random_sample(shape)).astype(np.float32)
        elif leaf in ("weight_u", "weight_v"):
            continue  # with their weight_orig, below
        elif leaf in ("weight", "weight_orig") and len(shape) >= 2:
            fan_in = int(np.prod(shape[1:]))
            gain = 4.0 if ".mask." in f".{name}" else 2.0
            out[name] = (rng.standard_normal(shape) * np.sqrt(gain / fan_in) * scale).astype(np.float32)
            if leaf == "weight_orig":
                u, v = spectral_vectors(out[name], rng)
                stem = name[: -len("_orig")]
                out[f"{stem}_u"], out[f"{stem}_v"] = u.astype(np.float32), v.astype(np.float32)
        elif leaf == "weight":
            out[name] = (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        else:  # biases, GRN gamma and beta
            out[name] = (0.1 * rng.standard_normal(shape) * scale + offset).astype(np.float32)
    return out
