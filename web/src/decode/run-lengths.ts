/** Collects the run lengths of a mask, column by column, beginning outside of it. */
export class RunLengths {
  #values = new Uint32Array(1024);
  #count = 0;
  #start = 0;
  #inside = false;

  /** Say on which side the pixels from *position* on are; positions ascend. */
  set(position: number, inside: boolean) {
    if (inside !== this.#inside) {
      this.#end(position);
      this.#inside = inside;
    }
  }

  /** Return the runs of *pixels* in all. */
  finish(pixels: number): Uint32Array {
    this.#end(pixels);
    return this.#values.slice(0, this.#count);
  }

  #end(position: number) {
    if (this.#count === this.#values.length) {
      const grown = new Uint32Array(2 * this.#count);
      grown.set(this.#values);
      this.#values = grown;
    }
    this.#values[this.#count++] = position - this.#start;
    this.#start = position;
  }
}
