/** Masks as PNG files. A canvas would write four channels, and hold four times the memory. */

import { crc32 } from "./crc32";
import { forEachInterval, type Shape } from "./run-lengths";

const SIGNATURE = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);

/** Return a PNG file of a mask's size: 8-bit grey, 255 inside, 0 outside. */
export async function maskPng(shape: Shape): Promise<Blob> {
  const { width, height } = shape.size;
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 8); // bits; the other fields are 0: grey, deflate, no interlacing
  const data = await compressed(rows(shape));
  const parts = [SIGNATURE, ...chunk("IHDR", new Uint8Array(header.buffer))];
  parts.push(...chunk("IDAT", data), ...chunk("IEND", new Uint8Array()));
  return new Blob(parts, { type: "image/png" });
}

/** Return the rows of a mask, each after a byte for its filter: none. */
function rows(shape: Shape): Uint8Array<ArrayBuffer> {
  const stride = shape.size.width + 1;
  const bytes = new Uint8Array(stride * shape.size.height);
  forEachInterval(shape, (x, top, bottom) => {
    const end = bottom * stride;
    for (let at = top * stride + x + 1; at < end; at += stride) bytes[at] = 255;
  });
  return bytes;
}

async function compressed(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(type: string, data: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer>[] {
  const body = new Uint8Array(4 + data.length);
  body.set(new TextEncoder().encode(type));
  body.set(data, 4);
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, data.length);
  const checksum = new DataView(new ArrayBuffer(4));
  checksum.setUint32(0, crc32(body));
  return [new Uint8Array(length.buffer), body, new Uint8Array(checksum.buffer)];
}
