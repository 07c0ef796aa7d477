"""`groupmix-sam export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ImageReadError, InvalidInputError
from .options import Checkpoint, Encoder, ImageSize


def export(
    runtime: Annotated[str, typer.Argument(help="What to export for: onnx, openvino or tensorrt.")],
    folder: Annotated[Path, typer.Argument(help="A new folder; it appears only if the masks hold.")],
    images: Annotated[Path, typer.Option(help="A folder of your own images, to compare masks on and to calibrate int8.")],
    precision: Annotated[str, typer.Option(help="fp32; fp16; int8; for openvino bf16.")] = "fp32",
    checkpoint: Checkpoint = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Let the encoder take several images.")] = False,
    count: Annotated[int, typer.Option(help="Images to compare masks on; for int8 four times as many calibrate.")] = 8,
    min_mean_iou: Annotated[float, typer.Option(help="What the masks' IoU to the fp32 model's must reach in the mean.")] = 0.97,
    min_iou: Annotated[float, typer.Option(help="What the least of them must reach.")] = 0.8,
    pred_iou_thresh: Annotated[float, typer.Option(help="Masks of which the fp32 model is less sure are not compared.")] = 0.5,
    timing_cache: Annotated[Path | None, typer.Option(help="A file that makes TensorRT's next build quick.")] = None,
) -> None:
    """Write a model for another runtime, and hold its masks against those of the model that it was made from.

    groupmix-sam export openvino exported/ --images my_photos/
    groupmix-sam export onnx exported_int8/ --images my_photos/ --precision int8 --image-size 512
    """
    from ..images import evenly_spaced, find_images
    from ..inference.export.exporter import export as write
    from ..inference.export.parity import Thresholds
    from ..preprocess import check_aspect
    from ..sam import build_sam_groupmix

    if count < 1:
        raise InvalidInputError(f"count is {count}: give 1 or more.")
    sam = build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size)
    wanted = 5 * count if precision == "int8" else count
    arrays = []
    for source in evenly_spaced(find_images(images), wanted):
        try:
            array = source.decode()
            check_aspect(array.shape[:2], sam.image_encoder.img_size)
            arrays.append(array)
        except (ImageReadError, InvalidInputError) as e:
            typer.echo(f"skipped: {e}", err=True)
    # Every fifth is held out from the calibration, to compare masks on.
    judged = arrays[::5] if precision == "int8" else arrays
    calibration = [array for i, array in enumerate(arrays) if i % 5] if precision == "int8" else []
    report = write(
        sam,
        folder,
        judged,
        runtime=runtime,
        precision=precision,
        dynamic_batch=dynamic_batch,
        thresholds=Thresholds(min_mean_iou, min_iou, pred_iou_thresh),
        calibration=calibration,
        timing_cache=timing_cache,
    )
    typer.echo(
        f"wrote {folder}: IoU to fp32 PyTorch {report['mean']:.4f} in the mean, {report['least']:.4f} at least, ", nl=False
    )
    typer.echo(f"of {report['masks']} masks on {report['images']} images")
