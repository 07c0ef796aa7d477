// From pixels to the encoder's input, and from the decoder's logits to a mask: what groupmix_sam/preprocess.py and
// groupmix_sam/inference/mask_resize.py do, to the same values.

// Pillow's fixed-point weights have this many binary digits.
const DIGITS = 22;

/** The height and width of an image whose long side becomes `size`. */
export function resizedSize(height, width, size) {
  const scale = size / Math.max(height, width);
  return [Math.trunc(height * scale + 0.5), Math.trunc(width * scale + 0.5)];
}

/** For each of `to` pixels: the first of `from` that it is made of, and their weights, as Pillow's bilinear filter has them. */
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const stop = Math.min(Math.trunc(center + support + 0.5), from);
    const shares = [];
    for (let j = first; j < stop; j++) shares.push(Math.max(1 - Math.abs((j - center + 0.5) / support), 0));
    const sum = shares.reduce((a, b) => a + b, 0);
    return [first, Int32Array.from(shares, (share) => Math.trunc((share / sum) * (1 << DIGITS) + 0.5))];
  });
}

/** Resize along one side; `step` is the distance of neighbours in `pixels`, and `line` that of the lines which go through it. */
function resizeSide(pixels, from, to, step, line, lines, out, outStep, outLine) {
  weights(from, to).forEach(([first, shares], i) => {
    for (let n = 0; n < lines; n++) {
      const start = first * step + n * line;
      const at = i * outStep + n * outLine;
      for (let channel = 0; channel < 3; channel++) {
        let sum = 1 << (DIGITS - 1);
        for (let j = 0; j < shares.length; j++) sum += pixels[start + j * step + channel] * shares[j];
        out[at + channel] = sum >> DIGITS;
      }
    }
  });
}

/** RGBA pixels, height x width x 4, resized so that the long side is `size`: the same bytes as Pillow's, but for the fourth. */
export function resize(pixels, height, width, size) {
  const [rows, columns] = resizedSize(height, width, size);
  let out = pixels;
  if (columns !== width) {
    out = new Uint8ClampedArray(4 * height * columns);
    resizeSide(pixels, width, columns, 4, 4 * width, height, out, 4, 4 * columns);
  }
  if (rows !== height) {
    const wide = out;
    out = new Uint8ClampedArray(4 * rows * columns);
    resizeSide(wide, height, rows, 4 * columns, 4, columns, out, 4 * columns, 4);
  }
  return { pixels: out, rows, columns };
}

/** The encoder's input, 3 x size x size: resized, normalised, and padded with zeros at the bottom and the right. */
export function preprocess(pixels, height, width, { image_size: size, mean, std }) {
  const resized = resize(pixels, height, width, size);
  const out = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < resized.rows; y++) {
      const row = (channel * size + y) * size;
      for (let x = 0; x < resized.columns; x++) {
        out[row + x] = (resized.pixels[4 * (y * resized.columns + x) + channel] - mean[channel]) / std[channel];
      }
    }
  }
  return out;
}

function neighbours(size, source, extent) {
  const first = new Int32Array(size);
  const share = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const middle = Math.min(Math.max(((i + 0.5) * extent) / size - 0.5, 0), source - 1);
    first[i] = Math.min(Math.trunc(middle), source - 2);
    share[i] = middle - first[i];
  }
  return { first, share };
}

/** Logits, side x side, to a mask of height x width zeros and ones; `of` is the image's own size, from which padding follows. */
export function toMask(logits, side, of, config, height, width) {
  const extents = resizedSize(of.height, of.width, config.image_size).map((pixels) => (4 * pixels) / config.embed_stride);
  const rows = neighbours(height, side, extents[0]);
  const columns = neighbours(width, side, extents[1]);
  const wide = new Float32Array(side * width);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * side + columns.first[x];
      wide[y * width + x] = logits[at] + columns.share[x] * (logits[at + 1] - logits[at]);
    }
  }
  const mask = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) {
    const above = rows.first[y] * width;
    for (let x = 0; x < width; x++) {
      const value = wide[above + x] + rows.share[y] * (wide[above + width + x] - wide[above + x]);
      mask[y * width + x] = value > config.mask_threshold ? 1 : 0;
    }
  }
  return mask;
}
