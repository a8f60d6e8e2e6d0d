/** Earlier, a rate says little: the first part also waits for the encoder. */
const MIN_ELAPSED_MS = 500;

/**
 * Estimate the milliseconds until *done* is *total*, from the rate since the start.
 *
 * Returns null as long as there is too little to estimate from.
 */
export function timeLeft(done: number, total: number, elapsedMs: number): number | null {
  if (done <= 0 || total <= 0 || elapsedMs < MIN_ELAPSED_MS) return null;
  return (elapsedMs * Math.max(0, total - done)) / done;
}

/** Return an estimate in words, such as `about 12 s left`. */
export function formatTimeLeft(ms: number | null): string {
  if (ms === null) return "estimating the time left";
  const seconds = Math.ceil(ms / 1000);
  if (seconds <= 1) return "about 1 s left";
  if (seconds < 60) return `about ${seconds} s left`;
  return `about ${Math.floor(seconds / 60)} min ${seconds % 60} s left`;
}
