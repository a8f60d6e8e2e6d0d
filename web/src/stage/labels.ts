import type { Size } from "../types";
import type { Position } from "./viewport";

/** Indices of masks, row by row, or -1; of the whole image at a size of its own. */
export interface Labels {
  readonly labels: Int16Array;
  readonly size: Size;
}

/** Return the index of the mask at a position of the image, or -1. */
export function labelAt({ labels, size }: Labels, image: Size, { x, y }: Position): number {
  const column = index(x, image.width, size.width);
  const row = index(y, image.height, size.height);
  return labels[row * size.width + column] ?? -1;
}

/** The far edge of the image belongs to its last pixel. */
function index(position: number, length: number, count: number): number {
  return Math.min(Math.max(Math.floor((position / length) * count), 0), count - 1);
}
