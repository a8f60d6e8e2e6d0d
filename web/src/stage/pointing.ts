/** What the user points at: the actions that all kinds of input share. */

import { batch, computed, effect, signal } from "@preact/signals";

import { everythingBitmap } from "../state/bitmaps";
import { activeObject } from "../state/document";
import { clear, highlight, isKeptAt, keepOne, run } from "../state/everything";
import { embedded, image } from "../state/image";
import { addPoint, clearPrompts, endPreview, previewAt, setBox, tool } from "../state/prompting";
import type { Box } from "../types";
import { announceKept } from "./announcements";
import { isBox } from "./gestures";
import { labelAt } from "./labels";
import { boxBetween, clampToImage, isInside, type Position, toImage, toScreen } from "./viewport";
import { viewport } from "./viewport-state";

/** The position for the keyboard, in the image; null: not used yet. */
export const crosshair = signal<Position | null>(null);
export const isCrosshairShown = signal(false);

/** The first corner of a box that is being drawn, and the opposite one, in the image. */
export const drawnBox = signal<{ readonly from: Position; readonly to: Position } | null>(null);

/** Whether the space bar, which pans with any tool, is held. */
export const isSpaceHeld = signal(false);
/** Whether a press moves the image now. */
export const isPanning = signal(false);

/** Whether clicks choose among the masks of everything. */
export const isChoosing = computed(
  () => run.value.kind === "done" && everythingBitmap.value !== null,
);

/** Nearer to the last click, in CSS pixels, no preview hides its answer. */
const QUIET = 4;
let lastClick: Position | null = null;
const DOUBLE_CLICK_MS = 400;
let lastChoice = { at: { x: 0, y: 0 }, time: -DOUBLE_CLICK_MS };

effect(() => {
  image.value;
  batch(() => {
    crosshair.value = null;
    isCrosshairShown.value = false;
    drawnBox.value = null;
  });
});

effect(() => {
  // A preview, or half a box, of another tool.
  tool.value;
  drawnBox.value = null;
  endPreview();
});

/** Add a point, or keep the mask there. *screen* is outside the image: nothing. */
export function pointAt(screen: Position, foreground: boolean): void {
  const at = positionAt(screen);
  if (!at) return;
  lastClick = screen;
  crosshair.value = at;
  pointIn(at, foreground);
}

/** As `pointAt`, with a position in the image. */
export function pointIn(at: Position, foreground: boolean): void {
  const isChoice = isChoosing.value && (foreground || tool.value === "background");
  if (isChoice && choose(at)) return;
  addPoint({ x: at.x, y: at.y, foreground });
}

/** Keep the mask of everything at a position; returns whether there is one, or was. */
function choose(at: Position): boolean {
  const index = maskAt(at);
  const isRepeated = isDoubleClick(at);
  if (index >= 0 && !isRepeated) {
    lastChoice = { at, time: performance.now() };
    keepOne(index);
    announceKept();
  }
  return index >= 0 || isRepeated || isKeptAt(at.x, at.y);
}

/** Whether a mask was kept here just now: the second click would keep what was behind it. */
function isDoubleClick({ x, y }: Position): boolean {
  const { at, time } = lastChoice;
  const distance = Math.hypot(at.x - x, at.y - y) * (viewport.value?.scale ?? 1);
  return performance.now() - time < DOUBLE_CLICK_MS && distance < QUIET;
}

/** Show what a click would do. */
export function hoverAt(screen: Position, foreground: boolean): void {
  const at = positionAt(screen);
  if (!at) {
    leave();
    return;
  }
  if (isChoosing.value) {
    endPreview();
    highlight(maskAt(at));
    return;
  }
  const isQuiet = lastClick && Math.hypot(lastClick.x - screen.x, lastClick.y - screen.y) < QUIET;
  // A background point alone has no object to be cut from.
  const isUseful = foreground || activeObject.value !== null;
  if (embedded.value && !isQuiet && isUseful) {
    lastClick = null;
    previewAt(at.x, at.y, foreground);
  } else endPreview();
}

/** Show which mask of everything the crosshair is on; returns its index, or -1. */
export function hoverCrosshair(): number {
  const index = crosshair.value ? maskAt(crosshair.value) : -1;
  highlight(index);
  return index;
}

/** The pointer, or the focus, is elsewhere. */
export function leave(): void {
  endPreview();
  highlight(-1);
}

/** Show a box that is being drawn, between positions on the screen. */
export function drawBox(from: Position, to: Position): void {
  const view = viewport.value;
  if (!view) return;
  drawnBox.value = { from: toImage(view, from), to: toImage(view, to) };
}

/** Prompt with the box that is being drawn, unless it is too small. */
export function finishBox(): void {
  const box = boxInProgress();
  drawnBox.value = null;
  if (box && isLargeEnough(box)) setBox(box);
}

export function cancelBox(): void {
  drawnBox.value = null;
}

/** The part of the image in the box that is being drawn. */
export function boxInProgress(): Box | null {
  const size = image.value?.size;
  if (!size || !drawnBox.value) return null;
  return boxBetween(drawnBox.value.from, drawnBox.value.to, size);
}

/** Undo the latest of: a box in progress, the masks of everything, the prompts. */
export function cancelLatest(): void {
  if (drawnBox.value) cancelBox();
  else if (run.value.kind !== "none") clear();
  else clearPrompts();
}

/** The index of the mask at a position of the image in what was found, or -1. */
export function maskAt(at: Position): number {
  const labels = everythingBitmap.value;
  const size = image.value?.size;
  return isChoosing.value && labels && size ? labelAt(labels, size, at) : -1;
}

function positionAt(screen: Position): Position | null {
  const view = viewport.value;
  const size = image.value?.size;
  if (!view || !size) return null;
  const at = toImage(view, screen);
  return isInside(at, size) ? clampToImage(at, size) : null;
}

function isLargeEnough({ xMin, yMin, xMax, yMax }: Box): boolean {
  const view = viewport.value;
  if (!view) return false;
  return isBox(toScreen(view, { x: xMin, y: yMin }), toScreen(view, { x: xMax, y: yMax }));
}
