// What the page shows and does. The model runs in model.js. `?runtime=wasm` and `?runtime=webgpu` choose for it.

import { classes, measure, toCoco, toPng, toYolo } from "./formats.js";
import { toMask } from "./pixels.js";

// Okabe and Ito's palette, which is readable with colour blindness.
const COLORS = [[0, 158, 115], [230, 159, 0], [86, 180, 233], [213, 94, 0], [204, 121, 167], [240, 228, 66], [0, 114, 178]];
const SHOWN = 1600; // pixels of the long side that are drawn; files have all
const MOST_PIXELS = 50e6;
const MOST_OBJECTS = 255; // of a PNG with a palette
const DRAG = 6; // pixels of the screen from which a click is a box

const at = (id) => document.getElementById(id);
const canvas = at("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });

let config = null;
let runtime = "";
let image = null; // its canvas as shown, and the width, height and name of the file
// An object has an id, label, points, box, masks (the best first) and the number of the mask that is chosen. Objects are not
// changed but replaced, so that the history can hold them; only their masks come later.
let objects = [];
let active = null;
let history = [];
let ids = 0;
let cross = null; // where the keyboard points to
let corner = null; // a box's first corner, by the keyboard
let drag = null;
let times = {};
let listed = []; // the objects and the active one that the list shows

// The model

let worker = null;
const pending = new Map();

function ask(kind, message = {}, transfer = []) {
  return new Promise((resolve, reject) => {
    const number = ++ask.count;
    pending.set(number, { resolve, reject });
    worker.postMessage({ number, kind, ...message }, transfer);
  });
}
ask.count = 0;

async function start() {
  await isolate();
  worker = new Worker("model.js", { type: "module" });
  worker.addEventListener("error", () => fail("The model's script cannot be loaded: copy the whole folder to the server."));
  worker.addEventListener("message", ({ data }) => {
    if (data.progress !== undefined) {
      at("progress").value = data.progress;
      if (!image) say(`The model loads: ${Math.round(100 * data.progress)} %`);
      return;
    }
    const { resolve, reject } = pending.get(data.number);
    pending.delete(data.number);
    if (data.error === undefined) resolve(data.answer);
    else reject(new Error(data.error));
  });
  const wanted = new URLSearchParams(location.search).get("runtime");
  say("The model loads");
  const loaded = await ask("load", { runtime: ["wasm", "webgpu"].includes(wanted) ? wanted : null });
  config = loaded.config;
  const threads = loaded.threads === 1 ? "1 thread" : `${loaded.threads} threads`;
  runtime = loaded.runtime === "webgpu" ? "WebGPU" : `WebAssembly, ${threads}`;
  at("progress").classList.add("done");
  say("Ready: open an image.");
  showTimes();
  if (image) await encode();
}

/** Install the service worker, and load the page again through it if it lacks the headers that isolate it. */
async function isolate() {
  const service = navigator.serviceWorker;
  if (!service) return;
  const before = service.controller;
  try {
    const { installing, waiting, active } = await service.register("offline.js");
    await activated(installing ?? waiting ?? active);
  } catch (error) {
    console.warn(`The page will not work offline: ${error.message}`);
    return;
  }
  // A new export: before there is an image, nothing is lost.
  if (before) service.addEventListener("controllerchange", () => image || location.reload());
  if (!(service.controller && crossOriginIsolated) && !sessionStorage.getItem("reloaded")) {
    sessionStorage.setItem("reloaded", "once"); // a browser may refuse
    location.reload();
    await new Promise(() => {});
  }
}

function activated(serviceWorker) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (serviceWorker.state === "activated") resolve();
      if (serviceWorker.state === "redundant") reject(new Error("a file is missing, or there is no space"));
    };
    serviceWorker.addEventListener("statechange", look);
    look();
  });
}

// Images

async function open(file) {
  if (!file) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    fail(`${file.name} cannot be read as an image: convert it to PNG or JPEG.`);
    return;
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    fail(`${file.name} has ${width} x ${height} pixels, more than ${MOST_PIXELS / 1e6} million: scale it down first.`);
    return;
  }
  const scale = Math.min(1, SHOWN / Math.max(width, height));
  const shown = document.createElement("canvas");
  shown.width = canvas.width = Math.max(1, Math.round(width * scale));
  shown.height = canvas.height = Math.max(1, Math.round(height * scale));
  const drawing = shown.getContext("2d");
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, shown.width, shown.height);
  image = { shown, width, height, name: file.name || "image.png", bitmap, encoded: false };
  [objects, active, history, cross, corner] = [[], null, [], null, null];
  times = {};
  at("stage").classList.add("ready");
  canvas.tabIndex = 0;
  fit();
  canvas.setAttribute("aria-label", `${image.name}, ${width} x ${height} pixels`);
  render();
  if (config) await encode();
  else say(`The model loads: ${image.name} follows`);
}

async function encode() {
  const current = image;
  at("stage").classList.add("busy");
  say(`The encoder reads ${current.name}`);
  try {
    const { milliseconds } = await ask("encode", { bitmap: current.bitmap }, [current.bitmap]);
    if (current !== image) return;
    times.encoder = milliseconds;
    image.encoded = true;
    say(`${image.name}, ${image.width} x ${image.height} pixels. Click on an object, or drag a box around it.`);
  } catch (error) {
    if (current !== image) return;
    fail(`The encoder failed: ${error.message}`);
  }
  at("stage").classList.remove("busy");
  render();
}

// Objects

const find = (id) => objects.find((object) => object.id === id);

function remember() {
  history.push({ objects, active });
}

/** Add a prompt to the active object, or to a new one, and ask for its mask. */
async function prompt({ point = null, box = null }) {
  if (!image?.encoded) return;
  let object = box ? null : find(active);
  if (!object && point && !point.inside) {
    say("Set a point inside the object first.");
    return;
  }
  if (!object && objects.length === MOST_OBJECTS) {
    say(`${MOST_OBJECTS} objects are the most: download them and start again.`);
    return;
  }
  remember();
  const label = objects.at(-1)?.label ?? "object";
  object ??= { id: ++ids, label, points: [], box: null, masks: [], chosen: 0 };
  const next = { ...object, points: point ? [...object.points, point] : object.points, box: box ?? object.box, chosen: 0 };
  objects = objects.includes(object) ? objects.map((other) => (other === object ? next : other)) : [...objects, next];
  active = next.id;
  render();
  const current = image;
  try {
    const { logits, scores, milliseconds } = await ask("decode", { points: next.points, box: next.box });
    if (current !== image) return;
    times.decoder = milliseconds;
    const masks = rank(next, logits, scores);
    const same = ({ id, points, box }) => id === next.id && points === next.points && box === next.box;
    // Its class or choice may have changed meanwhile, and with it the record.
    for (const object of [{ objects }, ...history].flatMap((state) => state.objects)) if (same(object)) object.masks = masks;
    next.masks = masks;
  } catch (error) {
    fail(`The decoder failed: ${error.message}`);
    return;
  }
  const shown = find(next.id);
  if (shown?.masks === next.masks) describe(shown);
  render();
}

/** The masks of a prompt, the best first. One point may mean a part or the whole: then it is the best of three. */
function rank({ points, box }, logits, scores) {
  const three = [1, 2, 3].sort((a, b) => scores[b] - scores[a]);
  const order = points.length === 1 && !box ? three : [0, ...three];
  return order.map((i) => ({ logits: logits[i], score: scores[i] }));
}

function maskOf({ masks, chosen }, height, width) {
  const { logits } = masks[chosen];
  return toMask(logits, Math.sqrt(logits.length), image, config, height, width);
}

/** The mask as it is drawn, which is kept. */
function drawnMask(object) {
  const found = object.masks[object.chosen];
  found.drawn ??= maskOf(object, canvas.height, canvas.width);
  return found.drawn;
}

function describe(object) {
  const { score } = object.masks[object.chosen];
  const share = (100 * measure(drawnMask(object), canvas.height, canvas.width).area) / (canvas.width * canvas.height);
  say(`Object ${objects.indexOf(object) + 1}: its mask covers ${share.toFixed(1)} % of the image, predicted IoU ${score.toFixed(2)}.`);
}

function startNew() {
  active = null;
  say("Click on the next object, or drag a box around it.");
  render();
}

function chooseOther() {
  const object = find(active);
  if (!object?.masks.length) return;
  remember();
  const next = { ...object, chosen: (object.chosen + 1) % object.masks.length };
  objects = objects.map((other) => (other === object ? next : other));
  describe(next);
  render();
}

function undo() {
  if (!history.length) return;
  ({ objects, active } = history.pop());
  const object = find(active);
  if (object?.masks.length) describe(object);
  else say("Click on an object, or drag a box around it.");
  render();
}

// Drawing

/** Let the image fill the stage. */
function fit() {
  if (!image) return;
  const { clientWidth, clientHeight } = at("stage");
  const scale = Math.min(clientWidth / canvas.width, clientHeight / canvas.height);
  canvas.style.width = `${canvas.width * scale}px`;
  canvas.style.height = `${canvas.height * scale}px`;
}

function render() {
  if (!image) return;
  const { width, height } = canvas;
  context.drawImage(image.shown, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  objects.forEach((object, i) => object.masks.length && tint(pixels.data, drawnMask(object), COLORS[i % COLORS.length]));
  context.putImageData(pixels, 0, 0);
  const unit = width / (canvas.clientWidth || width);
  context.lineWidth = 2 * unit;
  const scale = width / image.width;
  const object = find(active);
  if (object?.box) outline(object.box.map((value) => value * scale));
  if (drag?.box) outline(drag.box.map((value) => value * scale));
  for (const { x, y, inside } of object?.points ?? []) dot(x * scale, y * scale, inside, unit);
  if (cross && document.activeElement === canvas) drawCross(cross.x * scale, cross.y * scale, unit);
  if (corner) dot(corner.x * scale, corner.y * scale, true, unit);
  list();
  showTimes();
  for (const id of ["save-png", "save-coco", "save-yolo"]) at(id).disabled = !finished().length;
  at("kind").disabled = !image.encoded;
  at("new").disabled = active === null;
  at("other").disabled = !object?.masks.length;
  at("undo").disabled = !history.length;
}

function tint(data, mask, color) {
  const { width, height } = canvas;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!mask[i]) continue;
      const edge = !x || !y || x === width - 1 || y === height - 1 || !(mask[i - 1] && mask[i + 1] && mask[i - width] && mask[i + width]);
      const share = edge ? 1 : 0.5;
      for (let channel = 0; channel < 3; channel++) data[4 * i + channel] += share * (color[channel] - data[4 * i + channel]);
    }
  }
}

function outline([x0, y0, x1, y1]) {
  for (const [style, dash] of [["#000", []], ["#fff", [8, 6]]]) {
    context.strokeStyle = style;
    context.setLineDash(dash.map((part) => (part * context.lineWidth) / 2));
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

/** A point: a green plus inside, a red minus outside; not by colour alone. */
function dot(x, y, inside, unit) {
  context.beginPath();
  context.arc(x, y, 8 * unit, 0, 2 * Math.PI);
  context.fillStyle = inside ? "#0a7d3c" : "#c22121";
  context.strokeStyle = "#fff";
  context.fill();
  context.stroke();
  context.beginPath();
  context.moveTo(x - 4 * unit, y);
  context.lineTo(x + 4 * unit, y);
  if (inside) {
    context.moveTo(x, y - 4 * unit);
    context.lineTo(x, y + 4 * unit);
  }
  context.stroke();
}

function drawCross(x, y, unit) {
  for (const [style, size] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = style;
    context.lineWidth = size * unit;
    context.beginPath();
    context.moveTo(x - 16 * unit, y);
    context.lineTo(x + 16 * unit, y);
    context.moveTo(x, y - 16 * unit);
    context.lineTo(x, y + 16 * unit);
    context.stroke();
  }
}

function list() {
  if (listed[0] === objects && listed[1] === active) return; // a new list takes the focus from what is being typed
  listed = [objects, active];
  const focused = document.activeElement?.id;
  at("none").hidden = objects.length > 0;
  at("objects").replaceChildren(
    ...objects.map((object, i) => {
      const item = document.createElement("li");
      item.className = object.id === active ? "active" : "";
      const swatch = document.createElement("button");
      swatch.className = "swatch";
      swatch.id = `select-${object.id}`;
      swatch.textContent = i + 1;
      swatch.setAttribute("aria-label", `Go on with object ${i + 1}`);
      swatch.setAttribute("aria-pressed", object.id === active);
      const [red, green, blue] = COLORS[i % COLORS.length];
      swatch.style.background = `rgb(${red}, ${green}, ${blue})`;
      swatch.style.color = "#000";
      swatch.addEventListener("click", () => {
        active = object.id;
        render();
      });
      const label = document.createElement("input");
      label.id = `label-${object.id}`;
      label.value = object.label;
      label.setAttribute("aria-label", `Class of object ${i + 1}`);
      label.addEventListener("change", () => {
        remember();
        const next = { ...object, label: label.value.trim() || "object" };
        objects = objects.map((other) => (other.id === object.id ? next : other));
        render();
      });
      const remove = document.createElement("button");
      remove.id = `remove-${object.id}`;
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Remove object ${i + 1}`);
      remove.addEventListener("click", () => {
        remember();
        objects = objects.filter((other) => other.id !== object.id);
        if (active === object.id) active = null;
        say(`Object ${i + 1} is removed.`);
        render();
        canvas.focus();
      });
      item.append(swatch, label, remove);
      return item;
    }),
  );
  if (focused && document.activeElement?.id !== focused) at(focused)?.focus();
}

function showTimes() {
  const parts = [`Runtime: ${runtime || "not loaded"}.`];
  if (times.encoder) parts.push(`Encoder: ${Math.round(times.encoder)} ms an image.`);
  if (times.decoder) parts.push(`Decoder: ${Math.round(times.decoder)} ms a prompt.`);
  at("times").textContent = parts.join(" ");
}

function say(text) {
  at("status").className = "";
  at("status").textContent = text;
}

function fail(text) {
  at("status").className = "error";
  at("status").textContent = text;
}

// Files

const finished = () => objects.filter((object) => object.masks.length);

function results() {
  return finished().map((object) => {
    const { label, masks, chosen } = object;
    return { label, score: masks[chosen].score, mask: maskOf(object, image.height, image.width) };
  });
}

async function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: "text/plain" }));
  link.download = image.name.replace(/\.[^.]*$/, "") + name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The number of the object at each pixel, 0 for none; smaller objects cover larger ones. */
function savePng() {
  const { width, height } = image;
  const masks = results().map(({ mask }, i) => ({ mask, number: i + 1, ...measure(mask, height, width) }));
  const values = new Uint8Array(width * height);
  for (const { mask, number } of masks.sort((a, b) => b.area - a.area)) {
    for (let i = 0; i < mask.length; i++) if (mask[i]) values[i] = number;
  }
  const palette = [[0, 0, 0], ...Array.from({ length: MOST_OBJECTS }, (_, i) => COLORS[i % COLORS.length])];
  toPng(values, height, width, palette).then((png) => save("_mask.png", png));
}

function saveCoco() {
  save(".json", JSON.stringify(toCoco(results(), image.name, image.height, image.width)));
}

function saveYolo() {
  const found = results();
  save(".txt", toYolo(found, image.height, image.width));
  say(`The classes are ${classes(found).map((label, i) => `${i}: ${label}`).join(", ")}.`);
}

// Input

/** The image's pixel at a place of the screen. */
function place({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  return {
    x: clip(((clientX - box.left) / box.width) * image.width - 0.5, image.width - 1),
    y: clip(((clientY - box.top) / box.height) * image.height - 0.5, image.height - 1),
  };
}

const isInside = (event) => !(event.shiftKey || event.button === 2) && document.querySelector("[name=kind]:checked").value === "1";
const spanned = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];

canvas.addEventListener("pointerdown", (event) => {
  if (!image?.encoded || !event.isPrimary || event.button === 1) return;
  cross = null;
  drag = { start: place(event), from: event, inside: isInside(event), box: null };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag || !event.isPrimary) return;
  const far = Math.max(Math.abs(event.clientX - drag.from.clientX), Math.abs(event.clientY - drag.from.clientY)) > DRAG;
  if (!far && !drag.box) return;
  drag.box = spanned(drag.start, place(event));
  requestAnimationFrame(render);
});
canvas.addEventListener("pointerup", (event) => {
  if (!drag || !event.isPrimary) return;
  const { start, inside, box } = drag;
  drag = null;
  if (!box) prompt({ point: { ...start, inside } });
  else if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) prompt({ box });
});
canvas.addEventListener("pointercancel", () => {
  drag = null;
  render();
});
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("blur", render);
canvas.addEventListener("keydown", (event) => {
  if (!image?.encoded || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = arrows[event.key];
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  if (step) {
    cross ??= { x: (image.width - 1) / 2, y: (image.height - 1) / 2 };
    const size = (event.shiftKey ? 0.05 : 0.005) * Math.max(image.width, image.height);
    cross = { x: clip(cross.x + step[0] * size, image.width - 1), y: clip(cross.y + step[1] * size, image.height - 1) };
    say(`Cross at ${Math.round(cross.x)}, ${Math.round(cross.y)}.`);
    render();
  } else if (cross && (event.key === "Enter" || event.key === "Backspace")) {
    prompt({ point: { ...cross, inside: event.key === "Enter" } });
  } else if (cross && event.key.toLowerCase() === "b") {
    if (corner) {
      const box = spanned(corner, cross);
      corner = null;
      if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) prompt({ box });
      else say("The box has no area: move the cross first.");
    } else {
      corner = cross;
      say("Move the cross to the opposite corner, and press B again.");
    }
    render();
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement && event.target.type !== "radio") return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && key === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key === "n" && active !== null) startNew();
  else if (key === "m") chooseOther();
  else return;
  event.preventDefault();
});
at("file").addEventListener("change", ({ target }) => {
  open(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", ({ clipboardData }) => open(clipboardData.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
addEventListener("dragleave", () => at("stage").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  open(event.dataTransfer.files[0]);
});
addEventListener("resize", () => {
  fit();
  render();
});
at("new").addEventListener("click", startNew);
at("other").addEventListener("click", chooseOther);
at("undo").addEventListener("click", undo);
at("save-png").addEventListener("click", savePng);
at("save-coco").addEventListener("click", saveCoco);
at("save-yolo").addEventListener("click", saveYolo);

start().catch((error) => fail(`The model cannot be loaded: ${error.message}`));
