/** The worker of masks: everything about them that takes time. */

import { expose, transfer } from "comlink";
import type { Rgb, Size } from "../types";
import { Composer } from "./composition";
import { openImage } from "./cut-out";
import { cocoFile, cutOutsFile, masksFile, svgFile } from "./files";
import type { Composition, ExportedObject, NamedFile, Part, Rendering } from "./interfaces";
import { render, renderPart, thumbnail } from "./render";
import type { Shape } from "./run-lengths";

let handle = 0;
/** The masks of the last `prepare`. */
let composer: Composer | null = null;
let preview: { readonly bitmap: ImageBitmap; readonly number: number } | null = null;

const calls = {
  render(shape: Shape, colour: Rgb, maxSide: number): Rendering {
    const rendering = render(shape, colour, maxSide);
    return transfer(rendering, [rendering.bitmap]);
  },

  renderPart(shape: Shape, colour: Rgb, part: Part): Rendering | null {
    const rendering = renderPart(shape, colour, part);
    return rendering && transfer(rendering, [rendering.bitmap]);
  },

  setPreview(bitmap: ImageBitmap, number: number): void {
    preview?.bitmap.close();
    preview = { bitmap, number };
  },

  thumbnail(shape: Shape, previewNumber: number, side: number, colour?: Rgb): ImageBitmap {
    if (preview?.number !== previewNumber) throw new Error("the preview of the image is closed");
    const bitmap = thumbnail(shape, preview.bitmap, side, colour);
    return transfer(bitmap, [bitmap]);
  },

  prepare(shapes: Shape[], colours: readonly Rgb[], maxSide: number): number {
    composer = new Composer(shapes, colours, maxSide);
    return ++handle;
  },

  compose(of: number, shown: Int16Array): Composition | null {
    if (!composer || of !== handle) return null;
    const composition = composer.draw(shown);
    return transfer(composition, [composition.bitmap, composition.labels.buffer]);
  },

  exportMasks(objects: ExportedObject[], imageName: string): Promise<NamedFile> {
    return masksFile(objects, imageName);
  },

  async exportCutOuts(
    objects: ExportedObject[],
    imageName: string,
    image: Blob,
  ): Promise<NamedFile> {
    const bitmap = await openImage(image);
    try {
      return await cutOutsFile(objects, imageName, bitmap);
    } finally {
      bitmap.close();
    }
  },

  exportCoco(objects: ExportedObject[], imageName: string, size: Size): NamedFile {
    return cocoFile(objects, imageName, size);
  },

  exportSvg(objects: ExportedObject[], imageName: string, size: Size): NamedFile {
    return svgFile(objects, imageName, size);
  },
};

export type MasksWorker = typeof calls;

expose(calls);
