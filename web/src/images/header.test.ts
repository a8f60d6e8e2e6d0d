import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

import { readHeader } from "./header";

const SAMPLES = new URL("../../../service/samserve/export/samples/", import.meta.url);

function bytes(...parts: readonly (string | readonly number[])[]): Uint8Array {
  const encoder = new TextEncoder();
  return new Uint8Array(
    parts.flatMap((part) => (typeof part === "string" ? [...encoder.encode(part)] : [...part])),
  );
}

function chunk(name: string, content: readonly number[]): Uint8Array {
  const { length } = content;
  return bytes([0, 0, length >> 8, length & 255], name, content, [0, 0, 0, 0]);
}

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const IHDR = chunk("IHDR", [0, 0, 2, 88, 0, 0, 1, 144, 8, 2, 0, 0, 0]);

/** A WebP file of 600 x 400 pixels with *flags* and chunks behind its header. */
function webp(flags: number, ...chunks: readonly Uint8Array[]): Uint8Array {
  const size = [0x57, 0x02, 0x00, 0x8f, 0x01, 0x00];
  const head = bytes("RIFF", [0, 0, 0, 0], "WEBPVP8X", [10, 0, 0, 0, flags, 0, 0, 0], size);
  return bytes([...head], ...chunks.map((each) => [...each]));
}

function exif(orientation: number): Uint8Array {
  const entry = [0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0];
  const tiff = ["II", [42, 0, 8, 0, 0, 0, 1, 0], entry, [0, 0, 0, 0]] as const;
  return bytes("EXIF", [26, 0, 0, 0], ...tiff);
}

describe("readHeader", () => {
  it("reads the size of a JPEG", () => {
    const file = readFileSync(new URL("coffee.jpg", SAMPLES));
    expect(readHeader(file)).toEqual({
      format: "jpeg",
      size: { width: 600, height: 400 },
      animated: false,
      turned: false,
    });
  });

  it("reads the size of a PNG, and whether it is animated", () => {
    const still = readHeader(bytes(PNG, [...IHDR], [...chunk("IDAT", [1])]));
    expect(still).toMatchObject({ format: "png", size: { width: 600, height: 400 } });
    expect(still.animated).toBe(false);
    const moving = bytes(PNG, [...IHDR], [...chunk("acTL", [0])], [...chunk("IDAT", [1])]);
    expect(readHeader(moving).animated).toBe(true);
  });

  it("does not take pixels of a PNG for the mark of an animation", () => {
    const file = bytes(PNG, [...IHDR], [...chunk("IDAT", [1])], [...chunk("acTL", [0])]);
    expect(readHeader(file).animated).toBe(false);
  });

  it("reads the size of a WebP, and whether it is animated", () => {
    expect(readHeader(webp(0))).toMatchObject({
      format: "webp",
      size: { width: 600, height: 400 },
      animated: false,
    });
    expect(readHeader(webp(2)).animated).toBe(true);
  });

  it("reads the size of lossless and lossy WebP files", () => {
    const bits = 599 | (399 << 14);
    const packed = [bits & 255, (bits >> 8) & 255, (bits >> 16) & 255, bits >>> 24];
    const lossless = bytes("RIFF", [0, 0, 0, 0], "WEBPVP8L", [5, 0, 0, 0, 0x2f], packed);
    const start = [0, 0, 0, 0x9d, 0x01, 0x2a];
    const lossy = bytes("RIFF", [0, 0, 0, 0], "WEBPVP8 ", [10, 0, 0, 0], start, [88, 2, 144, 1]);
    expect(readHeader(lossless).size).toEqual({ width: 600, height: 400 });
    expect(readHeader(lossy).size).toEqual({ width: 600, height: 400 });
  });

  it("finds an orientation in the EXIF chunk of a WebP", () => {
    const pixels = bytes("VP8L", [1, 0, 0, 0, 7, 0]);
    expect(readHeader(webp(8, pixels, exif(6))).turned).toBe(true);
    expect(readHeader(webp(8, pixels, exif(1))).turned).toBe(false);
    expect(readHeader(webp(0, pixels)).turned).toBe(false);
  });

  it("recognises other formats as such, and files that end in their header", () => {
    expect(readHeader(bytes("BM", [0, 0])).format).toBe("other");
    expect(readHeader(bytes("GIF89a", [88, 2, 144, 1]))).toMatchObject({
      format: "other",
      size: { width: 600, height: 400 },
    });
    expect(readHeader(bytes()).format).toBe("other");
    expect(readHeader(bytes(PNG)).size).toBeNull();
    expect(readHeader(bytes([0xff, 0xd8, 0xff])).size).toBeNull();
  });
});
