"""Run the pipeline of the paper in eager PyTorch; ``compare.py`` measures it.

The rules are those of :class:`mpn.runtime.pipeline.Pipeline` with the stages of the paper: no flow
check, no colours, no re-detection. The form is the usual first version in PyTorch: tensors of the
whole frame, one object after another, ``grid_sample`` for the warp, ``interpolate`` for crops, and
a CRF of the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.engines.directory.entries import Preprocessing
from mpn.engines.spec import FLOW_SIZE_MULTIPLE, Role, padded_size_hw
from mpn.errors import InputError
from mpn.export.tracing import deployed
from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.options import PipelineOptions
from mpn.runtime.timing import StageTimer
from mpn.types import Float32Array, UInt8Array

_CRF_SMALLEST_PROB = 1e-5

DisBetween = Callable[[UInt8Array, UInt8Array], Float32Array]
"""Current and previous frame -> (2, H, W) float32 flow to the previous one, without a network."""

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1), half-open."""


@dataclass(frozen=True)
class EagerResult:
    """Hold the result of one frame.

    Attributes:
        labels: (H, W) uint8 ids.
        probs: (K, H, W) float32, merged, after the CRF if there is one.
        flow_px: (2, H, W) float32, output of the flow network.
        timings: Seconds by stage, with the stage names of the pipeline.
    """

    labels: UInt8Array
    probs: Float32Array
    flow_px: Float32Array
    timings: Mapping[str, float]


class EagerPipeline:
    """Run the pipeline of the paper in PyTorch, at the size of its input.

    Args:
        networks: Networks in evaluation mode; without ``flow``, ``dis`` is required.
        options: Options of the pipeline that it is compared with.
        preprocessing: Preprocessing of the engine directory that it is compared with.
        roi_size: Side of the propagation crop.
        dis: OpenCV's flow if there is no flow network.
        channels_last: Whether networks and inputs are in channels_last format.

    Raises:
        InputError: If an option needs a stage that is not implemented here.
    """

    def __init__(
        self,
        networks: Mapping[Role, nn.Module],
        options: PipelineOptions,
        preprocessing: Preprocessing,
        *,
        roi_size: int,
        dis: DisBetween | None = None,
        channels_last: bool = False,
    ) -> None:
        if (
            options.flow_check_px
            or options.colour_weight
            or options.flip_tta
            or options.propagation_weight != 1
        ):
            raise InputError("the eager pipeline has only the stages of the paper")
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._networks = {
            role: deployed(role, network).to(memory_format=self._layout)
            for role, network in networks.items()
        }
        self._options, self._preprocessing = options, preprocessing
        self._roi_size, self._dis = roi_size, dis
        self._timer = StageTimer()

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """Start with a frame, (H, W, 3) uint8 RGB, and its labels, (H, W) uint8 ids."""
        self._object_ids = [int(k) for k in np.unique(labels) if k]
        self._rgb = rgb
        self.restart_from(labels)

    def restart_from(self, labels: UInt8Array) -> None:
        """Replace the masks by the labels."""
        self._prob = torch.stack([torch.from_numpy(labels == k).float() for k in self._object_ids])

    @torch.inference_mode()
    def step(self, rgb: UInt8Array, flow_to_prev_px: Float32Array | None = None) -> EagerResult:
        """Segment the next frame.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            flow_to_prev_px: (2, H, W) float32; if given, the flow network runs, but the warp uses
                this flow.
        """
        timed = self._timer.stage
        with timed("input"):
            image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
        with timed("flow"):
            found_px = self._flow(rgb)
        flow_px = found_px if flow_to_prev_px is None else torch.from_numpy(flow_to_prev_px)
        with timed("warp"):
            warped = [warp_by_grid_sample(prob, flow_px) for prob in self._prob]
            boxes = [self._roi(prob) for prob in warped]
        foreground = None
        if self._options.osvos.mode == "blend" and "osvos" in self._networks:
            with timed("osvos"):
                foreground = self._foreground(image)
        with timed("crop"):
            crops = self._crops(image, warped, boxes)
        with timed("propagation"):
            outputs = list(self._run("propagation", crops)) if len(crops) else []
        with timed("paste"):
            prob = torch.stack([_pasted(outputs, box, image) for box in boxes])
        if foreground is not None:
            with timed("osvos"):
                prob = self._blended(prob, foreground, boxes)
        with timed("merge"):
            self._prob = shown = _merged(prob)
        if self._options.crf:
            with timed("crf"):
                shown = self._crf(shown, rgb)
        with timed("output"):
            labels = self._labels(shown)
        self._rgb = rgb
        return EagerResult(labels, shown.numpy(), found_px.numpy(), self._timer.finish_frame())

    def _run(self, role: Role, *inputs: Tensor) -> Tensor:
        laid_out = (value.contiguous(memory_format=self._layout) for value in inputs)
        output: Tensor = self._networks[role](*laid_out)
        return output

    def _flow(self, rgb: UInt8Array) -> Tensor:
        if "flow" not in self._networks:
            if self._dis is None:
                raise InputError("no flow network and no DIS given")
            return torch.from_numpy(self._dis(rgb, self._rgb))
        height, width = rgb.shape[:2]
        network_hw = padded_size_hw((height, width), FLOW_SIZE_MULTIPLE)
        frames = [
            torch.from_numpy(cv2.resize(frame, network_hw[::-1])).permute(2, 0, 1)[None].float()
            for frame in (rgb, self._rgb)
        ]
        flow_px = self._run("flow", *frames)
        flow_px = F.interpolate(flow_px, (height, width), mode="bilinear", align_corners=False)
        scale = torch.tensor([width / network_hw[1], height / network_hw[0]])
        return flow_px[0] * scale[:, None, None]

    def _roi(self, prob: Tensor) -> Box | None:
        rows, columns = torch.nonzero(prob > self._options.threshold, as_tuple=True)
        if not len(rows):
            return None
        x0, x1 = int(columns.min()), int(columns.max()) + 1
        y0, y1 = int(rows.min()), int(rows.max()) + 1
        margin_x, margin_y = (
            max(math.floor(self._options.roi_margin_frac * side), self._options.roi_margin_px_min)
            for side in (x1 - x0, y1 - y0)
        )
        height, width = prob.shape
        return (
            max(x0 - margin_x, 0),
            max(y0 - margin_y, 0),
            min(x1 + margin_x, width),
            min(y1 + margin_y, height),
        )

    def _crops(self, image: Tensor, warped: Sequence[Tensor], boxes: list[Box | None]) -> Tensor:
        chosen = self._preprocessing.propagation
        mean = torch.tensor(chosen.mean_rgb)[:, None, None]
        std = torch.tensor(chosen.std_rgb)[:, None, None]
        size = (self._roi_size, self._roi_size)
        crops = [torch.empty(0, 4, *size)]
        for prob, box in zip(warped, boxes, strict=True):
            if box is None:
                continue
            x0, y0, x1, y1 = box
            both = torch.cat((image, prob[None, None]), dim=1)[..., y0:y1, x0:x1]
            both = F.interpolate(both, size, mode="bilinear", align_corners=False)
            crops.append(torch.cat(((both[:, :3] / 255 - mean) / std, both[:, 3:]), dim=1))
        return torch.cat(crops)

    def _foreground(self, image: Tensor) -> Tensor:
        chosen = self._preprocessing.osvos
        ordered = image.flip(1) if chosen.channel_order == "bgr" else image
        return self._run("osvos", ordered - torch.tensor(chosen.mean)[:, None, None])[0, 0]

    def _blended(self, prob: Tensor, foreground: Tensor, boxes: list[Box | None]) -> Tensor:
        weight = self._options.osvos.blend_weight
        blended = prob.clone()
        for k, box in enumerate(boxes):
            if box is None:
                continue
            x0, y0, x1, y1 = box
            share = foreground * torch.cat((prob[:k], prob[k + 1 :])).neg().add(1).prod(dim=0)
            inside = (1 - weight) * prob[k] + weight * share
            blended[k, y0:y1, x0:x1] = inside[y0:y1, x0:x1]
        return blended

    def _crf(self, prob: Tensor, rgb: UInt8Array) -> Tensor:
        options = self._options
        every = torch.cat((1 - prob.sum(dim=0, keepdim=True), prob))
        q = dense_crf(
            -every.clamp(_CRF_SMALLEST_PROB, 1).log().numpy(),
            rgb,
            sxy_gaussian=options.crf.sxy_gaussian,
            compat_gaussian=options.crf.compat_gaussian,
            sxy_bilateral=options.crf.sxy_bilateral,
            srgb_bilateral=options.crf.srgb_bilateral,
            compat_bilateral=options.crf.compat_bilateral,
            iterations=options.crf.iterations,
        )
        return torch.from_numpy(q[1:])

    def _labels(self, prob: Tensor) -> UInt8Array:
        every = torch.cat((1 - prob.sum(dim=0, keepdim=True), prob))
        ids = torch.tensor([0, *self._object_ids], dtype=torch.uint8)
        labels: UInt8Array = ids[every.argmax(dim=0)].numpy()
        return labels


def warp_by_grid_sample(prob: Tensor, flow_to_prev_px: Tensor) -> Tensor:
    """Warp the probability of one object from the previous frame to the current one.

    Args:
        prob: (H, W) of the previous frame.
        flow_to_prev_px: (2, H, W), (x, y) in pixels, on the current frame's grid.

    Returns:
        (H, W), 0 outside the previous frame.
    """
    height, width = prob.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32),
        torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )
    grid = torch.stack(
        (
            (x + flow_to_prev_px[0]) * 2 / (width - 1) - 1,
            (y + flow_to_prev_px[1]) * 2 / (height - 1) - 1,
        ),
        dim=-1,
    )
    return F.grid_sample(
        prob[None, None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )[0, 0]


def _pasted(outputs: list[Tensor], box: Box | None, image: Tensor) -> Tensor:
    """Paste the next output of the network into a frame of zeros, if there is a box."""
    plane = torch.zeros(image.shape[2:])
    if box is not None:
        x0, y0, x1, y1 = box
        output = outputs.pop(0)
        plane[y0:y1, x0:x1] = F.interpolate(
            output[None], (y1 - y0, x1 - x0), mode="bilinear", align_corners=False
        )[0, 0]
    return plane


def _merged(prob: Tensor) -> Tensor:
    if len(prob) == 1:
        return prob
    background = (1 - prob).prod(dim=0)
    return prob / (background + prob.sum(dim=0))
