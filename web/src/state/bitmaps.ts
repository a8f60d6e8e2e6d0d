import { effect, type Signal, signal } from "@preact/signals";

import * as masks from "../masks";
import type { Mask, Rgb, SegmentedObject } from "../types";
import { type DrawnMask, MAX_SIDE, part, renderSharply } from "./details";
import { activeObject, maskOf, nextColour, objects, PALETTE } from "./document";
import { found, highlighted, shown } from "./everything";
import { report } from "./notices";
import { preview } from "./prompting";

/** Sides in pixels: previews are drawn many times a second. */
const MAX_PREVIEW_SIDE = 1024;
const HIGHLIGHT: Rgb = [255, 255, 255];

/**
 * The masks of objects by their ids, also of hidden ones. Until the newest mask of an object is
 * drawn, this has the one before.
 */
export const objectBitmaps = signal<ReadonlyMap<number, DrawnMask>>(new Map());

/** The mask that a click under the pointer would give. */
export const previewBitmap = signal<DrawnMask | null>(null);

/** The masks of `everything.shown`; *labels* are indices in `everything.found`, row by row. */
export const everythingBitmap = signal<masks.Composition | null>(null);

/** The mask of `everything.highlighted`. */
export const highlightBitmap = signal<DrawnMask | null>(null);

const drawn = new Map<number, DrawnMask>();
const pending = new Map<number, { readonly mask: Mask; readonly colour: Rgb }>();
let previewed: Mask | null = null;
let pointedAt: Mask | null = null;
let composed: readonly Mask[] = [];
let handle: Promise<number> = Promise.resolve(0);

effect(() => {
  const present = objects.value;
  const ids = new Set(present.map(({ id }) => id));
  for (const id of drawn.keys()) if (!ids.has(id)) discard(id);
  for (const id of pending.keys()) if (!ids.has(id)) pending.delete(id);
  for (const object of present) void drawObject(object);
  publish();
});

effect(() => {
  const mask = preview.value;
  part.value;
  previewed = mask;
  if (mask) void drawPreview(mask, activeObject.peek()?.colour ?? nextColour());
  else replace(previewBitmap, null);
});

effect(() => {
  const everything = found.value;
  composed = everything;
  if (everything.length === 0) replaceEverything(null);
  else handle = prepare(everything);
});

effect(() => {
  const indices = shown.value;
  if (found.value.length > 0) void compose(found.value, indices);
});

effect(() => {
  const mask = found.value[highlighted.value] ?? null;
  part.value;
  pointedAt = mask;
  if (mask) void drawHighlight(mask);
  else replace(highlightBitmap, null);
});

async function drawObject(object: SegmentedObject): Promise<void> {
  const { id, colour } = object;
  const mask = maskOf(object);
  const before = drawn.get(id);
  if (before?.mask === mask && before?.colour === colour) {
    pending.delete(id);
    return;
  }
  if (!mask) {
    pending.delete(id);
    discard(id);
    return;
  }
  const asked = pending.get(id);
  if (asked?.mask === mask && asked.colour === colour) return;
  const request = { mask, colour };
  pending.set(id, request);
  const rendering = await draw(masks.render(mask, colour, MAX_SIDE));
  if (pending.get(id) !== request) {
    rendering?.bitmap.close();
    return;
  }
  pending.delete(id);
  if (!rendering) return;
  discard(id);
  drawn.set(id, { mask, colour, ...rendering });
  publish();
}

async function drawPreview(mask: Mask, colour: Rgb): Promise<void> {
  const rendering = await draw(renderSharply(mask, colour, MAX_PREVIEW_SIDE));
  if (previewed === mask) replace(previewBitmap, rendering && { mask, colour, ...rendering });
  else rendering?.bitmap.close();
}

async function drawHighlight(mask: Mask): Promise<void> {
  const colour = HIGHLIGHT;
  const rendering = await draw(renderSharply(mask, colour, MAX_PREVIEW_SIDE));
  if (pointedAt === mask) replace(highlightBitmap, rendering && { mask, colour, ...rendering });
  else rendering?.bitmap.close();
}

async function prepare(everything: readonly Mask[]): Promise<number> {
  const colours = everything.map((_, index) => paletteColour(index));
  return (await draw(masks.prepare(everything, colours, MAX_SIDE))) ?? 0;
}

async function compose(everything: readonly Mask[], indices: readonly number[]): Promise<void> {
  const composition = await draw(handle.then((known) => masks.compose(known, indices)));
  if (!composition) return;
  if (composed === everything) replaceEverything(composition);
  else composition.bitmap.close();
}

async function draw<T>(drawing: Promise<T>): Promise<T | null> {
  try {
    return await drawing;
  } catch (error) {
    report("A mask cannot be drawn", error);
    return null;
  }
}

function discard(id: number): void {
  drawn.get(id)?.bitmap.close();
  drawn.delete(id);
}

function publish(): void {
  objectBitmaps.value = new Map(drawn);
}

function replace(target: Signal<DrawnMask | null>, next: DrawnMask | null): void {
  const before = target.peek();
  target.value = next;
  before?.bitmap.close();
}

function replaceEverything(composition: masks.Composition | null): void {
  const before = everythingBitmap.peek();
  everythingBitmap.value = composition;
  before?.bitmap.close();
}

function paletteColour(index: number): Rgb {
  return PALETTE[index % PALETTE.length] as Rgb;
}
