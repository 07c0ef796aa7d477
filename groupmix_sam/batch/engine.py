"""Masks of millions of images: a folder or object storage in, Parquet out, on Ray Data.

A run first writes the list of images and cuts it into parts of a few images. The masks of a part are one file, which is renamed
when it is whole: a file that is there says that its part is done. A part that is done twice, as after a kill, gives the same
file again, so nothing is lost and nothing is doubled.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from tqdm import tqdm

from ..devices import usable_cpus, use_threads
from ..errors import GroupMixSamError, ImageReadError, InvalidInputError, MissingExtraError, RunStoppedError, without_secrets
from ..hub import HUB_PREFIX
from ..images import SUFFIXES, decode_image, is_image, report_left_out
from ..inference.automatic import everything, segment
from ..inference.exported_folder import read_config
from ..inference.model import model_hash
from ..inference.predictor import Predictor
from ..masks import encode_rle
from ..prompts import LISTS, Prompt
from ..sam import build_sam_groupmix
from ..weights import SHIPPED, is_exported
from .prompt_table import PROMPT, read_prompt_table
from .storage import Folder, absolute

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as e:
    raise MissingExtraError.of("pyarrow", "ray") from e

__all__ = ["MASKS", "Totals", "batch"]

FORMAT_VERSION = 1
IMAGES = pa.schema({"image": pa.string(), "prompts": pa.list_(PROMPT)})
# One mask, or the error of an image or a prompt. size and counts are COCO's RLE.
MASKS = pa.schema(
    {
        "image": pa.string(),
        "prompt": pa.int32(),
        "size": pa.list_(pa.int32()),
        "counts": pa.string(),
        "score": pa.float32(),
        "error": pa.string(),
    }
)
# Settings of Ray's own processes, started here for this run alone: report to nobody, listen on 127.0.0.1 alone (the variable's
# name is older than its use), and log nothing.
LOCAL_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# Only the list of images goes through Ray's memory: workers read images and write masks themselves.
OBJECT_STORE_BYTES = 128 << 20
# What a run may change when it goes on.
WORKERS = ("device", "threads", "gpus_per_worker")
# How often a part is begun: Ray gives a part to another worker when its worker dies, without end.
TRIES = 3


class Totals(NamedTuple):
    """What a call did: images, masks, recorded errors, and images that an earlier call had done."""

    images: int = 0
    masks: int = 0
    errors: int = 0
    before: int = 0


@dataclass(frozen=True)
class Job:
    """The options of `batch`, as each worker needs them."""

    source: str
    output: str
    everything: bool
    checkpoint: str
    encoder: str | None
    image_size: int | None
    points_per_side: int
    pred_iou_thresh: float
    stability_score_thresh: float
    batch_size: int
    device: str
    threads: int
    gpus_per_worker: float

    def __post_init__(self) -> None:
        for name in ("points_per_side", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}: give 1 or more.")
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}: give a number from 0 to 1.")
        gpus = self.gpus_per_worker
        if not 0 <= gpus < float("inf") or (gpus > 1 and gpus % 1):
            raise InvalidInputError(f"gpus_per_worker is {gpus}: give 0, a part of one GPU, or a whole number.")
        if self.exported and (self.encoder is not None or self.image_size is not None):
            raise InvalidInputError(
                f"{self.checkpoint} was exported, with its own encoder and size: leave out encoder and image_size."
            )

    @property
    def exported(self) -> bool:
        """Whether the checkpoint is an exported folder."""
        return is_exported(self.checkpoint)

    def sam(self) -> Sam:
        """Return the model, on the CPU."""
        return build_sam_groupmix(self.checkpoint, encoder=self.encoder, image_size=self.image_size)

    def predictor(self) -> Predictor:
        """Return the predictor of a worker, which sees those GPUs alone that Ray gave it."""
        device = self.device
        if device == "auto" and (self.gpus_per_worker or not self.exported):
            device = "cuda" if self.gpus_per_worker else "cpu"
        return Predictor.from_pretrained(
            self.checkpoint, encoder=self.encoder, image_size=self.image_size, device=device, threads=self.threads
        )

    def model_hash(self) -> str:
        """Return the hash of the weights, after checking them."""
        return str(read_config(Path(self.checkpoint))["model_hash"]) if self.exported else model_hash(self.sam())


def batch(
    source: str | PathLike[str],
    output: str | PathLike[str],
    prompts: str | PathLike[str] | None = None,
    *,
    checkpoint: str | PathLike[str] = "default",
    encoder: str | None = None,
    image_size: int | None = None,
    points_per_side: int = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    batch_size: int = 16,
    workers: int | None = None,
    device: str = "auto",
    threads: int = 1,
    gpus_per_worker: float = 0,
) -> Totals:
    """Segment all images of a folder, or those in a table of prompts, and write their masks; resume a stopped run.

    The output gets `run.json`, the options; `images.parquet`, the list of images; and `masks/part-*.parquet`, a row per mask,
    see `MASKS`. An image or prompt that cannot be used becomes a row with an error. It runs on the Ray that the program has
    started, else on the cluster at RAY_ADDRESS, else on a local one that ends with the call.

    Args:
        source: Folder of the images: a path, or a URI that pyarrow takes, such as "s3://bucket/photos" or "fsspec+...://...".
        output: Folder to write to, a path or URI.
        prompts: A table of prompts, see `read_prompt_table`; None segments everything, see `everything`.
        checkpoint: As for `Predictor.from_pretrained`. Each worker reads it.
        encoder: As for `Predictor.from_pretrained`.
        image_size: As for `Predictor.from_pretrained`.
        points_per_side: Without prompts: as for `everything`.
        pred_iou_thresh: Without prompts: as for `everything`.
        stability_score_thresh: Without prompts: as for `everything`.
        batch_size: Images per part, which is one file and is repeated after a kill.
        workers: Worker processes with one model each; by default as many as Ray's CPUs and GPUs allow.
        device: As for `Predictor.from_pretrained`; "auto" is "cuda" if a worker gets a GPU, else the CPU.
        threads: CPUs per worker.
        gpus_per_worker: GPUs per worker, as Ray counts them; 0.5 puts two workers on one.

    Raises:
        InvalidInputError: the source, the table, the output or a number cannot be used, or the output is of another run.
        WeightsError: the weights cannot be used.
        SaveError: the output cannot be written.
        RunStoppedError: the workers failed; finished parts are kept.
        MissingExtraError: Ray is not installed.
    """
    job = Job(
        source=absolute(source),
        output=absolute(output),
        everything=prompts is None,
        checkpoint=_named_or_absolute(checkpoint),
        encoder=encoder,
        image_size=image_size,
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        batch_size=batch_size,
        device=device,
        threads=threads,
        gpus_per_worker=gpus_per_worker,
    )
    if workers is not None and workers < 1:
        raise InvalidInputError(f"workers is {workers}: give 1 or more.")
    place = Folder(job.output)
    images = _begin(job, place, prompts)
    done = _clean(place)
    parts = range(-(-len(images) // batch_size))
    left = [part for part in parts if _part_name(part) not in done]
    tables = [images.slice(part * batch_size, batch_size) for part in left]
    before = len(images) - sum(map(len, tables))
    totals = _run(job, left, tables, workers, before) if left else Totals(before=before)
    _clean(place)
    return totals


def _named_or_absolute(checkpoint: str | PathLike[str]) -> str:
    """Return a checkpoint as workers in other folders find it."""
    if checkpoint in SHIPPED or str(checkpoint).startswith(HUB_PREFIX):
        return str(checkpoint)
    return absolute(checkpoint)


class Segmenter:
    """A worker: it holds the model and segments parts."""

    def __init__(self, job: Job) -> None:
        use_threads(job.threads)
        self.job = job
        self.source, self.output = Folder(job.source), Folder(job.output)
        self.predictor = job.predictor()

    def __call__(self, images: pa.Table) -> pa.Table:
        """Write the masks of a part; return the counts of images, masks and errors in one row."""
        name = _part_name(images["part"][0].as_py())
        begun = [f"masks/.{name}.{number}" for number in range(TRIES)]
        before = sum(map(self.output.has, begun))
        if before < TRIES:
            self.output.write(begun[before], b"")
            rows = [row for image in images.to_pylist() for row in self.segment(image["image"], image["prompts"])]
        else:
            error = f"a worker died {TRIES} times on this image or another of its part: look for one that is too large."
            rows = [{"image": path, "error": error} for path in images["image"].to_pylist()]
        self.output.write(f"masks/{name}", _parquet(pa.Table.from_pylist(rows, MASKS)))
        for marker in begun[: before + 1]:
            self.output.delete(marker)
        masks, errors = (sum(row.get(name) is not None for row in rows) for name in ("counts", "error"))
        return pa.table({"images": [len(images)], "masks": [masks], "errors": [errors]})

    def segment(self, path: str, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of an image; one without mask and error if nothing is found."""
        try:
            image = self._read(path)
            found = list(self._everything(image) if self.job.everything else self._prompted(image, prompts))
        except Exception as e:  # whatever it is, the other images do not wait for it
            return [{"image": path, "error": _describe(e)}]
        return [{"image": path, "size": list(image.shape[:2]), **row} for row in found or [{}]]

    def _read(self, path: str) -> NDArray[np.uint8]:
        try:
            content = self.source.read(path)
        except FileNotFoundError as e:
            raise ImageReadError(f"there is no image {path} in {self.job.source}: check the table's paths.") from e
        return decode_image(content, path)

    def _prompted(self, image: NDArray[np.uint8], prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        asked: dict[int, Prompt] = {}
        for number, prompt in enumerate(Prompt(**given) for given in prompts):
            try:
                prompt.check((image.shape[0], image.shape[1]))
                asked[number] = prompt
            except InvalidInputError as e:
                rows[number] = {"prompt": number, "error": _describe(e)}
        instances = segment(self.predictor, image, list(asked.values())) if asked else []
        for number, instance in zip(asked, instances, strict=True):
            rows[number] = {"prompt": number, "counts": encode_rle(instance.mask)["counts"], "score": instance.score}
        return [rows[number] for number in sorted(rows)]

    def _everything(self, image: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
        job = self.job
        found = everything(
            self.predictor,
            image,
            points_per_side=job.points_per_side,
            pred_iou_thresh=job.pred_iou_thresh,
            stability_score_thresh=job.stability_score_thresh,
        )
        for number, instance in enumerate(found):
            yield {"prompt": number, "counts": encode_rle(instance.mask)["counts"], "score": instance.score}


def _begin(job: Job, place: Folder, prompts: str | PathLike[str] | None) -> pa.Table:
    """Return the list of images: that of the run in the output if it has these options, else a new one, after writing it."""
    asked = None
    if prompts is not None:
        table = read_prompt_table(prompts)
        asked = {name: [{key: getattr(prompt, key) for key in LISTS} for prompt in group] for name, group in table.items()}
    record = {
        "format_version": FORMAT_VERSION,
        "source": without_secrets(job.source),
        "prompts": None if asked is None else _prompts_hash(asked),
        "model_hash": job.model_hash(),
        **{name: value for name, value in asdict(job).items() if name not in ("source", "output", "checkpoint", *WORKERS)},
    }
    try:
        there = json.loads(place.read("run.json"))
    except FileNotFoundError:
        images = _list(job, asked)
        place.write("images.parquet", _parquet(images))
        place.write("run.json", json.dumps(record, indent=2).encode())
        return images
    except (OSError, ValueError) as e:
        raise InvalidInputError(f"{job.output}/run.json cannot be read ({e}): give another output.") from e
    differ = [name for name, value in record.items() if not isinstance(there, dict) or there.get(name) != value]
    if differ:
        raise InvalidInputError(
            f"{job.output} is of another run, with another {', '.join(differ)}: give another output, or that run's options."
        )
    try:
        return parquet.read_table(pa.BufferReader(place.read("images.parquet")), schema=IMAGES)
    except (OSError, pa.ArrowException) as e:
        raise InvalidInputError(f"{job.output}/images.parquet cannot be read ({e}): begin again with another output.") from e


def _clean(place: Folder) -> set[str]:
    """Remove the leftovers of killed workers; return the finished parts."""
    names = place.names("masks")
    hidden = {name for name in names if name.startswith(".")}
    for name in hidden:
        place.delete(f"masks/{name}")
    return names - hidden


def _list(job: Job, prompts: dict[str, list[dict[str, Any]]] | None) -> pa.Table:
    """Return the images of the prompts, in their order, or all images of the source, sorted."""
    if prompts is not None:
        return pa.table({"image": list(prompts), "prompts": list(prompts.values())}, schema=IMAGES)
    try:
        files = sorted(Folder(job.source).names())
    except OSError as e:
        raise InvalidInputError(f"{job.source} cannot be listed ({e}): give a folder, and check its permissions.") from e
    names = [name for name in files if is_image(name)]
    report_left_out(job.source, (name for name in files if not is_image(name)))
    if not names:
        raise InvalidInputError(f"{job.source} has no image in it: give a folder with {', '.join(sorted(SUFFIXES))} files.")
    return pa.table({"image": names, "prompts": [None] * len(names)}, schema=IMAGES)


def _run(job: Job, parts: list[int], tables: list[pa.Table], workers: int | None, before: int) -> Totals:
    """Have the workers segment these parts."""
    blocks = [table.append_column("part", pa.array([part] * len(table))) for part, table in zip(parts, tables, strict=True)]
    totals = Totals(before=before)
    with _cluster() as ray, tqdm(desc="images", unit="image", total=sum(map(len, tables)), disable=None) as bar:
        try:
            for row in _rows(ray, job, blocks, _workers(ray, workers, job)):
                totals = Totals(*(a + b for a, b in zip(totals, (row["images"], row["masks"], row["errors"], 0), strict=True)))
                bar.update(row["images"])
                bar.set_postfix(masks=totals.masks, errors=totals.errors)
        except ray.exceptions.RayError as e:
            reason = str(e).strip().splitlines()[-1]
            raise RunStoppedError(
                f"the workers failed ({reason}): fix that and run the same command again, finished parts are kept."
            ) from e
    return totals


def _rows(ray: Any, job: Job, blocks: list[pa.Table], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the rows that the workers return, one per part."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        done = ray.data.from_arrow(blocks).map_batches(
            Segmenter,
            fn_constructor_args=(job,),
            batch_size=None,  # a block is a part
            batch_format="pyarrow",
            num_cpus=job.threads,
            num_gpus=job.gpus_per_worker,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        )
        yield from done.iter_rows()


@contextmanager
def _cluster() -> Iterator[Any]:
    """Yield Ray, connected: to the program's own cluster, else to RAY_ADDRESS, else to local processes that end with this."""
    local = "RAY_ADDRESS" not in os.environ
    if local:
        for name, value in LOCAL_RAY.items():
            os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise MissingExtraError.of("ray", "ray") from e
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            if local:
                ray.init(
                    "local",
                    num_cpus=usable_cpus(),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    **quiet,
                )
            else:
                ray.init(**quiet)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise RunStoppedError(f"Ray does not start ({e}): check RAY_ADDRESS, or leave it out for this machine.") from e
        try:
            yield ray
        finally:
            ray.shutdown()


def _workers(ray: Any, workers: int | None, job: Job) -> int:
    """Return the number of workers."""
    there = ray.cluster_resources()
    needs = {name: need for name, need in {"CPU": job.threads, "GPU": job.gpus_per_worker}.items() if need}
    wanted = workers or max(1, min(int(there.get(name, 0) / need) for name, need in needs.items()))
    for name, need in needs.items():
        if wanted * need > there.get(name, 0):
            raise InvalidInputError(
                f"{wanted} workers of {need:g} {name}s each need {wanted * need:g}, and Ray has {there.get(name, 0):g}: give "
                "fewer, or a cluster by RAY_ADDRESS."
            )
    return wanted


def _prompts_hash(prompts: dict[str, list[dict[str, Any]]]) -> str:
    """Return a hash of a table's prompts, whatever file they were read from."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _parquet(table: pa.Table) -> bytes:
    content = pa.BufferOutputStream()
    # Statistics and dictionaries would hold run lengths, which nobody searches for, a second time.
    parquet.write_table(table, content, compression="zstd", write_statistics=["image"], use_dictionary=["image"])
    return bytes(content.getvalue())


def _part_name(part: int) -> str:
    return f"part-{part:08}.parquet"


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, GroupMixSamError) else without_secrets(f"{type(error).__name__}: {error}")
