/** Types of the calls between the page and the worker of masks. */

import type { BoundingBox, Mask, Rgb, Size } from "../types";

/** One mask in a bitmap. */
export interface Rendering {
  /** Close it when it is replaced. */
  readonly bitmap: ImageBitmap;
  /** The part of the image that the bitmap covers, in pixels of the image, not whole ones. */
  readonly region: BoundingBox;
}

/** A part of the image to draw masks in. */
export interface Part {
  /** In pixels of the image. */
  readonly region: BoundingBox;
  /** Pixels of the drawing per pixel of the image. */
  readonly scale: number;
  /** Width of the lines around masks, in pixels of the drawing. */
  readonly edge: number;
}

/** Many masks in one bitmap. */
export interface Composition {
  /** Of the whole image; it may have more pixels than *labels*. Close it when it is replaced. */
  readonly bitmap: ImageBitmap;
  /** Row by row: the index of the smallest mask at a pixel of *size*, or -1. */
  readonly labels: Int16Array<ArrayBuffer>;
  /** Of *labels*: that of the image, or smaller. */
  readonly size: Size;
}

/** An object with the mask that is chosen for it. */
export interface ExportedObject {
  readonly name: string;
  readonly colour: Rgb;
  readonly mask: Mask;
}

/** A file to save; its name is valid on every system. */
export interface NamedFile {
  readonly name: string;
  readonly blob: Blob;
}
