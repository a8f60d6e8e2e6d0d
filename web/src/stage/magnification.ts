/** Masks are drawn sharply where the image is magnified, once it rests. */

import { effect } from "@preact/signals";

import { magnify, part } from "../state/details";
import { image } from "../state/image";
import type { Size } from "../types";
import { isSharp, padded } from "./parts";
import { type Viewport, visiblePart } from "./viewport";
import { type Container, container, viewport } from "./viewport-state";

const REST_MS = 120;
/** Width of the lines around masks, in CSS pixels. */
const EDGE = 2;

/** Follow the viewport; returns a function that ends this. */
export function followMagnification(): () => void {
  let timer = 0;
  const stop = effect(() => {
    const view = viewport.value;
    const size = image.value?.size;
    const { value } = container;
    clearTimeout(timer);
    if (view && size) timer = window.setTimeout(() => draw(view, size, value), REST_MS);
  });
  return () => {
    clearTimeout(timer);
    stop();
  };
}

function draw(view: Viewport, size: Size, shown: Container): void {
  const scale = view.scale * shown.ratio;
  const visible = visiblePart(view, size, shown);
  if (!isSharp(part.peek(), scale, visible))
    magnify(padded(visible, size), scale, EDGE * shown.ratio);
}
