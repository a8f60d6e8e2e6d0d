// A client of samserve for browsers, over Connect. It has the methods of ../node/client.js.

import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import { deadlineOf, retryRejected, retryUnavailable, unlessNotFound } from "../shared/calls.js";
import { SamserveError } from "../shared/error.js";
import { Mask } from "../shared/mask.js";
import { toError } from "./details.js";
import { Multimask, Point_Label, SegmentationService } from "./gen/samserve/v1/samserve_pb.js";

export { Mask, SamserveError };

/** @typedef {import("../shared/types.js").CallOptions} CallOptions */
/** @typedef {import("../shared/types.js").AutoMaskEvent} AutoMaskEvent */

export class Client {
  #service;
  #headers;

  /**
   * @param {string} url of the server's HTTP listener, which has to allow the origin of this page
   * @param {{token?: string}} [options] *token*: API key or bearer token
   */
  constructor(url, { token } = {}) {
    const transport = createConnectTransport({ baseUrl: url, useBinaryFormat: true });
    this.#service = createClient(SegmentationService, transport);
    this.#headers = token ? { authorization: `Bearer ${token}` } : {};
  }

  /**
   * Return the served models, the limits on requests and the defaults.
   *
   * @param {CallOptions} [options]
   */
  models(options) {
    return this.#unary("listModels", {}, deadlineOf(options));
  }

  /**
   * Encode an image, which takes most of the time, and cache its embedding. The file is sent only if
   * the server does not know it.
   *
   * @param {Uint8Array<ArrayBuffer>} file JPEG, PNG or WebP
   * @param {CallOptions} [options]
   * @returns {Promise<import("../shared/types.js").Embedding>}
   */
  async embed(file, options) {
    const call = deadlineOf(options);
    const send = (name, value) =>
      this.#unary("embed", { image: content(name, value), model: options?.model }, call);
    const upload = () => send("encoded", file);
    // Browsers compute hashes only for pages of https: and of loopback addresses.
    const known = crypto.subtle && new Uint8Array(await crypto.subtle.digest("SHA-256", file));
    const { embedding } = await (known ? unlessNotFound(send("encodedSha256", known), upload) : upload());
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
      multimask: Multimask[multimask],
      includeLowResLogits: logits,
    };
    const send = (source) => this.#unary("predict", { ...request, ...source }, call);
    const { results } = await unlessNotFound(
      send({ source: { case: "embeddingId", value: embeddingId } }),
      file && (() => send({ source: { case: "image", value: content("encoded", file) }, model })),
    );
    return results.map(({ masks }) => masks.map(toMask));
  }

  /**
   * Segment everything in an image. Leaving the loop early cancels the call, on the server too.
   *
   * @param {string | Uint8Array} source an embedding id, or a file
   * @param {import("../shared/types.js").AutoMaskOptions} [options] *timeoutMs* is 15 minutes by default
   * @returns {AsyncGenerator<AutoMaskEvent, void>}
   */
  async *automask(source, options = {}) {
    const call = deadlineOf({ timeoutMs: 15 * 60_000, ...options });
    const request = {
      source:
        typeof source === "string"
          ? { case: "embeddingId", value: source }
          : { case: "image", value: content("encoded", source) },
      model: options.model,
      options: options.parameters,
    };
    // A rejected call ends before its first message.
    const [messages, first] = await retry(call, async () => {
      const messages = this.#stream("autoMask", request, call);
      return [messages, await messages.next()];
    });
    try {
      for (let item = first; !item.done; item = await messages.next()) yield* toEvents(item.value);
    } finally {
      await messages.return();
    }
  }

  #unary(method, request, call) {
    return retry(call, async () => {
      try {
        return await this.#service[method](request, this.#options(call));
      } catch (error) {
        throw toError(error);
      }
    });
  }

  async *#stream(method, request, call) {
    try {
      yield* this.#service[method](request, this.#options(call));
    } catch (error) {
      throw toError(error);
    }
  }

  #options({ deadline, signal }) {
    // 0 would be no deadline.
    return { headers: this.#headers, timeoutMs: Math.max(1, deadline - Date.now()), signal };
  }
}

function retry(call, attempt) {
  return retryRejected(call, () => retryUnavailable(call, attempt));
}

/** Return an `Image` of the proto. */
function content(name, value) {
  return { content: { case: name, value } };
}

/** @param {import("../shared/types.js").Prompt} prompt */
function toMessage({ points = [], box, logits }) {
  return {
    points: points.map(({ x, y, foreground = true }) => ({
      x,
      y,
      label: foreground ? Point_Label.FOREGROUND : Point_Label.BACKGROUND,
    })),
    box,
    mask: logits && { content: { case: "lowResLogits", value: logits } },
  };
}

function toMask(message) {
  return new Mask(message, message.segmentation.value);
}

/** @returns {Generator<AutoMaskEvent, void>} */
function* toEvents({ event }) {
  switch (event.case) {
    case "progress":
      yield { kind: "progress", done: event.value.evaluatedPointCount, total: event.value.totalPointCount };
      break;
    case "masks":
      for (const { mask } of event.value.records) yield { kind: "mask", mask: toMask(mask) };
      break;
    case "summary":
      yield { kind: "summary", maskCount: event.value.maskCount };
  }
}
