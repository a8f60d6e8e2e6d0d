/** The part of an image inside a mask. */

import type { Size } from "../types";
import { openCanvas } from "./canvas";
import { boundsOf, forEachInterval, type Shape } from "./run-lengths";

/**
 * Return the pixels of an image inside a mask as PNG: cropped to it, transparent outside.
 *
 * Throws `RangeError` for an empty mask, or one of another size.
 */
export function cutOut(shape: Shape, image: ImageBitmap): Promise<Blob> {
  requireSize(image, shape.size);
  const bounds = boundsOf(shape);
  if (!bounds) throw new RangeError("the mask has no pixels to cut out");
  const { canvas, context } = openCanvas(bounds);
  context.drawImage(image, -bounds.x, -bounds.y);
  const pixels = context.getImageData(0, 0, bounds.width, bounds.height);
  const inside = new Uint8Array(bounds.width * bounds.height);
  forEachInterval(shape, (x, top, bottom) => {
    const end = (bottom - bounds.y) * bounds.width;
    let at = (top - bounds.y) * bounds.width + x - bounds.x;
    for (; at < end; at += bounds.width) inside[at] = 1;
  });
  const values = new Uint32Array(pixels.data.buffer);
  for (let index = 0; index < values.length; index++) {
    // Transparent black, so that the file has nothing of the image outside the mask.
    if (inside[index] === 0) values[index] = 0;
  }
  context.putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** Decode the file of an image, with its orientation applied. */
export function openImage(image: Blob): Promise<ImageBitmap> {
  return createImageBitmap(image, { imageOrientation: "from-image", premultiplyAlpha: "none" });
}

function requireSize(image: Size, size: Size): void {
  if (image.width === size.width && image.height === size.height) return;
  const sizes = `${image.width} x ${image.height}, the mask ${size.width} x ${size.height}`;
  throw new RangeError(`the image has ${sizes} pixels`);
}
