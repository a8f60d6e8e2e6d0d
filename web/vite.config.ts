import preact from "@preact/preset-vite";
import { defaultClientConditions } from "vite";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [preact()],
  // Relative, so that the page also works behind a proxy that serves it below a path.
  base: "./",
  build: {
    target: "es2023",
    // Fetched as files: data: URLs would need a wider Content-Security-Policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // The runtime of the decoder, loaded only when it is switched on.
    chunkSizeWarningLimit: 1024,
  },
  worker: { format: "es" },
  // The module without an embedded copy of the runtime's loader, which is shipped as a file.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  // For `npm run dev`: calls go to a server on this machine.
  server: {
    fs: { allow: [".."] },
    proxy: Object.fromEntries(
      ["/samserve.v1.SegmentationService", "/decoders", "/web/session"].map((path) => [
        path,
        { target: "http://127.0.0.1:8080", changeOrigin: true },
      ]),
    ),
    headers: {
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    },
  },
  test: { environment: "node", include: ["src/**/*.test.ts"] },
});
