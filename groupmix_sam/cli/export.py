"""`groupmix-sam export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ImageReadError, InvalidInputError, UnknownNameError
from .options import Encoder, ImageSize, Threads


def export(
    runtime: Annotated[str, typer.Argument(help="onnx, openvino, tensorrt or web.")],
    folder: Annotated[Path, typer.Argument(help="A new folder. It is written only if the masks match PyTorch's.")],
    images: Annotated[
        Path,
        typer.Option(help="A folder of your own images, to compare masks on and to calibrate int8, which takes 10 or more."),
    ],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8; for openvino also bf16.")] = "fp32",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Weights: 'default', 'fast', a file, a folder, or 'hf-hub:org/repo@revision'. "
            "Default: 'fast' for web, else 'default'."
        ),
    ] = None,
    encoder: Encoder = None,
    image_size: ImageSize = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Let the encoder take image batches.")] = False,
    frame_size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT of a camera's frames, such as 1280x720: leave out the padding.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images to compare masks on; int8 calibrates on four times as many others.")] = 8,
    min_mean_iou: Annotated[float, typer.Option(help="Lowest mean IoU with PyTorch's masks that is accepted.")] = 0.97,
    min_iou: Annotated[float, typer.Option(help="Lowest IoU that is accepted, of all masks but one in fifty.")] = 0.8,
    pred_iou_thresh: Annotated[float, typer.Option(help="Masks with a lower predicted IoU are not compared.")] = 0.5,
    threads: Threads = None,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's timing cache, for quicker builds.")] = None,
    onnxruntime_web: Annotated[
        Path | None, typer.Option(help="For web: the file of `npm pack onnxruntime-web`. Default: npm fetches it.")
    ] = None,
) -> None:
    """Export a model to another runtime. The export fails if its masks differ too much from PyTorch's.

    groupmix-sam export openvino exported/ --images my_photos/
    groupmix-sam export openvino exported_720p/ --images frames/ --checkpoint fast --frame-size 1280x720
    groupmix-sam export onnx exported_int8/ --images my_photos/ --precision int8 --checkpoint fast
    groupmix-sam export web site/ --images my_photos/
    """
    from ..devices import use_threads
    from ..images import evenly_spaced, find_images
    from ..inference.export.exporter import MIN_CALIBRATION, PRECISIONS
    from ..inference.export.exporter import export as write
    from ..inference.export.parity import Thresholds
    from ..preprocess import check_aspect
    from ..sam import build_sam_groupmix

    if count < 1:
        raise InvalidInputError(f"count is {count}: give 1 or more.")
    if runtime not in (*PRECISIONS, "web"):
        raise UnknownNameError.near("runtime", runtime, (*PRECISIONS, "web"))
    web = runtime == "web"
    if web and (precision != "fp32" or dynamic_batch or frame_size is not None or timing_cache is not None):
        raise InvalidInputError(
            "the page takes any image, one at a time, in fp32: leave out precision, dynamic batch, frame size and timing cache."
        )
    if onnxruntime_web is not None and not web:
        raise InvalidInputError(f"{onnxruntime_web} is for web: leave it out for {runtime}.")
    size = None if frame_size is None else _parse(frame_size)
    use_threads(threads)
    sam = build_sam_groupmix(checkpoint or ("fast" if web else "default"), encoder=encoder, image_size=image_size)
    usable = []
    for source in evenly_spaced(find_images(images), 5 * count if precision == "int8" else count):
        try:  # decoded again when it is needed: many large images do not fit in memory
            height, width = source.decode().shape[:2]
            check_aspect((height, width), sam.image_encoder.img_size)
            if size is not None and width * size[1] != height * size[0]:
                raise InvalidInputError(f"{source} is {width} x {height} pixels, which is not the shape of {frame_size}.")
            usable.append(source)
        except (ImageReadError, InvalidInputError) as e:
            typer.echo(f"skipped: {e}", err=True)
    # Every fifth is held out from the calibration, to compare masks on.
    compared = usable[::5] if precision == "int8" else usable
    calibration = [source for i, source in enumerate(usable) if i % 5] if precision == "int8" else []
    if precision == "int8" and len(calibration) < MIN_CALIBRATION:
        raise InvalidInputError(
            f"int8 needs {MIN_CALIBRATION * 5 // 4} images or more, and has {len(usable)}: add images to {images}, "
            "and give --count 2 or more."
        )
    thresholds = Thresholds(min_mean_iou, min_iou, pred_iou_thresh)
    if web:
        from ..inference.export.web import export_web

        report = export_web(sam, folder, compared, runtime=onnxruntime_web, thresholds=thresholds)
    else:
        report = write(
            sam,
            folder,
            compared,
            runtime=runtime,
            precision=precision,
            dynamic_batch=dynamic_batch,
            frame_size=size,
            thresholds=thresholds,
            calibration=calibration,
            timing_cache=timing_cache,
        )
    typer.echo(
        f"wrote {folder}: mean IoU {report['mean_iou']:.4f} with PyTorch in fp32, lowest {report['min_iou']:.4f}, "
        f"{report['masks']} masks on {report['images']} images"
    )


def _parse(size: str) -> tuple[int, int]:
    width, separator, height = size.lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise InvalidInputError(f"the frame size is {size!r}: give WIDTHxHEIGHT in pixels, such as 1280x720.")
    return int(width), int(height)
