import type { Limits, Size } from "../types";

/** Why an image cannot be opened; the message continues "NAME cannot be opened: ". */
export class UnusableImage extends Error {
  override readonly name = "UnusableImage";
}

/** Return a number of bytes with its unit, such as `3.2 MB`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1000) return `${bytes} bytes`;
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "kB"] : [bytes / 1e6, "MB"];
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/** Return a number of pixels in millions, such as `12.2 megapixels`. */
export function formatPixels(pixels: number): string {
  const millions = pixels / 1e6;
  return `${millions < 10 ? millions.toFixed(1) : Math.round(millions)} megapixels`;
}

/** Throw `UnusableImage` if a file has more bytes than the server accepts. */
export function checkBytes(bytes: number, { maxImageBytes }: Limits): void {
  if (bytes === 0) throw new UnusableImage("the file is empty");
  if (bytes > maxImageBytes) {
    const limit = formatBytes(maxImageBytes);
    throw new UnusableImage(
      `the file has ${formatBytes(bytes)}, the limit of the server is ${limit}`,
    );
  }
}

/** Throw `UnusableImage` if an image has more pixels than the server accepts. */
export function checkSize({ width, height }: Size, { maxImagePixels, maxImageSide }: Limits): void {
  const pixels = width * height;
  if (Math.max(width, height) > maxImageSide)
    throw new UnusableImage(
      `it has ${width} × ${height} pixels, the limit of the server is ${maxImageSide} on a side`,
    );
  if (pixels > maxImagePixels) {
    const limit = formatPixels(maxImagePixels);
    throw new UnusableImage(
      `it has ${width} × ${height} pixels (${formatPixels(pixels)}), the limit of the server is ${limit}`,
    );
  }
}
