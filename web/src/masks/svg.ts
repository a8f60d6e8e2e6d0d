/** Outlines of objects as SVG. */

import type { Polygon, Size } from "../types";
import type { ExportedObject } from "./interfaces";
import { outline } from "./outline";

/** In pixels of the image: half of one hides the steps of pixels, and no more. */
export const SVG_TOLERANCE = 0.5;

/** Return an SVG file of the image's size with a path for each object, in their order. */
export function toSvg(
  objects: readonly ExportedObject[],
  { width, height }: Size,
  tolerance = SVG_TOLERANCE,
): string {
  const paths = objects.map(({ name, colour, mask }, index) => {
    const fill = `#${colour.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
    return (
      `  <path id="object-${index + 1}" fill="${fill}" d="${toPath(outline(mask, tolerance))}">` +
      `<title>${escapeXml(name)}</title></path>\n`
    );
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"` +
    ` viewBox="0 0 ${width} ${height}" fill-rule="evenodd" fill-opacity="0.6">\n` +
    `${paths.join("")}</svg>\n`
  );
}

/** Return polygons as the data of one path. */
export function toPath(polygons: readonly Polygon[]): string {
  return polygons
    .flatMap(({ exterior, holes }) => [exterior, ...holes])
    .map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`)
    .join("");
}

/** Return text for XML; characters that XML cannot have are left out. */
export function escapeXml(text: string): string {
  return text
    .replace(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu, "")
    .replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
