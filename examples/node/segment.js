// The mask of what is in a box, by a folder that `groupmix-sam export onnx` wrote:
//
//     node segment.js exported/ photo.jpg 170,16,420,312 mask.png
//
// mask.png has the image's size, 255 inside and 0 outside.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import ort from "onnxruntime-node";
import sharp from "sharp";

// Resizes the width of an image of height x width x 3, and swaps its rows and columns: done twice, it resizes both. As Pillow's
// bilinear filter does, with whose pixels the weights were trained: each pixel is the mean of those below a triangle, which is
// wider where the image shrinks.
function resizeAndSwap({ pixels, height, width }, to) {
    const out = new Uint8Array(3 * to * height);
    const scale = width / to;
    const support = Math.max(scale, 1);
    for (let x = 0; x < to; x++) {
        const center = (x + 0.5) * scale;
        const first = Math.max(0, Math.trunc(center - support + 0.5));
        const end = Math.min(width, Math.trunc(center + support + 0.5));
        const weights = [];
        for (let i = first; i < end; i++) weights.push(Math.max(0, 1 - Math.abs(i + 0.5 - center) / support));
        const total = weights.reduce((a, b) => a + b);
        for (let y = 0; y < height; y++) {
            for (let c = 0; c < 3; c++) {
                let sum = 0;
                for (let i = first; i < end; i++) sum += weights[i - first] * pixels[3 * (y * width + i) + c];
                out[3 * (x * height + y) + c] = Math.floor(sum / total + 0.5);
            }
        }
    }
    return { pixels: out, height: to, width: height };
}

// Returns where each of `size` pixels lies among `count` logits, the first `extent` of which are the image's.
function places(size, extent, count) {
    return Array.from({ length: size }, (_, i) => {
        const at = Math.min(Math.max(((i + 0.5) * extent) / size - 0.5, 0), count - 1);
        const first = Math.min(Math.trunc(at), count - 2);
        return { first, share: at - first };
    });
}

async function main(folder, photo, corners, output) {
    const box = (corners ?? "").split(",").map(Number);
    if (!output || box.length !== 4 || !box.every(Number.isFinite)) {
        throw new Error("usage: node segment.js FOLDER IMAGE left,top,right,bottom MASK.png");
    }
    const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
    const [rows, columns] = config.input_size;
    const [encoder, image, decoder] = await Promise.all(
        ["encoder", "image", "decoder"].map((part) => ort.InferenceSession.create(join(folder, `${part}.onnx`))),
    );

    // Read the image, turned upright by its EXIF data; its colours are taken as they are stored.
    const read = sharp(photo, { ignoreIcc: true }).autoOrient().toColourspace("srgb").removeAlpha().raw();
    const { data, info } = await read.toBuffer({ resolveWithObject: true });

    // Resize the long side to the model's, normalise, and pad with zeros at the right and at the bottom.
    const scale = config.image_size / Math.max(info.height, info.width);
    const height = Math.trunc(info.height * scale + 0.5);
    const width = Math.trunc(info.width * scale + 0.5);
    if (Math.min(height, width) < 1 || height > rows || width > columns) {
        throw new Error("the folder was exported for images of another shape");
    }
    const small = resizeAndSwap(resizeAndSwap({ pixels: data, height: info.height, width: info.width }, width), height);
    const input = new Float32Array(3 * rows * columns);
    for (let c = 0; c < 3; c++) {
        for (let y = 0; y < height; y++) {
            for (let x = 0; x < width; x++) {
                const value = small.pixels[3 * (y * width + x) + c];
                input[(c * rows + y) * columns + x] = (value - config.mean[c]) / config.std[c];
            }
        }
    }

    // Encode, once for an image; then decode, once for a prompt. A box is two points, with the labels 2 and 3.
    const encoded = await encoder.run({ images: new ort.Tensor("float32", input, [1, 3, rows, columns]) });
    const tokens = await image.run(encoded);
    const points = box.map((value, i) => (i % 2 ? (value * height) / info.height : (value * width) / info.width));
    const { logits, scores } = await decoder.run({
        ...tokens,
        points: new ort.Tensor("float32", Float32Array.from(points), [1, 2, 2]),
        labels: new ort.Tensor("float32", Float32Array.from([2, 3]), [1, 2]),
    });

    // The first of four masks is the one for a box. Resize its logits to the image; they are over the threshold inside.
    const [, , high, wide] = logits.dims;
    const across = places(info.width, (width * wide) / columns, wide);
    const mask = Buffer.alloc(info.height * info.width);
    places(info.height, (height * high) / rows, high).forEach((row, y) => {
        across.forEach((column, x) => {
            const at = row.first * wide + column.first;
            const [p, q, r, s] = [at, at + 1, at + wide, at + wide + 1].map((i) => logits.data[i]);
            const above = p + column.share * (q - p);
            const below = r + column.share * (s - r);
            if (above + row.share * (below - above) > config.mask_threshold) mask[y * info.width + x] = 255;
        });
    });
    await sharp(mask, { raw: { height: info.height, width: info.width, channels: 1 } }).toColourspace("b-w").png().toFile(output);
    console.log(`score ${scores.data[0].toFixed(4)}`);
}

main(...process.argv.slice(2)).catch((error) => {
    console.error(`segment: ${error.message}`);
    process.exitCode = 1;
});
