/**
 * From low-resolution logits to a mask of the image: run lengths, area, box, stability.
 *
 * A pixel is a weighted mean of 3 x 3 logits, so where all of them lie on one side of the
 * thresholds it is known without interpolation. The image is walked column by column, the order of
 * run lengths; of a column, only the rows whose logits straddle a threshold are interpolated. No
 * array of the size of the image is written. The arithmetic is that of `samserve/core/masks.py`, in
 * float32, so that the same logits have the same pixels as on the server.
 */

import type { BoundingBox } from "../types";
import { RunLengths } from "./run-lengths";
import type { AxisTaps, Upsampling } from "./upsampling";

export interface Traced {
  readonly runs: Uint32Array;
  readonly area: number;
  readonly bbox: BoundingBox;
  /** IoU of the masks at both thresholds of stability; 0 if both are empty. */
  readonly stability: number;
}

/** Pixels above *level* are inside; *offset*, not negative, is the distance for the stability. */
export interface Thresholds {
  readonly level: number;
  readonly offset: number;
}

/** Bound of the rounding error of a pixel, relative to the largest logit. */
const ROUNDING = 1e-5;
const { fround } = Math;

/** Return the mask of *logits*, float32 `side * side`, row by row. */
export function trace(
  logits: Float32Array,
  upsampling: Upsampling,
  { level, offset }: Thresholds,
): Traced {
  const { image, side } = upsampling;
  const samples = transposed(logits, side);
  const tracer = new ColumnTracer(upsampling.rows, side, image.height, {
    level,
    lower: level - offset,
    upper: level + offset,
    guard: ROUNDING * Math.max(1, largest(samples)),
  });
  const highest = highestOfThree(samples, side);
  const { first, weights } = upsampling.columns;
  const [w0, w1, w2] = weights;
  const column = new Float32Array(side);
  for (let x = 0; x < image.width; x++) {
    const start = first[x] as number;
    if ((highest[start] as number) <= tracer.outside) {
      tracer.skip(x);
      continue;
    }
    blend(samples, start * side, column, [w0[x] as number, w1[x] as number, w2[x] as number]);
    tracer.walk(column, x);
  }
  const runs = tracer.runs.finish(image.width * image.height);
  const stability = tracer.outer > 0 ? tracer.inner / tracer.outer : 0;
  return { runs, ...measured(runs, image.height), stability };
}

interface Levels {
  readonly level: number;
  readonly lower: number;
  readonly upper: number;
  readonly guard: number;
}

/** Walks down columns of the image, and collects runs and the counts for the stability. */
class ColumnTracer {
  readonly runs = new RunLengths();
  inner = 0;
  outer = 0;
  /** Pixels of logits that are all at or below this are outside; above *inside*, inside. */
  readonly outside: number;
  readonly #inside: number;
  /** The first row of the image for each first logit of three, and the end. */
  readonly #starts: Int32Array;
  readonly #weights: AxisTaps["weights"];
  readonly #height: number;
  readonly #levels: Levels;

  constructor(rows: AxisTaps, side: number, height: number, levels: Levels) {
    this.#weights = rows.weights;
    this.#starts = startsOf(rows.first, side);
    this.#height = height;
    this.#levels = levels;
    this.outside = levels.lower - levels.guard;
    this.#inside = levels.upper + levels.guard;
  }

  skip(x: number) {
    this.runs.set(x * this.#height, false);
  }

  walk(column: Float32Array, x: number) {
    const top = x * this.#height;
    const starts = this.#starts;
    for (let l = 0; l < starts.length - 1; l++) {
      const from = starts[l] as number;
      const to = starts[l + 1] as number;
      if (from === to) {
        continue;
      }
      const a = column[l] as number;
      const b = column[l + 1] as number;
      const c = column[l + 2] as number;
      if (a <= this.outside && b <= this.outside && c <= this.outside) {
        this.runs.set(top + from, false);
      } else if (a > this.#inside && b > this.#inside && c > this.#inside) {
        this.runs.set(top + from, true);
        this.inner += to - from;
        this.outer += to - from;
      } else {
        this.#interpolate(top, from, to, [a, b, c]);
      }
    }
  }

  #interpolate(top: number, from: number, to: number, [a, b, c]: [number, number, number]) {
    const [w0, w1, w2] = this.#weights;
    const { level, lower, upper } = this.#levels;
    let inner = 0;
    let outer = 0;
    for (let y = from; y < to; y++) {
      const two = fround(fround(a * (w0[y] as number)) + fround(b * (w1[y] as number)));
      const logit = fround(two + fround(c * (w2[y] as number)));
      inner += logit > upper ? 1 : 0;
      outer += logit > lower ? 1 : 0;
      this.runs.set(top + y, logit > level);
    }
    this.inner += inner;
    this.outer += outer;
  }
}

/** Sum three neighbouring columns of *samples*, from *offset* on, with *weights*. */
function blend(
  samples: Float32Array,
  offset: number,
  column: Float32Array,
  [w0, w1, w2]: [number, number, number],
) {
  const side = column.length;
  for (let l = 0; l < side; l++) {
    const a = fround((samples[offset + l] as number) * w0);
    const b = fround((samples[offset + side + l] as number) * w1);
    const c = fround((samples[offset + 2 * side + l] as number) * w2);
    column[l] = fround(fround(a + b) + c);
  }
}

/** Return where the rows begin that are computed from three logits, the first at each index. */
function startsOf(first: Int32Array, side: number): Int32Array {
  const starts = new Int32Array(side - 1).fill(first.length);
  for (let y = first.length - 1; y >= 0; y--) {
    starts[first[y] as number] = y;
  }
  for (let l = side - 3; l >= 0; l--) {
    starts[l] = Math.min(starts[l] as number, starts[l + 1] as number);
  }
  return starts;
}

function transposed(logits: Float32Array, side: number): Float32Array {
  const columns = new Float32Array(side * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      columns[x * side + y] = logits[y * side + x] as number;
    }
  }
  return columns;
}

function largest(samples: Float32Array): number {
  let found = 0;
  for (let index = 0; index < samples.length; index++) {
    found = Math.max(found, Math.abs(samples[index] as number));
  }
  return found;
}

/** Return the highest logit of each column and the two after it. */
function highestOfThree(samples: Float32Array, side: number): Float32Array {
  const highest = new Float32Array(side).fill(Number.NEGATIVE_INFINITY);
  for (let x = 0; x < side; x++) {
    for (let y = 0; y < side; y++) {
      highest[x] = Math.max(highest[x] as number, samples[x * side + y] as number);
    }
  }
  return highest.map((each, x) => Math.max(each, highest[x + 1] ?? each, highest[x + 2] ?? each));
}

/** Return area and box of run lengths; the box is that of the extreme pixels, as the server's. */
function measured(runs: Uint32Array, height: number): { area: number; bbox: BoundingBox } {
  let [area, end] = [0, 0];
  let [left, top, right, bottom] = [Number.POSITIVE_INFINITY, height, 0, 0];
  for (let index = 1; index < runs.length; index += 2) {
    const start = end + (runs[index - 1] as number);
    end = start + (runs[index] as number);
    area += end - start;
    const [x, lastX] = [Math.floor(start / height), Math.floor((end - 1) / height)];
    const isTall = lastX > x;
    left = Math.min(left, x);
    right = lastX;
    top = Math.min(top, isTall ? 0 : start % height);
    bottom = Math.max(bottom, isTall ? height - 1 : (end - 1) % height);
  }
  return area === 0
    ? { area, bbox: { x: 0, y: 0, width: 0, height: 0 } }
    : { area, bbox: { x: left, y: top, width: right - left, height: bottom - top } };
}
