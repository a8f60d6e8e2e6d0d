/** The wheel of a mouse, and two fingers on a trackpad. */

import { image } from "../state/image";
import { zoomFactor } from "./meanings";
import { zoomAt } from "./viewport-state";

/** Follow the wheel on a canvas; returns a function that ends this. */
export function followWheel(canvas: HTMLCanvasElement): () => void {
  const listener = (event: WheelEvent) => {
    if (!image.value) return;
    // Neither scroll nor zoom the page.
    event.preventDefault();
    const { left, top } = canvas.getBoundingClientRect();
    zoomAt(zoomFactor(event), { x: event.clientX - left, y: event.clientY - top });
  };
  canvas.addEventListener("wheel", listener, { passive: false });
  return () => canvas.removeEventListener("wheel", listener);
}
