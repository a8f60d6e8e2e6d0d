/** Functions for tests and benchmarks of the page's modules, without the page. */

import { Api } from "../../../web/src/api/client";
import { BrowserDecoder, InvalidPrompt, Unsupported } from "../../../web/src/decode/browser-decoder";
import { familyOf, resizedIn } from "../../../web/src/decode/families";
import { trace } from "../../../web/src/decode/trace";
import { upsamplingBetween } from "../../../web/src/decode/upsampling";
import type { Mask, ModelInfo, Multimask, Prediction, Prompt } from "../../../web/src/types";

interface Opened {
  readonly api: Api;
  readonly decoder: BrowserDecoder;
}

/** A prompt as tests write it; *logits* are base64. */
interface Asked {
  readonly points?: readonly [number, number, boolean][];
  readonly box?: readonly [number, number, number, number];
  readonly logits?: string;
  readonly multimask: Multimask;
}

let opened: Opened | null = null;

const harness = {
  /** Load a model's decoder; return the threads, and the milliseconds of each step. */
  async open(base: string, credential: string | null, model: string, threads?: number) {
    opened?.decoder.close();
    const api = new Api(new URL(base), () => credential);
    const info = await modelInfo(api, model);
    const started = performance.now();
    const file = await api.decoderFile(info.decoderSha256);
    const downloaded = performance.now();
    const decoder = await BrowserDecoder.open(info, file, threads);
    opened = { api, decoder };
    return {
      threads: decoder.threads,
      isolated: crossOriginIsolated,
      bytes: file.byteLength,
      downloadMs: downloaded - started,
      startMs: performance.now() - downloaded,
    };
  },

  /** Return why a model's decoder cannot be loaded. */
  async openFailure(base: string, credential: string | null, model: string) {
    return failure(() => harness.open(base, credential, model));
  },

  /** Load an embedding; return its bytes and the milliseconds of each step. */
  async use(embeddingId: string) {
    const { api, decoder } = current();
    const started = performance.now();
    const file = await api.embeddingFile(embeddingId);
    const bytes = file.byteLength;
    const downloaded = performance.now();
    await decoder.setEmbedding(file);
    return { bytes, downloadMs: downloaded - started, loadMs: performance.now() - downloaded };
  },

  /** Load an embedding as if another image encoder had computed it; return how that fails. */
  async useOfOther(embeddingId: string) {
    const { api, decoder } = current();
    const file = await api.embeddingFile(embeddingId);
    const name = '"encoder_digest":"';
    const at = new TextDecoder("latin1").decode(file).indexOf(name) + name.length;
    file[at] = file[at] === 0x30 ? 0x31 : 0x30;
    return failure(() => decoder.setEmbedding(file));
  },

  /** Return the masks of a prompt, decoded here. */
  async predict(asked: Asked) {
    const options = { multimask: asked.multimask, logits: true };
    return plain(await current().decoder.predict(promptOf(asked), options));
  },

  /** Return the mask of logits, base64, on an image of a model with a frame of 1,024 pixels. */
  trace(logits: string, width: number, height: number) {
    const family = familyOf({ family: "sam1" } as ModelInfo);
    const image = { width, height };
    const values = new Float32Array(bytesOf(logits).buffer);
    const resized = resizedIn(image, 1024, family);
    const upsampling = upsamplingBetween(resized, image, 1024, Math.sqrt(values.length));
    const found = trace(values, upsampling, { level: 0, offset: 1 });
    return { ...found, runs: Array.from(found.runs) };
  },

  /** Open a decoder that the server did not send; return the reason for its refusal. */
  async refusal(changes: Partial<ModelInfo>, file: readonly number[]) {
    const { api } = current();
    const info = { ...(await modelInfo(api, "")), ...changes };
    return failure(async () => {
      (await BrowserDecoder.open(info, Uint8Array.from(file).buffer)).close();
    });
  },

  /** Return how the decode of a prompt fails. */
  async failure(asked: Asked) {
    return failure(() => harness.predict(asked));
  },

  /** Ask *count* times at once and abort all but the last; return how each call ended. */
  async overtake(asked: Asked, count: number) {
    const { decoder } = current();
    const calls = Array.from({ length: count }, () => new AbortController());
    const options = { multimask: asked.multimask, logits: false };
    const answers = calls.map(({ signal }) =>
      decoder.predict(promptOf(asked), { ...options, signal }),
    );
    for (const each of calls.slice(0, -1)) each.abort();
    const ends = await Promise.allSettled(answers);
    return ends.map((end) => (end.status === "rejected" ? end.reason.name : end.status));
  },

  /** Abort a call after some time, then ask again; return how both calls ended. */
  async interrupt(asked: Asked, milliseconds: number) {
    const { decoder } = current();
    const { signal, timeout } = timer(milliseconds);
    const options = { multimask: asked.multimask, logits: false };
    const aborted = decoder.predict(promptOf(asked), { ...options, signal });
    const [end] = await Promise.allSettled([aborted]);
    clearTimeout(timeout);
    const found = await decoder.predict(promptOf(asked), options);
    return [end.status === "rejected" ? end.reason.name : end.status, found.masks.length];
  },

  /** Encode an image, base64, on the server; return the id of its embedding. */
  async embed(image: string, model: string) {
    return (await current().api.embed(bytesOf(image), model)).id;
  },

  /** Ask for the masks of each prompt, here or on the server; return the milliseconds of each. */
  async time(place: "browser" | "server", embeddingId: string, prompts: readonly Asked[]) {
    const taken: number[] = [];
    for (const asked of prompts) {
      const started = performance.now();
      await masksOf(place, embeddingId, asked);
      taken.push(performance.now() - started);
    }
    return taken;
  },

  /** Compare the masks of both places: their number, how many are equal, and the least IoU. */
  async compare(embeddingId: string, prompts: readonly Asked[]) {
    let [count, equal, least] = [0, 0, 1];
    for (const asked of prompts) {
      const mine = await masksOf("browser", embeddingId, asked);
      const other = await masksOf("server", embeddingId, asked);
      if (mine.length !== other.length) throw new Error("there are more masks on one side");
      for (const [index, mask] of mine.entries()) {
        const iou = overlap(mask, other[index] as Mask);
        count += 1;
        equal += iou === 1 ? 1 : 0;
        least = Math.min(least, iou);
      }
    }
    return { count, equal, least };
  },
};

declare global {
  var harness: unknown;
}
globalThis.harness = harness;

function timer(milliseconds: number) {
  const controller = new AbortController();
  const timeout = setTimeout(() => controller.abort(), milliseconds);
  return { signal: controller.signal, timeout };
}

async function masksOf(place: "browser" | "server", embeddingId: string, asked: Asked) {
  const { api, decoder } = current();
  const [prompt, options] = [promptOf(asked), { multimask: asked.multimask, logits: false }];
  const answer = place === "browser"
    ? decoder.predict(prompt, options)
    : api.predict(embeddingId, prompt, options);
  return (await answer).masks;
}

/** Return the IoU of two masks; 1 for two empty ones. */
function overlap(one: Mask, other: Mask): number {
  let shared = 0;
  let [i, j, start, end, otherEnd] = [0, 0, 0, one.runs[0] ?? 0, other.runs[0] ?? 0];
  while (i < one.runs.length && j < other.runs.length) {
    const next = Math.min(end, otherEnd);
    shared += i % 2 === 1 && j % 2 === 1 ? next - start : 0;
    start = next;
    if (end === next) end += one.runs[++i] ?? 0;
    if (otherEnd === next) otherEnd += other.runs[++j] ?? 0;
  }
  const union = one.area + other.area - shared;
  return union === 0 ? 1 : shared / union;
}

async function failure(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
  } catch (error) {
    if (error instanceof Unsupported) return `Unsupported: ${error.message}`;
    if (error instanceof InvalidPrompt) return `InvalidPrompt: ${error.message}`;
    return String(error);
  }
  return "";
}

function current(): Opened {
  if (opened === null) throw new Error("nothing is open");
  return opened;
}

async function modelInfo(api: Api, name: string): Promise<ModelInfo> {
  const { models } = await api.models();
  const found = models.find((each) => (name === "" ? each.isDefault : each.name === name));
  if (found === undefined) throw new Error(`there is no model ${name}`);
  return found;
}

function promptOf({ points = [], box, logits }: Asked): Prompt {
  return {
    points: points.map(([x, y, foreground]) => ({ x, y, foreground })),
    ...(box && { box: { xMin: box[0], yMin: box[1], xMax: box[2], yMax: box[3] } }),
    ...(logits !== undefined && { logits: bytesOf(logits) }),
  };
}

function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function plain({ masks, steps }: Prediction) {
  return {
    steps,
    masks: masks.map(({ runs, logits, ...rest }) => ({
      ...rest,
      runs: Array.from(runs),
      logits: textOf(logits ?? new Uint8Array()),
    })),
  };
}

function textOf(bytes: Uint8Array): string {
  const step = 1 << 14;
  let text = "";
  for (let start = 0; start < bytes.length; start += step) {
    text += String.fromCharCode(...bytes.subarray(start, start + step));
  }
  return btoa(text);
}
