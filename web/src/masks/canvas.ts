/** Canvases in the worker. */

import type { Rgb, Size } from "../types";

/** Masks of small images are drawn larger, so that their edges are thin and smooth. */
const MAX_ENLARGEMENT = 4;

/** Return the size of a drawing of an image: its longer side is *maxSide*, or four times its own. */
export function drawnSize({ width, height }: Size, maxSide: number): Size {
  const scale = Math.min(MAX_ENLARGEMENT, maxSide / Math.max(width, height));
  return {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
  };
}

/** Return a transparent canvas. */
export function openCanvas(size: Size) {
  const canvas = new OffscreenCanvas(size.width, size.height);
  const context = canvas.getContext("2d");
  if (!context) throw new Error("the browser has no memory for another canvas");
  return { canvas, context };
}

/** Return a bitmap of pixels, RGBA without premultiplied alpha. */
export function toImageBitmap(pixels: Uint8ClampedArray<ArrayBuffer>, size: Size): ImageBitmap {
  const { canvas, context } = openCanvas(size);
  context.putImageData(new ImageData(pixels, size.width, size.height), 0, 0);
  return canvas.transferToImageBitmap();
}

/** Return a colour in CSS; alpha from 0 to 1. */
export function css([red, green, blue]: Rgb, alpha: number): string {
  return `rgb(${red} ${green} ${blue} / ${alpha})`;
}
