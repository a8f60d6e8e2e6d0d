import { signal } from "@preact/signals";

import { openImage } from "../images/open";
import type { Embedding, LoadedImage } from "../types";
import { api, failed, modelName, server } from "./connection";
import * as document from "./document";
import { record } from "./measurements";
import { dismiss, notices } from "./notices";

export const image = signal<LoadedImage | null>(null);

/** Whether an image is being read, or encoded by the server. */
export const progress = signal<"" | "opening" | "encoding">("");

/** Whether the server has encoded the shown image. */
export const embedded = signal(false);

let embedding: Promise<Embedding> | null = null;
let opening = new AbortController();
let encoding = new AbortController();
const followers: (() => void)[] = [];

/** Call *follower* whenever another image is shown, or the model changes. */
export function onChange(follower: () => void): void {
  followers.push(follower);
}

/** Show an image and send it to the server. */
export async function open(file: Blob, name: string): Promise<void> {
  const limits = server.value?.limits;
  if (!limits) return;
  opening.abort();
  const current = new AbortController();
  opening = current;
  progress.value = "opening";
  // Most are about the image before, or about a file that could not be opened.
  for (const { id } of notices.value) dismiss(id);
  try {
    const loaded = await openImage(file, name, limits);
    if (current.signal.aborted) {
      closeImage(loaded);
      return;
    }
    closeImage(image.value);
    document.reset();
    image.value = loaded;
    encode();
  } catch (error) {
    if (current.signal.aborted) return;
    // The image before, if there is one, stays.
    progress.value = embedding && !embedded.value ? "encoding" : "";
    failed(`${name} cannot be opened`, error);
  }
}

/** Use another model for the image; answers of the present one are discarded. */
export function selectModel(name: string): void {
  if (name === modelName.value) return;
  modelName.value = name;
  document.reset();
  encode();
}

/** Return the embedding of the shown image; encodes it again if that failed. Rejects if it fails. */
export function currentEmbedding(): Promise<Embedding> {
  if (!embedding) send();
  return embedding ?? Promise.reject(new Error("no image is open"));
}

/** Encode the image again: the server does not have its embedding any more. The prompts stay. */
export function encodeAgain(): Promise<Embedding> {
  // Of several calls that miss it, the first one starts this.
  if (embedded.value) send();
  return currentEmbedding();
}

function encode(): void {
  if (!image.value) return;
  for (const follower of followers) follower();
  send();
}

function send(): void {
  const shown = image.value;
  if (!shown) return;
  encoding.abort();
  const current = new AbortController();
  encoding = current;
  progress.value = "encoding";
  embedded.value = false;
  const started = performance.now();
  const call = api.embed(shown.file, modelName.value, current.signal);
  embedding = call;
  call.then(
    ({ steps }) => {
      if (current.signal.aborted) return;
      endEncoding();
      embedded.value = true;
      record({ action: "Encode", place: "server", ms: performance.now() - started, steps });
    },
    (error: unknown) => {
      if (current.signal.aborted) return;
      endEncoding();
      embedding = null;
      failed("The image cannot be encoded", error);
    },
  );
}

function endEncoding(): void {
  // Another image may be in progress.
  if (progress.value === "encoding") progress.value = "";
}

function closeImage(shown: LoadedImage | null): void {
  shown?.preview.close();
  shown?.full.close();
}
