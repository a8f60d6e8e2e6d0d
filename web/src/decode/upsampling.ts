/**
 * Bilinear upsampling from low-resolution logits to pixels of the image, in one step.
 *
 * The same numbers as `samserve/core/upsampling.py` computes, to the bit: low-res to the model
 * frame, cut to the resized image, then to the image, composed to three weights per axis.
 */

import type { Size } from "../types";

const TAPS = 3;

/**
 * One axis: output *i* is the sum of `weights[k][i] * input[first[i] + k]`, k from 0 to 2.
 *
 * *first* ascends; *weights* are not negative, and their sum is 1.
 */
export interface AxisTaps {
  readonly first: Int32Array;
  readonly weights: readonly [Float32Array, Float32Array, Float32Array];
}

export interface Upsampling {
  readonly image: Size;
  /** Side of the low-resolution logits. */
  readonly side: number;
  readonly rows: AxisTaps;
  readonly columns: AxisTaps;
}

/**
 * Compute the weights for an *image* that covers *resized* of the model frame.
 *
 * If *modelSide* equals *side* and *resized* fills the frame, the first step is the identity.
 */
export function upsamplingBetween(
  resized: Size,
  image: Size,
  modelSide: number,
  side: number,
): Upsampling {
  return {
    image,
    side,
    rows: axisTaps(side, modelSide, resized.height, image.height),
    columns: axisTaps(side, modelSide, resized.width, image.width),
  };
}

function axisTaps(side: number, model: number, resized: number, image: number): AxisTaps {
  const low = bilinear(side, model);
  const mid = bilinear(resized, image);
  const first = new Int32Array(image);
  const weights = [0, 1, 2].map(() => new Float32Array(image));
  const sums = new Float64Array(TAPS);
  for (let output = 0; output < image; output++) {
    const near = at(mid.index, output);
    const start = Math.min(at(low.index, near), side - TAPS);
    sums.fill(0);
    const share = at(mid.weight, output);
    addStep(sums, low, near, start, 1 - share);
    addStep(sums, low, at(mid.next, output), start, share);
    first[output] = start;
    for (let tap = 0; tap < TAPS; tap++) {
      (weights[tap] as Float32Array)[output] = at(sums, tap);
    }
  }
  return { first, weights: weights as [Float32Array, Float32Array, Float32Array] };
}

function addStep(sums: Float64Array, low: Bilinear, at_: number, start: number, share: number) {
  const weight = at(low.weight, at_);
  const near = at(low.index, at_) - start;
  sums[near] = at(sums, near) + share * (1 - weight);
  const far = at(low.next, at_) - start;
  sums[far] = at(sums, far) + share * weight;
}

interface Bilinear {
  readonly index: Int32Array;
  readonly next: Int32Array;
  readonly weight: Float64Array;
}

/** Return per output the index, the next index and its weight in torch's bilinear resize. */
function bilinear(inputs: number, outputs: number): Bilinear {
  const scale = Math.fround(inputs / outputs);
  const index = new Int32Array(outputs);
  const next = new Int32Array(outputs);
  const weight = new Float64Array(outputs);
  for (let output = 0; output < outputs; output++) {
    const coordinate = Math.max(Math.fround(scale * (output + 0.5) - 0.5), 0);
    const below = Math.min(Math.trunc(coordinate), inputs - 1);
    index[output] = below;
    next[output] = Math.min(below + 1, inputs - 1);
    weight[output] = Math.min(Math.max(Math.fround(coordinate - below), 0), 1);
  }
  return { index, next, weight };
}

function at(values: Int32Array | Float64Array, index: number): number {
  return values[index] as number;
}
