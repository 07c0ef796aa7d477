"""Annotation files: COCO, LabelMe, YOLO, contours, index masks and supervision.

`to_...` functions return what a file of that kind holds, `from_...` functions read it back. `AnnotationWriter` writes the files
of many images, and `read_annotations` reads them. Polygons run through a mask's outermost pixels, counted from 0, which belong
to it: so OpenCV, LabelMe, supervision and YOLO's loaders draw them.
"""

from .coco import from_coco, to_coco
from .contours import from_contours, to_contours
from .detections import to_detections
from .index_mask import from_mask, to_mask
from .labelme import from_labelme, to_labelme
from .reader import read_annotations
from .types import AnnotatedImage, Instance
from .writer import AnnotationWriter, annotate
from .yolo import from_yolo, to_yolo

__all__ = [
    "AnnotatedImage",
    "AnnotationWriter",
    "Instance",
    "annotate",
    "from_coco",
    "from_contours",
    "from_labelme",
    "from_mask",
    "from_yolo",
    "read_annotations",
    "to_coco",
    "to_contours",
    "to_detections",
    "to_labelme",
    "to_mask",
    "to_yolo",
]
