import { signal } from "@preact/signals";

import { isAbort, isEmbeddingMissing } from "../api/errors";
import { BrowserDecoder, Unsupported } from "../decode/browser-decoder";
import type { Embedding, Prediction, PredictOptions, Prompt } from "../types";
import { api, model } from "./connection";
import { currentEmbedding, encodeAgain, onChange } from "./image";
import { counted, record } from "./measurements";

export type BrowserDecoding =
  | { readonly kind: "off" }
  | { readonly kind: "loading" }
  | { readonly kind: "on" }
  /** It is switched on, but the server decodes, for this reason. */
  | { readonly kind: "impossible"; readonly reason: string };

/** Where prompts are decoded. */
export const browserDecoding = signal<BrowserDecoding>({ kind: "off" });

interface Loaded {
  readonly model: string;
  readonly decoder: BrowserDecoder;
  embeddingId: string;
}

let loaded: Loaded | null = null;
// Increases with each load, so that a load that was overtaken has no effect.
let generation = 0;

onChange(() => {
  if (browserDecoding.value.kind !== "off") void load();
});

/** Decode in the browser, or on the server. */
export function switchBrowserDecoding(on: boolean): void {
  if (on) {
    void load();
    return;
  }
  generation++;
  unload();
  browserDecoding.value = { kind: "off" };
}

/** Return the masks of a prompt on the shown image, and record the time of *action*. */
export async function predict(
  action: string,
  prompt: Prompt,
  options: PredictOptions,
): Promise<Prediction> {
  const started = performance.now();
  const embedding = await currentEmbedding();
  options.signal?.throwIfAborted();
  const isOn = browserDecoding.value.kind === "on" && loaded?.embeddingId === embedding.id;
  const target = isOn ? loaded : null;
  const prediction = await counted(
    target ? inBrowser(target, embedding, prompt, options) : onServer(embedding, prompt, options),
  );
  const place = target && target === loaded ? "browser" : "server";
  record({ action, place, ms: performance.now() - started, steps: prediction.steps });
  return prediction;
}

/** Decode in the browser; if that is not possible, the server decodes from now on. */
async function inBrowser(
  target: Loaded,
  embedding: Embedding,
  prompt: Prompt,
  options: PredictOptions,
): Promise<Prediction> {
  try {
    return await target.decoder.predict(prompt, options);
  } catch (error) {
    if (!(error instanceof Unsupported)) throw error;
    if (target === loaded) {
      generation++;
      unload();
      browserDecoding.value = { kind: "impossible", reason: error.message };
    }
    return onServer(embedding, prompt, options);
  }
}

async function onServer(
  embedding: Embedding,
  prompt: Prompt,
  options: PredictOptions,
): Promise<Prediction> {
  try {
    return await api.predict(embedding.id, prompt, options);
  } catch (error) {
    if (!isEmbeddingMissing(error)) throw error;
    const { id } = await encodeAgain();
    options.signal?.throwIfAborted();
    return api.predict(id, prompt, options);
  }
}

async function load(): Promise<void> {
  const current = ++generation;
  const isCurrent = () => current === generation;
  browserDecoding.value = { kind: "loading" };
  try {
    const decoder = await decoderOfModel(isCurrent);
    const embedding = await currentEmbedding().catch(() => null);
    if (!isCurrent()) return;
    if (embedding && decoder) await give(decoder, embedding, isCurrent);
    if (isCurrent()) browserDecoding.value = { kind: "on" };
  } catch (error) {
    if (!isCurrent() || isAbort(error)) return;
    unload();
    const reason = error instanceof Error ? error.message : String(error);
    browserDecoding.value = { kind: "impossible", reason };
  }
}

async function decoderOfModel(isCurrent: () => boolean): Promise<Loaded | null> {
  const info = model.value;
  if (!info) throw new Error("no model is selected");
  if (loaded?.model === info.name) return loaded;
  unload();
  if (!info.decoderSha256)
    throw new Error(`the decoder of ${info.name} cannot be downloaded from this server`);
  const file = await api.decoderFile(info.decoderSha256);
  const decoder = await BrowserDecoder.open(info, file);
  if (!isCurrent()) {
    decoder.close();
    return null;
  }
  loaded = { model: info.name, decoder, embeddingId: "" };
  return loaded;
}

async function give(target: Loaded, embedding: Embedding, isCurrent: () => boolean): Promise<void> {
  const started = performance.now();
  const file = await embeddingFile(embedding);
  // The decoder may have the embedding of a newer image already.
  if (!isCurrent()) return;
  await target.decoder.setEmbedding(file);
  target.embeddingId = embedding.id;
  const ms = performance.now() - started;
  record({ action: "Download the embedding", place: "browser", ms, steps: [] });
}

async function embeddingFile(embedding: Embedding): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await api.embeddingFile(embedding.id);
  } catch (error) {
    if (!isEmbeddingMissing(error)) throw error;
    const { id } = await encodeAgain();
    return api.embeddingFile(id);
  }
}

function unload(): void {
  loaded?.decoder.close();
  loaded = null;
}
