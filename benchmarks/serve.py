"""Load `groupmix-sam serve` on this machine: several clients, each by turns sending an image and asking for masks.

    python benchmarks/serve.py examples/coffee.jpg
    python benchmarks/serve.py examples/coffee.jpg --checkpoint exported/ --seconds 120 --json load.json

The server is a process of its own, on a free port of 127.0.0.1, and ends with this script. A client that is answered 503 waits
as long as the answer says. Any answer but a good one or 503 counts as an error, and makes the exit code 1. Memory is what the
server itself reports at /metrics, once a second: the ratio is that of the last quarter's median to the second quarter's, when
the cache has been filled.
"""

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

from machine import describe
from PIL import Image

MASKS_AN_IMAGE = 4


class Load:
    """Clients' requests, their times and what was answered."""

    def __init__(self, port: int, image: bytes, seconds: float) -> None:
        self.port, self.image, self.end = port, image, time.monotonic() + seconds
        self.times: dict[str, list[float]] = {"image": [], "mask": []}
        self.answers: Counter[int] = Counter()
        self.errors: list[str] = []
        self.width, self.height = Image.open(BytesIO(image)).size

    def client(self, seed: int) -> None:
        """Ask until the time is over."""
        chance = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        while time.monotonic() < self.end:
            sent = self.ask(connection, "image", "/images", self.image)
            for _ in range(MASKS_AN_IMAGE if sent else 0):
                (x0, x1), (y0, y1) = (sorted(chance.sample(range(side), 2)) for side in (self.width, self.height))
                body = json.dumps({"prompts": [{"box": [x0, y0, x1, y1]}]}).encode()
                self.ask(connection, "mask", f"/images/{json.loads(sent)['id']}/masks", body)
        connection.close()

    def ask(self, connection: http.client.HTTPConnection, what: str, path: str, body: bytes) -> bytes:
        """Return the answer; nothing if there was none before the end."""
        while time.monotonic() < self.end:
            start = time.monotonic()
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as e:
                connection.close()
                self.errors.append(repr(e))
                return b""
            self.answers[answer.status] += 1
            if answer.status in (200, 201):
                self.times[what].append(time.monotonic() - start)
                return content
            if answer.status != 503:
                self.errors.append(f"{answer.status}: {content[:200]!r}")
                return b""
            connection.close()  # the server would, while this waits
            time.sleep(float(answer.headers["Retry-After"]))
        return b""


def memory(port: int) -> float:
    """Return the server's resident memory in MB."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    return float(found[1]) / 1e6 if found else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=8, help="images that the server keeps: few, to be filled soon")
    parser.add_argument("--queue", type=int, default=4, help="requests that may wait: fewer than clients, so that some get 503")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    words = [sys.executable, "-m", "groupmix_sam", "serve", "--port", "0", "--rate", "1000", "--checkpoint", args.checkpoint]
    words += ["--images", str(args.images), "--queue", str(args.queue)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/docs", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            port = int(found[1])
            load = Load(port, args.image.read_bytes(), args.seconds)
            threads = [threading.Thread(target=load.client, args=(seed,)) for seed in range(args.clients)]
            used = []
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                used.append(memory(port))
                time.sleep(1)
        finally:
            process.terminate()
            stopped = process.wait(120)
    quarter = max(1, len(used) // 4)
    early, late = statistics.median(used[quarter : 2 * quarter] or used), statistics.median(used[-quarter:])
    figures = {
        "machine": describe(),
        "checkpoint": Path(args.checkpoint).name,
        "clients": args.clients,
        "seconds": args.seconds,
        "answers": {str(status): count for status, count in sorted(load.answers.items())},
        "errors": len(load.errors),
        "exit_code": stopped,
        "memory_mb": {"second quarter": round(early), "last quarter": round(late), "most": round(max(used))},
        "memory_ratio": round(late / early, 3),
        "seconds_by_request": {},
    }
    for what, times in load.times.items():
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=20)
            figures["seconds_by_request"][what] = {"count": len(times), "p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"{figures['machine']}; {figures['checkpoint']}, {args.clients} clients, {args.seconds:g} s")
    for what, row in figures["seconds_by_request"].items():
        print(f"{what}: {row['count']} answers, p50 {row['p50']} s, p95 {row['p95']} s")
    print(f"answers by status: {figures['answers']}; {len(load.errors)} errors; the server's exit code was {stopped}")
    print(f"memory: {early:.0f} MB, then {late:.0f} MB ({figures['memory_ratio']}), at most {max(used):.0f} MB")
    for error in load.errors[:5]:
        print(error, file=sys.stderr)
    return 1 if load.errors or stopped else 0


if __name__ == "__main__":
    sys.exit(main())
