/** COCO's annotation format, as pycocotools and tools of annotation read it. */

import type { Size } from "../types";
import type { ExportedObject } from "./interfaces";
import { areaOf, boundsOf, encodeCounts } from "./run-lengths";

export interface CocoFile {
  readonly info: { readonly description: string };
  readonly images: readonly CocoImage[];
  readonly annotations: readonly CocoAnnotation[];
  readonly categories: readonly CocoCategory[];
}

export interface CocoImage {
  readonly id: number;
  readonly file_name: string;
  readonly width: number;
  readonly height: number;
}

export interface CocoAnnotation {
  readonly id: number;
  readonly image_id: number;
  readonly category_id: number;
  readonly segmentation: { readonly size: [number, number]; readonly counts: string };
  readonly area: number;
  readonly bbox: [number, number, number, number];
  /** 0, although 1 is usual for run lengths: 1 means a group, which COCOeval does not count. */
  readonly iscrowd: 0;
  readonly score: number;
}

export interface CocoCategory {
  readonly id: number;
  readonly name: string;
  readonly supercategory: string;
}

/**
 * Return the objects of one image, with run lengths as segmentation; ids begin at 1.
 *
 * Objects of the same name have the same category. The score is the model's predicted IoU.
 */
export function toCoco(
  objects: readonly ExportedObject[],
  imageName: string,
  { width, height }: Size,
): CocoFile {
  const categories = new Map<string, CocoCategory>();
  const annotations = objects.map(({ name, mask }, index): CocoAnnotation => {
    const label = name.trim() || "object";
    const category = categories.get(label) ?? {
      id: categories.size + 1,
      name: label,
      supercategory: "object",
    };
    categories.set(label, category);
    const bounds = boundsOf(mask) ?? { x: 0, y: 0, width: 0, height: 0 };
    return {
      id: index + 1,
      image_id: 1,
      category_id: category.id,
      segmentation: {
        size: [mask.size.height, mask.size.width],
        counts: encodeCounts(mask.runs),
      },
      area: areaOf(mask.runs),
      bbox: [bounds.x, bounds.y, bounds.width, bounds.height],
      iscrowd: 0,
      score: mask.predictedIou,
    };
  });
  return {
    info: { description: `Objects of ${imageName}, segmented with samserve` },
    images: [{ id: 1, file_name: imageName, width, height }],
    annotations,
    categories: [...categories.values()],
  };
}
