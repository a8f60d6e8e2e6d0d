import type { BoundingBox, Box, Size } from "../types";

/** Of the visible width and height, on each side: so far the image can be moved. */
const PADDING = 0.25;

/** A part of the image that is drawn at a scale. */
export interface DrawnPart {
  readonly region: BoundingBox;
  readonly scale: number;
}

/** Return the visible part of the image with what is around it. */
export function padded({ xMin, yMin, xMax, yMax }: Box, { width, height }: Size): BoundingBox {
  const padX = PADDING * (xMax - xMin);
  const padY = PADDING * (yMax - yMin);
  const x = Math.max(0, xMin - padX);
  const y = Math.max(0, yMin - padY);
  return {
    x,
    y,
    width: Math.min(width, xMax + padX) - x,
    height: Math.min(height, yMax + padY) - y,
  };
}

/** Return whether a part is drawn at this scale, and has all that is visible. */
export function isSharp(part: DrawnPart | null, scale: number, visible: Box): boolean {
  if (part?.scale !== scale) return false;
  const { x, y, width, height } = part.region;
  const isInside = visible.xMin >= x && visible.yMin >= y;
  return isInside && visible.xMax <= x + width && visible.yMax <= y + height;
}
