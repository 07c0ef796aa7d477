"""Images a second of `groupmix-sam batch` by number of workers, against one plain process, by turns in one run.

    pip install 'groupmix-sam[ray]'
    python benchmarks/batch.py examples/coffee.jpg --box 170,16,420,312
    python benchmarks/batch.py examples/coffee.jpg --box 170,16,420,312 --exported exported/

Copies of one image and one box, so that nothing but the number of workers differs. A rate is that of the second half of the
images, when all workers are at work: starting Ray and loading models do not count, and are printed apart.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe, interval

from groupmix_sam.batch.engine import batch
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.sam import build_sam_groupmix


def plain(image: Path, box: list[float], checkpoint: str, size: int, count: int) -> float:
    """Return the images a second of a loop in this process."""
    exported = checkpoint != "default"
    predictor = Predictor.from_pretrained(checkpoint, threads=1) if exported else Predictor(build_sam_groupmix(image_size=size))

    def once() -> None:
        predictor.set_image(read_image(image))
        predictor.predict(box=np.array(box), multimask_output=False)

    once()
    start = time.perf_counter()
    for _ in range(count):
        once()
    return count / (time.perf_counter() - start)


def engine(folder: Path, prompts: Path, checkpoint: str, size: int | None, workers: int) -> tuple[float, float, int]:
    """Return the images a second of a run, the seconds to its first part, and the bytes it wrote an image."""
    with tempfile.TemporaryDirectory() as out:
        start = time.time()
        batch(folder, out, prompts, checkpoint=checkpoint, image_size=size, batch_size=1, workers=workers)
        parts = sorted(path.stat().st_mtime for path in Path(out, "masks").iterdir())
        total = sum(path.stat().st_size for path in Path(out, "masks").iterdir())
        half = len(parts) // 2
        return (len(parts) - half) / (parts[-1] - parts[half - 1]), parts[0] - start, total // len(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--box", required=True)
    parser.add_argument("--exported", type=Path, help="a folder of `groupmix-sam export`; by default PyTorch at --size")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--count", type=int, default=8, help="images a worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=list(range(1, (os.cpu_count() or 1) + 1)))
    args = parser.parse_args()
    if args.count < 2:
        parser.error("a rate is that of the second half of the images: give --count 2 or more.")
    torch.set_num_threads(1)
    checkpoint, size = str(args.exported or "default"), args.size
    if args.exported:
        size = json.loads((args.exported / "config.json").read_text())["image_size"]
    model = args.exported.name if args.exported else "PyTorch"
    print(f"{describe()}; {model} at {size} x {size}, {args.rounds} rounds, 1 thread a worker")
    box = [float(value) for value in args.box.split(",")]
    rates: dict[int, list[float]] = {workers: [] for workers in (0, *args.workers)}
    starts, written = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(args.rounds):
            rates[0].append(plain(args.image, box, checkpoint, size, args.count))
            for workers in args.workers:
                folder = Path(temporary, str(workers))
                folder.mkdir(exist_ok=True)
                names = [f"{i}{args.image.suffix}" for i in range(args.count * workers)]
                for name in names:
                    shutil.copyfile(args.image, folder / name)
                prompts = folder / "prompts.csv"
                prompts.write_text("image,left,top,right,bottom\n" + "".join(f"{name},{args.box}\n" for name in names))
                rate, start, written = engine(folder, prompts, checkpoint, None if args.exported else size, workers)
                rates[workers].append(rate)
                starts.append(start)
    print(f"one plain process: {statistics.median(rates[0]):.2f} images/s")
    for workers in args.workers:
        for other, name in ((0, "the plain process"), (args.workers[0], f"{args.workers[0]} worker")):
            median, low, high = interval([a / b for a, b in zip(rates[workers], rates[other], strict=True)])
            print(f"{workers} workers to {name}: {median:.3f} ({low:.3f} to {high:.3f})", end="; ")
        print(f"{statistics.median(rates[workers]):.2f} images/s")
    print(f"until the first part: {statistics.median(starts):.1f} s; {args.image.stat().st_size} bytes read an image, ", end="")
    print(f"{written} written, in files of one")


if __name__ == "__main__":
    main()
