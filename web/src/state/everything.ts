import { batch, computed, signal } from "@preact/signals";

import { isAbort, isEmbeddingMissing } from "../api/errors";
import { contains } from "../masks";
import type { AutoMaskEvent, Mask, Step } from "../types";
import { api, failed } from "./connection";
import { addObjects, objects } from "./document";
import { currentEmbedding, encodeAgain, onChange } from "./image";
import { record } from "./measurements";

export type Run =
  | { readonly kind: "none" }
  | {
      readonly kind: "running";
      readonly done: number;
      readonly total: number;
      /** Of `performance.now`. */
      readonly started: number;
    }
  | { readonly kind: "done" };

export const run = signal<Run>({ kind: "none" });

/** All masks that were found, unfiltered. */
export const found = signal<readonly Mask[]>([]);

/** The sliders. They filter what was found; the server is not asked again. */
export const minPredictedIou = signal(0);
export const minStability = signal(0);
/** A part of the image, 0 to 1. */
export const minArea = signal(0);
export const pointsPerSide = signal(16);

/** Index in `found` of the mask that is pointed at, or -1. */
export const highlighted = signal(-1);

/** Those masks in `found` that objects have, as text: equal as long as they are the same. */
const kept = computed(() => {
  const owned = new Set(objects.value.flatMap(({ answers }) => answers));
  return found.value.flatMap((mask, index) => (owned.has(mask) ? [index] : [])).join();
});

/** Indices in `found` of the masks that pass the sliders and are not kept. */
export const shown = computed<readonly number[]>(() => {
  const others = new Set(keptIndices());
  return found.value.flatMap((mask, index) => {
    const passes =
      !others.has(index) &&
      mask.predictedIou >= minPredictedIou.value &&
      mask.stabilityScore >= minStability.value &&
      mask.area >= minArea.value * mask.size.width * mask.size.height;
    return passes ? [index] : [];
  });
});

let running = new AbortController();

onChange(clear);

/** Segment everything; the server sends all masks, for the sliders to filter. */
export async function segmentEverything(): Promise<void> {
  clear();
  const current = new AbortController();
  running = current;
  const started = performance.now();
  run.value = { kind: "running", done: 0, total: 0, started };
  const masks: Mask[] = [];
  let steps: readonly Step[] = [];
  try {
    for await (const event of events(current.signal)) {
      if (current.signal.aborted) return;
      if (event.kind === "masks") masks.push(...event.masks);
      else if (event.kind === "summary") steps = event.steps;
      else run.value = { kind: "running", done: event.done, total: event.total, started };
    }
    if (current.signal.aborted) return;
    batch(() => {
      found.value = masks;
      run.value = { kind: "done" };
    });
    record({ action: "Everything", place: "server", ms: performance.now() - started, steps });
  } catch (error) {
    if (current.signal.aborted || isAbort(error)) return;
    run.value = { kind: "none" };
    failed("Everything could not be segmented", error);
  }
}

async function* events(signal: AbortSignal): AsyncGenerator<AutoMaskEvent, void> {
  const parameters = {
    pointsPerSide: pointsPerSide.value,
    predIouThresh: 0,
    stabilityScoreThresh: 0,
  };
  const { id } = await currentEmbedding();
  try {
    yield* api.automask(id, parameters, signal);
  } catch (error) {
    if (!isEmbeddingMissing(error)) throw error;
    const again = await encodeAgain();
    yield* api.automask(again.id, parameters, signal);
  }
}

/** Stop a run; the server stops too. */
export function cancelEverything(): void {
  clear();
}

/** Remove the result. */
export function clear(): void {
  running.abort();
  batch(() => {
    run.value = { kind: "none" };
    found.value = [];
    highlighted.value = -1;
  });
}

/** Point at a mask, by its index in `found`; -1: at none. */
export function highlight(index: number): void {
  highlighted.value = index;
}

/** Make an object of one mask, by its index in `found`; the others stay. */
export function keepOne(index: number): void {
  const mask = found.value[index];
  if (!mask || !shown.value.includes(index)) return;
  highlighted.value = -1;
  addObjects([{ prompt: { points: [] }, answers: [mask] }]);
}

/** Return whether a mask of everything that has become an object covers a position of the image. */
export function isKeptAt(x: number, y: number): boolean {
  return keptIndices().some((index) => {
    const mask = found.value[index];
    return mask !== undefined && contains(mask, x, y);
  });
}

/** Make objects of masks, by their indices in `found`, and remove the result. */
export function keep(indices: readonly number[]): void {
  const masks = indices.flatMap((index) => found.value[index] ?? []);
  addObjects(masks.map((mask) => ({ prompt: { points: [] }, answers: [mask] })));
  clear();
}

function keptIndices(): number[] {
  return kept.value.split(",").filter(Boolean).map(Number);
}
