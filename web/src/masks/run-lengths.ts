/**
 * COCO run lengths: down the columns, column by column; the first run is outside the mask.
 *
 * Compressed, a character holds five bits of a number, lowest first, and whether the number
 * continues; from the fourth number on, each is the difference from the one two before it.
 * Source: cocoapi common/maskApi.c rleToString, rleFrString.
 */

import type { BoundingBox, Size } from "../types";

/** The pixels of a mask without its scores. */
export interface Shape {
  readonly size: Size;
  readonly runs: Uint32Array;
}

const MAX_PIXELS = 2 ** 31 - 1;
/** Of one number after its last character: seven of five bits hold any run, and a difference. */
const MAX_SCALE = 32 ** 7;

/**
 * Return the runs of a compressed string.
 *
 * With *size* given, they must sum to its pixels. Throws `RangeError` for an invalid string.
 */
export function decodeCounts(counts: string, size?: Size): Uint32Array<ArrayBuffer> {
  const numbers = parseNumbers(counts);
  const runs = new Uint32Array(numbers.length);
  for (let index = 0; index < numbers.length; index++) {
    const run = (numbers[index] as number) + (index > 2 ? at(runs, index - 2) : 0);
    if (run < 0 || run > MAX_PIXELS) throw new RangeError("counts has a run out of range");
    runs[index] = run;
  }
  if (size) checkRuns({ size, runs });
  return runs;
}

/** Return the signed numbers of a compressed string. */
function parseNumbers(counts: string): number[] {
  const numbers: number[] = [];
  let value = 0;
  let scale = 1; // multiplied, not shifted: a shift has 32 bits
  for (let index = 0; index < counts.length; index++) {
    const bits = counts.charCodeAt(index) - 48;
    if (bits < 0 || bits > 63) throw new RangeError("counts has an invalid character");
    value += (bits & 31) * scale;
    scale *= 32;
    if (scale > MAX_SCALE) throw new RangeError("counts has a run that is too long");
    if (bits & 32) continue;
    numbers.push(bits & 16 ? value - scale : value);
    value = 0;
    scale = 1;
  }
  if (scale !== 1) throw new RangeError("counts ends within a run");
  return numbers;
}

/** Return the compressed string of runs, the same characters as pycocotools. */
export function encodeCounts(runs: Uint32Array): string {
  const characters: string[] = [];
  let text = "";
  for (let index = 0; index < runs.length; index++) {
    let rest = at(runs, index) - (index > 2 ? at(runs, index - 2) : 0);
    let continues: boolean;
    do {
      const low = rest & 31;
      rest = Math.floor(rest / 32);
      // The sign is the highest bit of the last character.
      continues = rest !== (low & 16 ? -1 : 0);
      text += String.fromCharCode(low + (continues ? 32 : 0) + 48);
    } while (continues);
    if (text.length > 4096) {
      characters.push(text);
      text = "";
    }
  }
  return characters.join("") + text;
}

/** Throw `RangeError` unless the runs of a mask sum to the pixels of its size. */
export function checkRuns({ size, runs }: Shape): void {
  const pixels = size.width * size.height;
  const whole = Number.isInteger(size.width) && Number.isInteger(size.height);
  if (!(whole && size.width > 0 && size.height > 0 && pixels <= MAX_PIXELS)) {
    throw new RangeError(`size ${size.width} x ${size.height} is not between 1 and 2^31-1 pixels`);
  }
  let total = 0;
  for (const run of runs) total += run;
  if (total !== pixels) {
    const expected = `${size.width} x ${size.height} has ${pixels}`;
    throw new RangeError(`the runs sum to ${total} pixels, ${expected}`);
  }
}

/** Return the runs of an image of 0 (outside) and other values (inside), row by row. */
export function encodeRuns(pixels: ArrayLike<number>, { width, height }: Size): Uint32Array {
  const runs: number[] = [];
  let inside = false;
  let start = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if ((pixels[y * width + x] !== 0) === inside) continue;
      const position = x * height + y;
      runs.push(position - start);
      start = position;
      inside = !inside;
    }
  }
  runs.push(width * height - start);
  return Uint32Array.from(runs);
}

/** Return the pixels inside. */
export function areaOf(runs: Uint32Array): number {
  let area = 0;
  for (let index = 1; index < runs.length; index += 2) area += at(runs, index);
  return area;
}

/**
 * Return the smallest box around all pixels of a mask, or null for an empty mask.
 *
 * As in COCO, the box of one pixel has the width 1. The API's is one less on each side.
 */
export function boundsOf(shape: Shape): BoundingBox | null {
  const { height } = shape.size;
  let [left, right, top, bottom] = [Infinity, -1, Infinity, -1];
  forEachSpan(shape.runs, (start, end) => {
    const first = Math.floor(start / height);
    const last = Math.floor((end - 1) / height);
    left = Math.min(left, first);
    right = Math.max(right, last);
    // A run over the end of a column has pixels in the last and the first row.
    top = first === last ? Math.min(top, start - first * height) : 0;
    bottom = first === last ? Math.max(bottom, end - 1 - last * height) : height - 1;
  });
  if (right < 0) return null;
  return { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

/** Return whether a point of the image, in pixels, is on a pixel of the mask. */
export function contains({ size, runs }: Shape, x: number, y: number): boolean {
  const { width, height } = size;
  if (!(x >= 0 && y >= 0 && x < width && y < height)) return false;
  const position = Math.floor(x) * height + Math.floor(y);
  let end = 0;
  for (let index = 0; index < runs.length; index++) {
    end += at(runs, index);
    if (position < end) return index % 2 === 1;
  }
  return false;
}

/** Call *visit* with the first position of each run inside and the first after it. */
export function forEachSpan(runs: Uint32Array, visit: (start: number, end: number) => void): void {
  let start = 0;
  for (let index = 0; index < runs.length; index++) {
    const end = start + at(runs, index);
    if (index % 2 === 1 && end > start) visit(start, end);
    start = end;
  }
}

/** Call *visit* with each column of a mask and its rows inside: *top* to before *bottom*. */
export function forEachInterval(
  { size, runs }: Shape,
  visit: (x: number, top: number, bottom: number) => void,
): void {
  const { height } = size;
  forEachSpan(runs, (start, end) => {
    let x = Math.floor(start / height);
    for (let from = start; from < end; x++) {
      const to = Math.min(end, (x + 1) * height);
      visit(x, from - x * height, to - x * height);
      from = to;
    }
  });
}

function at(values: Uint32Array, index: number): number {
  return values[index] as number;
}
