import { effect } from "@preact/signals";

/**
 * Draw now and whenever a signal that the last drawing has read changes, once per frame.
 *
 * Returns a function that ends this.
 */
export function drawOnChange(draw: () => void): () => void {
  let frame = 0;
  let follow: () => void = () => {};
  const render = () => {
    frame = 0;
    follow();
    // Reads and draws at once; a change of what was read only asks for the next frame.
    let isFirst = true;
    follow = effect(() => {
      if (isFirst) draw();
      else request();
      isFirst = false;
    });
  };
  const request = () => {
    frame = requestAnimationFrame(render);
  };
  request();
  return () => {
    cancelAnimationFrame(frame);
    follow();
  };
}
