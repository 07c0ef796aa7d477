"""Write the tables of figures in README, docs and the model card, from the result files in benchmarks/results.

    python benchmarks/report.py

A page marks the place of a table by `<!-- table: NAME -->` and `<!-- /table -->`; what stands between the two is replaced. So a
figure is typed once, in its result file, and tests/test_docs.py fails where a page says something else. In the files a list of
three numbers is a value with its 95 % interval.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "groupmix_sam" / "pretrained" / "README.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

STOCK = "stock sam_tiny_vit_5m"
FRAME = "640 x 480"
NOT_MEASURED = "Not measured yet.\n"
RUNTIMES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
EVENTS = ("noise alone", "flicker", "a light goes on", "a bumped camera", "everything moves", "nothing moves")
MODELS = {"default": "`gmf_sam_2282`, default", "fast": "`gmf_sam_2282_512`, fast"}


def load(name: str) -> dict[str, Any]:
    """Return a result file's content."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def figure(value: Any, digits: int = 3) -> str:
    """Return a cell: a value with its interval, a number, a text, or nothing."""
    if value is None:
        return ""
    if isinstance(value, list):
        middle, low, high = (f"{number:.{digits}f}" for number in value)
        return f"{middle} ({low} to {high})"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]], digits: int = 3) -> str:
    """Return a Markdown table."""
    lines = [list(head), *([figure(cell, digits) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def origin(result: dict[str, Any]) -> str:
    """Return how a result came about, for below its table: command, date, machine, protocol."""
    machine = dict(result.get("machine", {}))
    parts = [f"`{result['command']}`", result["date"]]
    if machine:
        parts.append(f"{machine.pop('processor')}, {machine.pop('threads')} threads")
        parts.append(", ".join(f"{name} {version}" for name, version in machine.items()))
    facts = " ".join(result[key] for key in ("protocol", "data", "note") if key in result)
    return f"\n{facts}\n\n{'; '.join(filter(None, parts))}.\n"


def overview() -> str:
    """README's table: mask quality and time of the same models, MobileSAM first."""
    quality = {row["model"]: row for row in load("mask_quality")["models"] if row["prompt"] == "box"}
    teacher = quality["MobileSAM"]
    rows: list[list[Any]] = [["MobileSAM, 1024 pixels", teacher["coco"][0], teacher["tools"][0], 1, 1]]
    for model, label, file in (
        ("default", "default weights, 1024 pixels", "runtimes_1024"),
        ("fast", "fast weights, 512 pixels", "runtimes_fast"),
    ):
        ratios: list[Any] = ["not measured"] * 2
        if (RESULTS / f"{file}.json").exists():
            rows_of = [row for row in load(file)["rows"] if row.get("frame", FRAME) == FRAME]
            found = {(row["runtime"], row["precision"], row["encoder"]): row for row in rows_of}
            times = (found["torch", "fp32", STOCK], found["openvino", "fp32", "sam_tiny_vit_5m"])
            ratios = [row["ours_to_it"]["image_to_mask"][0] for row in times]
        if model in quality:
            rows.append([label, quality[model]["coco"][0], quality[model]["tools"][0], *ratios])
    return table(("", "box mIoU, COCO", "box mIoU, hand tools", "time in PyTorch", "time in OpenVINO"), rows)


def mask_quality(left_out: str = "") -> str:
    """IoU with labels, and how it compares with MobileSAM's, but for a model that is left out."""
    result = load("mask_quality")
    models, ratios = ([row for row in result[key] if row["model"] != left_out] for key in ("models", "against_mobile_sam"))
    rows = [(MODELS.get(row["model"], row["model"]), row["prompt"], row["coco"], row["tools"]) for row in models]
    for row in ratios:
        label = f"{MODELS[row['model']]}: {'ratio to MobileSAM' if row['measure'] == 'ratio' else row['measure']}"
        rows.append((label, row["prompt"], row["coco"], row["tools"]))
    return table(("model", "prompt", "COCO", "hand tools"), rows) + origin(result)


def card_quality() -> str:
    """The same for the default weights' card, without its origin."""
    return mask_quality().split("\n\n")[0] + "\n"


def encoder() -> str:
    """Time and memory in PyTorch."""
    result = load("encoder_1024")
    times = table(
        ("PyTorch at 1024", "median, s", "least, s", "peak memory, MiB"),
        ((row["what"], row["median_s"], row["least_s"], row.get("peak_mib")) for row in result["times"]),
    )
    ratios = table(
        ("of", "to", "time", "target", "peak memory"),
        ((row["what"], row["to"], row["time"], row.get("target"), row.get("memory")) for row in result["ratios"]),
    )
    return f"{times}\n{ratios}{origin(result)}"


def runtimes(name: str) -> str:
    """Time and memory by runtime, precision and encoder, and by the frame's size and with mask quality where they are known."""
    result = load(name)
    rated = any("quality" in row for row in result["rows"])
    rows = (
        (
            ", ".join(filter(None, (f"{RUNTIMES[row['runtime']]} {row['precision']}", row.get("frame")))),
            row["encoder"],
            row["set_image_s"],
            row["image_to_mask_s"],
            row.get("quality") if rated else row.get("peak_mib"),
            row.get("ours_to_it", {}).get("image_to_mask"),
        )
        for row in result["rows"]
    )
    fifth = "box mIoU, COCO" if rated else "peak memory, MiB"
    head = ("runtime", "encoder", "encoder, s", "image to mask, s", fifth, f"time of `{result['ours']}` to it")
    exports = (
        (f"{RUNTIMES[row['runtime']]} {row['precision']}", row["encoder"], row["masks"], row["mean_iou"], row["min_iou"])
        for row in result.get("parity", [])
    )
    compared = table(("export", "encoder", "masks", "mean IoU with PyTorch", "minimum IoU"), exports, digits=4)
    return table(head, rows) + (f"\n{compared}" if "parity" in result else "") + origin(result)


def parity() -> str:
    """Masks of exports against PyTorch's."""
    result = load("parity")
    rows = (
        (
            f"{RUNTIMES[row['runtime']]} {row['precision']}",
            row["size"],
            row["photos"],
            row["masks"],
            row["mean_iou"],
            row["min_iou"],
        )
        for row in result["rows"]
    )
    return table(("export", "image size", "photos", "masks", "mean IoU", "minimum IoU"), rows, digits=4) + origin(result)


def adapt() -> str:
    """Masks before and after `adapt`."""
    result = load("adapt")
    rows = ((row["what"], row["before"], row["after"], row["difference"], row["mobile_sam"]) for row in result["rows"])
    return table(("", "before", "after", "paired difference", "MobileSAM"), rows) + origin(result)


def adapt_labels() -> str:
    """Masks before and after `adapt --labels`, by cross-validation."""
    if not (RESULTS / "adapt_labels.json").exists():  # it takes an hour and more
        return "`python benchmarks/adapt_labels.py` makes this table. It has not been run in full.\n"
    result = load("adapt_labels")
    rows = (
        (
            row["checkpoint"],
            row["images"],
            row["prompt"],
            row["iou"]["before"],
            row["iou"]["after"],
            row["iou"]["difference"],
            row.get("mobile_sam", {}).get("iou"),
            row.get("mobile_sam", {}).get("difference"),
            row["box_baseline"] if row["prompt"] == "box" else None,
            row["boundary"]["difference"],
            row.get("coco", {}).get("difference"),
        )
        for row in result["rows"]
    )
    columns = ("weights", "labelled images", "prompt", "mIoU before", "after", "paired difference", "MobileSAM")
    columns += ("to MobileSAM, paired", "box baseline", "boundary IoU, paired", "COCO, paired")
    return table(columns, rows) + origin(result)


def padding() -> str:
    """Time and masks without padding, to those with it."""
    if not (RESULTS / "padding.json").exists():
        return NOT_MEASURED
    result = load("padding")
    times = ((row["model"], row["frame"], row["part"], row["ratio"]) for row in result["times"])
    masks = (
        (row["model"], row["data"], row["prompt"], row["masks"], row["padded"], row["image"], row["difference"])
        for row in result["masks"]
    )
    columns = ("weights", "images", "prompt", "masks", "mIoU with padding", "without", "paired difference")
    return f"{table(('weights', 'frame', 'part', 'time to padded'), times)}\n{table(columns, masks)}{origin(result)}"


def decoder() -> str:
    """Time from features to masks, to an earlier version and to segment-anything's."""
    if not (RESULTS / "decoder.json").exists():
        return NOT_MEASURED
    result = load("decoder")
    rows = (
        (RUNTIMES[row["runtime"]], row["prompts"], row["model"], row["seconds"], row.get("to_before"), row.get("to_stock"))
        for row in result["rows"]
    )
    return table(("runtime", "prompts", "decoder", "time, s", "to before", "to stock"), rows) + origin(result)


def students() -> str:
    """The paper's Table 2 with a short training."""
    result = load("students")
    rows = (
        (row["encoder"], row["structure"], row["lr"] and f"{row['lr']:.4f}", row["r2"], row["coco"], row["tools"])
        for row in result["rows"]
    )
    return table(("encoder", "structure", "lr", "R2", "COCO", "hand tools"), rows) + origin(result)


def batch() -> str:
    """Images a second by workers."""
    result = load("batch")
    rows = (
        (row["model"], row["workers"], f"{row['rate']:.2f}", row["to_one_process"], row["to_one_worker"])
        for row in result["rows"]
    )
    return table(("model", "workers", "images a second", "to one process", "to one worker"), rows) + origin(result)


def distill_speed() -> str:
    """What the default recipe costs beside a plain loop."""
    result = load("distill_speed")
    rows = ((row["what"], row["ratio"]) for row in result["rows"])
    return table(("default recipe", "to the plain loop"), rows, digits=2) + origin(result)


Live = dict[str, Any]


def live_targets(live: Live) -> str:
    """Targets of following objects, and what was measured."""
    timed = {row["model"]: row for row in live["speed"]["rows"]}
    made = {(row["model"], row["event"]): row for row in live["events"]["rows"]}
    moved, around = "what moved", "around the object"

    def cells(model: str) -> list[str]:
        row, still, moving = timed[model], made.get((model, "nothing moves")), made.get((model, "everything moves"))
        return [
            *(rate(row["rate"][mode]) for mode in ("all", moved, around)),
            *(f"{row['share'][mode]:.2f}" for mode in (moved, around)),
            *(", ".join(f"{iou:.3f}" for iou in row["iou"][mode]) for mode in (moved, around)),
            rate(still["rate"][moved]) if still else "",
            *(figure(moving["ratio"][mode], 2) if moving else "" for mode in (moved, around)),
        ]

    names = (
        ("frames/s, every frame encoded in full", None),
        ("frames/s, what moved", None),
        ("frames/s, around the object", "25"),
        ("share encoded, what moved", None),
        ("share encoded, around the object", None),
        ("IoU with full encoding, what moved: mean, least", "0.95 in the mean"),
        ("IoU with full encoding, around the object: mean, least", "0.95 in the mean"),
        ("frames/s while nothing moves", "100"),
        ("time to full encoding where everything moves, what moved", "1.05"),
        ("the same, around the object", "1.05"),
    )
    columns = [cells(model) for model in timed]
    speed = table(("", "target", *timed), ([*name, *values] for name, *values in zip(names, *columns, strict=True)))

    hidden, switches = live["hidden"]["rows"][0], live["switches"]["rows"]
    mean = {follower: score["jf"] for (start, follower), score in davis_means(live).items() if start == "mask"}
    baseline = max(score for follower, score in mean.items() if follower != "tracker")
    lost, found = ("never" if hidden[key] is None else hidden[key] for key in ("lost_after", "found_after"))
    masks = table(
        ("", "target", "measured", "model"),
        (
            ("identity switches on the three videos", "0", sum(row["switches"] for row in switches), switches[0]["model"]),
            ("frames until a hidden object is lost", "6", lost, hidden["model"]),
            ("frames until it is found again", "3", found, hidden["model"]),
            ("J&F on DAVIS, from masks", "0.75", mean["tracker"], live["davis"]["rows"][0]["model"]),
            ("the same over the better baseline", "0.10", mean["tracker"] - baseline, live["davis"]["rows"][0]["model"]),
        ),
    )
    return f"{speed}\n{masks}{origin(live['speed'])}"


def rate(value: list[float]) -> str:
    """Return frames a second with their interval."""
    return figure(value, 1)


def live_events(live: Live) -> str:
    """Made videos: what is encoded, how close masks are to full encoding, and how close all are to the truth."""
    moved, around = "what moved", "around the object"

    def pair(values: list[float] | None) -> str:
        return ", ".join(f"{iou:.3f}" for iou in values or ())

    rows = (
        (
            row["event"],
            row["model"],
            *(cell for mode in (moved, around) for cell in (f"{row['share'][mode]:.2f}", pair(row["iou"][mode]))),
            *(pair(row.get("truth", {}).get(mode)) for mode in ("all", moved, around)),
        )
        for row in sorted(live["events"]["rows"], key=lambda row: EVENTS.index(row["event"]))
    )
    iou, truth = "IoU: mean, least", "IoU with the truth,"
    shares = (f"share, {moved}", iou, f"share, {around}", iou)
    return table(("event", "model", *shares, f"{truth} full", f"{truth} {moved}", f"{truth} {around}"), rows) + origin(
        live["events"]
    )


def live_switches(live: Live) -> str:
    """Objects that are taken for another."""
    keys = ("video", "objects", "frames", "lost", "switches")
    rows = ([row[key] for key in keys] for row in live["switches"]["rows"])
    return table(("video", "objects", "frames", "objects lost, summed over frames", "switches"), rows) + origin(
        live["switches"]
    )


def davis_means(live: Live) -> dict[tuple[str, str], dict[str, float]]:
    """Return the means over objects, by start and by follower."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in live["davis"]["rows"]:
        found.setdefault((row["start"], row["follower"]), []).append(row)
    means = {key: {name: sum(row[name] for row in rows) / len(rows) for name in ("j", "f")} for key, rows in found.items()}
    return {key: {**mean, "jf": (mean["j"] + mean["f"]) / 2} for key, mean in means.items()}


def live_davis(live: Live) -> str:
    """J and F on DAVIS, by start and by way of following, and the tracker's J&F by sequence."""
    result = live["davis"]
    lost: dict[tuple[str, str], list[int]] = {}
    for row in result["rows"]:
        counts = lost.setdefault((row["start"], row["follower"]), [0, 0])
        counts[0], counts[1] = counts[0] + row["lost"], counts[1] + row["frames"]
    means = table(
        ("start", "follower", "J", "F", "J&F", "lost"),
        ((*key, mean["j"], mean["f"], mean["jf"], "{} of {}".format(*lost[key])) for key, mean in davis_means(live).items()),
    )
    starts = list(dict.fromkeys(row["start"] for row in result["rows"]))
    own = [row for row in result["rows"] if row["follower"] == "tracker"]
    scores = {(row["sequence"], row["start"]): (row["j"] + row["f"]) / 2 for row in own}
    names = dict.fromkeys(row["sequence"] for row in own)
    each = table(("sequence, tracker's J&F", *starts), ([name, *(scores.get((name, s)) for s in starts)] for name in names))
    return f"{means}\n{each}{origin(result)}"


def live_hour(live: Live) -> str:
    """Memory over an hour of frames."""
    (row,) = live["hour"]["rows"]
    return table(("frames", *row["memory_mb"]), [("memory, MB", *row["memory_mb"].values())]) + origin(live["hour"])


# Each with the parts of the result file that it needs.
LIVE: dict[str, tuple[Callable[[Live], str], set[str]]] = {
    "live_targets": (live_targets, {"speed", "events", "switches", "hidden", "davis"}),
    "live_events": (live_events, {"events"}),
    "live_switches": (live_switches, {"switches"}),
    "live_davis": (live_davis, {"davis"}),
    "live_hour": (live_hour, {"hour"}),
}


def live_table(name: str) -> str:
    """Return a table of following objects, of which an hour of frames takes longest and may be left out."""
    write, needed = LIVE[name]
    live = load("live")
    return write(live) if needed <= live.keys() else NOT_MEASURED


TABLES: dict[str, Callable[[], str]] = {
    "adapt": adapt,
    "adapt_labels": adapt_labels,
    "batch": batch,
    "card_quality": card_quality,
    "decoder": decoder,
    "distill_speed": distill_speed,
    "encoder": encoder,
    "mask_quality": mask_quality,
    "overview": overview,
    "padding": padding,
    "parity": parity,
    "students": students,
}
TABLES |= {name: partial(live_table, name) for name in LIVE}
TABLES |= {path.stem: partial(runtimes, path.stem) for path in sorted(RESULTS.glob("runtimes_*.json"))}


def fill(text: str) -> str:
    """Return a page's text with every table written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Write the tables of every page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if text != fill(text):
            page.write_text(fill(text), encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
