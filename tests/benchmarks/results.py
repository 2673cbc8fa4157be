"""Small benchmark results that are in the format, for the tests to break and to compare."""

from __future__ import annotations

import json
from typing import Any

DIGEST = "0123456789abcdef" * 4


def times(median_ms: float, n: int = 5) -> dict[str, float]:
    """A summary around ``median_ms``."""
    return {
        "n": n,
        "min_ms": round(median_ms * 0.9, 3),
        "median_ms": median_ms,
        "p95_ms": round(median_ms * 1.2, 3),
    }


def result_head(benchmark: str) -> dict[str, Any]:
    """What every result has."""
    return {
        "schema": 2,
        "benchmark": benchmark,
        "machine": {
            "system": "Linux",
            "architecture": "x86_64",
            "processor": "Test CPU",
            "cores": 2,
            "memory_gib": 8.0,
        },
        "versions": {
            "mpn-runtime": "0.1.0",
            "python": "3.11.7",
            "numpy": "2.4.6",
            "opencv-python-headless": "5.0.0",
        },
        "backend": {"asked": "cpu", "used": "cpu", "note": "", "threads": 2},
        "engine": {
            "name": "tiny",
            "roles": {"propagation": {"precision": "fp32"}},
            "digests": {"propagation.onnx": DIGEST},
            "flow": {"source": "opencv-dis"},
        },
        "frame_size_hw": [480, 854],
        "objects": [1, 3],
        "frames": 5,
        "warmup": 2,
        "load_average_before": 0.1,
        "not_measured": ["a GPU"],
    }


def fps_result() -> dict[str, Any]:
    """Two numbers of objects, two variants."""
    runs = []
    for objects in (1, 3):
        for variant, crf_ms in (("plain", 0.0), ("crf", 40.0)):
            frame_ms = 20.0 * objects + crf_ms
            stages = {"flow": times(8.0), "propagation": times(frame_ms - 9.0)}
            stages |= {"crf": times(crf_ms)} if crf_ms else {}
            runs.append(
                {
                    "objects": objects,
                    "variant": variant,
                    "engine_only": {
                        "fps": 50.0 / objects,
                        "frame": times(20.0 * objects),
                        "roles": {"propagation": times(20.0 * objects)},
                    },
                    "pipeline": {
                        "fps": round(1e3 / frame_ms, 3),
                        "frame": times(frame_ms),
                        "stages": stages,
                        "start_ms": 50.0,
                    },
                    "wall": {
                        "fps": round(1e3 / (frame_ms + 10), 3),
                        "frame": times(frame_ms + 10),
                        "stages": stages,
                        "until_first_mask_ms": 200.0,
                        "peak_memory_mib": 250.0,
                    },
                }
            )
    result: dict[str, Any] = json.loads(json.dumps({**result_head("fps"), "runs": runs}))
    return result  # through text: no dict in two places
