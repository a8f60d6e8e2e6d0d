// What every client does: one deadline for all requests of a call, and retries.

import { SamserveError } from "./error.js";

/** @typedef {import("./types.js").Call} Call */

/**
 * @param {import("./types.js").CallOptions} [options]
 * @returns {Call}
 */
export function deadlineOf({ timeoutMs = 60_000, signal } = {}) {
  return { deadline: Date.now() + timeoutMs, signal };
}

/**
 * Await a response; if the server does not have the embedding, return that of *otherwise*.
 *
 * @template T
 * @param {Promise<T>} response
 * @param {() => Promise<T>} [otherwise]
 * @returns {Promise<T>}
 */
export async function unlessNotFound(response, otherwise) {
  try {
    return await response;
  } catch (error) {
    const isMissing = error instanceof SamserveError && error.reason === "EMBEDDING_NOT_FOUND";
    if (!otherwise || !isMissing) throw error;
    return otherwise();
  }
}

/**
 * Repeat a call that was rejected, after the delay that the server asks for, until its deadline.
 *
 * @template T
 * @param {Call} call
 * @param {() => Promise<T>} attempt
 * @returns {Promise<T>}
 */
export async function retryRejected(call, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof SamserveError) || error.retryDelayMs === undefined) throw error;
      await pause(error.retryDelayMs, call, error);
    }
  }
}

/**
 * Make up to four attempts, with growing delays, while the server is unavailable: what a retry policy
 * does in gRPC.
 *
 * @template T
 * @param {Call} call
 * @param {() => Promise<T>} attempt
 * @returns {Promise<T>}
 */
export async function retryUnavailable(call, attempt) {
  for (let delay = 100; ; delay *= 2) {
    try {
      return await attempt();
    } catch (error) {
      const isUnavailable = error instanceof SamserveError && error.code === "UNAVAILABLE";
      if (!isUnavailable || delay > 400) throw error;
      // Clients that failed together must not return together.
      await pause(delay * (0.8 + 0.4 * Math.random()), call, error);
    }
  }
}

/**
 * Wait before the next attempt; throw *error* if there is no time for one.
 *
 * @param {number} milliseconds
 * @param {Call} call
 * @param {SamserveError} error
 */
async function pause(milliseconds, { deadline, signal }, error) {
  if (signal?.aborted || Date.now() + milliseconds >= deadline) throw error;
  await new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new SamserveError("CANCELLED", "cancelled while waiting to retry", {}, error));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve(undefined);
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
