/**
 * Masks: their run lengths, bitmaps of them, and exports.
 *
 * What takes time runs in one worker. The masks are copied to it, not transferred, as the page
 * needs them later; their logits stay here.
 */

import { type Remote, wrap } from "comlink";
import type { Mask, Rgb, Size } from "../types";
import type { Composition, ExportedObject, NamedFile, Part, Rendering } from "./interfaces";
import type { MasksWorker } from "./masks.worker";
import type { Shape } from "./run-lengths";

export type { Composition, ExportedObject, NamedFile, Part, Rendering } from "./interfaces";
export { contains } from "./run-lengths";

/**
 * Draw a mask: the inside at 45 % and its edge in full colour, with a thin dark line around it.
 *
 * The bitmap has only the part of the image around the mask, at the scale of a bitmap of the whole
 * image with *maxSide* pixels on its longer side, or four times the image's if that is less.
 */
export function render(mask: Mask, colour: Rgb, maxSide: number): Promise<Rendering> {
  return call((worker) => worker.render(shapeOf(mask), colour, maxSide));
}

/**
 * Draw what a part of the image has of a mask, as `render` does, at any scale; null if it has none,
 * or the mask has too many edges for this.
 */
export function renderPart(mask: Mask, colour: Rgb, part: Part): Promise<Rendering | null> {
  return call((worker) => worker.renderPart(shapeOf(mask), colour, part));
}

/**
 * Draw the part of the image around a mask, dimmed outside it: a square of *side* pixels.
 *
 * *preview* is of the whole image, of any size. It is copied to the worker once, until another one
 * is given.
 */
export function thumbnail(
  mask: Mask,
  preview: ImageBitmap,
  side: number,
  colour?: Rgb,
): Promise<ImageBitmap> {
  return call((worker) => {
    if (preview !== sentPreview) {
      sentPreview = preview;
      previewNumber++;
      // Fails if the bitmap is closed; so does the call below.
      worker.setPreview(preview, previewNumber).catch(ignore);
    }
    return worker.thumbnail(shapeOf(mask), previewNumber, side, colour);
  });
}

/**
 * Send many masks to the worker, which keeps them until the next call; return a handle for
 * `compose`.
 *
 * They are drawn in *colours* by their index, on a bitmap of the whole image as `render` does; if
 * their outlines are too long for that, as pixels at the size of the labels. At most 32,767 masks.
 */
export function prepare(
  masks: readonly Mask[],
  colours: readonly Rgb[],
  maxSide: number,
): Promise<number> {
  return call((worker) => worker.prepare(masks.map(shapeOf), colours, maxSide));
}

/**
 * Draw those of the prepared masks whose indices are *shown*, smaller ones over larger ones.
 *
 * Of calls made while one is at work, only the newest is drawn. The others, and calls with a
 * *handle* of an earlier `prepare`, return null.
 */
export async function compose(
  handle: number,
  shown: readonly number[],
): Promise<Composition | null> {
  const number = ++newestComposition;
  const before = composing;
  const result = before.then(() =>
    number === newestComposition
      ? call((worker) => worker.compose(handle, Int16Array.from(shown)))
      : null,
  );
  composing = result.then(ignore, ignore);
  return result;
}

/**
 * Return one file with the masks of objects: a PNG, or a ZIP archive of several.
 *
 * They are 8-bit grey, 255 inside, 0 outside, of the image's size.
 */
export function exportMasks(
  objects: readonly ExportedObject[],
  imageName: string,
): Promise<NamedFile> {
  return call((worker) => worker.exportMasks(objects.map(sent), imageName));
}

/**
 * Return one file with the parts of the image inside the masks of objects: a PNG, cropped to the
 * mask and transparent outside it, or a ZIP archive of several. Empty masks have none.
 *
 * *image* is the file of the whole image.
 */
export function exportCutOuts(
  objects: readonly ExportedObject[],
  imageName: string,
  image: Blob,
): Promise<NamedFile> {
  return call((worker) => worker.exportCutOuts(objects.map(sent), imageName, image));
}

/** Return the objects as COCO JSON, read by pycocotools. */
export function exportCoco(
  objects: readonly ExportedObject[],
  imageName: string,
  size: Size,
): Promise<NamedFile> {
  return call((worker) => worker.exportCoco(objects.map(sent), imageName, size));
}

/** Return the outlines of the objects as SVG. */
export function exportSvg(
  objects: readonly ExportedObject[],
  imageName: string,
  size: Size,
): Promise<NamedFile> {
  return call((worker) => worker.exportSvg(objects.map(sent), imageName, size));
}

interface Opened {
  readonly remote: Remote<MasksWorker>;
  /** Rejects the calls that are not answered yet. */
  readonly waiting: Set<(reason: Error) => void>;
}

let opened: Opened | null = null;
let sentPreview: ImageBitmap | null = null;
let previewNumber = 0;
let newestComposition = 0;
let composing: Promise<void> = Promise.resolve();

function ignore(): void {}

function shapeOf({ size, runs }: Shape): Shape {
  return { size, runs };
}

function sent({ name, colour, mask }: ExportedObject): ExportedObject {
  const { logits: _, ...rest } = mask;
  return { name, colour, mask: rest };
}

/** Call the worker; if it ends, as it does when memory is exhausted, the call is rejected. */
function call<T>(request: (worker: Remote<MasksWorker>) => Promise<T>): Promise<T> {
  opened ??= open();
  const { remote, waiting } = opened;
  return new Promise((resolve, reject) => {
    waiting.add(reject);
    request(remote)
      .then(resolve, reject)
      .finally(() => waiting.delete(reject));
  });
}

function open(): Opened {
  const worker = new Worker(new URL("./masks.worker.ts", import.meta.url), { type: "module" });
  const remote = wrap<MasksWorker>(worker);
  const waiting: Opened["waiting"] = new Set();
  worker.onerror = (event) => {
    event.preventDefault();
    worker.terminate();
    // The next call starts another.
    opened = null;
    sentPreview = null;
    const reason = new Error(
      `The worker that draws masks has ended: ${event.message || "not loaded"}`,
    );
    for (const reject of waiting) reject(reason);
  };
  return { remote, waiting };
}
