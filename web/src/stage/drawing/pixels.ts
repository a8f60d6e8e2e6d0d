/** Drawing of bitmaps of the image: only the part that is visible. */

import type { BoundingBox, Box, Size } from "../../types";
import { toScreen, type Viewport, visiblePart } from "../viewport";

/** One drawing of a layer; the unit of the context is a CSS pixel. */
export interface Frame {
  readonly context: CanvasRenderingContext2D;
  readonly viewport: Viewport;
  readonly container: Size;
  /** Pixels of the canvas per CSS pixel. */
  readonly ratio: number;
  readonly image: Size;
}

/** From here on, pixels are shown as squares; in CSS pixels. */
const SQUARES_FROM = 6;

/** Draw the image, at full resolution only if the preview has too few pixels. */
export function drawImage(frame: Frame, preview: ImageBitmap, full: ImageBitmap): void {
  const { context, viewport, ratio, image } = frame;
  const scale = viewport.scale * ratio;
  const source = scale > preview.width / image.width ? full : preview;
  // Of far fewer pixels than the source has, bilinear interpolation would skip some.
  const isReduced = (scale * image.width) / source.width < 0.5;
  context.imageSmoothingEnabled = viewport.scale < SQUARES_FROM;
  context.imageSmoothingQuality = isReduced ? "medium" : "low";
  drawBitmap(frame, source, { x: 0, y: 0, ...image });
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "low";
}

/** Draw what is visible of a bitmap that covers a region of the image. */
export function drawBitmap(frame: Frame, bitmap: ImageBitmap, region: BoundingBox): void {
  const { context, viewport, image, container } = frame;
  // It has none once it is closed.
  if (bitmap.width === 0) return;
  const source = sourceRectangle(region, visiblePart(viewport, image, container), bitmap);
  if (!source) return;
  const [x, y, width, height] = source;
  const scaleX = region.width / bitmap.width;
  const scaleY = region.height / bitmap.height;
  const corner = toScreen(viewport, { x: region.x + x * scaleX, y: region.y + y * scaleY });
  const drawnWidth = width * scaleX * viewport.scale;
  const drawnHeight = height * scaleY * viewport.scale;
  context.drawImage(bitmap, x, y, width, height, corner.x, corner.y, drawnWidth, drawnHeight);
}

/**
 * Return x, y, width, height of whole pixels of a bitmap that contain the visible part, or null.
 *
 * *region* is what the bitmap covers, and *visible* what is on the screen, in pixels of the image.
 * Parts of pixels would be interpolated differently at the edge from frame to frame.
 */
export function sourceRectangle(
  region: BoundingBox,
  visible: Box,
  bitmap: Size,
): readonly [number, number, number, number] | null {
  const toX = bitmap.width / region.width;
  const toY = bitmap.height / region.height;
  const xMin = Math.max(0, Math.floor((visible.xMin - region.x) * toX) - 1);
  const yMin = Math.max(0, Math.floor((visible.yMin - region.y) * toY) - 1);
  const xMax = Math.min(bitmap.width, Math.ceil((visible.xMax - region.x) * toX) + 1);
  const yMax = Math.min(bitmap.height, Math.ceil((visible.yMax - region.y) * toY) + 1);
  return xMax > xMin && yMax > yMin ? [xMin, yMin, xMax - xMin, yMax - yMin] : null;
}
