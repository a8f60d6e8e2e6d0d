/** What keys, presses, and the wheel mean. Independent of the DOM and of the state. */

import type { Size, Tool } from "../types";
import type { Press } from "./gestures";
import { clampToImage, type Position } from "./viewport";

/** What of an event decides what a press does. */
export interface Pressed {
  readonly button: number;
  readonly altKey: boolean;
  readonly shiftKey: boolean;
  readonly ctrlKey: boolean;
}

export const MIDDLE = 1;
const RIGHT = 2;
/** The far end of a pen. */
const ERASER = 5;

/** What of an event decides how far it zooms. */
export interface Turned {
  readonly deltaY: number;
  readonly deltaMode: number;
  readonly ctrlKey: boolean;
}

const LINE = 1;
const PAGE = 2;
const PIXELS_PER_LINE = 16;
const PIXELS_PER_PAGE = 400;
/** Natural logarithms of the factor per pixel. Browsers report a pinch as a wheel with Ctrl. */
const PER_PIXEL = 0.0018;
const PER_PINCHED_PIXEL = 0.01;
/** One event zooms at most by this, whatever the device reports. */
const MAX_FACTOR = 1.6;

/** Return by how much the scale is multiplied. */
export function zoomFactor({ deltaY, deltaMode, ctrlKey }: Turned): number {
  const unit = deltaMode === LINE ? PIXELS_PER_LINE : deltaMode === PAGE ? PIXELS_PER_PAGE : 1;
  const factor = Math.exp(-deltaY * unit * (ctrlKey ? PER_PINCHED_PIXEL : PER_PIXEL));
  return Math.min(Math.max(factor, 1 / MAX_FACTOR), MAX_FACTOR);
}

/** What of an event decides how far it moves the crosshair. */
export interface Arrow {
  readonly key: string;
  readonly shiftKey: boolean;
}

/** What of an event decides which shortcut it is. */
export interface Keys {
  readonly key: string;
  readonly ctrlKey: boolean;
  readonly metaKey: boolean;
  readonly altKey: boolean;
  readonly shiftKey: boolean;
}

export type Shortcut =
  | "foreground"
  | "background"
  | "box"
  | "pan"
  | "undo"
  | "redo"
  | "new"
  | "cancel"
  | "zoom-in"
  | "zoom-out"
  | "fit";

const PLAIN: Readonly<Record<string, Shortcut>> = {
  f: "foreground",
  b: "background",
  r: "box",
  h: "pan",
  n: "new",
  escape: "cancel",
  "+": "zoom-in",
  "=": "zoom-in",
  "-": "zoom-out",
  "0": "fit",
};

const DIRECTIONS: Readonly<Record<string, Position>> = {
  ArrowLeft: { x: -1, y: 0 },
  ArrowRight: { x: 1, y: 0 },
  ArrowUp: { x: 0, y: -1 },
  ArrowDown: { x: 0, y: 1 },
};
/** In CSS pixels. */
const LONG_STEP = 10;
/** A key that is held moves further with each repetition, up to this many times. */
const MAX_ACCELERATION = 8;
const REPEATS_PER_ACCELERATION = 10;

/** Return what a press does with a tool. */
export function pressOf(event: Pressed, chosen: Tool, isSpacePressed: boolean): Press {
  const { button } = event;
  if (button === MIDDLE || (isSpacePressed && button === 0)) return { kind: "pan" };
  if (chosen === "pan") return button === 0 ? { kind: "pan" } : { kind: "none" };
  if (button === RIGHT || button === ERASER) return { kind: "point", foreground: false };
  if (button !== 0) return { kind: "none" };
  const isModified = isBackground(event);
  if (chosen === "box") return { kind: "box", click: isModified ? "background" : "none" };
  return { kind: "point", foreground: chosen === "foreground" && !isModified };
}

/**
 * Return whether modifiers make a press a background point; Ctrl is how a Mac with one button
 * presses the other.
 */
export function isBackground({ altKey, shiftKey, ctrlKey }: Omit<Pressed, "button">): boolean {
  return altKey || shiftKey || ctrlKey;
}

/**
 * Return how far an arrow key moves the crosshair, in CSS pixels: 1, or 10 with Shift; null for
 * other keys. *repeated* is how often the key was repeated as it is held.
 */
export function stepOf({ key, shiftKey }: Arrow, repeated: number): Position | null {
  const direction = DIRECTIONS[key];
  if (!direction) return null;
  const acceleration = Math.min(
    MAX_ACCELERATION,
    1 + Math.floor(repeated / REPEATS_PER_ACCELERATION),
  );
  const length = (shiftKey ? LONG_STEP : 1) * acceleration;
  return { x: direction.x * length, y: direction.y * length };
}

/** Return a position of the image, moved by CSS pixels, inside the image. */
export function moved(from: Position, by: Position, scale: number, size: Size): Position {
  return clampToImage({ x: from.x + by.x / scale, y: from.y + by.y / scale }, size);
}

/** Return the shortcut of a key; those of the browser, such as Ctrl and +, are none. */
export function shortcutOf(keys: Keys): Shortcut | null {
  const key = keys.key.toLowerCase();
  if (keys.altKey) return null;
  if (keys.ctrlKey || keys.metaKey) {
    if (key === "z") return keys.shiftKey ? "redo" : "undo";
    return key === "y" && !keys.shiftKey ? "redo" : null;
  }
  // Many keyboards have + and - with Shift.
  if (keys.shiftKey && /^[a-z]$/.test(key)) return null;
  return PLAIN[key] ?? null;
}
