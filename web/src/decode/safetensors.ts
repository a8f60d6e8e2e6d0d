import type { Size } from "../types";
import { Unsupported } from "./unsupported";

/** An array of an embedding, without a batch axis; float16 values are 16-bit patterns. */
export interface Tensor {
  readonly name: string;
  readonly type: "float16" | "float32";
  readonly shape: readonly number[];
  readonly data: Uint16Array | Float32Array;
}

/** An embedding: its tensors, the size of its image, and the digest of its image encoder. */
export interface EmbeddingContent {
  readonly model: string;
  readonly encoderDigest: string;
  readonly image: Size;
  readonly tensors: readonly Tensor[];
}

const FORMAT = "samserve.embedding.v1";
const LENGTH_BYTES = 8;
const MAX_HEADER_BYTES = 64 << 10;
const TYPES = {
  F16: { name: "float16", bytes: 2, view: Uint16Array },
  F32: { name: "float32", bytes: 4, view: Float32Array },
} as const;

/** Parse the file that GetEmbedding returns. Throws `Unsupported` if it is not one. */
export function readEmbedding(file: Uint8Array<ArrayBuffer>): EmbeddingContent {
  const { header, payload } = split(file);
  const { __metadata__: metadata, ...entries } = header;
  const texts = asObject(metadata, "its metadata is missing");
  if (texts.format !== FORMAT) {
    throw malformed(`its format is not ${FORMAT}`);
  }
  const tensors = Object.entries(entries).map(([name, entry]) => readTensor(name, entry, payload));
  if (tensors.length === 0) {
    throw malformed("it has no tensors");
  }
  return {
    model: readText(texts, "model"),
    encoderDigest: readText(texts, "encoder_digest"),
    image: { width: readSide(texts, "image_width"), height: readSide(texts, "image_height") },
    tensors,
  };
}

function split(file: Uint8Array<ArrayBuffer>) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const length = file.byteLength < LENGTH_BYTES ? 0n : view.getBigUint64(0, true);
  if (length < 2n || length > MAX_HEADER_BYTES) {
    throw malformed("its header has an impossible length");
  }
  const end = LENGTH_BYTES + Number(length);
  if (end > file.byteLength) {
    throw malformed("it ends within its header");
  }
  const text = new TextDecoder().decode(file.subarray(LENGTH_BYTES, end));
  return { header: asObject(parse(text), "its header is no object"), payload: file.subarray(end) };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw malformed("its header is not JSON");
  }
}

function readTensor(name: string, entry: unknown, payload: Uint8Array<ArrayBuffer>): Tensor {
  const { dtype, shape, data_offsets: offsets } = asObject(entry, `${name} is no tensor`);
  const type = dtype === "F16" || dtype === "F32" ? TYPES[dtype] : undefined;
  if (type === undefined || !isNumbers(shape) || !isNumbers(offsets) || offsets.length !== 2) {
    throw malformed(`the tensor ${name} has another type or shape than embeddings have`);
  }
  const [start = 0, stop = 0] = offsets;
  const count = shape.reduce((product, length) => product * length, 1);
  if (stop > payload.byteLength || stop - start !== count * type.bytes) {
    throw malformed(`the tensor ${name} does not have the bytes of its shape`);
  }
  // A copy, since a view must begin at a multiple of its element's size.
  const bytes = payload.slice(start, stop);
  return { name, type: type.name, shape, data: new type.view(bytes.buffer) };
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((each) => Number.isSafeInteger(each) && each >= 0);
}

function readText(texts: Record<string, unknown>, name: string): string {
  const text = texts[name];
  if (typeof text !== "string" || text === "") {
    throw malformed(`its metadata has no ${name}`);
  }
  return text;
}

function readSide(texts: Record<string, unknown>, name: string): number {
  const text = readText(texts, name);
  if (!/^[1-9][0-9]{0,8}$/.test(text)) {
    throw malformed(`its metadata has no ${name} in pixels`);
  }
  return Number(text);
}

function asObject(value: unknown, problem: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw malformed(problem);
  }
  return value as Record<string, unknown>;
}

function malformed(problem: string): Unsupported {
  return new Unsupported(`The server's file of the embedding cannot be read: ${problem}.`);
}
