"""List the readers that are fuzzed, each with files that it reads.

A new reader is a function that makes its seeds, a function that reads one file, and one line of
:data:`TARGETS`.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpn.masks import DAVIS_PALETTE, png_from_labels

_SIZE_HW = (24, 32)
_MOST_FRAMES = 64
"""Frames that are read of one video: a file may state any number of them."""

Seeds = Iterator[tuple[str, bytes]]
"""Pairs of file name and content."""


def _write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@dataclass(frozen=True)
class Target:
    """A reader and its inputs.

    Attributes:
        seeds: Make valid files in an empty folder.
        read: Read the file at a path, with all that the package does with it. It may raise only
            errors of the package.
        place: Write a file, and the other files that the reader needs.
        planted: Kinds of escapes that must be found; only for the check of the fuzzer.
    """

    seeds: Callable[[Path], Seeds]
    read: Callable[[Path], object]
    place: Callable[[Path, str, bytes], None] = _write
    planted: frozenset[str] = frozenset()


# Masks


def _mask_seeds(folder: Path) -> Seeds:
    labels = np.zeros(_SIZE_HW, np.uint8)
    labels[3:12, 4:20], labels[14:22, 8:28] = 1, 2
    yield "palette.png", png_from_labels(labels)
    gray = Image.fromarray(labels)
    rgb = Image.merge("RGB", (gray, gray, gray))
    small = Image.fromarray(labels).convert("P")
    small.putpalette(DAVIS_PALETTE[:4].tobytes())
    binary = Image.fromarray((labels == 1) * np.uint8(255))
    images: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("gray.png", "PNG", gray, {}),
        ("binary.png", "PNG", binary, {}),
        ("bit.png", "PNG", binary.convert("1"), {}),
        ("bits2.png", "PNG", small, {"bits": 2}),
        ("rgb.png", "PNG", rgb, {}),
        ("rgba.png", "PNG", rgb.convert("RGBA"), {}),
        ("deep.png", "PNG", Image.fromarray(labels.astype(np.uint16)), {}),
        ("transparent.png", "PNG", small, {"transparency": 0, "dpi": (72, 72)}),
        ("mask.tif", "TIFF", gray, {"compression": "tiff_lzw"}),
        ("mask.gif", "GIF", small, {}),
        ("mask.bmp", "BMP", gray, {}),
        ("mask.pgm", "PPM", gray, {}),
        ("mask.tga", "TGA", gray, {"compression": "tga_rle"}),
        ("mask.webp", "WEBP", rgb, {"lossless": True}),
        ("mask.jpg", "JPEG", gray, {}),
    ]
    for name, kind, image, options in images:
        yield name, _encoded(image, kind, **options)
    yield from _annotation_seeds(folder, labels)


def _annotation_seeds(folder: Path, labels: Any) -> Seeds:
    """Yield files of other programs, if possible of two frames."""
    from mpn.formats.annotated import AnnotatedFrame, VideoInfo
    from mpn.formats.coco import write_coco, write_coco_polygons, write_ytvis
    from mpn.formats.cvat import write_cvat_video
    from mpn.formats.datumaro import write_datumaro
    from mpn.formats.labelme import write_labelme
    from mpn.formats.yolo import write_yolo

    frames = [AnnotatedFrame(k, f"{k:05d}", np.roll(labels, k)) for k in range(2)]
    info = VideoInfo("clip", _SIZE_HW, (1, 2), {1: "dog", 2: "cat"})
    for name, write in {
        "coco.json": write_coco,
        "coco_polygons.json": write_coco_polygons,
        "ytvis.json": write_ytvis,
        "cvat.zip": write_cvat_video,
    }.items():
        write(folder / name, frames, info)
        yield name, (folder / name).read_bytes()
    with zipfile.ZipFile(folder / "cvat.zip") as archive:
        yield "cvat.xml", archive.read("annotations.xml")
    write_labelme(folder / "labelme", frames, info)
    yield "labelme.json", (folder / "labelme" / "00000.json").read_bytes()
    yield "folder.00001.json", (folder / "labelme" / "00001.json").read_bytes()
    write_datumaro(folder / "datumaro", frames, info)
    data = (folder / "datumaro" / "annotations" / "default.json").read_bytes()
    yield "datumaro.json", data
    write_yolo(folder / "yolo", frames, info)
    yield "yolo.txt", (folder / "yolo" / "labels" / "00000.txt").read_bytes()
    yield "folder.00001.txt", (folder / "yolo" / "labels" / "00001.txt").read_bytes()
    square = [[2, 2], [20.5, 2], [20.5, 14], [2, 14]]
    shapes = [
        {"label": "dog", "group_id": None, "shape_type": "polygon", "points": square},
        {"label": "cat", "group_id": 3, "shape_type": "rectangle", "points": square[:3:2]},
        {"label": "7", "group_id": "a", "shape_type": "circle", "points": square[:2]},
    ]
    yield "shapes.json", json.dumps({"version": "5.4.1", "shapes": shapes}).encode()
    for name, array in {
        "ids.npy": labels,
        "stack.npy": np.stack([labels == 1, labels == 2]),
        "wide.npy": labels.astype(np.int64)[None],
    }.items():
        np.save(folder / name, array)
        yield name, (folder / name).read_bytes()
    yield "folder.00000.npy", (folder / "ids.npy").read_bytes()
    yield "folder.00001.png", png_from_labels(labels)


def _place_masks(folder: Path, name: str, data: bytes) -> None:
    """Write a mask; ``folder.NAME`` is in a folder with another mask."""
    if not name.startswith("folder."):
        _write(folder, name, data)
        return
    (folder / name).mkdir()
    _write(folder / name, name.removeprefix("folder."), data)
    if name.endswith(".png"):
        _write(folder / name, "00003.png", _encoded(Image.new("L", _SIZE_HW[::-1], 1), "PNG"))


def _read_mask(path: Path) -> None:
    from mpn.errors import EvaluationError, MaskError
    from mpn.formats import FrameNames, VideoFacts, read_masks
    from mpn.masks import load_annotation, load_labels

    of_file = VideoFacts(_SIZE_HW, "clip")
    names = FrameNames([f"{index:05d}" for index in range(4)], "clip")
    of_images = VideoFacts(_SIZE_HW, "clip", names, end=4)
    readers: dict[str, Callable[[], Any]] = {
        "of a file": lambda: read_masks(path, of_file).labels.values(),
        "of images": lambda: read_masks(path, of_images, frame=1).labels.values(),
        "strict": lambda: [load_annotation(path)],
        "as results": lambda: [load_labels(path, allow_empty=True, on_note=lambda _: None)],
    }
    refused: list[Exception] = []
    for reader, read in readers.items():
        try:
            found = read()
        except (MaskError, EvaluationError) as error:
            refused.append(error)
            continue
        for labels in found:
            assert labels.dtype == np.uint8, labels.dtype
            assert labels.ndim == 2, labels.shape
            assert labels.size, labels.shape
            assert reader == "strict" or labels.max() < 255
    if len(refused) == len(readers):
        raise refused[0]


# Frames: image folders, animated WebP and video files


def _frame_seeds(folder: Path) -> Seeds:
    rgb = [Image.fromarray(_picture(index)) for index in range(4)]
    first = rgb[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    exif.update({0x010E: "text", 0x011A: 72.5, 0x9286: b"comment", 0x8825: {2: (1.0, 2.0, 3.5)}})
    deep = Image.fromarray(_picture(0)[..., 0].astype(np.uint16) << 4)
    images: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("rgb.png", "PNG", first, {}),
        ("palette.png", "PNG", first.convert("P"), {}),
        ("deep.png", "PNG", deep, {}),
        ("exif.png", "PNG", first, {"exif": exif}),
        ("rgba.png", "PNG", first.convert("RGBA"), {}),
        ("frame.jpg", "JPEG", first, {"exif": exif, "icc_profile": b"\0" * 128}),
        ("progressive.jpg", "JPEG", first, {"progressive": True}),
        ("frame.tif", "TIFF", first, {}),
        ("deflate.tif", "TIFF", deep, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", "TIFF", first, {"compression": "jpeg"}),
        ("frame.bmp", "BMP", first, {}),
        ("frame.ppm", "PPM", first, {}),
        ("frame.webp", "WEBP", first, {"exif": exif}),
        ("frame.gif", "GIF", first.convert("P"), {}),
    ]
    for name, kind, image, options in images:
        yield f"folder.{name}", _encoded(image, kind, **options)
    yield "folder.deep.ppm", b"P6 32 24 4095\n" + _picture(0).astype(">u2").tobytes()
    animated: dict[str, Any] = {"save_all": True, "append_images": rgb[1:], "duration": 40}
    yield "animated.webp", _encoded(first, "WEBP", **animated)
    yield "lossless.webp", _encoded(first, "WEBP", lossless=True, exif=exif, **animated)
    yield from _videos(folder, ("mp4", "gif", "avi"))


def _place_frames(folder: Path, name: str, data: bytes) -> None:
    if not name.startswith("folder."):
        _write(folder, name, data)
        return
    suffix = name.rpartition(".")[2]
    (folder / name).mkdir()
    number = zlib.crc32(data) % 2  # first, or after an image that can be read
    _write(folder / name, f"{number}.{suffix}", data)
    _write(folder / name, f"{1 - number}.png", _encoded(Image.fromarray(_picture(1)), "PNG"))


def _read_frames(path: Path) -> None:
    """Read all frames, and a range of them."""
    from mpn.errors import VideoError

    refused: list[Exception] = []
    for wanted in ({}, {"start": 1, "end": 3}):
        try:
            _read_video(path, **wanted)
        except VideoError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def _read_video(path: Path, **wanted: int) -> None:
    from mpn.runtime.media.video import open_video

    with open_video(path, **wanted) as video:
        times = []
        for frame in islice(video, _MOST_FRAMES):
            assert frame.rgb.dtype == np.uint8, frame.rgb.dtype
            assert frame.rgb.shape == (*video.size_hw, 3), frame.rgb.shape
            assert frame.rgb.flags.c_contiguous
            assert frame.rgb.flags.writeable
            times.append(frame.pts_s)
        assert all(isinstance(line, str) for line in video.warnings)
        assert video.fps > 0, video.fps
        float(video.fps)
        assert video.sample_aspect_ratio is None or video.sample_aspect_ratio > 0
        assert video.frame_count_hint is None or video.frame_count_hint > 0
        if times:
            back = video.backwards(wanted.get("start", 0), wanted.get("start", 0) + len(times))
            assert [frame.pts_s for frame in back] == times[::-1]


# Engine directories


@cache
def _engine_files() -> dict[str, bytes]:
    """Return the files of a valid engine directory."""
    from tests.builders.engine_dirs import make_engine_dir, parity_document

    with tempfile.TemporaryDirectory(prefix="mpn-fuzz-") as temporary:
        folder = make_engine_dir(
            Path(temporary, "e"),
            with_osvos=True,
            with_flow=True,
            external_data=True,
            runtime_defaults={"osvos.every": 2},
        )
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["parity.json"] = json.dumps(parity_document()).encode()
    return found


@cache
def _shipped_manifest() -> bytes:
    """Return the manifest of the package, with the first tensors of each list only."""
    from mpn.engines.open import default_engine_dir

    value = json.loads((default_engine_dir() / "manifest.json").read_bytes())
    for entry in value["roles"].values():
        if entry.get("adapt"):
            del entry["adapt"]["tensors"][3:]
    return json.dumps(value).encode()


def _engine_seeds(folder: Path) -> Seeds:
    from mpn.engines.weights import save_weights

    yield from _engine_files().items()
    yield "manifest.json", _shipped_manifest()
    for name, top in (("engines.zip", ""), ("folder.zip", "engines/")):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in _engine_files().items():
                archive.writestr(top + each, data)
        yield name, packed.getvalue()
    weights = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(4, np.float32),
    }
    save_weights(folder / "weights.safetensors", weights, {"role": "propagation"})
    yield "weights.safetensors", (folder / "weights.safetensors").read_bytes()


def _place_engines(folder: Path, name: str, data: bytes) -> None:
    """Write a directory; the manifest has the digests of the changed files."""
    from mpn._common.files import sha256_of_file

    files = {**_engine_files(), name: data}
    for each, content in files.items():
        _write(folder, each, content)
    if name.endswith((".onnx", ".data")):
        before, path = sha256_of_bytes(_engine_files()[name]), folder / "manifest.json"
        text = path.read_text(encoding="utf-8").replace(before, sha256_of_file(folder / name))
        path.write_text(text, encoding="utf-8")


def sha256_of_bytes(data: bytes) -> str:
    """Return a digest as hexadecimal digits."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _read_engines(path: Path) -> None:
    from mpn.engines.directory.inspect import describe_engine_dir
    from mpn.engines.directory.locate import local_engine_dir
    from mpn.engines.directory.manifest import load_manifest
    from mpn.engines.open import open_engines
    from mpn.engines.weights import load_weights
    from mpn.runtime.options import PipelineOptions

    if path.suffix == ".safetensors":
        for values in load_weights(path).values():
            assert values.dtype == np.float32, values.dtype
        return
    folder = path.parent
    if path.suffix == ".zip":
        cache = folder / "cache"
        found = local_engine_dir(path, cache=cache)
        assert found.resolve().is_relative_to(cache.resolve()), found
        assert not any(each.is_symlink() for each in cache.rglob("*"))
        return
    manifest = load_manifest(folder)
    json.dumps(manifest.as_json())
    PipelineOptions().with_defaults(manifest.runtime_defaults)
    if path.suffix == ".json":
        json.dumps(describe_engine_dir(folder).as_json())
        return
    with open_engines(folder, backend="cpu", threads=1, manifest=manifest) as engines:
        assert engines.backend == "cpu"


# Checkpoints


def _checkpoint_seeds(folder: Path) -> Seeds:
    import safetensors.torch
    import torch

    from mpn.networks.checkpoint import save_checkpoint
    from mpn.networks.flownet2 import FlowNet2, FlowNet2Config
    from mpn.networks.osvos import OsvosConfig, OsvosVgg
    from mpn.networks.propagation import PropagationConfig, PropagationNet
    from tests.networks.public_files import (
        deeplab_state,
        flow_state,
        hollow_state_dict,
        osvos_state,
    )

    def saved(content: object, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(content, file, **options)
        return file.getvalue()

    tiny = {
        "flow": FlowNet2(FlowNet2Config("FlowNet2S", width=0.02)),
        "propagation": PropagationNet(
            PropagationConfig(width=0.02, head_width=0.02, middle_blocks=1)
        ),
        "osvos": OsvosVgg(OsvosConfig(width=0.02)),
    }
    for role, network in tiny.items():
        path = save_checkpoint(folder / f"{role}.pth", {role: network}, {"licence": "CC0-1.0"})
        yield path.name, path.read_bytes()
    content = torch.load(folder / "osvos.pth", weights_only=True)
    legacy: dict[str, Any] = {"_use_new_zipfile_serialization": False}
    yield "legacy.pth", saved(content, **legacy)
    hollow = {
        "flow": flow_state("FlowNet2S"),
        "css": flow_state("FlowNet2CSS"),
        "deeplab": deeplab_state(),
        "osvos": osvos_state(),
    }
    for name, state in hollow.items():
        yield f"{name}.pth.tar", saved({"state_dict": state, "epoch": 3})
    yield (
        "legacy.pth.tar",
        saved({"state_dict": hollow["osvos"], "best": np.float64(0.5)}, **legacy),
    )
    osvos = {key: value.clone() for key, value in tiny["osvos"].state_dict().items()}
    lightning = {f"model.{key}": value for key, value in hollow["osvos"].items()}
    lightning["loss.weight"] = torch.ones(2)
    extra = {"best_score": np.float32(0.25), "history": np.arange(3), "hyper_parameters": {"lr": 1}}
    yield "lightning.ckpt", saved({"state_dict": lightning, "epoch": 1, **extra})
    yield "bare.pt", saved(osvos)
    yield "x.safetensors", safetensors.torch.save(osvos, {"format": "pt"})
    half = {key: value.half() for key, value in osvos.items()}
    yield "half.safetensors", safetensors.torch.save(half)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    yield "unknown.pth", saved({"model": hollow_state_dict(lambda: module), "args": [1, "a"]})


def _read_checkpoint(path: Path) -> None:
    import torch

    from mpn.networks.checkpoint import build_network, load_checkpoint

    checkpoint = load_checkpoint(path, init_fourth_channel="zero")
    for weights in checkpoint.roles.values():
        assert all(value.dtype != torch.float16 for value in weights.state_dict.values())
        if path.stat().st_size < 1 << 20 and path.suffix != ".tar":  # public files expand to 650 MB
            build_network(weights)


# Containers of video


def _videos(folder: Path, kinds: tuple[str, ...]) -> Seeds:
    from fractions import Fraction

    from tests.runtime.media.clips import write_video

    frames = [_picture(index) for index in range(6)]
    codecs: dict[str, dict[str, Any]] = {
        "mp4": {},
        "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        "b.mov": {"codec": "mpeg4", "setup": _with_b_frames},
        "avi": {"codec": "mpeg4"},
        "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "mkv": {},
        "ffv1.mkv": {"codec": "ffv1"},
        "webm": {"codec": "libvpx", "rate": Fraction(25)},
        "vp9.webm": {"codec": "libvpx-vp9", "rate": Fraction(25)},
        "ts": {},
        "mpeg2.ts": {"codec": "mpeg2video", "rate": Fraction(25)},
        "mpg": {"codec": "mpeg1video", "rate": Fraction(25)},
        "gif": {"codec": "gif", "pix_fmt": "rgb8", "rate": Fraction(25)},
        "flv": {"codec": "flv", "rate": Fraction(25)},
        "y4m": {"codec": "wrapped_avframe", "rate": Fraction(25)},
        "h264": {},
        "ogv": {"codec": "libtheora", "rate": Fraction(25)},
        "apng": {"codec": "apng", "pix_fmt": "rgb24", "rate": Fraction(25)},
        "mxf": {"codec": "mpeg2video", "rate": Fraction(25)},
        "nut": {"codec": "rawvideo"},
        "raw.avi": {"codec": "rawvideo", "pix_fmt": "bgr24"},
        "deep.mkv": {"codec": "ffv1", "pix_fmt": "gbrp10le"},
    }
    for kind in kinds or codecs:
        path = folder / f"clip.{kind}"
        try:
            write_video(path, frames, **codecs[kind])
        except Exception as error:  # this FFmpeg has no such encoder
            print(f"no seed {path.name}: {error}", file=sys.stderr)
            continue
        yield path.name, path.read_bytes()


def _with_b_frames(stream: Any) -> None:
    stream.codec_context.max_b_frames = 2


def _container_seeds(folder: Path) -> Seeds:
    from av.stream import Disposition

    from tests.runtime.media.clips import with_display_matrix, write_streams

    yield from _videos(folder, ())
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned = with_display_matrix(folder / "clip.mp4", folder / "turned.mp4", matrix)
    yield turned.name, turned.read_bytes()
    cover = ("mjpeg", _SIZE_HW, 1, Disposition.attached_pic)
    film = ("libx264", _SIZE_HW, 4, Disposition.default)
    yield "cover.mp4", write_streams(folder / "cover.mp4", film, cover).read_bytes()


def _read_container(path: Path) -> None:
    from mpn.runtime.media.truncation import is_truncated

    is_truncated(path)
    _read_video(path)


# The check of the fuzzer


def _planted_seeds(_: Path) -> Seeds:
    yield "planted.json", json.dumps({"frames": 4, "names": ["a", "b"], "size": [24, 32]}).encode()
    yield "planted.bin", b"MPNF" + struct.pack("<II", 24, 32)


def _read_planted(path: Path) -> None:
    from mpn._common.records import read_json
    from mpn.errors import InputError

    if path.suffix == ".bin":
        data = path.read_bytes()
        if data[:4] != b"MPNF" or len(data) < 12:
            raise InputError("it is no file of this kind")
        height, width = struct.unpack("<II", data[4:12])
        if height > 1 << 30:
            os.abort()
        bytearray(height * width)  # a size of the file is trusted
        return
    value = read_json(path, InputError)
    if not isinstance(value, dict) or not isinstance(value.get("frames"), int):
        raise InputError("it has no frames")
    while value["frames"] < 0:
        time.sleep(0.01)
    value["names"][0]


def _picture(index: int) -> Any:
    y, x = np.mgrid[: _SIZE_HW[0], : _SIZE_HW[1]]
    picture = np.stack([x * 7 + index * 9, y * 9, x * y + index * 31], axis=-1)
    return (picture % 256).astype(np.uint8)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


TARGETS: dict[str, Target] = {
    "masks": Target(_mask_seeds, _read_mask, _place_masks),
    "frames": Target(_frame_seeds, _read_frames, _place_frames),
    "engines": Target(_engine_seeds, _read_engines, _place_engines),
    "checkpoints": Target(_checkpoint_seeds, _read_checkpoint),
    "containers": Target(_container_seeds, _read_container),
    "planted": Target(
        _planted_seeds,
        _read_planted,
        planted=frozenset({"exception", "crash", "hang", "memory"}),
    ),
}
"""Targets by name; ``planted`` is the check of the fuzzer itself."""
