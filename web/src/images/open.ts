import { type Remote, transfer, wrap } from "comlink";

import type { Limits, LoadedImage } from "../types";
import { checkSize, UnusableImage } from "./limits";
import type { OpenWorker } from "./open.worker";

// Of a vector image that does not say its size.
const DEFAULT_SIDE = 1024;

let worker: Remote<OpenWorker> | null = null;

/**
 * Decode an image file, in a worker.
 *
 * JPEG, PNG and WebP files are kept as they are. Other formats that the browser shows, and the
 * first frame of animations, become PNG files.
 *
 * Rejects with a message for the user if the file is no image, is broken or exceeds *limits*.
 */
export async function openImage(blob: Blob, name: string, limits: Limits): Promise<LoadedImage> {
  if (isCertainlyNoImage(blob.type))
    throw new UnusableImage(`it is not an image, its type is ${blob.type}`);
  worker ??= wrap<OpenWorker>(
    new Worker(new URL("./open.worker.ts", import.meta.url), { type: "module" }),
  );
  const drawn = blob.type === "image/svg+xml" ? await drawVector(blob, limits) : null;
  const opened = await worker.open(blob, limits, drawn && transfer(drawn, [drawn]));
  return { name, ...opened };
}

/** An unknown type is none of these: the decoder decides. */
function isCertainlyNoImage(type: string): boolean {
  return /^(text|audio|video)\/|^application\/(?!octet-stream)/.test(type);
}

/** Only an element of the document decodes SVG. */
async function drawVector(blob: Blob, limits: Limits): Promise<ImageBitmap> {
  const element = new Image();
  const url = URL.createObjectURL(blob);
  try {
    element.src = url;
    await element.decode();
    const width = element.naturalWidth || DEFAULT_SIDE;
    const height = element.naturalHeight || DEFAULT_SIDE;
    checkSize({ width, height }, limits);
    return await createImageBitmap(element, { resizeWidth: width, resizeHeight: height });
  } catch (error) {
    if (error instanceof UnusableImage) throw error;
    throw new UnusableImage("the SVG file is damaged");
  } finally {
    URL.revokeObjectURL(url);
  }
}
