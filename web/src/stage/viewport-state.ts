/** The viewport of the shown image, and the actions that change it. */

import { computed, effect, signal } from "@preact/signals";

import { image } from "../state/image";
import type { Size } from "../types";
import type { Position, Viewport } from "./viewport";
import * as view from "./viewport";

/** The canvas: its size in CSS pixels, and its own pixels per CSS pixel. */
export interface Container extends Size {
  readonly ratio: number;
}

export const container = signal<Container>({ width: 0, height: 0, ratio: 1 });

/** What the user has zoomed to; null: the image is fitted. */
const chosen = signal<Viewport | null>(null);

/** Null if there is no image, or no canvas yet. */
export const viewport = computed<Viewport | null>(() => {
  const size = image.value?.size;
  if (!size || container.value.width === 0 || container.value.height === 0) return null;
  return chosen.value ?? view.fitted(size, container.value);
});

export const isFitted = computed(() => chosen.value === null);

const STEP = 1.5;

effect(() => {
  // Another image begins fitted.
  image.value;
  chosen.value = null;
});

export function zoomIn(): void {
  zoomAt(STEP, centre());
}

export function zoomOut(): void {
  zoomAt(1 / STEP, centre());
}

/** Show the whole image. */
export function fit(): void {
  chosen.value = null;
}

/** Multiply the scale; what is at *at* on the screen stays there. */
export function zoomAt(factor: number, at: Position): void {
  change((before, size) => view.zoomAt(before, factor, at, size, container.value));
}

/** Move the image by CSS pixels. */
export function panBy(by: Position): void {
  change((before, size) => view.pan(before, by, size, container.value));
}

/** Move the image so that a position of it is visible. */
export function reveal(position: Position): void {
  change((before, size) => view.reveal(before, position, size, container.value));
}

/** Take over the size of the canvas. */
export function setContainer(next: Container): void {
  const before = container.peek();
  const size = image.peek()?.size;
  const isSame = before.width === next.width && before.height === next.height;
  if (isSame && before.ratio === next.ratio) return;
  container.value = next;
  if (chosen.peek() && size) change((current) => view.resize(current, size, before, next));
}

function centre(): Position {
  const { width, height } = container.value;
  return { x: width / 2, y: height / 2 };
}

function change(next: (before: Viewport, image: Size) => Viewport): void {
  const size = image.peek()?.size;
  const before = viewport.peek();
  if (!size || !before) return;
  const changed = next(before, size);
  const whole = view.fitted(size, container.peek());
  chosen.value = changed.scale <= whole.scale ? null : changed;
}
