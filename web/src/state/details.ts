/** Sharp drawings of masks, in the part of the image that is shown larger than their bitmaps. */

import { effect, signal } from "@preact/signals";

import * as masks from "../masks";
import { drawnSize } from "../masks/canvas";
import type { BoundingBox, Mask, Rgb, SegmentedObject } from "../types";
import { maskOf, objects } from "./document";
import { image } from "./image";
import { report } from "./notices";

/** A mask and its bitmap. */
export interface DrawnMask extends masks.Rendering {
  readonly mask: Mask;
  readonly colour: Rgb;
}

/** Longer side of a bitmap of the whole image, in pixels. */
export const MAX_SIDE = 2048;

/** What is drawn sharply; null: the bitmaps of masks have enough pixels. */
export const part = signal<masks.Part | null>(null);

/** The masks of visible objects in `part`, by their ids. */
export const details = signal<ReadonlyMap<number, DrawnMask>>(new Map());

interface Detail {
  readonly part: masks.Part;
  readonly mask: Mask;
  readonly colour: Rgb;
  drawn: DrawnMask | null;
}

const known = new Map<number, Detail>();
let waiting = 0;

effect(() => {
  const current = part.value;
  const present = new Map(objects.value.map((object) => [object.id, object]));
  let isChanged = false;
  for (const [id, detail] of known) {
    if (isOf(detail, current, present.get(id))) continue;
    known.delete(id);
    detail.drawn?.bitmap.close();
    isChanged = true;
  }
  if (isChanged) publish();
  if (current) for (const object of present.values()) void drawDetail(object, current);
});

/**
 * Draw masks sharply in a region of the image, which is shown at *scale* pixels of the screen per
 * pixel, with lines of *edge* pixels.
 */
export function magnify(region: BoundingBox, scale: number, edge: number): void {
  const size = image.peek()?.size;
  const isEnough = !size || scale <= drawnSize(size, MAX_SIDE).width / size.width;
  part.value = isEnough ? null : { region, scale, edge };
}

/** Draw a mask: sharply in `part`, or as a whole. */
export async function renderSharply(
  mask: Mask,
  colour: Rgb,
  maxSide: number,
): Promise<masks.Rendering> {
  const sharp = part.peek() && (await masks.renderPart(mask, colour, part.peek() as masks.Part));
  return sharp ?? masks.render(mask, colour, maxSide);
}

function isOf(detail: Detail, current: masks.Part | null, object?: SegmentedObject): boolean {
  return (
    object?.visible === true &&
    detail.part === current &&
    detail.mask === maskOf(object) &&
    detail.colour === object.colour
  );
}

async function drawDetail(object: SegmentedObject, current: masks.Part): Promise<void> {
  const { id, colour, visible } = object;
  const mask = maskOf(object);
  if (!mask || !visible || known.has(id)) return;
  const detail: Detail = { part: current, mask, colour, drawn: null };
  known.set(id, detail);
  waiting++;
  const rendering = await masks.renderPart(mask, colour, current).catch((error: unknown) => {
    report("A mask cannot be drawn", error);
    return null;
  });
  waiting--;
  if (known.get(id) === detail) detail.drawn = rendering && { mask, colour, ...rendering };
  else rendering?.bitmap.close();
  // All at once: each time the image is drawn again.
  if (waiting === 0) publish();
}

function publish(): void {
  details.value = new Map([...known].flatMap(([id, { drawn }]) => (drawn ? [[id, drawn]] : [])));
}
