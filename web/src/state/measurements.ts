import { signal } from "@preact/signals";

import { isAbort } from "../api/errors";
import type { Step } from "../types";

/** A completed action with the steps that the server, or the decoder in the browser, measured. */
export interface Measurement {
  readonly action: string;
  readonly place: "server" | "browser";
  /** From the action to its result in the page, in milliseconds. */
  readonly ms: number;
  readonly steps: readonly Step[];
}

export interface CallCounts {
  readonly sent: number;
  readonly answered: number;
  readonly cancelled: number;
  readonly failed: number;
}

/** The last measurement of each action. */
export const measurements = signal<readonly Measurement[]>([]);

/** The calls of Predict: sent = answered + cancelled + failed + those that are open. */
export const callCounts = signal<CallCounts>({ sent: 0, answered: 0, cancelled: 0, failed: 0 });

export function record(measurement: Measurement): void {
  const others = measurements.value.filter(({ action }) => action !== measurement.action);
  measurements.value = [...others, measurement];
}

/** Count a call and how it ends. */
export async function counted<T>(call: Promise<T>): Promise<T> {
  add("sent");
  try {
    const result = await call;
    add("answered");
    return result;
  } catch (error) {
    add(isAbort(error) ? "cancelled" : "failed");
    throw error;
  }
}

function add(key: keyof CallCounts): void {
  callCounts.value = { ...callCounts.value, [key]: callCounts.value[key] + 1 };
}
