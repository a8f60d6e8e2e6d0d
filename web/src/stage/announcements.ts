/** What a screen reader says about the canvas. */

import { effect, signal } from "@preact/signals";

import { activeObject, objects } from "../state/document";
import { found } from "../state/everything";
import type { Mask } from "../types";
import { answerText, areaText, positionText } from "./texts";
import type { Position } from "./viewport";

/** The latest text for the live region. */
export const announcement = signal("");

/** A crosshair that moves is announced once it rests, in milliseconds. */
const REST_MS = 400;

let timer = 0;
let announced: Mask | null = null;

effect(() => {
  const object = activeObject.value;
  const mask = object?.answers[object.chosen] ?? null;
  if (object && mask && mask !== announced) announce(answerText(object, mask));
  announced = mask;
});

/** Announce a position of the image after the crosshair has moved there. */
export function announcePosition(at: Position, maskIndex = -1): void {
  clearTimeout(timer);
  timer = window.setTimeout(() => {
    const mask = found.value[maskIndex];
    const text = mask ? `, on a mask of ${areaText(mask)}` : "";
    announce(`${positionText(at)}${text}`);
  }, REST_MS);
}

export function announceBoxCorner(at: Position): void {
  announce(`First corner of the box at ${positionText(at)}`);
}

export function announceKept(): void {
  const name = objects.value.at(-1)?.name;
  if (name) announce(`Kept as ${name}`);
}

function announce(text: string): void {
  clearTimeout(timer);
  // The same text again would not be read.
  announcement.value = text === announcement.peek() ? `${text}\u00a0` : text;
}
