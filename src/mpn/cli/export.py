"""Define the ``mpn export`` command, also installed as ``mpn-export``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mpn._common.text import printable
from mpn.cli.output import echo

if TYPE_CHECKING:
    from mpn.engines.tensorrt.api import TrtBackend
    from mpn.engines.tensorrt.plans.progress import PlanProgress
    from mpn.engines.tensorrt.plans.store import Plan

_BACKENDS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class PlanArguments:
    """Options about plans as given on the command line."""

    wanted: bool
    plans_for: str | None
    any_gpu: bool
    any_version: bool

    def are_of_a_directory(self, given: Sequence[Path]) -> bool:
        """Return whether an engine directory is given instead of checkpoints."""
        return self.wanted and len(given) == 1 and (given[0] / "manifest.json").is_file()

    def backend(self) -> TrtBackend | None:
        """Return the library to build with; None for the first that can.

        Raises:
            InputError: If it is unknown, or no plans are requested.
        """
        from mpn.engines.tensorrt.api import TRT_BACKENDS
        from mpn.errors import InputError

        if self.plans_for is None and not (self.any_gpu or self.any_version):
            return None
        if not self.wanted:
            raise InputError(
                "no plans are built: leave out --plans-for, or add --build"
                if self.plans_for is not None
                else "no plans are built: leave out --any-gpu and --any-version, or add --build"
            )
        for name in TRT_BACKENDS:
            if self.plans_for == name:
                return name
        if self.plans_for is None:
            return None
        raise InputError(f"plans are built for {' or '.join(_BACKENDS)}, not '{self.plans_for}'")

    def check(self) -> None:
        """Raise an error if the requested plans cannot be built on this machine."""
        backend = self.backend()
        if self.wanted:
            from mpn.engines.tensorrt.open import builder_for

            builder_for(backend)

    def build(self, directory: Path, on_progress: Callable[[PlanProgress], None]) -> Sequence[Plan]:
        """Build the plans of a directory, if requested."""
        if not self.wanted:
            return ()
        from mpn.engines.tensorrt.open import build_plans
        from mpn.engines.tensorrt.plans.options import BuildOptions

        return build_plans(
            directory,
            backend=self.backend(),
            options=BuildOptions(
                hardware_compatible=self.any_gpu, version_compatible=self.any_version
            ),
            on_progress=on_progress,
        )

    def show(self, plans: Sequence[Plan]) -> None:
        """Print one line per built plan."""
        for plan in plans:
            exchange = ", weights can be exchanged" if plan.record.key.options.refittable else ""
            echo(
                f"{plan.note}: {plan.record.nbytes / 1e6:.1f} MB, "
                f"{plan.record.precision.describe()}{exchange}"
            )


def build_alone(directory: Path, plans: PlanArguments, *, quiet: bool) -> None:
    """Build the plans of an existing engine directory; torch is not needed."""
    shown: set[str] = set()

    def on_progress(progress: PlanProgress) -> None:
        text = plan_text(progress)
        if quiet:
            return
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[K{printable(text)}", err=True, nl=False)
        elif progress.role not in shown:
            shown.add(progress.role)
            echo(text, err=True)

    built = plans.build(directory, on_progress)
    if sys.stderr.isatty() and not quiet:
        typer.echo("", err=True)  # end the overwritten line
    plans.show(built)


def plan_text(progress: PlanProgress) -> str:
    """Format the progress of a build on one line."""
    eta = "" if progress.eta_s is None else f", about {progress.eta_s:.0f} s left"
    return f"{progress.role}: building the plan, {100 * progress.fraction:.0f} %{eta}"


def export(
    checkpoints: list[Path] = typer.Argument(
        ...,
        metavar="CKPT",
        help="A checkpoint (one or several roles) or a public file; with --build also an engine "
        "directory, to build its plans.",
    ),
    out: Path = typer.Option(
        Path("engines"), "-o", "--out", metavar="DIR", help="Write the engine directory here."
    ),
    precision: str = typer.Option(
        "fp32",
        metavar="fp32|fp16|int8",
        help="Precision of the layers; int8 takes an engine directory as CKPT, and --davis-root.",
    ),
    frame_size: str = typer.Option(
        "854x480", metavar="WxH", help="Run flow and OSVOS at this frame size."
    ),
    features_size: str = typer.Option(
        "673x385",
        metavar="WxH",
        help="Run the features of the target model at this size, each side 32 n + 1.",
    ),
    roi_size: int = typer.Option(
        513, metavar="S", help="Side of the propagation crop, 16 n + 1 pixels."
    ),
    max_objects: int = typer.Option(8, metavar="K", help="Largest object batch of plans."),
    roles: str = typer.Option(
        "",
        metavar="LIST",
        help="Export only these roles, such as propagation,osvos.",
        show_default="all",
    ),
    build: bool = typer.Option(
        False, "--build/--no-build", help="Also build plans of TensorRT or TensorRT for RTX."
    ),
    plans_for: str | None = typer.Option(
        None,
        metavar="tensorrt|tensorrt-rtx",
        help="Build the plans of this library.",
        show_default="tensorrt on a GPU, else tensorrt-rtx",
    ),
    any_gpu: bool = typer.Option(
        False, "--any-gpu", help="Build plans for each GPU from Ampere on (slower)."
    ),
    any_version: bool = typer.Option(
        False, "--any-version", help="Build plans that later versions of TensorRT can run."
    ),
    triton: Path | None = typer.Option(
        None,
        metavar="DIR",
        help="Also write a model repository for Triton; only that if CKPT is an engine directory.",
        show_default="none",
    ),
    as_zip: Path | None = typer.Option(
        None,
        "--zip",
        metavar="FILE",
        help="Also write the engine directory as a zip file, and print its digest; only that if "
        "CKPT is an engine directory.",
        show_default="none",
    ),
    verify: bool = typer.Option(
        True, "--verify/--no-verify", help="Compare every graph with its PyTorch module."
    ),
    finetune: bool | None = typer.Option(
        None,
        "--finetune/--no-finetune",
        help="Require the graph of the fine-tuning step (propagation, OSVOS), or leave it out.",
        show_default="written, or left out with a warning if it fails its check",
    ),
    finetune_optimizer: str | None = typer.Option(
        None,
        metavar="sgd|adamw",
        help="Optimiser of the fine-tuning step.",
        show_default="adamw for propagation, sgd for osvos",
    ),
    parity_images: Path | None = typer.Option(
        None, metavar="DIR", help="Compare on these images.", show_default="rendered images"
    ),
    davis_root: Path | None = typer.Option(
        None,
        metavar="ROOT",
        help="With int8: DAVIS folder of annotated videos to calibrate and compare on.",
    ),
    davis_set: str = typer.Option(
        "train", "--set", help="With int8: list in ImageSets/2017, without .txt."
    ),
    frames: int = typer.Option(
        40, metavar="N", help="With int8: at most this many frames of each sequence."
    ),
    flow_variant: str | None = typer.Option(
        None,
        metavar="FlowNet2|FlowNet2CSS|...",
        help="Refuse a flow checkpoint that is another member of the family.",
        show_default="the member its keys match",
    ),
    init_fourth_channel: str | None = typer.Option(
        None,
        metavar="zero|mean|normal",
        help="Fill the fourth input channel of DeepLab weights that have three.",
    ),
    flow_preset: str = typer.Option(
        "ultrafast",
        metavar="ultrafast|fast|medium",
        help="Preset of OpenCV DIS, used without a flow checkpoint.",
    ),
    flow_scale: float = typer.Option(
        1.0, metavar="S", help="Run DIS on frames of this scale, above 0 and at most 1."
    ),
    runtime_default: list[str] = typer.Option(
        [],
        metavar="NAME=VALUE",
        help="Advise this value of a pipeline option, such as osvos.every=2; repeatable.",
    ),
    name: str = typer.Option(
        "", help="Name of the engine directory.", show_default="the folder's name"
    ),
    licence: str = typer.Option(
        "", help="Licence of the weights.", show_default="as in the checkpoint"
    ),
    quiet: bool = typer.Option(False, "--quiet", help="Print no progress."),
) -> None:
    """Export checkpoints to an engine directory.

    It holds the ONNX graphs, the manifest and the parity report.

    Public files are recognised by their keys: NVIDIA FlowNet2 (and CSS, CS, C, S, SD), jfzhang95
    DeepLab Xception, OSVOS-PyTorch. Every graph is compared with its PyTorch module, and one that
    differs is refused. An interrupted export continues where it stopped.
    """
    from mpn.cli.export import PlanArguments, build_alone

    checkpoints = _found(checkpoints)
    plans = PlanArguments(build, plans_for, any_gpu=any_gpu, any_version=any_version)
    if plans.are_of_a_directory(checkpoints):
        build_alone(checkpoints[0], plans, quiet=quiet)
        return

    if precision == "int8":
        _quantize(checkpoints, out, davis_root, davis_set, frames, roles, name, quiet=quiet)
        return

    is_directory = len(checkpoints) == 1 and checkpoints[0].is_dir()
    if is_directory and (triton is not None or as_zip is not None):
        _write_copies(checkpoints[0], triton, as_zip)
        return

    from mpn.errors import import_or_explain

    for module in ("torch", "onnx", "onnxscript"):
        import_or_explain(module, extra="export", purpose="mpn-export")

    from mpn.cli.export_view import ExportView, command_text, print_bundle
    from mpn.export.bundle import export_bundle
    from mpn.export.options import (
        options_from_values,
        roles_from_text,
        runtime_defaults_from_texts,
    )

    options = options_from_values(
        precision=precision,
        frame_size=frame_size,
        features_size=features_size,
        roi_size=roi_size,
        max_objects=max_objects,
        roles=roles_from_text(roles) if roles else None,
        verify=verify,
        parity_images=parity_images,
        finetune=finetune,
        finetune_optimizer=finetune_optimizer,
        flow_variant=flow_variant,
        init_fourth_channel=init_fourth_channel,
        flow_preset=flow_preset,
        flow_scale=flow_scale,
        runtime_defaults=runtime_defaults_from_texts(runtime_default),
        name=name,
        licence=licence,
        command=command_text(),
    )
    plans.check()  # before minutes of exporting
    with ExportView(quiet=quiet) as view:
        bundle = export_bundle(checkpoints, out, options, view)
        built = plans.build(bundle.directory, view.plan)
    print_bundle(bundle, options)
    for warning in bundle.warnings:
        echo(f"warning: {warning}", err=True)
    plans.show(built)
    _write_copies(bundle.directory, triton, as_zip)


def _found(paths: Sequence[Path]) -> list[Path]:
    """Check that the paths exist, before torch loads; find installed engines."""
    from mpn.engines.directory.locate import SHIPPED_ENGINES, shipped_engine_dir
    from mpn.errors import InputError

    found = []
    for path in paths:
        is_name = str(path) in SHIPPED_ENGINES and not path.exists()
        found.append(shipped_engine_dir(str(path)) if is_name else path)
        if not found[-1].exists():
            raise InputError(
                f"there is no checkpoint (.pth) and no engine directory at {path}: check the path"
            )
    return found


def _quantize(
    given: Sequence[Path],
    out: Path,
    davis_root: Path | None,
    set_name: str,
    frames: int,
    roles: str,
    name: str,
    *,
    quiet: bool,
) -> None:
    """Write a quantised copy of an engine directory."""
    from mpn.errors import InputError, import_or_explain

    if len(given) != 1 or given[0].suffix in (".pth", ".pt", ".ckpt", ".safetensors", ".tar"):
        raise InputError(
            "int8 is made from one engine directory: export the checkpoints in fp32 first, then "
            "mpn-export engines/ --precision int8 --davis-root ROOT -o engines-int8"
        )
    if davis_root is None:
        raise InputError(
            "int8 needs annotated videos to calibrate and compare on: give a DAVIS folder with "
            "--davis-root, and its list with --set"
        )
    import_or_explain("onnx", extra="export", purpose="mpn-export --precision int8")

    from mpn.cli.export_view import command_text
    from mpn.export.options import roles_from_text
    from mpn.quantization.directory import QuantizationOptions, quantize_directory

    options = QuantizationOptions(
        davis_root,
        set_name,
        frames,
        roles=roles_from_text(roles) if roles else None,
        name=name or None,
        command=command_text(),
    )
    result = quantize_directory(
        given[0], out, options, lambda text: None if quiet else echo(text, err=True)
    )
    for role in result.roles:
        echo(str(role))
    echo(f"int8 engines in {result.directory}: {result.comparison}")
    for warning in result.warnings:
        echo(f"warning: {warning}", err=True)


def _write_copies(directory: Path, triton: Path | None, as_zip: Path | None) -> None:
    """Write a Triton repository and a zip file of an engine directory, if requested."""
    if triton is not None:
        from mpn.export.triton import export_triton

        names = ", ".join(model.name for model in export_triton(directory, triton))
        echo(f"Triton repository {triton}: {names}")
    if as_zip is not None:
        from mpn.engines.directory.archive import save_zip
        from mpn.engines.directory.locate import pinned

        save_zip(directory, as_zip)
        echo(f"zip file: {pinned(as_zip)}")
