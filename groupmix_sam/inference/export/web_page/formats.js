// Masks as files: an index PNG, a COCO file, YOLO labels. They are what groupmix_sam/annotations writes and reads.

/** A mask, height x width zeros and ones, as the string of COCO's compressed run lengths, which go column by column. */
export function toRle(mask, height, width) {
  const counts = [];
  let value = 0;
  let count = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (mask[y * width + x] !== value) {
        counts.push(count);
        value = 1 - value;
        count = 0;
      }
      count++;
    }
  }
  counts.push(count);
  let text = "";
  counts.forEach((run, i) => {
    let rest = i > 2 ? run - counts[i - 2] : run;
    for (let more = true; more; ) {
      const bits = rest & 31;
      rest >>= 5;
      more = rest !== (bits & 16 ? -1 : 0);
      text += String.fromCharCode((more ? bits | 32 : bits) + 48);
    }
  });
  return text;
}

/** The window of a mask: left, top, width and height; and its area. */
export function measure(mask, height, width) {
  let [x0, y0, x1, y1, area] = [width, height, 0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (mask[y * width + x]) {
        area++;
        x0 = Math.min(x0, x);
        x1 = Math.max(x1, x + 1);
        y0 = Math.min(y0, y);
        y1 = y + 1;
      }
    }
  }
  return { bbox: area ? [x0, y0, x1 - x0, y1 - y0] : [0, 0, 0, 0], area };
}

/** Objects with `label`, `score` and `mask` as the content of a COCO file; `name` is the image's. */
export function toCoco(objects, name, height, width) {
  const labels = classes(objects);
  return {
    images: [{ id: 1, file_name: name, width, height }],
    annotations: objects.map(({ label, score, mask }, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: labels.indexOf(label) + 1,
      segmentation: { size: [height, width], counts: toRle(mask, height, width) },
      ...measure(mask, height, width),
      iscrowd: 0,
      score,
    })),
    categories: labels.map((label, i) => ({ id: i + 1, name: label })),
  };
}

/** The labels that occur, in order. */
export function classes(objects) {
  return [...new Set(objects.map((object) => object.label))];
}

/** A line per object: its class and one polygon, whose points are from 0 to 1. Empty masks are left out. */
export function toYolo(objects, height, width) {
  const labels = classes(objects);
  return objects
    .map(({ label, mask }) => [labels.indexOf(label), joinRings(toRings(mask, height, width))])
    .filter(([, ring]) => ring.length)
    .map(([kind, ring]) => `${kind} ${ring.map(([x, y]) => `${(x / width).toFixed(6)} ${(y / height).toFixed(6)}`).join(" ")}\n`)
    .join("");
}

/** Outlines and holes of a mask, as rings of pixels of the mask, simplified by a pixel; the longest ring comes first. */
export function toRings(mask, height, width) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const seen = new Uint8Array((height + 1) * (width + 1));
  // Along the edges between pixels, clockwise around the mask: right, down, left, up.
  const steps = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  // The pixels ahead on the right and on the left of a corner, by direction.
  const right = [[0, 0], [-1, 0], [-1, -1], [0, -1]];
  const left = [[0, -1], [0, 0], [-1, 0], [-1, -1]];
  const rings = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      // Every ring has an edge that runs to the right, with the mask below it.
      if (!inside(x, y) || inside(x, y - 1) || seen[y * (width + 1) + x]) continue;
      const ring = [];
      let [at, to, direction] = [x, y, 0];
      do {
        if (direction === 0) seen[to * (width + 1) + at] = 1;
        const pixel = [at + right[direction][0], to + right[direction][1]];
        const last = ring.at(-1);
        if (!last || last[0] !== pixel[0] || last[1] !== pixel[1]) ring.push(pixel);
        at += steps[direction][0];
        to += steps[direction][1];
        // Pixels that touch at a corner are of one part.
        if (inside(at + left[direction][0], to + left[direction][1])) direction = (direction + 3) % 4;
        else if (!inside(at + right[direction][0], to + right[direction][1])) direction = (direction + 1) % 4;
      } while (at !== x || to !== y || direction !== 0);
      rings.push(simplify(ring));
    }
  }
  rings.sort((a, b) => b.length - a.length);
  const kept = rings.filter((ring, i) => i === 0 || ring.length > 2);
  // Most tools refuse a polygon of fewer than three points.
  if (kept.length) while (kept[0].length < 3) kept[0].push(kept[0].at(-1));
  return kept;
}

/** A closed ring with fewer points, no more than a pixel off: Douglas and Peucker's way. */
function simplify(ring) {
  const far = (from, index) => (ring[index][0] - from[0]) ** 2 + (ring[index][1] - from[1]) ** 2;
  let split = 0;
  ring.forEach((_, i) => {
    if (far(ring[0], i) > far(ring[0], split)) split = i;
  });
  const points = [...ring, ring[0]];
  const keep = new Set([0, split]);
  const parts = [[0, split], [split, ring.length]];
  while (parts.length) {
    const [start, stop] = parts.pop();
    const [[ax, ay], [bx, by]] = [points[start], points[stop]];
    const length = Math.hypot(bx - ax, by - ay);
    let [most, at] = [1, -1];
    for (let i = start + 1; i < stop; i++) {
      const [x, y] = points[i];
      const off = length ? Math.abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length : Math.hypot(x - ax, y - ay);
      if (off > most) [most, at] = [off, i];
    }
    if (at >= 0) {
      keep.add(at);
      parts.push([start, at], [at, stop]);
    }
  }
  return ring.filter((_, i) => keep.has(i));
}

/** One ring through all rings, which are joined by cuts of no width between nearest points. */
function joinRings(rings) {
  let [path, ...others] = rings.length ? rings : [[]];
  for (const ring of others) {
    let [least, at, start] = [Infinity, 0, 0];
    path.forEach(([x, y], i) => {
      ring.forEach(([u, v], j) => {
        const distance = (x - u) ** 2 + (y - v) ** 2;
        if (distance < least) [least, at, start] = [distance, i, j];
      });
    });
    const turned = [...ring.slice(start), ...ring.slice(0, start), ring[start]];
    path = [...path.slice(0, at + 1), ...turned, ...path.slice(at)];
  }
  return path;
}

/** Bytes, height x width, as a PNG with a palette of RGB colours. */
export async function toPng(values, height, width, palette) {
  const rows = new Uint8Array(height * (width + 1)); // each row opens with its filter, none
  for (let y = 0; y < height; y++) rows.set(values.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const header = new Uint8Array([...bytes(width), ...bytes(height), 8, 3, 0, 0, 0]);
  return new Blob(
    [
      new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]),
      chunk("IHDR", header),
      chunk("PLTE", Uint8Array.from(palette.flat())),
      chunk("IDAT", new Uint8Array(await packed.arrayBuffer())),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}

function bytes(number) {
  return [number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];
}

function chunk(name, data) {
  const body = Uint8Array.from([...name].map((letter) => letter.charCodeAt(0)));
  const out = new Uint8Array(12 + data.length);
  out.set(bytes(data.length));
  out.set(body, 4);
  out.set(data, 8);
  out.set(bytes(crc32(out.subarray(4, 8 + data.length))), 8 + data.length);
  return out;
}

function crc32(data) {
  let crc = -1;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ -1) >>> 0;
}
