/** ONNX Runtime in WebAssembly, loaded with the first decoder. */

import moduleUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import type * as Ort from "onnxruntime-web/wasm";
import { Unsupported } from "./unsupported";

export type Runtime = typeof Ort;

const START_TIMEOUT_MS = 60_000;

/** Load the runtime for so many *threads*; only the first call in a worker decides that. */
export async function loadRuntime(threads: number): Promise<Runtime> {
  if (typeof WebAssembly !== "object") {
    throw new Unsupported("This browser has no WebAssembly, or it is switched off.");
  }
  const ort = await import("onnxruntime-web/wasm");
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.initTimeout = START_TIMEOUT_MS;
  const at = (url: string) => new URL(url, import.meta.url).href;
  ort.env.wasm.wasmPaths = { mjs: at(moduleUrl), wasm: at(wasmUrl) };
  return ort;
}
