import { useEffect, useRef } from "preact/hooks";

import * as masks from "../masks";
import type { LoadedImage, Mask, Rgb } from "../types";

// Device pixels per pixel of the page, for sharp images on dense screens.
const DENSITY = 2;

interface ThumbnailProps {
  readonly mask: Mask;
  readonly colour: Rgb;
  readonly image: LoadedImage;
  /** Side in pixels of the page. */
  readonly side: number;
}

/** A small view of the image around a mask. */
export function Thumbnail({ mask, colour, image, side }: ThumbnailProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    let isCurrent = true;
    masks.thumbnail(mask, image.preview, side * DENSITY, colour).then(
      (bitmap) => {
        if (isCurrent && canvas.current) show(canvas.current, bitmap);
        bitmap.close();
      },
      // The answer can be chosen without it, and the mask in the image shows the same error.
      () => undefined,
    );
    return () => {
      isCurrent = false;
    };
  }, [mask, colour, image, side]);
  return <canvas ref={canvas} class="thumbnail" width={side} height={side} />;
}

function show(canvas: HTMLCanvasElement, bitmap: ImageBitmap): void {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
}
