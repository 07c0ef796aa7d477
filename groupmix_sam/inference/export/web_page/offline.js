// A service worker with two tasks. It keeps the files, so that the page works without a network after its first visit. It adds
// the headers that isolate the page, so that WebAssembly gets threads on hosts that serve files and no headers.

const VERSION = "development"; // `groupmix-sam export web` writes a hash of all files here: another one makes another cache
const CACHE = `groupmix-sam ${registration.scope} ${VERSION}`;
const SHELL = ["./", "style.css", "icon.svg", "page.js", "pixels.js", "formats.js", "model.js", "site.json", "model/config.json"];
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; img-src 'self'; " +
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
  "X-Content-Type-Options": "nosniff",
};

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(Promise.all(SHELL.map((name) => load(new URL(name, registration.scope)).then(({ kept }) => kept))));
});

addEventListener("activate", (event) => {
  const old = (name) => name.startsWith(`groupmix-sam ${registration.scope} `) && name !== CACHE;
  const clean = async () => {
    await Promise.all((await caches.keys()).filter(old).map((name) => caches.delete(name)));
    await clients.claim();
  };
  event.waitUntil(clean());
});

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method !== "GET" || !url.startsWith(registration.scope)) return;
  const answer = async () => {
    const cached = await (await caches.open(CACHE)).match(url, { ignoreSearch: true });
    if (cached) return cached;
    const { response, kept } = await load(url);
    event.waitUntil(kept);
    return response;
  };
  event.respondWith(answer());
});

/** Fetch a file anew; return it with the headers, and when it is kept. */
async function load(url) {
  const found = await fetch(url, { cache: "no-cache", credentials: "same-origin" });
  const headers = new Headers(found.headers);
  for (const name of ["Content-Encoding", "Content-Length"]) headers.delete(name); // the body is unpacked already
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const response = new Response(found.body, { status: found.status, statusText: found.statusText, headers });
  if (found.status !== 200) return { response, kept: Promise.resolve() };
  const copy = response.clone();
  const keep = async () => (await caches.open(CACHE)).put(new URL(url).href.split("?")[0], copy);
  return { response, kept: keep().catch((error) => console.warn(`${url} is not kept: ${error}`)) }; // no space, say
}
