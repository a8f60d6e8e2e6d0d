/** Many masks in one bitmap, of which some are shown; in the worker. */

import type { Rgb, Size } from "../types";
import { css, drawnSize, openCanvas, toImageBitmap } from "./canvas";
import type { Composition } from "./interfaces";
import { byRows, MaskSet, paint } from "./labels";
import { addOutline } from "./paths";
import { ALPHA, edgeWidth, MAX_RUNS } from "./render";
import type { Shape } from "./run-lengths";

/** Of all masks: above it, outlines are drawn as straight lines, which are several times faster. */
const MAX_CURVED_RUNS = 100_000;
/** Above it, pixels are drawn: outlines would take longer, and more memory. */
const MAX_OUTLINED_RUNS = 250_000;

/** The masks of an image with their colours, prepared for drawing any of them. */
export class Composer {
  readonly #masks: MaskSet;
  readonly #colours: readonly Rgb[];
  readonly #image: Size;
  readonly #drawn: Size;
  /** Null if there is too much to draw. */
  readonly #paths: readonly Path2D[] | null;

  constructor(shapes: readonly Shape[], colours: readonly Rgb[], maxSide: number) {
    this.#masks = new MaskSet(shapes, maxSide);
    this.#colours = shapes.map((_, index) => colours[index % colours.length] ?? [255, 255, 255]);
    this.#image = shapes[0]?.size ?? this.#masks.size;
    this.#drawn = drawnSize(this.#image, maxSide);
    this.#paths = this.#toPaths(shapes);
  }

  /** Draw the masks of some indices; labels are of these, row by row. */
  draw(shown: Iterable<number>): Composition {
    const indices = new Set(shown);
    const { size } = this.#masks;
    const labels = byRows(this.#masks.label(indices), size);
    const bitmap = this.#paths
      ? this.#drawPaths(this.#paths, indices)
      : toImageBitmap(paint(labels, size, this.#colours, ALPHA), size);
    return { bitmap, labels, size };
  }

  #toPaths(shapes: readonly Shape[]): Path2D[] | null {
    const runs = shapes.map((shape) => shape.runs.length);
    const total = runs.reduce((sum, each) => sum + each, 0);
    if (total > MAX_OUTLINED_RUNS || runs.some((each) => each > MAX_RUNS)) return null;
    const scale = this.#drawn.width / this.#image.width;
    return shapes.map((shape) => {
      const path = new Path2D();
      addOutline(path, shape, scale, total > MAX_CURVED_RUNS);
      return path;
    });
  }

  #drawPaths(paths: readonly Path2D[], shown: ReadonlySet<number>): ImageBitmap {
    const { canvas, context } = openCanvas(this.#drawn);
    const scale = this.#drawn.width / this.#image.width;
    context.scale(scale, this.#drawn.height / this.#image.height);
    context.lineJoin = "round";
    context.lineWidth = edgeWidth(this.#drawn) / scale;
    for (const index of this.#masks.order) {
      if (!shown.has(index)) continue;
      const path = paths[index] as Path2D;
      const colour = this.#colours[index] as Rgb;
      // A mask covers the larger ones below it: their colours do not mix.
      context.globalCompositeOperation = "destination-out";
      context.fillStyle = "black";
      context.fill(path, "evenodd");
      context.globalCompositeOperation = "source-over";
      context.fillStyle = css(colour, ALPHA);
      context.fill(path, "evenodd");
      context.strokeStyle = css(colour, 1);
      context.stroke(path);
    }
    return canvas.transferToImageBitmap();
  }
}
