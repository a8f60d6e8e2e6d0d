/** Masks at the size of a screen, from their runs: no array has the size of the image. */

import type { Size } from "../types";
import { forEachInterval, type Shape } from "./run-lengths";

/** Rows of columns: x, top, and the first row below, in turn; ordered by x, then top. */
export type Intervals = Int32Array<ArrayBuffer>;

/** Return the size of an image of which the longer side is at most *maxSide* pixels. */
export function fitted({ width, height }: Size, maxSide: number): Size {
  const scale = Math.min(1, maxSide / Math.max(width, height));
  return {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
  };
}

/**
 * Return a mask at a size that is not larger than its own.
 *
 * A pixel is inside if the mask is at its centre. Parts that have no centre of a pixel, as they are
 * thinner, get one pixel all the same, so that they do not vanish.
 */
export function reduce(shape: Shape, to: Size): Intervals {
  const column = new Column(to.height);
  const scale = { x: to.width / shape.size.width, y: to.height / shape.size.height };
  const found: number[] = [];
  let current = -1;
  let centre = -1;
  forEachInterval(shape, (x, top, bottom) => {
    const reduced = Math.min(to.width - 1, Math.floor((x + 0.5) * scale.x));
    if (reduced !== current) {
      column.moveTo(current, found);
      current = reduced;
      centre = Math.min(shape.size.width - 1, Math.floor((reduced + 0.5) / scale.x));
    }
    column.add(...rows(top, bottom, scale.y), x === centre);
  });
  column.moveTo(current, found);
  return Int32Array.from(found);
}

/** Return the reduced rows of which the centres are between two rows; at least one. */
function rows(top: number, bottom: number, scale: number): [number, number] {
  const first = Math.ceil(top * scale - 0.5);
  const end = Math.ceil(bottom * scale - 0.5);
  if (end > first) return [first, end];
  const only = Math.floor(((top + bottom) / 2) * scale);
  return [only, only + 1];
}

/** One column of the reduced mask, from several columns of the mask. */
class Column {
  readonly #inside: Uint8Array;
  #others: [number, number][] = [];
  #top = Infinity;
  #bottom = 0;

  constructor(height: number) {
    this.#inside = new Uint8Array(height);
  }

  /** Add rows of a column of the mask; *isCentre*: the one at the centre of this one. */
  add(top: number, bottom: number, isCentre: boolean): void {
    if (isCentre) this.#fill(top, bottom);
    else this.#others.push([top, bottom]);
  }

  /** Append the intervals of the column to *found* and begin another. */
  moveTo(x: number, found: number[]): void {
    for (const [top, bottom] of this.#others) {
      // Of a part that the column at the centre does not have.
      if (!this.#inside.subarray(top, bottom).includes(1)) this.#fill(top, bottom);
    }
    const inside = this.#inside.subarray(0, this.#bottom);
    for (let top = inside.indexOf(1, this.#top); top >= 0; ) {
      const below = inside.indexOf(0, top);
      const bottom = below < 0 ? inside.length : below;
      found.push(x, top, bottom);
      top = inside.indexOf(1, bottom);
    }
    inside.fill(0);
    this.#others = [];
    this.#top = Infinity;
    this.#bottom = 0;
  }

  #fill(top: number, bottom: number): void {
    this.#inside.fill(1, top, bottom);
    this.#top = Math.min(this.#top, top);
    this.#bottom = Math.max(this.#bottom, bottom);
  }
}
