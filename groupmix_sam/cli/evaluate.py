"""`groupmix-sam evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .options import Device, ImageSize, Model, Threads, weights_device

if TYPE_CHECKING:
    from ..evaluate import Protocol, Result, Task

RESULTS = Path("runs/evaluate")


def evaluate(
    data: Annotated[
        Path | None, typer.Argument(help="Folder with annotations.json, in COCO format, and images/; or with images alone.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO annotation file, if DATA holds images alone.")] = None,
    checkpoint: Model = "default",
    encoder: Annotated[
        str | None, typer.Option(help="A registered encoder, or vit_b, vit_l, vit_h. Default: that of the weights.")
    ] = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
    preset: Annotated[str, typer.Option(help="'sam', or 'nanosam' for the protocol of NanoSAM and the paper.")] = "sam",
    prompt_kind: Annotated[
        list[str] | None,
        typer.Option(help="box, point, random-point or clicks-N. Repeat it for several. Default: the preset's."),
    ] = None,
    mask_selection: Annotated[
        str | None,
        typer.Option(help="Mask that is evaluated: single, best-of-3, best-of-4, oracle or stability. Default: the preset's."),
    ] = None,
    crowds: Annotated[bool | None, typer.Option(help="Evaluate annotations of crowds too.")] = None,
    min_mask_area: Annotated[int | None, typer.Option(help="Leave out annotations with fewer pixels.")] = None,
    resize: Annotated[
        str | None, typer.Option(help="How images and masks are resized: sam or nanosam. Default: the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random points.")] = 0,
    reference: Annotated[
        str | None, typer.Option(help="Weights of the model to compare with; with labels also its result, JSON.")
    ] = None,
    detections: Annotated[
        Path | None, typer.Option(help="A detector's boxes, in COCO's results format: print the AP of their masks.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Without labels: CSV (image,x,y or image,left,top,right,bottom) or JSON with prompts.")
    ] = None,
    points_per_side: Annotated[int | None, typer.Option(help="Without labels: points per side of a grid of prompts.")] = None,
    confidence: Annotated[
        float, typer.Option(help="Keep points of the grid for which the reference predicts at least this IoU.")
    ] = 0.88,
    limit: Annotated[int | None, typer.Option(help="Evaluate only this many images.")] = None,
    ignore_exif: Annotated[
        bool, typer.Option("--ignore-exif", help="Labels were made on the stored pixels: do not turn images upright by EXIF.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the result. Default: a name in runs/evaluate.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Compare two results: print how the second differs from the first, and stop."),
    ] = None,
) -> None:
    """Measure the IoU of a model's masks with COCO labels, or with a reference model's masks on images without labels.

    The same command resumes a killed run. In several processes: torchrun --nproc-per-node 2 -m groupmix_sam ...

        groupmix-sam evaluate DATA --reference mobile_sam.pt
        groupmix-sam evaluate photos/ --reference mobile_sam.pt --points-per-side 16
        groupmix-sam evaluate --compare A.json B.json
    """
    from dataclasses import replace
    from functools import partial

    from .. import evaluate as evaluation

    if compare is not None:
        for name, value in {
            "DATA": data,
            "--annotations": annotations,
            "--detections": detections,
            "--limit": limit,
            "--output": output,
            "--points-per-side": points_per_side,
            "--prompt-kind": prompt_kind,
            "--prompts": prompts,
            "--reference": reference,
        }.items():
            if value:
                raise InvalidInputError(f"--compare reads two results and evaluates nothing: leave out {name}.")
        a, b = map(evaluation.load_result, compare)
        typer.echo(evaluation.compare_text(a, b))
        return
    without_labels = prompts is not None or points_per_side is not None
    for name, value in {"--detections": detections, "--annotations": annotations, "--ignore-exif": ignore_exif}.items():
        if without_labels and value:
            raise InvalidInputError(f"{name} is about labels, --prompts and --points-per-side need none: leave one out.")
    if detections is not None and prompt_kind:
        raise InvalidInputError("--detections prompts with its boxes: leave out --prompt-kind.")
    if data is None or not data.is_dir():
        raise InvalidInputError(f"there is no folder {data}: give one with annotations.json and images/, or with images.")
    changes: dict[str, Any] = {
        "mask_selection": mask_selection,
        "crowds": crowds,
        "min_mask_area": min_mask_area,
        "resize": resize,
    }
    changes["prompts"] = tuple(prompt_kind) if prompt_kind else None
    given = {name: value for name, value in changes.items() if value is not None}
    protocol = replace(evaluation.preset(preset), seed=seed, **given)
    load = partial(evaluation.load_model, resize=protocol.resize, device=weights_device(device), threads=threads)
    task: Task
    if without_labels:
        truths = (output.parent if output else RESULTS) / "truths"
        if prompts is not None and points_per_side is not None:
            raise InvalidInputError("--prompts and --points-per-side exclude each other: give one of them.")
        if not reference:
            raise InvalidInputError("evaluation without labels needs a reference: give --reference, a model's weights.")
        task = evaluation.ReferenceDataset(
            data, protocol, load(reference), prompts or points_per_side or 0, confidence, limit, truths
        )
        reference = None
    else:
        task = _labelled(data, annotations, detections, protocol, limit, ignore_exif)
    if reference and reference.endswith(".json"):
        evaluation.load_result(reference)  # its errors come before the work
    model = evaluation.load_model(
        checkpoint, encoder=encoder, image_size=image_size, resize=protocol.resize, device=device, threads=threads
    )
    # Evaluations with different prompts go to different files, so that one does not stop at the other's.
    options = (
        None if preset == "sam" else preset,
        prompts and prompts.stem,
        points_per_side and f"grid{points_per_side}",
        detections and detections.stem,
    )
    stem = "-".join([data.resolve().name, *(part for part in options if part)])
    output = output or RESULTS / f"{stem}-{model.label}.json"
    if reference and not reference.endswith(".json"):
        other = load(reference)
        reference = str(output.with_name(f"{stem}-{other.label}.json"))
        evaluation.evaluate(task, other, reference)
    result = evaluation.evaluate(task, model, output)
    if result is None:
        return  # another process has still to finish, and prints
    against = evaluation.load_result(reference) if reference else None
    if detections is not None:
        typer.echo(_precision_text(result, against, annotations or data / "annotations.json"))
    else:
        typer.echo(evaluation.summary_text(result, against))
        if against is not None:
            typer.echo(evaluation.compare_text(against, result))
    typer.echo(f"wrote {output}")


def _labelled(
    data: Path,
    annotations: Path | None,
    detections: Path | None,
    protocol: "Protocol",
    limit: int | None,
    ignore_exif: bool,
) -> "Task":
    """Return the task with labels: those of the data unless an annotation file is given."""
    from ..evaluate import LabelledDataset

    file = annotations or data / "annotations.json"
    folder = data if annotations else data / "images"
    if detections is not None:
        from ..evaluate.detections import DetectionDataset

        return DetectionDataset(detections, file, folder, protocol, limit, ignore_exif)
    if annotations is None and not file.exists():
        raise InvalidInputError(
            f"{data} has no labels, there is no {file.name} in it: "
            "add --reference and --points-per-side or --prompts to measure without them, or --annotations and their file."
        )
    return LabelledDataset(file, folder, protocol, limit, ignore_exif)


def _precision_text(result: "Result", against: "Result | None", annotations: Path) -> str:
    """Return the average precision of the masks of detections, a line a model."""
    from ..evaluate.detections import average_precision
    from ..evaluate.summary import result_name

    lines = []
    for found in filter(None, (against, result)):
        ap = ", ".join(f"{name} {value:.3f}" for name, value in average_precision(found, annotations).items())
        lines.append(f"{result_name(found)}: {ap}" if against else ap)
    return "\n".join(lines)
