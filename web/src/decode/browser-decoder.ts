/** Decoding in the browser: what the page's thread needs of it. */

import * as Comlink from "comlink";
import type { ModelInfo, Prediction, PredictOptions, Prompt } from "../types";
import type { DecodeEndpoint } from "./decode.worker";
import { revived, Unsupported } from "./unsupported";

export { InvalidPrompt, Unsupported } from "./unsupported";

/**
 * A mask decoder in a worker.
 *
 * Calls are sent to the worker one at a time, in their order, so that those which are aborted while
 * they wait cost nothing. All of them reject with an `AbortError` if they are aborted, with
 * `Unsupported` if the browser cannot do the work, and with `InvalidPrompt` for a prompt that the
 * server would reject too.
 */
export class BrowserDecoder {
  readonly #worker: Worker;
  readonly #endpoint: Comlink.Remote<DecodeEndpoint>;
  readonly #failed: Promise<never>;
  #fail: (error: Error) => void = () => {};
  #last: Promise<unknown> = Promise.resolve();
  #calls = 0;

  private constructor(
    /** Threads that the runtime uses. */
    readonly threads: number,
  ) {
    this.#worker = new Worker(new URL("./decode.worker.ts", import.meta.url), { type: "module" });
    this.#endpoint = Comlink.wrap<DecodeEndpoint>(this.#worker);
    this.#failed = new Promise((_, reject) => {
      this.#fail = reject;
    });
    // Not unhandled: every call races with it.
    this.#failed.catch(() => {});
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const text = event.message || "its script could not be loaded";
      this.#fail(new Unsupported(`The worker that decodes has failed: ${text}.`));
    };
  }

  /**
   * Load the runtime and a decoder, whose bytes are copied.
   *
   * Without *threads*, several are used on an isolated page, or one if they cannot be started.
   */
  static async open(
    model: ModelInfo,
    decoder: ArrayBuffer,
    threads: number = usableThreads(),
  ): Promise<BrowserDecoder> {
    if (model.decoderSha256 === "") {
      throw new Unsupported("The server does not allow downloads of this model's decoder.");
    }
    try {
      return await BrowserDecoder.#open(model, decoder, threads);
    } catch (error) {
      if (threads === 1) {
        throw error;
      }
      return await BrowserDecoder.#open(model, decoder, 1);
    }
  }

  static async #open(model: ModelInfo, decoder: ArrayBuffer, threads: number) {
    const opened = new BrowserDecoder(threads);
    try {
      const opening = opened.#endpoint.open(decoder, model.decoderSha256, model, threads);
      await opened.#guarded(opening);
    } catch (error) {
      opened.close();
      throw error;
    }
    return opened;
  }

  /** Use another embedding from now on; *file*, as GetEmbedding returns it, is transferred. */
  async setEmbedding(file: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.#next(() => {
      return this.#endpoint.setEmbedding(Comlink.transfer(file, [file.buffer]));
    });
  }

  /** Decode a prompt: the masks that the server returns for it, in the same order. */
  async predict(prompt: Prompt, options: PredictOptions): Promise<Prediction> {
    const { signal, multimask, logits } = options;
    const call = ++this.#calls;
    const queued = performance.now();
    const work = this.#next(async () => {
      signal?.throwIfAborted();
      const queue = { name: "queue", ms: performance.now() - queued };
      // The worker ends the call at its next step.
      const cancel = () => void this.#endpoint.cancel(call);
      signal?.addEventListener("abort", cancel, { once: true });
      const found = await this.#endpoint.predict(call, prompt, { multimask, logits });
      signal?.removeEventListener("abort", cancel);
      return found && { ...found, steps: [queue, ...found.steps] };
    });
    const prediction = await unlessAborted(work, signal);
    if (prediction === null) {
      throw new DOMException("The call was cancelled.", "AbortError");
    }
    return prediction;
  }

  /** End the worker; calls that are not finished reject. */
  close(): void {
    this.#fail(new DOMException("The decoder was closed.", "AbortError"));
    this.#worker.terminate();
  }

  /** Run *work* once all earlier work has ended. */
  #next<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(() => this.#guarded(work()));
    this.#last = result.catch(() => {});
    return result;
  }

  /** Wait for the worker, or until it fails. */
  async #guarded<T>(work: Promise<T>): Promise<T> {
    try {
      return await Promise.race([work, this.#failed]);
    } catch (error) {
      throw revived(error);
    }
  }
}

/** Return the threads that a decode may use: several only on an isolated page. */
function usableThreads(): number {
  const cores = navigator.hardwareConcurrency ?? 1;
  return globalThis.crossOriginIsolated ? Math.min(4, Math.max(1, cores - 1)) : 1;
}

/** Wait for *work*, but reject as soon as *signal* aborts. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) {
    return await work;
  }
  let abort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
  });
  signal.addEventListener("abort", abort, { once: true });
  try {
    signal.throwIfAborted();
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
    // Not unhandled, if it rejects after the call was aborted.
    work.catch(() => {});
  }
}
