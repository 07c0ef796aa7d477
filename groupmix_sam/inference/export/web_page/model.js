// The model, in a worker, so that the page answers while it computes. Messages in: load, encode, decode. Messages out: progress,
// and one answer for each message in, with its number.

import { preprocess, resizedSize } from "./pixels.js";

const PARTS = ["encoder", "image", "decoder"];
// One build runs on WebGPU, the other on the processor and is half as large.
const BUILDS = { webgpu: "ort-wasm-simd-threaded.asyncify", wasm: "ort-wasm-simd-threaded" };
// How far a GPU may be off what ONNX Runtime computed when the page was exported.
const TOLERANCE = 0.05;
const PATIENCE = 30_000; // milliseconds that a GPU may take to compile the model and to compute once

let ort, config, sessions, tokens, size;

const handlers = {
  async load({ runtime }) {
    const site = await (await fetch("site.json")).json();
    config = await (await fetch("model/config.json")).json();
    const names = runtime ? [runtime] : (await hasGpu()) ? ["webgpu", "wasm"] : ["wasm"];
    for (const name of names) {
      try {
        await start(name, site, name !== names.at(-1));
        const threads = name === "wasm" ? ort.env.wasm.numThreads : 0;
        const { image_size, embed_stride, mask_threshold } = config;
        return { runtime: name, threads, config: { image_size, embed_stride, mask_threshold } };
      } catch (error) {
        if (name === names.at(-1)) throw error;
        console.warn(`${name} is not used: ${error.message}`);
      }
    }
  },

  async encode({ bitmap }) {
    const { width, height } = bitmap;
    if (Math.min(...resizedSize(height, width, config.image_size)) < 1) throw new Error("it is too narrow: cut it into parts.");
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = context.getImageData(0, 0, width, height).data;
    const start = performance.now();
    tokens = await encode(preprocess(pixels, height, width, config));
    size = [height, width];
    return { milliseconds: performance.now() - start };
  },

  async decode({ points, box }) {
    const start = performance.now();
    const [rows, columns] = resizedSize(...size, config.image_size);
    const [scaleX, scaleY] = [columns / size[1], rows / size[0]];
    const coords = points.flatMap(({ x, y }) => [x * scaleX, y * scaleY]);
    const labels = points.map(({ inside }) => (inside ? 1 : 0));
    if (box) {
      coords.push(box[0] * scaleX, box[1] * scaleY, box[2] * scaleX, box[3] * scaleY);
      labels.push(2, 3);
    } else {
      coords.push(0, 0);
      labels.push(-1);
    }
    const { logits, scores } = await decode(tokens, coords, labels);
    return { logits, scores, milliseconds: performance.now() - start };
  },
};

/** Whether there is a GPU; a browser may offer a slow imitation of one. */
async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

/** Load the runtime and the model, with progress, and try the GPU by a result that is known. */
async function start(runtime, site, hasOther) {
  const build = `runtime/${BUILDS[runtime]}`;
  const files = [`${build}.wasm`, ...PARTS.map((part) => `model/${part}.onnx`)];
  const total = files.reduce((sum, name) => sum + site.files[name], 0);
  let loaded = 0;
  const progress = (bytes) => postMessage({ progress: Math.min((loaded += bytes) / total, 1) });
  const [wasm, ...models] = await Promise.all(files.map((name) => download(name, site.files[name], progress)));
  ort = await import(`./runtime/ort.${runtime}.min.js`);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = { mjs: new URL(`${build}.js`, location.href).href };
  ort.env.wasm.wasmBinary = wasm;
  // Without cross-origin isolation there is no memory that threads could share.
  ort.env.wasm.numThreads = runtime === "wasm" && self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  sessions = {};
  for (const [i, part] of PARTS.entries()) {
    sessions[part] = await ort.InferenceSession.create(models[i], { executionProviders: [runtime] });
  }
  if (runtime !== "webgpu") return;
  const late = (_, reject) => setTimeout(() => reject(new Error(`it takes longer than ${PATIENCE / 1000} s`)), PATIENCE);
  await Promise.race([probe(site.probe), ...(hasOther ? [new Promise(late)] : [])]);
}

async function download(name, length, progress) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}): copy the whole folder to the server.`);
  const out = new Uint8Array(length);
  const reader = response.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > length) break;
    out.set(part.value, at);
    at += part.value.length;
    progress(part.value.length);
  }
  if (at !== length) throw new Error(`${name} is not the file that was exported: copy the whole folder again.`);
  return out;
}

/** Throw if the scores and logits of a pattern are not those that were computed when the page was exported. */
async function probe(expected) {
  const side = config.image_size;
  const image = await encode(Float32Array.from({ length: 3 * side * side }, (_, i) => (i % 97) / 48.5 - 1));
  const { logits, scores } = await decode(image, [side / 2, side / 2, 0, 0], [1, -1]);
  const means = Array.from(logits, (mask) => mask.reduce((sum, value) => sum + value, 0) / mask.length);
  const off = (got, wanted) => Math.max(...wanted.map((value, i) => Math.abs(got[i] - value) / Math.max(1, Math.abs(value))));
  const worst = Math.max(off(scores, expected.scores), off(means, expected.logits));
  if (!(worst < TOLERANCE)) throw new Error(`the GPU computes something else (off by ${worst})`);
}

async function encode(images) {
  const { image_size: side } = config;
  const { features } = await sessions.encoder.run({ images: new ort.Tensor("float32", images, [1, 3, side, side]) });
  return sessions.image.run({ features });
}

async function decode(image, coords, labels) {
  const out = await sessions.decoder.run({
    ...image,
    points: new ort.Tensor("float32", Float32Array.from(coords), [1, labels.length, 2]),
    labels: new ort.Tensor("float32", Float32Array.from(labels), [1, labels.length]),
  });
  const length = out.logits.dims[2] * out.logits.dims[3];
  return {
    logits: Array.from({ length: 4 }, (_, i) => out.logits.data.slice(i * length, (i + 1) * length)),
    scores: [...out.scores.data],
  };
}

async function answer({ number, kind, ...message }) {
  try {
    postMessage({ number, answer: await handlers[kind](message) });
  } catch (error) {
    postMessage({ number, error: error.message });
  }
}

let last = Promise.resolve();
self.addEventListener("message", ({ data }) => {
  last = last.then(() => answer(data)); // the runtime does one thing at a time
});
