import type { Measurement } from "../state/measurements";
import type { Step } from "../types";

/** Shorter steps are shown as one. */
const MIN_MS = 0.1;

/**
 * Return the steps of a measurement for its table.
 *
 * Steps below 0.1 ms are added up. The last step is what the steps do not contain: for the server
 * the network and the work of the page, for the browser the latter.
 */
export function shownSteps({ place, ms, steps }: Measurement): Step[] {
  if (steps.length === 0) return [];
  const long = steps.filter((step) => step.ms >= MIN_MS);
  const short = steps.filter((step) => step.ms < MIN_MS);
  const rest = ms - sum(steps);
  const added: Step[] = [];
  if (short.length > 0) added.push({ name: `${short.length} below ${MIN_MS} ms`, ms: sum(short) });
  if (rest >= MIN_MS)
    added.push({ name: place === "server" ? "network and page" : "page", ms: rest });
  return [...long.map((step) => ({ ...step, name: step.name.replaceAll("_", " ") })), ...added];
}

function sum(steps: readonly Step[]): number {
  return steps.reduce((total, { ms }) => total + ms, 0);
}
