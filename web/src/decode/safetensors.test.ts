import { describe, expect, it } from "vitest";
import { readEmbedding } from "./safetensors";
import { Unsupported } from "./unsupported";

const METADATA = {
  format: "samserve.embedding.v1",
  id: "put_0",
  model: "sam_tiny",
  encoder_digest: "ab",
  preprocessing: "sam1-1",
  image_height: "427",
  image_width: "640",
};
const TENSORS = {
  wide: { dtype: "F32", shape: [1, 2], data_offsets: [0, 8] },
  narrow: { dtype: "F16", shape: [3], data_offsets: [8, 14] },
};

/** Return a file at an odd offset of its buffer. */
function file(header: object, payloadBytes = 14): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(1 + 8 + text.length + payloadBytes).subarray(1);
  const view = new DataView(bytes.buffer, 1);
  view.setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  view.setFloat32(8 + text.length + 4, 1.5, true);
  view.setUint16(8 + text.length + 8, 0x3c00, true);
  return bytes;
}

describe("readEmbedding", () => {
  it("reads the tensors and what the embedding is of", () => {
    const found = readEmbedding(file({ __metadata__: METADATA, ...TENSORS }));
    expect(found).toMatchObject({ model: "sam_tiny", encoderDigest: "ab" });
    expect(found.image).toEqual({ width: 640, height: 427 });
    expect(found.tensors).toEqual([
      { name: "wide", type: "float32", shape: [1, 2], data: Float32Array.of(0, 1.5) },
      { name: "narrow", type: "float16", shape: [3], data: Uint16Array.of(0x3c00, 0, 0) },
    ]);
  });

  it("refuses other files", () => {
    const whole = { __metadata__: METADATA, ...TENSORS };
    const other = (changes: object) => file({ ...whole, ...changes });
    const files = [
      new Uint8Array(),
      new Uint8Array(7),
      new Uint8Array(20),
      file(whole).subarray(0, 40),
      file(whole, 13),
      file([]),
      file({ __metadata__: METADATA }),
      other({ __metadata__: undefined }),
      other({ __metadata__: { ...METADATA, format: "other" } }),
      other({ __metadata__: { ...METADATA, image_width: "0" } }),
      other({ __metadata__: { ...METADATA, encoder_digest: 1 } }),
      other({ wide: { ...TENSORS.wide, dtype: "BF16" } }),
      other({ wide: { ...TENSORS.wide, shape: [3] } }),
      other({ wide: { ...TENSORS.wide, data_offsets: [8, 0] } }),
      other({ wide: null }),
    ];
    for (const each of files) {
      expect(() => readEmbedding(each)).toThrow(Unsupported);
    }
  });
});
