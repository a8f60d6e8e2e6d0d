/** Masks for tests. */

import type { Mask, Size } from "../types";
import { reduce } from "./reduction";
import { areaOf, boundsOf, encodeRuns, type Shape } from "./run-lengths";

/** Return a source of numbers from 0 to before 1, the same for the same seed: mulberry32. */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return a mask of rows of text, in which `#` is inside. */
export function drawn(...rows: string[]): Shape {
  const size = { width: rows[0]?.length ?? 0, height: rows.length };
  const pixels = [...rows.join("")].map((character) => Number(character === "#"));
  return { size, runs: encodeRuns(pixels, size) };
}

/** Return a mask of pixels, row by row. */
export function fromPixels(pixels: ArrayLike<number>, size: Size): Shape {
  return { size, runs: encodeRuns(pixels, size) };
}

/** Return the pixels of a mask row by row, 0 or 1, by reading its runs one pixel at a time. */
export function pixelsOf({ size, runs }: Shape): Uint8Array {
  const pixels = new Uint8Array(size.width * size.height);
  let position = 0;
  runs.forEach((run, index) => {
    for (let end = position + run; position < end; position++) {
      const x = Math.floor(position / size.height);
      pixels[(position % size.height) * size.width + x] = index % 2;
    }
  });
  return pixels;
}

/** Return the pixels of a reduced mask, row by row: 1 inside, 0 outside. */
export function reducedPixels(shape: Shape, to: Size): Uint8Array<ArrayBuffer> {
  const pixels = new Uint8Array(to.width * to.height);
  const intervals = reduce(shape, to);
  for (let index = 0; index < intervals.length; index += 3) {
    const [x = 0, top = 0, bottom = 0] = intervals.subarray(index, index + 3);
    for (let y = top; y < bottom; y++) pixels[y * to.width + x] = 1;
  }
  return pixels;
}

/** Return masks of many kinds: noise, blocks, empty, full, single pixels, odd sizes. */
export function various(seed: number): Shape[] {
  const next = random(seed);
  const sizes = [
    { width: 1, height: 1 },
    { width: 1, height: 9 },
    { width: 13, height: 1 },
    { width: 7, height: 5 },
    { width: 31, height: 17 },
  ];
  return sizes.flatMap((size) => {
    const count = size.width * size.height;
    const all = [0, 1, 0.05, 0.5, 0.9].map((share) =>
      fromPixels(
        Array.from({ length: count }, () => Number(next() < share)),
        size,
      ),
    );
    return [...all, fromPixels(blocks(size, next), size)];
  });
}

/** Return pixels of rectangles, each put on or taken off: parts with holes and islands. */
function blocks({ width, height }: Size, next: () => number): Uint8Array {
  const pixels = new Uint8Array(width * height);
  for (let block = 0; block < 12; block++) {
    const [left, top] = [Math.floor(next() * width), Math.floor(next() * height)];
    const [right, bottom] = [left + 1 + next() * width * 0.5, top + 1 + next() * height * 0.5];
    for (let y = top; y < Math.min(height, bottom); y++) {
      for (let x = left; x < Math.min(width, right); x++) pixels[y * width + x] = (block + 1) % 2;
    }
  }
  return pixels;
}

/** Return a mask with scores. */
export function toMask(shape: Shape, predictedIou = 0.9): Mask {
  const bbox = boundsOf(shape) ?? { x: 0, y: 0, width: 0, height: 0 };
  const area = areaOf(shape.runs);
  return { ...shape, area, bbox, predictedIou, stabilityScore: 0.95, token: 1 };
}
