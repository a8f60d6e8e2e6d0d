/** Which of many masks is at each pixel, and pixels in their colours. */

import type { Rgb, Size } from "../types";
import { fitted, type Intervals, reduce } from "./reduction";
import { areaOf, type Shape } from "./run-lengths";

const MAX_MASKS = 2 ** 15 - 1;

/**
 * The masks of one image at a reduced size.
 *
 * Their memory depends on the columns that they have at that size, not on the image.
 */
export class MaskSet {
  /** Of the labels. */
  readonly size: Size;
  readonly #intervals: Intervals[];
  /** Indices of masks, larger ones first. */
  readonly order: readonly number[];

  /** Throws `RangeError` for more than 32,767 masks, or masks of different sizes. */
  constructor(shapes: readonly Shape[], maxSide: number) {
    const size = shapes[0]?.size ?? { width: 1, height: 1 };
    if (shapes.length > MAX_MASKS) throw new RangeError(`more than ${MAX_MASKS} masks`);
    if (shapes.some((each) => each.size.width !== size.width || each.size.height !== size.height)) {
      throw new RangeError("masks of different sizes");
    }
    this.size = fitted(size, maxSide);
    this.#intervals = shapes.map((shape) => reduce(shape, this.size));
    const areas = shapes.map(({ runs }) => areaOf(runs));
    this.order = [...areas.keys()].sort((a, b) => (areas[b] ?? 0) - (areas[a] ?? 0));
  }

  /** Return the index of the smallest of the *shown* masks at each pixel, or -1; by columns. */
  label(shown: Iterable<number>): Int16Array<ArrayBuffer> {
    const { width, height } = this.size;
    const labels = new Int16Array(width * height).fill(-1);
    const isShown = new Set(shown);
    for (const index of this.order) {
      if (!isShown.has(index)) continue;
      const intervals = this.#intervals[index] as Intervals;
      for (let at = 0; at < intervals.length; at += 3) {
        const column = (intervals[at] as number) * height;
        labels.fill(
          index,
          column + (intervals[at + 1] as number),
          column + (intervals[at + 2] as number),
        );
      }
    }
    return labels;
  }
}

/** Return values row by row of those column by column. */
export function byRows(columns: Int16Array, { width, height }: Size): Int16Array<ArrayBuffer> {
  const rows = new Int16Array(columns.length);
  // In blocks, which stay in the processor's cache.
  const block = 64;
  for (let left = 0; left < width; left += block) {
    const right = Math.min(width, left + block);
    for (let y = 0; y < height; y++) {
      for (let x = left; x < right; x++) rows[y * width + x] = columns[x * height + y] as number;
    }
  }
  return rows;
}

/**
 * Return pixels, RGBA without premultiplied alpha, of labels row by row.
 *
 * *alpha* is that of the inside, 0 to 1. Pixels next to another label are opaque.
 */
export function paint(
  labels: Int16Array,
  { width, height }: Size,
  colours: readonly Rgb[],
  alpha: number,
): Uint8ClampedArray<ArrayBuffer> {
  const fill = Uint32Array.from(colours, (colour) => pack(colour, Math.round(255 * alpha)));
  const edge = Uint32Array.from(colours, (colour) => pack(colour, 255));
  const pixels = new Uint32Array(width * height);
  for (let here = 0, y = 0; y < height; y++) {
    const above = y > 0 ? -width : 0;
    const below = y < height - 1 ? width : 0;
    for (let x = 0; x < width; x++, here++) {
      const label = labels[here] as number;
      if (label < 0) continue;
      const isInside =
        areBoth(labels, label, here + above, here + below) &&
        areBoth(labels, label, here - Math.sign(x), here + Math.sign(width - 1 - x));
      pixels[here] = (isInside ? fill : edge)[label] as number;
    }
  }
  return new Uint8ClampedArray(pixels.buffer);
}

function areBoth(labels: Int16Array, label: number, first: number, second: number): boolean {
  return labels[first] === label && labels[second] === label;
}

const LITTLE_ENDIAN = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

function pack([red, green, blue]: Rgb, alpha: number): number {
  return LITTLE_ENDIAN
    ? ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0
    : ((red << 24) | (green << 16) | (blue << 8) | alpha) >>> 0;
}
