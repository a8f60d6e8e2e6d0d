/** Decodes in a worker; it does one thing at a time, see `BrowserDecoder`. */

import * as Comlink from "comlink";
import type { Prediction, Prompt } from "../types";
import { type DecodeOptions, Decoder } from "./decoder";
import { familyOf, type ModelRules } from "./families";
import { loadRuntime } from "./runtime";
import { reasonOf, Unsupported } from "./unsupported";

const CANCELLED = Symbol("cancelled");
/** The first decode takes longer than the next ones, so it is not that of a click. */
const TRIAL: Prompt = { points: [{ x: 0, y: 0, foreground: true }] };

let decoder: Decoder | null = null;
let cancelled = 0;
let isTried = false;

const endpoint = {
  /** Load the runtime and an ONNX file, whose SHA-256 must be *digest*, 64 hexadecimal digits. */
  async open(file: ArrayBuffer, digest: string, model: ModelRules, threads: number) {
    familyOf(model);
    await checkContent(file, digest);
    try {
      decoder = await Decoder.load(await loadRuntime(threads), new Uint8Array(file), model);
    } catch (error) {
      throw reasonOf(error, "loading the decoder");
    }
  },

  /** Use another embedding; after the first one, a prompt is decoded to see that it works. */
  async setEmbedding(file: Uint8Array<ArrayBuffer>) {
    try {
      opened().setEmbedding(file);
      if (!isTried) {
        await opened().predict(TRIAL, { multimask: "ALL", logits: false }, nextTask);
        isTried = true;
      }
    } catch (error) {
      throw reasonOf(error, "loading the embedding");
    }
  },

  /** Decode; the result is null if *call* was cancelled meanwhile. */
  async predict(call: number, prompt: Prompt, options: DecodeOptions): Promise<Prediction | null> {
    const pause = async () => {
      await nextTask();
      if (cancelled === call) {
        throw CANCELLED;
      }
    };
    try {
      const prediction = await opened().predict(prompt, options, pause);
      return Comlink.transfer(prediction, buffersOf(prediction));
    } catch (error) {
      if (error === CANCELLED) {
        return null;
      }
      throw reasonOf(error, "decoding");
    }
  },

  /** End the call that is running, at its next step. */
  cancel(call: number) {
    cancelled = call;
  },
};

export type DecodeEndpoint = typeof endpoint;

function opened(): Decoder {
  if (decoder === null) {
    throw new Error("no decoder is open");
  }
  return decoder;
}

/** Check the file where the browser can: pages without TLS have no digests, except on loopback. */
async function checkContent(file: ArrayBuffer, expected: string) {
  const { subtle } = globalThis.crypto;
  if (subtle === undefined) {
    return;
  }
  const bytes = new Uint8Array(await subtle.digest("SHA-256", file));
  const digest = Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
  if (digest !== expected) {
    throw new Unsupported("The decoder that arrived is not the one that the server listed.");
  }
}

function buffersOf({ masks }: Prediction): ArrayBuffer[] {
  return masks.flatMap(({ runs, logits }) => [
    runs.buffer as ArrayBuffer,
    ...(logits === undefined ? [] : [logits.buffer]),
  ]);
}

const channel = new MessageChannel();
let resume = () => {};
channel.port1.onmessage = () => resume();

/** Let messages arrive that were sent meanwhile. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    resume = resolve;
    channel.port2.postMessage(null);
  });
}

Comlink.expose(endpoint);
