// The page: a click on the image segments the object there; AutoMask segments everything.

import { Client } from "./client.js";
import { Overlay } from "./overlay.js";

const { server, token, image } = document.forms.namedItem("connection").elements;
const { clear, everything, cancel } = document.forms.namedItem("actions").elements;
const canvas = document.querySelector("canvas");
const status = document.querySelector("#status");
const progress = document.querySelector("progress");

server.value = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8080";

/** The image on the page, its embedding, and the prompt so far. */
let client, file, overlay, embedding, points, logits;
/** Cancels the call in progress. */
let current = new AbortController();

image.addEventListener("change", () =>
  run("Encoding ...", async (signal) => {
    [embedding, points, logits] = [undefined, [], undefined];
    overlay = new Overlay(canvas, await createImageBitmap(image.files[0]));
    file = new Uint8Array(await image.files[0].arrayBuffer());
    client = new Client(server.value, { token: token.value });
    embedding = await client.embed(file, { signal });
    return `${embedding.width} x ${embedding.height}, ready`;
  }),
);

canvas.addEventListener("click", (event) => {
  if (!embedding) return;
  points.push({ ...overlay.position(event), foreground: !event.shiftKey });
  run("Segmenting ...", async (signal) => {
    // The first point is ambiguous: the best of three masks. Further points refine that one.
    const options = { multimask: logits ? "SINGLE" : "ALL", logits: true, file, signal };
    const [masks] = await client.predict(embedding.id, [{ points, logits }], options);
    const best = masks.reduce((a, b) => (a.predictedIou > b.predictedIou ? a : b));
    logits = best.lowResLogits;
    overlay.clear();
    overlay.add(best);
    overlay.draw(points);
    return `${best.area} pixels, predicted IoU ${best.predictedIou.toFixed(2)}`;
  });
});

clear.addEventListener("click", () => {
  if (!embedding) return;
  current.abort();
  [points, logits] = [[], undefined];
  overlay.clear();
  status.textContent = "";
});

everything.addEventListener("click", () => {
  if (!embedding) return;
  clear.click();
  run("Segmenting everything ...", async (signal) => {
    let summary;
    progress.hidden = false;
    try {
      for await (const event of client.automask(file, { signal })) {
        if (event.kind === "progress") [progress.value, progress.max] = [event.done, event.total];
        if (event.kind === "mask") overlay.add(event.mask);
        if (event.kind === "summary") summary = `${event.maskCount} masks`;
      }
    } finally {
      progress.hidden = true;
      overlay.draw(points);
    }
    return summary;
  });
});

cancel.addEventListener("click", () => current.abort());

/** Run an action instead of the current one, and report its result or its error. */
async function run(title, action) {
  current.abort();
  const mine = (current = new AbortController());
  report(title, false);
  cancel.disabled = false;
  let result;
  try {
    result = [await action(mine.signal), false];
  } catch (error) {
    result = mine.signal.aborted ? ["Cancelled", false] : [describe(error), true];
  }
  if (mine !== current) return; // another action has begun
  cancel.disabled = true;
  report(...result);
}

function report(text, failed) {
  status.textContent = text;
  status.classList.toggle("error", failed);
}

function describe({ code, reason, message, fieldViolations = [] }) {
  const fields = fieldViolations.map(({ field, description }) => `${field}: ${description}`);
  return [`${reason || code || "error"}: ${message}`, ...fields].join("\n");
}
