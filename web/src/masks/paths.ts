/** Outlines of masks as paths of a canvas. */

import { type Corners, trace } from "./outline";
import type { Shape } from "./run-lengths";
import { simplify } from "./simplification";

/** The methods of `Path2D` that are used here. */
export type Path = Pick<Path2D, "moveTo" | "lineTo" | "bezierCurveTo" | "closePath">;

/** Enlarged by more than this, straight lines between corners are visible. */
const MIN_CURVED_SCALE = 1.2;
/** Cosine of the angle above which a turn stays a corner: 60 degrees. */
const MIN_COSINE = 0.5;

/**
 * Add the outline of a mask to a path, in pixels of the image.
 *
 * *scale*: pixels of the drawing per pixel of the image. Where that is larger, lines are curved,
 * unless *straight*.
 */
export function addOutline(path: Path, shape: Shape, scale: number, straight = false): void {
  // Half a pixel hides the steps of pixels. Where the drawing is smaller, half of one of its own.
  const tolerance = Math.max(0.5, 0.5 / scale);
  const add = scale > MIN_CURVED_SCALE && !straight ? addCurve : addLines;
  for (const { exterior, holes } of trace(shape)) {
    for (const ring of [exterior, ...holes]) add(path, simplify(ring, tolerance));
  }
}

function addLines(path: Path, ring: Corners): void {
  path.moveTo(at(ring, 0), at(ring, 1));
  for (let index = 2; index < ring.length; index += 2) {
    path.lineTo(at(ring, index), at(ring, index + 1));
  }
  path.closePath();
}

/** Add a curve through the corners of a ring. */
function addCurve(path: Path, ring: Corners): void {
  const tangents = tangentsOf(ring);
  path.moveTo(at(ring, 0), at(ring, 1));
  for (let index = 0; index < ring.length; index += 2) {
    const next = (index + 2) % ring.length;
    path.bezierCurveTo(
      at(ring, index) + at(tangents, index),
      at(ring, index + 1) + at(tangents, index + 1),
      at(ring, next) - at(tangents, next),
      at(ring, next + 1) - at(tangents, next + 1),
      at(ring, next),
      at(ring, next + 1),
    );
  }
  path.closePath();
}

/**
 * Return the tangent of the curve at each corner, x and y in turn; 0 where it stays a corner.
 *
 * As long as a third of the shorter neighbouring side, so that the curve stays near both.
 */
function tangentsOf(ring: Corners): Float64Array {
  const tangents = new Float64Array(ring.length);
  for (let index = 0; index < ring.length; index += 2) {
    const before = (index + ring.length - 2) % ring.length;
    const after = (index + 2) % ring.length;
    const from = [at(ring, index) - at(ring, before), at(ring, index + 1) - at(ring, before + 1)];
    const to = [at(ring, after) - at(ring, index), at(ring, after + 1) - at(ring, index + 1)];
    const lengths = Math.hypot(at(from, 0), at(from, 1)) * Math.hypot(at(to, 0), at(to, 1));
    if (at(from, 0) * at(to, 0) + at(from, 1) * at(to, 1) < MIN_COSINE * lengths) continue;
    const [x, y] = [at(from, 0) + at(to, 0), at(from, 1) + at(to, 1)];
    const shorter = Math.min(
      Math.hypot(at(from, 0), at(from, 1)),
      Math.hypot(at(to, 0), at(to, 1)),
    );
    tangents[index] = ((x / Math.hypot(x, y)) * shorter) / 3;
    tangents[index + 1] = ((y / Math.hypot(x, y)) * shorter) / 3;
  }
  return tangents;
}

function at(values: ArrayLike<number>, index: number): number {
  return values[index] as number;
}
