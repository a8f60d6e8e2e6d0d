// A client of samserve for Node.js. Messages are read from the .proto files: no code is generated.

import { createHash, randomUUID } from "node:crypto";

import { deadlineOf, retryRejected, unlessNotFound } from "../shared/calls.js";
import { SamserveError } from "../shared/error.js";
import { Mask } from "../shared/mask.js";
import { definitions, metadataOf, openStub } from "./channel.js";
import { toError } from "./details.js";

export { Mask, SamserveError };

/** @typedef {import("../shared/types.js").CallOptions} CallOptions */
/** @typedef {import("../shared/types.js").AutoMaskEvent} AutoMaskEvent */

const AUTOMASK_OPTIONS = new Set(
  /** @type {any} */ (definitions["samserve.v1.AutoMaskOptions"]).type.field.map(({ name }) => name),
);

export class Client {
  #stub;
  #token;

  /**
   * @param {string} target host:port
   * @param {import("./channel.js").ChannelOptions} [options]
   */
  constructor(target, options = {}) {
    this.#stub = openStub(target, options);
    this.#token = options.token;
  }

  close() {
    this.#stub.close();
  }

  /**
   * Return the served models, the limits on requests and the defaults.
   *
   * @param {CallOptions} [options]
   */
  models(options) {
    return this.#unary("ListModels", {}, deadlineOf(options));
  }

  /**
   * Encode an image, which takes most of the time, and cache its embedding. The file is sent only if
   * the server does not know it.
   *
   * @param {Uint8Array} file JPEG, PNG or WebP
   * @param {CallOptions} [options]
   * @returns {Promise<import("../shared/types.js").Embedding>}
   */
  async embed(file, options) {
    const call = deadlineOf(options);
    const send = (/** @type {object} */ image) =>
      this.#unary("Embed", { image, model: options?.model }, call);
    const { embedding } = await unlessNotFound(
      send({ encodedSha256: createHash("sha256").update(file).digest() }),
      () => send({ encoded: file }),
    );
    const { id, imageSize, model, cached } = embedding;
    return { id, width: imageSize.width, height: imageSize.height, model, cached };
  }

  /**
   * Return the masks of each prompt, in the order of the prompts.
   *
   * @param {string} embeddingId
   * @param {import("../shared/types.js").Prompt[]} prompts
   * @param {import("../shared/types.js").PredictOptions} [options]
   * @returns {Promise<Mask[][]>}
   */
  async predict(embeddingId, prompts, options = {}) {
    const { multimask = "AUTO", logits = false, file, model } = options;
    const call = deadlineOf(options);
    const request = {
      prompts: prompts.map(toMessage),
      multimask: `MULTIMASK_${multimask}`,
      includeLowResLogits: logits,
    };
    const { results } = await unlessNotFound(
      this.#unary("Predict", { ...request, embeddingId }, call),
      file && (() => this.#unary("Predict", { ...request, image: { encoded: file }, model }, call)),
    );
    return results.map(({ masks }) => masks.map((mask) => new Mask(mask)));
  }

  /**
   * Segment everything in an image. Leaving the loop early cancels the call, on the server too.
   *
   * @param {string | Uint8Array} source an embedding id, or a file
   * @param {import("../shared/types.js").AutoMaskOptions} [options] *timeoutMs* is 15 minutes by default
   * @returns {AsyncGenerator<AutoMaskEvent, void>}
   */
  async *automask(source, options = {}) {
    const { model, parameters = {} } = options;
    checkParameters(parameters);
    const call = deadlineOf({ timeoutMs: 15 * 60_000, ...options });
    const image = typeof source === "string" ? { embeddingId: source } : { image: { encoded: source } };
    const request = { ...image, model, options: parameters };
    // A rejected call ends before its first message.
    const [messages, first] = await retryRejected(call, async () => {
      const messages = this.#stream("AutoMask", request, call);
      return [messages, await messages.next()];
    });
    try {
      for (let item = first; !item.done; item = await messages.next()) yield* toEvents(item.value);
    } finally {
      await messages.return();
    }
  }

  #unary(method, request, call) {
    const attempt = () =>
      new Promise((resolve, reject) => {
        const cancel = () => running.cancel();
        const running = this.#start(method, request, call, (error, response) => {
          call.signal?.removeEventListener("abort", cancel);
          error ? reject(toError(error)) : resolve(response);
        });
        cancelOnAbort(call.signal, cancel);
      });
    return retryRejected(call, attempt);
  }

  async *#stream(method, request, call) {
    const stream = this.#start(method, request, call);
    const cancel = () => stream.cancel();
    stream.on("error", () => {}); // a cancelled stream that is no longer read also ends with an error
    cancelOnAbort(call.signal, cancel);
    try {
      yield* stream;
    } catch (error) {
      throw toError(error);
    } finally {
      call.signal?.removeEventListener("abort", cancel);
      cancel();
    }
  }

  #start(method, request, { deadline }, ...callback) {
    return this.#stub[method](request, metadataOf(randomUUID(), this.#token), { deadline }, ...callback);
  }
}

function cancelOnAbort(signal, cancel) {
  if (signal?.aborted) cancel();
  signal?.addEventListener("abort", cancel);
}

// `proto-loader` ignores names that a message does not have.
function checkParameters(parameters) {
  const unknown = Object.keys(parameters).find((name) => !AUTOMASK_OPTIONS.has(name));
  if (unknown) throw new TypeError(`AutoMask has no parameter ${unknown}; names are in camel case`);
}

/** @param {import("../shared/types.js").Prompt} prompt */
function toMessage({ points = [], box, logits }) {
  const sides = [box?.xMin, box?.yMin, box?.xMax, box?.yMax];
  if (box && !sides.every(Number.isFinite)) {
    throw new TypeError("a box has the numbers xMin, yMin, xMax and yMax");
  }
  return {
    points: points.map(({ x, y, foreground = true }) => ({
      x,
      y,
      label: foreground ? "LABEL_FOREGROUND" : "LABEL_BACKGROUND",
    })),
    box,
    mask: logits && { lowResLogits: logits },
  };
}

/** @returns {Generator<AutoMaskEvent, void>} */
function* toEvents({ event, progress, masks, summary }) {
  switch (event) {
    case "progress":
      yield { kind: "progress", done: progress.evaluatedPointCount, total: progress.totalPointCount };
      break;
    case "masks":
      for (const { mask } of masks.records) yield { kind: "mask", mask: new Mask(mask) };
      break;
    case "summary":
      yield { kind: "summary", maskCount: summary.maskCount };
  }
}
