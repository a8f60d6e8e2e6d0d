const OPACITY = 140; // of 255
const COLOURS = [
  [30, 144, 255, OPACITY],
  [255, 112, 67, OPACITY],
  [102, 187, 106, OPACITY],
  [171, 71, 188, OPACITY],
  [255, 202, 40, OPACITY],
  [38, 166, 154, OPACITY],
];

/** An image on a canvas, with masks and points over it. */
export class Overlay {
  #canvas;
  #context;
  #image;
  #masks;
  #count = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {ImageBitmap} image
   */
  constructor(canvas, image) {
    canvas.width = image.width;
    canvas.height = image.height;
    this.#canvas = canvas;
    this.#context = contextOf(canvas);
    this.#image = image;
    this.#masks = new ImageData(image.width, image.height);
    this.draw([]);
  }

  /** Remove all masks. */
  clear() {
    this.#masks.data.fill(0);
    this.#count = 0;
    this.draw([]);
  }

  /** @param {import("../shared/mask.js").Mask} mask */
  add(mask) {
    const colour = COLOURS[this.#count++ % COLOURS.length];
    const { data } = this.#masks;
    mask.pixels().forEach((inside, index) => {
      if (inside) data.set(colour, 4 * index);
    });
  }

  /**
   * Draw the image, the masks, and points over them.
   *
   * @param {{x: number, y: number, foreground?: boolean}[]} points
   */
  draw(points) {
    const context = this.#context;
    context.drawImage(this.#image, 0, 0);
    // putImageData would replace the image instead of covering it.
    const layer = new OffscreenCanvas(this.#image.width, this.#image.height);
    contextOf(layer).putImageData(this.#masks, 0, 0);
    context.drawImage(layer, 0, 0);
    const radius = Math.max(3, this.#image.width / 120);
    for (const { x, y, foreground } of points) {
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = foreground ? "#00c853" : "#d50000";
      context.strokeStyle = "white";
      context.fill();
      context.stroke();
    }
  }

  /**
   * Return the position of a click in image pixels.
   *
   * @param {MouseEvent} event
   */
  position(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.#canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.#canvas.height) / box.height,
    };
  }
}

/** @param {HTMLCanvasElement | OffscreenCanvas} canvas */
function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}
