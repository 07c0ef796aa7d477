"""What the rest of the package asks of a predictor."""

from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["MaskPredictor"]


class MaskPredictor(Protocol):
    """A model that predicts masks of one image at a time: segment-anything's `SamPredictor`, our `Predictor`, or your own.

    `segment`, `evaluate` and the demo ask no more of it.
    """

    def set_image(self, image: NDArray[Any]) -> None:
        """Take the image, H x W x 3, uint8, RGB, that `predict` is about."""

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return C masks, H x W, their predicted IoUs and low-resolution logits; C is 3, or 1 without `multimask_output`.

        Args:
            point_coords: N x 2, x before y, in the image's pixels.
            point_labels: N, 1 for foreground and 0 for background.
            box: x0, y0, x1, y1 in pixels.
            mask_input: The logits of an earlier mask.
            multimask_output: Three masks for an ambiguous prompt, or one.
            return_logits: Return masks before the threshold.
        """
        ...
