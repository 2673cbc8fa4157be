"""Build a small lattice over two of three regions with the references."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from mpn.runtime.device.lattice import AXES, lattice_packing
from tests.emulation.cuda_shim.scene import empty, make_scene
from tests.reference.kernels import kernel_references

SIZE_HW = (24, 36)
SXY, SRGB = 15.0, 7.0
EMPTY_KEY = np.uint64(2**64 - 1)
# Two regions use the lattice. The small one between them uses all pairs of pixels.
REGIONS = np.array([[0, 0, 20, 24], [22, 1, 27, 4], [21, 8, 36, 22], [0, 0, 0, 0]], np.int32)
STARTS = np.array([0, 480, 495, 705, 705], np.int32)
TOTAL, SMALL, OBJECTS = 705, slice(480, 495), 4
CAPACITY = SIZE_HW[0] * SIZE_HW[1]
SLOTS, BLOCKS = 8192, 3
PACKING = lattice_packing(SIZE_HW, sxy=SXY, srgb=SRGB)
RGB = make_scene(SIZE_HW).rgb
HERE = {"starts": STARTS, "objects": OBJECTS}


def insert_arguments() -> dict[str, Any]:
    return {
        "rgb": RGB,
        "regions": REGIONS,
        **HERE,
        "width": SIZE_HW[1],
        "capacity": CAPACITY,
        "sxy": SXY,
        "srgb": SRGB,
        "scale": PACKING.scale,
        "lowest": PACKING.lowest,
        "steps": PACKING.steps,
        "exact_pixels": 20,
        "slots": SLOTS,
        "keys": np.full(SLOTS, EMPTY_KEY, np.uint64),
        "corners": empty((CAPACITY, AXES), np.int32),
        "weights": empty((CAPACITY, AXES)),
    }


@cache
def built_lattice() -> dict[str, Any]:
    """Build the lattice with the references, as input of later kernels."""
    built = insert_arguments()
    numbered = {
        "numbers": empty((SLOTS,), np.int32),
        "vertex_keys": empty((AXES * CAPACITY,), np.uint64),
        "vertices": np.zeros(1, np.int32),
        "sums": empty((AXES * CAPACITY, 2), np.uint64),
    }
    kernel_references()["crf_insert"](**built)
    sizes = {"slots": SLOTS, "blocks": BLOCKS}
    kernel_references()["crf_number"](keys=built["keys"], channels=2, **HERE, **sizes, **numbered)
    kernel_references()["crf_renumber"](
        **HERE, numbers=numbered["numbers"], capacity=CAPACITY, corners=built["corners"]
    )
    neighbours = empty((AXES * CAPACITY, AXES, 2), np.int32)
    kernel_references()["crf_neighbours"](
        vertex_keys=numbered["vertex_keys"],
        vertices=numbered["vertices"],
        keys=built["keys"],
        numbers=numbered["numbers"],
        steps=PACKING.steps,
        neighbours=neighbours,
        **HERE,
        **sizes,
    )
    kept = {name: built[name] for name in ("keys", "corners", "weights")}
    return {**kept, **numbered, "neighbours": neighbours}


def features_of(region: int) -> np.ndarray:
    x0, y0, x1, y1 = REGIONS[region]
    y, x = np.indices((y1 - y0, x1 - x0), np.float32)
    colours = RGB[y0:y1, x0:x1].reshape(-1, 3).T / np.float32(SRGB)
    return np.stack([x.ravel() / np.float32(SXY), y.ravel() / np.float32(SXY), *colours])
