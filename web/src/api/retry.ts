import { type CallError, toCallError } from "./errors";

const MAX_ATTEMPTS = 4;
const FIRST_DELAY_MS = 100;

/**
 * Repeat a call while the server rejects it and names a delay, or cannot be reached; at most four
 * attempts. Throws the `CallError` of the last one.
 */
export async function retried<T>(attempt: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  for (let count = 1; ; count++) {
    try {
      return await attempt();
    } catch (thrown) {
      const error = toCallError(thrown);
      const delay = delayOf(error, count);
      if (delay === undefined || count === MAX_ATTEMPTS || signal?.aborted) throw error;
      await pause(delay, signal);
    }
  }
}

function delayOf(error: CallError, count: number): number | undefined {
  if (error.retryDelayMs !== undefined) return error.retryDelayMs;
  return error.code === "UNAVAILABLE" ? FIRST_DELAY_MS * 2 ** (count - 1) : undefined;
}

function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done, { once: true });
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
  });
}
