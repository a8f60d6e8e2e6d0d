import { create } from "@bufbuild/protobuf";
import { type CallOptions, type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import {
  Multimask,
  PredictRequestSchema,
  SegmentationService,
} from "../gen/samserve/v1/samserve_pb";
import type {
  AutoMaskEvent,
  AutoMaskParameters,
  Embedding,
  Prediction,
  PredictOptions,
  Prompt,
  ServerInfo,
} from "../types";
import { toEmbedding, toMask, toMessage, toModel, toSteps } from "./convert";
import { CallError, isEmbeddingMissing, toCallError } from "./errors";
import { retried } from "./retry";
import { fetchWithBlob } from "./upload";

// The rest of a request with an image.
const REQUEST_OVERHEAD = 1024;
const AUTOMASK_TIMEOUT_MS = 30 * 60_000;
const TIMEOUT_MS = 120_000;

/** The methods of the server. All throw `CallError`. */
export class Api {
  readonly #base: URL;
  readonly #credential: () => string | null;
  readonly #service: Client<typeof SegmentationService>;

  /** *credential* is read at each call. */
  constructor(base: URL, credential: () => string | null) {
    this.#base = base;
    this.#credential = credential;
    const baseUrl = base.href.replace(/\/$/, "");
    this.#service = createClient(
      SegmentationService,
      createConnectTransport({ baseUrl, useBinaryFormat: true, fetch: fetchWithBlob }),
    );
  }

  async models(signal?: AbortSignal): Promise<ServerInfo> {
    const call = (options: CallOptions) => this.#service.listModels({}, options);
    const { models, limits } = await this.#call(call, signal);
    return {
      models: models.map(toModel),
      limits: {
        maxImagePixels: Number(limits?.maxImagePixels ?? 0),
        maxImageSide: limits?.maxImageSide ?? 0,
        maxImageBytes: Number(limits?.maxRequestBytes ?? 0) - REQUEST_OVERHEAD,
      },
    };
  }

  /** Encode an image file. It is sent only if the server does not have its embedding. */
  async embed(
    file: Uint8Array<ArrayBuffer>,
    model: string,
    signal?: AbortSignal,
  ): Promise<Embedding> {
    const send = async (name: "encoded" | "encodedSha256", value: Uint8Array<ArrayBuffer>) => {
      const image = { content: { case: name, value } } as const;
      const call = (options: CallOptions) => this.#service.embed({ image, model }, options);
      const { embedding, timings } = await this.#call(call, signal);
      return toEmbedding(embedding, timings);
    };
    // Browsers compute hashes only for pages of https: and of loopback addresses.
    if (!crypto.subtle) return send("encoded", file);
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", file));
    return send("encodedSha256", hash).catch((error: unknown) => {
      if (isEmbeddingMissing(error)) return send("encoded", file);
      throw error;
    });
  }

  /** Return the masks of one prompt. */
  async predict(
    embeddingId: string,
    prompt: Prompt,
    { multimask, logits, signal }: PredictOptions,
  ): Promise<Prediction> {
    const request = create(PredictRequestSchema, {
      source: { case: "embeddingId", value: embeddingId },
      prompts: [toMessage(prompt)],
      multimask: Multimask[multimask],
      includeLowResLogits: logits,
    });
    const call = (options: CallOptions) => this.#service.predict(request, options);
    const { results, timings } = await this.#call(call, signal);
    return { masks: (results[0]?.masks ?? []).map(toMask), steps: toSteps(timings) };
  }

  /** Segment everything. Aborting *signal* stops the work on the server. */
  async *automask(
    embeddingId: string,
    options: AutoMaskParameters,
    signal: AbortSignal,
  ): AsyncGenerator<AutoMaskEvent, void> {
    const request = {
      source: { case: "embeddingId", value: embeddingId },
      options: { ...options },
    } as const;
    try {
      const call = this.#options(AUTOMASK_TIMEOUT_MS, signal);
      for await (const { event } of this.#service.autoMask(request, call)) {
        if (event.case === "progress") {
          const { evaluatedPointCount: done, totalPointCount: total } = event.value;
          yield { kind: "progress", done, total };
        } else if (event.case === "masks") {
          const masks = event.value.records.flatMap(({ mask }) => (mask ? [toMask(mask)] : []));
          yield { kind: "masks", masks };
        } else if (event.case === "summary") {
          const { maskCount, timings } = event.value;
          yield { kind: "summary", maskCount, steps: toSteps(timings) };
        }
      }
    } catch (error) {
      throw toCallError(error);
    }
  }

  /** Return an embedding as a safetensors file. */
  async embeddingFile(embeddingId: string, signal?: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
    const chunks: BlobPart[] = [];
    try {
      const call = this.#options(TIMEOUT_MS, signal);
      for await (const { chunk } of this.#service.getEmbedding({ embeddingId }, call))
        chunks.push(chunk as Uint8Array<ArrayBuffer>);
    } catch (error) {
      throw toCallError(error);
    }
    return new Uint8Array(await new Blob(chunks).arrayBuffer());
  }

  /** Return the ONNX file of a mask decoder. */
  async decoderFile(sha256: string, signal?: AbortSignal): Promise<ArrayBuffer> {
    const url = new URL(`decoders/${sha256}`, this.#base);
    try {
      const response = await fetch(url, { headers: this.#headers(), signal: signal ?? null });
      if (response.ok) return await response.arrayBuffer();
      const { code = "unknown", message = `the server answered ${response.status}` } =
        (await response.json()) as { code?: string; message?: string };
      throw new CallError(code.toUpperCase(), message);
    } catch (error) {
      throw toCallError(error);
    }
  }

  async #call<T>(
    attempt: (options: CallOptions) => Promise<T>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    return retried(() => attempt(this.#options(TIMEOUT_MS, signal)), signal);
  }

  #options(timeoutMs: number, signal: AbortSignal | undefined): CallOptions {
    return { headers: this.#headers(), timeoutMs, ...(signal && { signal }) };
  }

  #headers(): Record<string, string> {
    const credential = this.#credential();
    return credential ? { authorization: `Bearer ${credential}` } : {};
  }
}
