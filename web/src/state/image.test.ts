import { beforeEach, expect, test, vi } from "vitest";

import { openImage } from "../images/open";
import type { Embedding, LoadedImage } from "../types";
import { api, failed } from "./connection";
import * as state from "./image";

vi.mock("../images/open", () => ({ openImage: vi.fn() }));
vi.mock("./connection", () => ({
  api: { embed: vi.fn() },
  failed: vi.fn(),
  modelName: { value: "model" },
  server: { value: { limits: {} } },
}));

const SIZE = { width: 1, height: 1 };
const FILE = new Blob();

/** Let the next call of openImage return an image; returns its bitmaps. */
function willOpen(name: string): ImageBitmap {
  const bitmap = { close: vi.fn() } as unknown as ImageBitmap;
  const opened: LoadedImage = {
    name,
    file: new Uint8Array(),
    size: SIZE,
    preview: bitmap,
    full: bitmap,
  };
  vi.mocked(openImage).mockResolvedValueOnce(opened);
  return bitmap;
}

/** Let the next call of embed wait; returns its signal, and how it is answered. */
function willEncode() {
  let answer = (_: string) => {};
  const signals: (AbortSignal | undefined)[] = [];
  vi.mocked(api.embed).mockImplementationOnce((_file, _model, signal) => {
    signals.push(signal);
    return new Promise<Embedding>((resolve, reject) => {
      answer = (id) => resolve({ id, size: SIZE, model: "model", cached: false, steps: [] });
      signal?.addEventListener("abort", () => reject(signal.reason));
    });
  });
  return { signals, answer: (id: string) => answer(id) };
}

beforeEach(() => {
  vi.mocked(openImage).mockReset();
  vi.mocked(api.embed).mockReset();
});

test("a file that cannot be opened does not end the encoding of the image before", async () => {
  const first = willEncode();
  willOpen("first");
  await state.open(FILE, "first");
  vi.mocked(openImage).mockRejectedValueOnce(new Error("broken"));
  await state.open(FILE, "second");
  expect(failed).toHaveBeenCalledWith("second cannot be opened", expect.any(Error));
  expect(state.progress.value).toBe("encoding");
  expect(first.signals[0]?.aborted).toBe(false);
  first.answer("embedding");
  await expect(state.currentEmbedding()).resolves.toMatchObject({ id: "embedding" });
  expect(state.progress.value).toBe("");
});

test("another image ends the encoding of the one before", async () => {
  const first = willEncode();
  willOpen("first");
  await state.open(FILE, "first");
  const second = willEncode();
  willOpen("second");
  await state.open(FILE, "second");
  expect(first.signals[0]?.aborted).toBe(true);
  second.answer("second");
  await expect(state.currentEmbedding()).resolves.toMatchObject({ id: "second" });
});

test("an image that is opened too late is closed", async () => {
  const late = willOpen("late");
  const opening = state.open(FILE, "late");
  const call = willEncode();
  const shown = willOpen("shown");
  await Promise.all([opening, state.open(FILE, "shown")]);
  call.answer("shown");
  expect(state.image.value?.name).toBe("shown");
  expect(late.close).toHaveBeenCalled();
  expect(shown.close).not.toHaveBeenCalled();
});
