import { computed } from "@preact/signals";

import * as masks from "../masks";
import type { LoadedImage } from "../types";
import { maskOf, objects } from "./document";
import { image } from "./image";
import { report } from "./notices";

/** The objects with a mask, hidden ones too. */
export const exported = computed<readonly masks.ExportedObject[]>(() =>
  objects.value.flatMap((object) => {
    const mask = maskOf(object);
    return mask ? [{ name: object.name, colour: object.colour, mask }] : [];
  }),
);

/** Download the parts of the image inside the objects as PNG: one file, or a ZIP archive. */
export function exportCutOuts(): Promise<void> {
  return download((objects, { name, file }) =>
    masks.exportCutOuts(objects, name, new Blob([file])),
  );
}

/** Download the masks as PNG: one file, or a ZIP archive. */
export function exportMasks(): Promise<void> {
  return download((objects, { name }) => masks.exportMasks(objects, name));
}

/** Download all objects as COCO JSON. */
export function exportCoco(): Promise<void> {
  return download((objects, { name, size }) => masks.exportCoco(objects, name, size));
}

/** Download the outlines of all objects as SVG. */
export function exportSvg(): Promise<void> {
  return download((objects, { name, size }) => masks.exportSvg(objects, name, size));
}

async function download(
  write: (objects: readonly masks.ExportedObject[], shown: LoadedImage) => Promise<masks.NamedFile>,
): Promise<void> {
  const shown = image.value;
  if (!shown || exported.value.length === 0) return;
  try {
    const { name, blob } = await write(exported.value, shown);
    const url = URL.createObjectURL(blob);
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    // The browser reads the file after the click.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    report("The file cannot be written", error);
  }
}
