// Segments a photo: node demo.js HOST:PORT PHOTO X,Y [--automask] [--ca FILE] [--token KEY]

import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { Client, SamserveError } from "./client.js";
import { toPng } from "./png.js";

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { automask: { type: "boolean" }, ca: { type: "string" }, token: { type: "string" } },
  });
  const [target, photo, position] = positionals;
  if (!position) throw new TypeError("usage: node demo.js HOST:PORT PHOTO X,Y [--automask]");
  const [x, y] = position.split(",").map(Number);
  const ca = values.ca ? await readFile(values.ca) : undefined;
  const token = values.token ?? process.env.SAMSERVE_CLIENT_TOKEN;
  const client = new Client(target, { ca, token });
  try {
    const image = await client.embed(await readFile(photo));
    console.log(`${photo}: ${image.width} x ${image.height}, ${image.model}, cached: ${image.cached}`);
    await predict(client, image.id, { x, y });
    if (values.automask) await automask(client, image.id);
  } finally {
    client.close();
  }
}

/** Write the best mask of a point to mask.png, and the refined one to refined.png. */
async function predict(client, embeddingId, point) {
  const [candidates] = await client.predict(embeddingId, [{ points: [point] }], {
    multimask: "ALL",
    logits: true,
  });
  const best = candidates.reduce((a, b) => (a.predictedIou > b.predictedIou ? a : b));
  await save("mask.png", best);
  const prompt = { points: [point], logits: best.lowResLogits };
  const [[refined]] = await client.predict(embeddingId, [prompt], { multimask: "SINGLE" });
  await save("refined.png", refined);
}

async function save(name, mask) {
  await writeFile(name, toPng(mask));
  console.log(`${name}: ${mask.area} pixels, predicted IoU ${mask.predictedIou.toFixed(3)}`);
}

/** Count all masks of the image; Ctrl-C cancels the call. */
async function automask(client, embeddingId) {
  const abort = new AbortController();
  process.once("SIGINT", () => abort.abort());
  for await (const event of client.automask(embeddingId, { signal: abort.signal })) {
    if (event.kind === "progress") process.stderr.write(`\r${event.done} of ${event.total} points`);
    if (event.kind === "summary") console.log(`\n${event.maskCount} masks`);
  }
}

try {
  await main();
} catch (error) {
  if (error instanceof SamserveError) {
    console.error(`${error.reason || error.code}: ${error.message}`);
    for (const { field, description } of error.fieldViolations) console.error(`${field}: ${description}`);
  } else {
    console.error(String(error));
  }
  process.exitCode = 1;
}
