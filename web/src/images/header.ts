/**
 * What the first bytes of an image file say, before a decoder reads it.
 *
 * Sources: ITU-T T.81 (JPEG), the PNG specification, RFC 9649 (WebP), GIF89a, TIFF 6.0 (EXIF).
 */

import type { Size } from "../types";

export interface Header {
  readonly format: "jpeg" | "png" | "webp" | "other";
  /** Before orientation; null if the header does not say it. */
  readonly size: Size | null;
  readonly animated: boolean;
  /** Whether the server would turn the image, but browsers may not: EXIF in WebP. */
  readonly turned: boolean;
}

const OTHER: Header = { format: "other", size: null, animated: false, turned: false };
const WEBP_ANIMATION = 0x02;
const WEBP_EXIF = 0x08;
const ORIENTATION_TAG = 0x0112;
const PNG_SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Read the header of a file; formats that the server does not read are `other`. */
export function readHeader(file: Uint8Array): Header {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const format = formatOf(file, view);
  try {
    if (format === "jpeg") return { ...OTHER, format, size: sizeOfJpeg(view) };
    if (format === "png") return { ...OTHER, format, ...readPng(view) };
    if (format === "webp") return { ...OTHER, format, ...readWebp(view) };
    if (text(view, 0) === "GIF8") return { ...OTHER, size: sizeAt(view, 6, true) };
  } catch (error) {
    // The file ends in its header: the decoder reports that.
    if (!(error instanceof RangeError)) throw error;
  }
  return { ...OTHER, format };
}

function formatOf(file: Uint8Array, view: DataView): Header["format"] {
  if (startsWith(file, [0xff, 0xd8, 0xff])) return "jpeg";
  if (startsWith(file, PNG_SIGNATURE)) return "png";
  return text(view, 0) === "RIFF" && text(view, 8) === "WEBP" ? "webp" : "other";
}

function startsWith(file: Uint8Array, bytes: readonly number[]): boolean {
  return bytes.every((byte, index) => file[index] === byte);
}

/** Return four characters; shorter at the end of the file. */
function text(view: DataView, offset: number): string {
  const end = Math.min(offset + 4, view.byteLength);
  let result = "";
  for (let at = offset; at < end; at++) result += String.fromCharCode(view.getUint8(at));
  return result;
}

function sizeAt(view: DataView, offset: number, littleEndian: boolean): Size {
  return {
    width: view.getUint16(offset, littleEndian),
    height: view.getUint16(offset + 2, littleEndian),
  };
}

function sizeOfJpeg(view: DataView): Size | null {
  let at = 2;
  for (;;) {
    const marker = view.getUint8(at + 1);
    if (view.getUint8(at) !== 0xff) return null;
    // Fill bytes before a marker.
    if (marker === 0xff) {
      at += 1;
      continue;
    }
    const isFrame =
      marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
    if (isFrame) {
      const { width: height, height: width } = sizeAt(view, at + 5, false);
      return { width, height };
    }
    at += 2 + view.getUint16(at + 2);
  }
}

function readPng(view: DataView): Partial<Header> {
  const size = { width: view.getUint32(16), height: view.getUint32(20) };
  // An animation is announced before the pixels.
  let at = 8;
  let animated = false;
  while (at + 8 <= view.byteLength && text(view, at + 4) !== "IDAT") {
    animated ||= text(view, at + 4) === "acTL";
    at += 12 + view.getUint32(at);
  }
  return { size, animated };
}

function readWebp(view: DataView): Partial<Header> {
  const kind = text(view, 12);
  if (kind === "VP8X") {
    const size = { width: uint24(view, 24) + 1, height: uint24(view, 27) + 1 };
    const flags = view.getUint8(20);
    const animated = (flags & WEBP_ANIMATION) !== 0;
    return { size, animated, turned: (flags & WEBP_EXIF) !== 0 && isTurned(view) };
  }
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    const size = { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    return { size };
  }
  const { width, height } = sizeAt(view, 26, true);
  return { size: { width: width & 0x3fff, height: height & 0x3fff } };
}

/** Return whether the EXIF chunk of a WebP file has an orientation other than upright. */
function isTurned(view: DataView): boolean {
  let at = 12;
  while (at + 8 <= view.byteLength && text(view, at) !== "EXIF") {
    const length = view.getUint32(at + 4, true);
    at += 8 + length + (length % 2);
  }
  if (at + 8 > view.byteLength) return false;
  // Some programs write the prefix of JPEG before the TIFF block.
  return orientation(view, text(view, at + 8) === "Exif" ? at + 14 : at + 8) !== 1;
}

/** Return the orientation in a TIFF block, 1 to 8. */
function orientation(view: DataView, start: number): number {
  const littleEndian = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, littleEndian);
  const entries = view.getUint16(directory, littleEndian);
  for (let entry = 0; entry < entries; entry++) {
    const at = directory + 2 + 12 * entry;
    if (view.getUint16(at, littleEndian) === ORIENTATION_TAG)
      return view.getUint16(at + 8, littleEndian);
  }
  return 1;
}

function uint24(view: DataView, offset: number): number {
  return view.getUint16(offset, true) | (view.getUint8(offset + 2) << 16);
}
