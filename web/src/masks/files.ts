/** The files that objects are exported to. */

import type { Size } from "../types";
import { toCoco } from "./coco";
import { cutOut } from "./cut-out";
import type { ExportedObject, NamedFile } from "./interfaces";
import { safeName, stemOf, unique } from "./names";
import { maskPng } from "./png";
import { areaOf } from "./run-lengths";
import { toSvg } from "./svg";
import { zip } from "./zip";

/** Return a PNG of the mask of an object, or a ZIP archive of those of several. */
export async function masksFile(
  objects: readonly ExportedObject[],
  imageName: string,
): Promise<NamedFile> {
  const blobs = await inTurn(objects, ({ mask }) => maskPng(mask));
  return together(objects, blobs, imageName, "masks");
}

/** Return a PNG of the cut-out of an object, or a ZIP archive; empty masks are left out. */
export async function cutOutsFile(
  objects: readonly ExportedObject[],
  imageName: string,
  image: ImageBitmap,
): Promise<NamedFile> {
  const filled = objects.filter(({ mask }) => areaOf(mask.runs) > 0);
  if (filled.length === 0) throw new RangeError("no mask has pixels to cut out");
  const blobs = await inTurn(filled, ({ mask }) => cutOut(mask, image));
  return together(filled, blobs, imageName, "cut-outs");
}

/** Return the COCO file of objects. */
export function cocoFile(
  objects: readonly ExportedObject[],
  imageName: string,
  size: Size,
): NamedFile {
  const text = JSON.stringify(toCoco(objects, imageName, size), null, 1);
  const blob = new Blob([text, "\n"], { type: "application/json" });
  return { name: `${imageStem(imageName)}-coco.json`, blob };
}

/** Return the SVG file of objects. */
export function svgFile(
  objects: readonly ExportedObject[],
  imageName: string,
  size: Size,
): NamedFile {
  const blob = new Blob([toSvg(objects, size)], { type: "image/svg+xml" });
  return { name: `${imageStem(imageName)}-outlines.svg`, blob };
}

/** Call *make* for each object after the other, as each needs memory for the whole image. */
async function inTurn(
  objects: readonly ExportedObject[],
  make: (object: ExportedObject) => Promise<Blob>,
): Promise<Blob[]> {
  const blobs: Blob[] = [];
  for (const object of objects) blobs.push(await make(object));
  return blobs;
}

async function together(
  objects: readonly ExportedObject[],
  blobs: readonly Blob[],
  imageName: string,
  kind: string,
): Promise<NamedFile> {
  const stem = imageStem(imageName);
  const names = unique(objects.map(({ name }) => safeName(name, "object")));
  const [first] = blobs;
  if (blobs.length === 1 && first) return { name: `${stem}-${names[0]}.png`, blob: first };
  const files = blobs.map((blob, index) => ({ name: `${stem}-${names[index]}.png`, blob }));
  return { name: `${stem}-${kind}.zip`, blob: await zip(files, new Date()) };
}

function imageStem(imageName: string): string {
  return safeName(stemOf(imageName), "image");
}
