/** Decodes images, so that the page's thread does not wait for it. */

import { expose, transfer } from "comlink";
import type { Limits, Size } from "../types";
import { type Header, readHeader } from "./header";
import { checkBytes, checkSize, UnusableImage } from "./limits";

/** All that a `LoadedImage` has but its name. */
export interface Opened {
  readonly file: Uint8Array<ArrayBuffer>;
  readonly size: Size;
  readonly preview: ImageBitmap;
  readonly full: ImageBitmap;
}

const PREVIEW_SIDE = 2048;

/**
 * Decode a file; *drawn* are its pixels if only a document can decode it.
 *
 * Throws `UnusableImage` if the file is over a limit or broken.
 */
async function open(blob: Blob, limits: Limits, drawn: ImageBitmap | null): Promise<Opened> {
  if (drawn) return convert(drawn, limits);
  const file = new Uint8Array(await blob.arrayBuffer());
  const header = readHeader(file);
  const isSent = header.format !== "other" && !header.animated && !header.turned;
  // Other formats are converted, so that their own number of bytes does not matter.
  if (isSent || file.length === 0) checkBytes(file.length, limits);
  if (header.size) checkSize(header.size, limits);
  const decoded = await decode(blob, header);
  if (!isSent) return convert(decoded, limits);
  const { width, height } = decoded;
  return opened(file, { width, height }, header.format === "jpeg" ? decoded : onWhite(decoded));
}

async function decode(blob: Blob, { format }: Header): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new UnusableImage(
      format === "other"
        ? "it is not an image that this browser can show"
        : "the file is incomplete or damaged",
    );
  }
}

/** Make a PNG of pixels whose file the server does not read. */
async function convert(decoded: ImageBitmap, limits: Limits): Promise<Opened> {
  const { width, height } = decoded;
  checkSize({ width, height }, limits);
  const full = onWhite(decoded);
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d")?.drawImage(full, 0, 0);
  const png = await canvas.convertToBlob({ type: "image/png" });
  checkBytes(png.size, limits);
  return opened(new Uint8Array(await png.arrayBuffer()), { width, height }, full);
}

/** Blend transparent pixels with white, as the server does. */
function onWhite(decoded: ImageBitmap): ImageBitmap {
  const canvas = new OffscreenCanvas(decoded.width, decoded.height);
  const context = canvas.getContext("2d", { alpha: false });
  if (!context) throw new UnusableImage("it is too large for this browser");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(decoded, 0, 0);
  decoded.close();
  return canvas.transferToImageBitmap();
}

async function opened(
  file: Uint8Array<ArrayBuffer>,
  size: Size,
  full: ImageBitmap,
): Promise<Opened> {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(size.width, size.height));
  const preview = await createImageBitmap(full, {
    resizeWidth: Math.max(1, Math.round(size.width * scale)),
    resizeHeight: Math.max(1, Math.round(size.height * scale)),
    resizeQuality: "high",
  });
  return transfer({ file, size, preview, full }, [file.buffer, preview, full]);
}

const worker = { open };

export type OpenWorker = typeof worker;

expose(worker);
