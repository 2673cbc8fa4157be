"""Build small valid benchmark results for the tests."""

from __future__ import annotations

import json
from typing import Any

DIGEST = "0123456789abcdef" * 4


def times(median_ms: float, n: int = 5) -> dict[str, float]:
    """Return a summary around ``median_ms``."""
    return {
        "n": n,
        "min_ms": round(median_ms * 0.9, 3),
        "median_ms": median_ms,
        "p95_ms": round(median_ms * 1.2, 3),
    }


def result_with_header(benchmark: str) -> dict[str, Any]:
    """Return the keys of every result."""
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
    """Return two numbers of objects with two variants."""
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
    result: dict[str, Any] = json.loads(json.dumps({**result_with_header("fps"), "runs": runs}))
    return result  # a copy through text, because the dicts above are shared


def export_result() -> dict[str, Any]:
    """Return one network."""
    measures = [
        {"measure": "max_relative", "value": 1e-5, "limit": 1e-4},
        {"measure": "mask_iou", "value": 0.9995, "limit": 0.99},
    ]
    row = {
        "role": "propagation",
        "variant": "tiny",
        "precision": "fp32",
        "verdict": "ok",
        "nodes": 100,
        "size_bytes": 2**20,
        "half_weights": 3,
        "total_weights": 4,
        "export_s": 4.0,
        "parity": {"cases": [{"case": "a scene", "measures": measures}]},
    }
    nothing_timed = {"engine": None, "objects": None, "frames": None, "warmup": None}
    return {**result_with_header("export_table"), **nothing_timed, "results": [row]}


def networks_result() -> dict[str, Any]:
    """Return a trained network and one that was not trained."""
    counts = {"parameters": 3, "backbone_parameters": 2, "macs": 5, "backbone_macs": 4}
    trained = {"j": 0.7, "set": "val", "result": "davis-tiny"}
    rows = [
        {
            "variant": f"{head}-vgg16-os16",
            "recipe": "",
            "config": {"backbone": "vgg16", "head": head},
            **counts,
            "trained": scores,
        }
        for head, scores in (("pspnet", trained), ("deeplab-v2", None))
    ]
    nothing_timed = {"engine": None, "frames": None, "warmup": None}
    return {**result_with_header("networks"), **nothing_timed, "results": rows}


def step_parity_result() -> dict[str, Any]:
    """Return right graphs with two sets of weights, and one planted error."""
    values = {"loss_abs": 1e-6, "gradient_relative": 5e-6}
    right = [
        {"seed": 0, "verdict": "passed", "values": values, "own_pattern_gradient_relative": 9e-2},
        {"seed": 1, "verdict": "passed", "values": values, "own_pattern_gradient_relative": None},
    ]
    wrong = {"verdict": "refused", "values": {**values, "gradient_relative": 2.0}}
    return {
        **result_with_header("step_parity"),
        "engine": None,
        "objects": None,
        "frames": None,
        "warmup": None,
        "parameters": 54_700_722,
        "optimizer": "adamw",
        "scope": "all",
        "images": 2,
        "right": right,
        "planted": [{"seed": 0, "errors": {"kernel transposed": wrong}}],
    }


def evaluation_result() -> dict[str, Any]:
    """Return J of masks."""
    entry = {
        "name": "J of masks",
        "objects": 1,
        "ours": times(0.02),
        "plain": times(0.4),
        "ratio_of_medians": 20.0,
        "ratio_of_minima": 21.0,
    }
    return {**result_with_header("evaluation_speed"), "engine": None, "results": [entry]}


def davis_result() -> dict[str, Any]:
    """Return two sequences with five sets of stages."""
    ablations = {}
    for name, score, stages in (
        ("warp", 0.5, ["warp"]),
        ("propagation", 0.7, ["warp", "propagation"]),
        ("osvos", 0.8, ["warp", "propagation", "finetuned", "osvos"]),
        ("fast", 0.6, ["warp", "propagation", "osvos"]),
        ("paper-warp", 0.4, ["warp"]),
    ):
        scores = {"J-Mean": score, "F-Mean": score + 0.02}
        ablations[name] = {
            "stages": stages,
            "options": {"flip_tta": False, "crf": False},
            **scores,
            "J&F-Mean": score + 0.01,
            "objects": {"bear_1": dict(scores), "dog_1": dict(scores)},
            "wall": times(30.0),
            "pipeline": times(20.0),
            "wall_fps": 33.0,
            "pipeline_fps": 50.0,
            "first_mask_s": {"bear": score, "dog": 10 * score},
            "finetune": None if name != "propagation" else {"seconds_per_object": 40.0},
        }
    facts = {"frames": 10, "objects": 1, "size_hw": [480, 854]}
    data = {"set": "val", "sequences": {"bear": facts, "dog": {**facts, "objects": 2}}}
    return {**result_with_header("davis"), "data": data, "ablations": ablations}


def compare_torch_result() -> dict[str, Any]:
    """Return one number of objects and one other side."""

    def side(factor: float) -> dict[str, Any]:
        stages = {"flow": times(100.0 * factor), "warp": times(2.0 * factor)}
        return {"frame": times(105.0 * factor), "stages": stages, "outside_networks_share": 0.03}

    ratio = {"of_medians": 2.0, "of_minima": 2.0}
    ratios = {"frame": ratio, "stages": {"flow": dict(ratio), "warp": dict(ratio)}}
    agreement = {"mask_iou": {"min": 0.99, "mean": 0.999}}
    run = {
        "objects": 1,
        "sides": {"ours": side(1.0), "ours_int8": side(0.5), "eager": side(2.0)},
        "ratios": {"eager": ratios},
        "ratios_of_ours": {"ours_int8": {"eager": ratios}},
        "agreement": {"eager": agreement, "ours_int8": agreement},
    }
    result = result_with_header("compare_torch")
    result["versions"]["torch"] = "2.13.0"
    warp = {
        "operation": "warp",
        "objects": 1,
        "sides": {"ours": times(2.0), "grid_sample_each": times(8.0)},
        "ratios": {"grid_sample_each": {"of_medians": 4.0, "of_minima": 4.0}},
    }
    return {
        **result,
        "networks": "paper",
        "conditions": ["one process"],
        "runs": [run],
        "operations": [warp],
    }


def reappearance_result() -> dict[str, Any]:
    """Return one clip."""
    clip = {
        "with_osvos": {"frames_until_found": 2, "iou_after": 0.8},
        "without_osvos": {"frames_until_found": None, "iou_after": 0.0},
    }
    return {
        **result_with_header("reappearance"),
        "frames": None,
        "warmup": None,
        "clips": {"bear:dog": clip},
        "in_time": {"with_osvos": 1, "without_osvos": 0},
        "in_time_means_frames": 3,
    }


def lookalikes_result() -> dict[str, Any]:
    """Return one clip with the target model."""
    clip = {
        "with_target": {"crossing": [15, 35], "iou_after": [0.9, 0.8], "is_kept": True},
        "without_target": {"crossing": [15, 35], "iou_after": [0.1, 0.0], "is_kept": False},
    }
    return {
        **result_with_header("lookalikes"),
        "frames": None,
        "warmup": None,
        "clips": {"bear:dog": clip},
        "kept_means_iou": 0.5,
        "kept": {"with_target": 1, "without_target": 0},
    }


def confidence_result() -> dict[str, Any]:
    """Return a set of one sequence with wrong masks and one without."""
    wrong = {
        "masks": 10,
        "wrong": 2,
        "empty": 1,
        "empty_wrong": 1,
        "auroc": {"confidence": 0.8, "reliability": 0.95},
        "marked": 3,
        "marked_wrong": 2,
    }
    right = {**wrong, "wrong": 0, "auroc": {"confidence": None, "reliability": None}}
    return {
        **result_with_header("confidence"),
        "wrong_below_j": 0.5,
        "marked_below": 0.4,
        "sets": {"val": {**wrong, "sequences": {"bear": wrong, "dog": right}}},
    }


def corrections_result() -> dict[str, Any]:
    """Return one sequence with two random frames."""
    runs = [
        {"frame": at, "j_before": 0.5, "j_after": 0.5 + gain} for at, gain in ((3, 0.2), (7, 0.1))
    ]
    found = {
        "frames": 10,
        "j": 0.5,
        "named": runs[0],
        "random": runs,
        "named_gain": 0.2,
        "random_gain": 0.15,
    }
    data = {"set": "train", "is_held_out": False, "sequences": {"bear": {}, "dog": {}}}
    return {
        **result_with_header("corrections"),
        "data": data,
        "seeds": 2,
        "sequences": {"bear": found},
    }


def directions_result() -> dict[str, Any]:
    """Return one sequence with two weights."""
    names = ("forward", "backward", "distance", "distance x reliability^2")
    weights = {name: {"J-Mean": 0.7 + k / 10} for k, name in enumerate(names)}
    half = {"first_mask": {"J-Mean": 0.7}, "middle_mask": {"J-Mean": 0.8}}
    figures = {
        "anchors": {"two": weights, "three": weights},
        "halves": {"first": half, "second": half},
    }
    return {
        **result_with_header("directions"),
        "data": {"set": "train", "sequences": {"bear": {"frames": 6, "objects": 1}}},
        "product": "distance x reliability^2",
        "left_out": [],
        "every": 4,
        "sequences": {"bear": figures},
        "mean": figures,
    }


def features_result() -> dict[str, Any]:
    """Return one size with one interval."""
    row = {
        "name": "673x385, stride 16, every 2",
        "size_hw": [385, 673],
        "output_stride": 16,
        "every": 2,
        "J-Mean": 0.8,
        "F-Mean": 0.82,
        "J&F-Mean": 0.81,
        "features": times(50.0),
        "frame": times(40.0),
        "frame_mean_ms": 45.0,
    }
    data = {"set": "train", "sequences": {"bear": {"frames": 6, "objects": 1}}}
    return {
        **result_with_header("features"),
        "data": data,
        "precision": "fp16",
        "results": [row],
    }


def memory_result() -> dict[str, Any]:
    """Return a flat run of three samples."""
    runs = [{"threads": threads, "digest": DIGEST} for threads in (2, 2, 1)]
    return {
        **result_with_header("memory"),
        "memory": {
            "samples": [[0, 300.0], [100, 310.0], [200, 310.5]],
            "rss_at_100_mib": 310.0,
            "rss_at_end_mib": 310.5,
            "rss_slope_per_1000_frames_mib": 5.0,
        },
        "repeats": {"frames": 60, "runs": runs, "are_equal": True},
    }


def service_result() -> dict[str, Any]:
    """Return two sessions without an error."""
    return {
        **result_with_header("service"),
        "objects": [2],
        "minutes": 5.0,
        "sessions_at_once": 8,
        "sessions": {"frames": 10, "video": 12},
        "fps_of_all": 20.0,
        "latency": {"frames": times(300.0), "video": times(280.0)},
        "memory": {
            "samples": [[0.0, 500.0], [60.0, 600.0], [300.0, 601.0]],
            "rss_settled_mib": 600.0,
            "rss_end_mib": 601.0,
            "rss_peak_mib": 610.0,
            "rss_slope_per_minute_mib": 0.2,
        },
        "errors": [],
        "retried": 0,
        "differing": 0,
        "one_more": {"status": 429, "retry_after": "5"},
        "stop": {"exit_code": 0, "seconds": 2.5, "accepted": 60, "saved": 60, "lost": 0},
    }


def releases_result() -> dict[str, Any]:
    """Return one number of objects."""

    def figure(old_ms: float, new_ms: float) -> dict[str, Any]:
        ratio = {"of_medians": old_ms / new_ms, "of_minima": old_ms / new_ms}
        return {"old": times(old_ms), "new": times(new_ms), "ratio": {"new": ratio}}

    peaks = {"median_mib": 400.0, "min_mib": 390.0, "max_mib": 410.0}
    run = {
        "objects": 1,
        "first_mask": figure(20_000.0, 1_000.0),
        "wall": figure(50.0, 40.0),
        "process": figure(21_000.0, 2_000.0),
        "memory": {"old": peaks, "new": peaks},
    }
    facts = {"version": "0.2.0", "engine": {"name": "lite", "digests": {}}, "is_finetuned": True}
    return {
        **result_with_header("releases"),
        "engine": None,
        "repeats": 3,
        "releases": {"old": facts, "new": {**facts, "version": "0.3.0"}},
        "runs": [run],
    }


def profile_result() -> dict[str, Any]:
    """Return a network with one operator, and a stage of a library."""
    cost = {"flop": 2e7, "bytes": 1e6, "share": 0.8}
    none = {"flop": None, "bytes": None, "share": None}
    stage = {**times(10.0), "name": "propagation", "kind": "network", "runs_share": 1.0}
    operator = {**times(10.0), "name": "conv", "type": "Conv", "network": "propagation"}
    return {
        **result_with_header("profile"),
        "objects": [1],
        "peaks": {"gemm_flop_s": 1e11, "int8_flop_s": 2e11, "bandwidth_bytes_s": 1e10},
        "frame": times(15.0),
        "stages": [
            {**stage, **cost},
            {**stage, **none, **times(5.0), "name": "flow", "kind": "library"},
        ],
        "other_threads": [{**times(3.0), "name": "decode", "bytes": 1.8e6}],
        "operators": [{**operator, **cost, "least_ms": 8.0, "reason": "dense operators"}],
        "summary": {"at 70% of the roofline or more": 0.67, "library code": 0.33},
    }


def scaling_result() -> dict[str, Any]:
    """Return two points of each sweep."""
    header = result_with_header("scaling")
    sweeps = {
        "k": [("K = 1", 1, 1, [480, 854], 40), ("K = 8", 8, 8, [480, 854], 40)],
        "size": [("426x240", 0.1, 1, [240, 426], 40), ("3840x2160", 8.3, 1, [2160, 3840], 40)],
        "length": [
            ("100 frames", 100, 1, [240, 426], 100),
            ("900 frames", 900, 1, [240, 426], 900),
        ],
    }
    fit = {"fixed_ms": 20.0, "slope_ms": 10.0, "residual_ms": 0.5, "residual_max_ms": 0.7}

    def point(name: str, x: float, objects: int, size_hw: list[int], frames: int) -> dict[str, Any]:
        return {
            "name": name,
            "x": x,
            "objects": objects,
            "frame_size_hw": size_hw,
            "frames": frames,
            "fps": 1e3 / (20 + 10 * x),
            "per_frame": times(20 + 10 * x),
            "whole_run": times(1_000.0),
            "first_mask": times(200.0),
            "stages": {"propagation": 10 * x, "input": 0.1},
            "first_tenth_ms": 30.0,
            "last_tenth_ms": 30.0,
            "peak_memory_mib": 400.0 + x,
        }

    return {
        **header,
        "repeats": 3,
        "engines": {"default": {**header["engine"], "backend": "cpu"}},
        "sweeps": {
            sweep: {
                "default": {
                    "points": [point(*place) for place in places],
                    "fit": fit,
                    "stage_fits": {"propagation": fit, "input": None},
                    "memory_slope_mib": 1.0,
                }
            }
            for sweep, places in sweeps.items()
        },
    }


def same_masks_result() -> dict[str, Any]:
    """Return one sequence."""
    facts = {"version": "0.2.0", "engine": {"name": "lite", "digests": {}}, "is_finetuned": True}
    return {
        **result_with_header("same_masks"),
        "engine": None,
        "data": {"set": "val", "sequences": {"dog": {"frames": 60, "differing": 0}}},
        "options": "--fast",
        "new_options": "--no-review",
        "repeats": 2,
        "releases": {"old": facts, "new": {**facts, "version": "0.3.0"}},
        "is_equal": True,
        "wall": {
            "old": times(3_000.0),
            "new": times(2_400.0),
            "ratio": {"of_medians": 1.25, "of_minima": 1.25},
        },
    }


def batch_result() -> dict[str, Any]:
    """Return one clip."""
    return {
        **result_with_header("batch"),
        "engine": None,
        "clips": {"dog": {"frames": 20, "differing": 0}},
        "workers": 2,
        "options": "--fast",
        "repeats": 3,
        "release": {"version": "0.3.0", "engine": {"name": "lite", "digests": {}}},
        "killed": {
            "workers_killed": 3,
            "done_before": 1,
            "completed": 1,
            "most_completions": 1,
            "unfinished_files": 0,
            "differing": 0,
        },
        "is_equal": True,
        "wall": {
            "loop": times(3_000.0),
            "batch": times(2_000.0),
            "ratio": {"of_medians": 1.5, "of_minima": 1.5},
        },
    }


def batch_ray_result() -> dict[str, Any]:
    """Return one clip, and a node that was killed."""
    return {
        **result_with_header("batch_ray"),
        "engine": None,
        "data": {"clips": ["dog"], "frames_per_clip": 20},
        "options": "--fast",
        "repeats": 2,
        "wall": {
            "local": times(2_000.0),
            "ray": times(3_000.0),
            "ratio": {"of_medians": 1.5, "of_minima": 1.5},
        },
        "loss": {
            "killed_processes": 5,
            "killed_at_s": 20.0,
            "wall_s": 60.0,
            "exit_code": 0,
            "done": 1,
            "most_often": 1,
        },
        "differing": 0,
        "is_equal": True,
    }


def crf_result() -> dict[str, Any]:
    """Return two sets of parameters, one with pydensecrf."""
    entry = {
        "name": "ROI 64, runtime",
        "size_hw": [64, 64],
        "labels": 2,
        "ours": {"wall": times(12.0), "cpu": times(11.0)},
    }
    beside = {
        "pydensecrf": {"wall": times(22.0), "cpu": times(22.0)},
        "ratio_of_medians": 2.0,
        "ratio_of_minima": 2.0,
        "agreement": {"mean_abs_dq": 0.001, "argmax_equal": 0.999},
    }
    return {
        **result_with_header("crf_speed"),
        "engine": None,
        "objects": None,
        "frames": None,
        "picture": "built-in clip",
        "results": [{**entry, **beside}, {**entry, "name": "ROI 64, example"}],
    }


def finetuning_result() -> dict[str, Any]:
    """Return a run without fine-tuning and one with 80 steps."""
    runs = []
    for steps, score in ((0, 0.7), (80, 0.75)):
        scores = {"J-Mean": score, "F-Mean": score}
        runs.append(
            {
                "steps": steps,
                **scores,
                "J&F-Mean": score,
                "J-Mean_of_seeds": {"0": score - 0.01, "1": score + 0.01}
                if steps
                else {"0": score},
                "finetune": times(20_000.0) if steps else None,
                "objects": {"bear_1": scores},
                "worst": {"object": "bear_1", "J_gain": 0.05} if steps else None,
            }
        )
    data = {"set": "train", "sequences": {"bear": 40}}
    result = {**result_with_header("finetuning"), "objects": None, "warmup": None, "data": data}
    recipe = {"batch": 4, "size_px": 161, "learning_rate": 1e-4, "scope": "all"}
    own = {
        "roles": ["propagation"],
        "recipes": {"propagation": recipe},
        "seeds": [0, 1],
        "runs": runs,
    }
    whole: dict[str, Any] = json.loads(json.dumps({**result, **own}))
    return whole


def finetune_step_result() -> dict[str, Any]:
    """Return one network and one optimiser."""
    sides = {side: {"step": times(ms)} for side, ms in (("onnxruntime", 90.0), ("torch", 100.0))}
    entry = {
        "role": "propagation",
        "times": {"adamw": [{"shape": [8, 193, 193], "sides": sides}]},
        "agreement": {"adamw": {"steps": 20, "weight_relative": 1e-5, "prob_abs": 1e-6}},
    }
    return {**result_with_header("finetune_step"), "objects": None, "results": [entry]}


def precision_result() -> dict[str, Any]:
    """Return two engine directories and one object."""
    sides = {}
    for name, score in (("lite", 0.75), ("lite-fp16", 0.7492)):
        scores = {"J-Mean": score, "F-Mean": score, "J&F-Mean": score}
        objects = {"bear_1": {"J-Mean": score, "F-Mean": score}}
        sides[name] = {**scores, "size_bytes": 14_400_000, "objects": objects}
    return {
        **result_with_header("precision"),
        "data": {"set": "val", "sequences": {"bear": 40}},
        "is_fine_tuned": False,
        "sides": sides,
        "mask_iou": {"mean": 0.9968, "objects": {"bear_1": {"mean": 0.9968, "min": 0.981}}},
    }


def flow_accuracy_result() -> dict[str, Any]:
    """Return DIS and no motion."""
    sources = {n: {"epe_px": e, "times": times(9.0)} for n, e in (("DIS", 3.5), ("none", 9.0))}
    return {**result_with_header("flow_accuracy"), "objects": None, "sources": sources}
