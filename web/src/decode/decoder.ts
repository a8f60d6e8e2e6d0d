/** One mask decoder with one embedding, in the thread that calls it. */

import type { InferenceSession, Tensor as OrtTensor } from "onnxruntime-web/wasm";
import type { Mask, Multimask, Prediction, Prompt, Step } from "../types";
import { type Family, familyOf, type ModelRules, resizedIn } from "./families";
import { maskJobs } from "./postprocess";
import { type PromptTensors, promptTensors } from "./prompts";
import type { Runtime } from "./runtime";
import { type EmbeddingContent, readEmbedding } from "./safetensors";
import { Unsupported } from "./unsupported";
import { type Upsampling, upsamplingBetween } from "./upsampling";

const PROMPT_INPUTS = new Set(["point_coords", "point_labels", "mask_input", "iou_threshold"]);
const OUTPUTS = ["low_res_logits", "predicted_iou", "samserve_digest"];

interface LoadedEmbedding {
  readonly content: EmbeddingContent;
  readonly feeds: Record<string, OrtTensor>;
  readonly upsampling: Upsampling;
}

export interface DecodeOptions {
  readonly multimask: Multimask;
  readonly logits: boolean;
}

export class Decoder {
  readonly #family: Family;
  readonly #inputs: readonly string[];
  #embedding: LoadedEmbedding | null = null;

  private constructor(
    private readonly ort: Runtime,
    private readonly session: InferenceSession,
    private readonly model: ModelRules,
  ) {
    this.#family = familyOf(model);
    this.#inputs = session.inputNames.filter((name) => !PROMPT_INPUTS.has(name));
  }

  /** Load the ONNX file of a mask decoder. */
  static async load(ort: Runtime, file: Uint8Array, model: ModelRules): Promise<Decoder> {
    // Before the file is read: its family may be unknown.
    familyOf(model);
    const session = await ort.InferenceSession.create(file, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
      enableMemPattern: false,
      // Threads that spin between runs would compete with the page.
      extra: { session: { intra_op: { allow_spinning: "0" } } },
    });
    return new Decoder(ort, session, model);
  }

  /** Use the embedding of a file, as GetEmbedding returns it, from now on. */
  setEmbedding(file: Uint8Array<ArrayBuffer>) {
    const content = readEmbedding(file);
    const names = content.tensors.map((each) => each.name);
    if (
      names.length !== this.#inputs.length ||
      !this.#inputs.every((each) => names.includes(each))
    ) {
      throw new Unsupported(`The embedding is not one that ${this.model.name} decodes.`);
    }
    const { imageSide, maskSide } = this.model;
    const resized = resizedIn(content.image, imageSide, this.#family);
    // An image that fills the frame is upsampled in one step.
    const between = this.#family.fillsFrame
      ? [{ width: maskSide, height: maskSide }, maskSide]
      : [resized, imageSide];
    const [covered, modelSide] = between as [typeof resized, number];
    this.#embedding = {
      content,
      feeds: Object.fromEntries(
        content.tensors.map(({ name, type, data, shape }) => [
          name,
          new this.ort.Tensor(type, data as Float32Array, [1, ...shape]),
        ]),
      ),
      upsampling: upsamplingBetween(covered, content.image, modelSide, maskSide),
    };
  }

  /**
   * Decode one prompt. *pause* is awaited between steps, and may throw to end the work.
   */
  async predict(
    prompt: Prompt,
    options: DecodeOptions,
    pause: () => Promise<void>,
  ): Promise<Prediction> {
    if (this.#embedding === null) {
      throw new Error("There is no embedding to decode yet.");
    }
    const { content, feeds, upsampling } = this.#embedding;
    const clock = new Clock();
    const tensors = promptTensors(prompt, content.image, this.model, this.#family);
    const inputs = { ...feeds, ...this.#promptFeeds(tensors) };
    clock.end("prepare");
    const outputs = await this.session.run(inputs, OUTPUTS);
    checkDigest(outputs, content.encoderDigest);
    const output = {
      logits: floats(outputs, "low_res_logits"),
      iou: floats(outputs, "predicted_iou"),
    };
    clock.end("decode");
    const rules = {
      multimask: options.multimask,
      labels: tensors.labels.length,
      stabilityRule: this.model.stabilityRule,
    };
    const masks: Mask[] = [];
    for (const job of maskJobs(output, this.#family, rules, upsampling, options.logits)) {
      await pause();
      masks.push(job());
    }
    clock.end("postprocess");
    return { masks, steps: clock.steps };
  }

  #promptFeeds({ coords, labels, mask }: PromptTensors): Record<string, OrtTensor> {
    const { ort, model, session } = this;
    const side = model.maskSide;
    const count = labels.length;
    const feeds: Record<string, OrtTensor> = {
      point_coords: new ort.Tensor("float32", coords, [1, 1, count, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, 1, count]),
      mask_input: new ort.Tensor("float32", mask ?? [], [1, mask === null ? 0 : 1, side, side]),
    };
    if (session.inputNames.includes("iou_threshold")) {
      const all = new Float32Array(model.maskTokens).fill(Number.NEGATIVE_INFINITY);
      feeds.iou_threshold = new ort.Tensor("float32", all, [1, model.maskTokens]);
    }
    return feeds;
  }
}

function floats(outputs: InferenceSession.ReturnType, name: string): Float32Array {
  const data = outputs[name]?.data;
  if (!(data instanceof Float32Array)) {
    throw new Unsupported(`The decoder has no output ${name}.`);
  }
  return data;
}

/** Compare the digest that a run reports with that of the encoder of the embedding. */
function checkDigest(outputs: InferenceSession.ReturnType, expected: string) {
  const words = outputs.samserve_digest?.data;
  if (!(words instanceof Int32Array)) {
    throw new Unsupported("The decoder does not report the encoder that it belongs to.");
  }
  const hex = (word: number) => (word >>> 0).toString(16).padStart(8, "0");
  const reported = Array.from(words, hex).join("");
  if (reported !== expected) {
    throw new Unsupported("The model was replaced: its decoder is of another image encoder.");
  }
}

/** Measures consecutive steps. */
class Clock {
  readonly steps: Step[] = [];
  #start = performance.now();

  end(name: string) {
    const now = performance.now();
    this.steps.push({ name, ms: now - this.#start });
    this.#start = now;
  }
}
