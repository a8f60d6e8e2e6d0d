import { useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { highlighted } from "../state/everything";
import { image } from "../state/image";
import { tool } from "../state/prompting";
import { announcement } from "./announcements";
import { lowerLayer, upperLayer } from "./drawing/layers";
import { drawOnChange } from "./frames";
import { followKeys } from "./keyboard";
import { followMagnification } from "./magnification";
import { followPointers } from "./pointer-events";
import { isChoosing, isPanning, isSpaceHeld } from "./pointing";
import { followShortcuts } from "./shortcuts";
import "./stage.css";
import { canvasRatio } from "./viewport";
import { container, setContainer } from "./viewport-state";
import { followWheel } from "./wheel";

/** The image with its masks, on which the user points; it fills its container. */
export function Stage() {
  const frame = useRef<HTMLDivElement>(null);
  const lower = useRef<HTMLCanvasElement>(null);
  const upper = useRef<HTMLCanvasElement>(null);

  useEffect(() => {
    if (!frame.current || !lower.current || !upper.current) return;
    return begin(frame.current, lower.current, upper.current);
  }, []);

  useSignalEffect(() => {
    if (upper.current) upper.current.dataset.cursor = cursor();
  });

  return (
    <div class="stage" ref={frame}>
      {/* biome-ignore lint/a11y/noAriaHiddenOnFocusable: a canvas takes the focus with tabIndex only. */}
      <canvas class="stage-canvas" ref={lower} aria-hidden="true" />
      {/* biome-ignore lint/a11y/noInteractiveElementToNoninteractiveRole: it handles its keys. */}
      <canvas
        class="stage-canvas stage-input"
        ref={upper}
        role="application"
        aria-label="Image"
        aria-describedby="stage-help"
        tabIndex={0}
      />
      <p class="stage-hidden" id="stage-help">
        Arrow keys move the crosshair, with Shift further. Enter adds a foreground point, Shift and
        Enter a background point. With the tool Box, Enter sets one corner, then the opposite one.
        With the tool Pan, arrow keys move the image.
      </p>
      <p class="stage-hidden" aria-live="polite">
        {announcement}
      </p>
    </div>
  );
}

function begin(
  frame: HTMLDivElement,
  lowerCanvas: HTMLCanvasElement,
  upperCanvas: HTMLCanvasElement,
): () => void {
  const ends = [
    followSize(frame),
    drawOnChange(layer(lowerCanvas, lowerLayer)),
    drawOnChange(layer(upperCanvas, upperLayer)),
    followMagnification(),
    followPointers(upperCanvas),
    followWheel(upperCanvas),
    followKeys(upperCanvas),
    followShortcuts(),
  ];
  return () => {
    for (const end of ends) end();
  };
}

/** Return a function that draws a layer; a canvas gets the size of its container before. */
function layer(
  canvas: HTMLCanvasElement,
  layerOn: (context: CanvasRenderingContext2D) => () => void,
): () => void {
  const context = canvas.getContext("2d");
  const draw = context && layerOn(context);
  return () => {
    const { width, height, ratio } = container.value;
    resize(canvas, Math.round(width * ratio), Math.round(height * ratio), ratio);
    draw?.();
  };
}

/** Give a canvas a size in its own pixels, each of which is one of the screen. */
function resize(canvas: HTMLCanvasElement, width: number, height: number, ratio: number): void {
  // Setting it clears the canvas, and allocates it again.
  if (canvas.width === width && canvas.height === height) return;
  canvas.width = width;
  canvas.height = height;
  canvas.style.width = `${width / ratio}px`;
  canvas.style.height = `${height / ratio}px`;
}

function followSize(frame: HTMLDivElement): () => void {
  const measure = () => {
    const { width, height } = frame.getBoundingClientRect();
    setContainer({ width, height, ratio: canvasRatio({ width, height }, devicePixelRatio) });
  };
  const observer = new ResizeObserver(measure);
  observer.observe(frame);
  // Zooming the page may change the ratio only.
  addEventListener("resize", measure);
  return () => {
    observer.disconnect();
    removeEventListener("resize", measure);
  };
}

function cursor(): string {
  if (image.value === null) return "";
  if (isPanning.value) return "grabbing";
  if (isSpaceHeld.value || tool.value === "pan") return "grab";
  return isChoosing.value && highlighted.value >= 0 ? "keep" : "point";
}
