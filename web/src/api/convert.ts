import type { MessageInitShape } from "@bufbuild/protobuf";

import type {
  Embedding as EmbeddingMessage,
  Mask as MaskMessage,
  Model as ModelMessage,
  PromptSchema,
  StageTiming,
} from "../gen/samserve/v1/samserve_pb";
import { Point_Label } from "../gen/samserve/v1/samserve_pb";
import { decodeCounts } from "../masks/run-lengths";
import type { Embedding, Mask, ModelInfo, Prompt, Size, Step } from "../types";

/** Return the message of a prompt. */
export function toMessage({ points, box, logits }: Prompt): MessageInitShape<typeof PromptSchema> {
  return {
    points: points.map(({ x, y, foreground }) => ({
      x,
      y,
      label: foreground ? Point_Label.FOREGROUND : Point_Label.BACKGROUND,
    })),
    ...(box && { box }),
    ...(logits && { mask: { content: { case: "lowResLogits", value: logits } } }),
  };
}

export function toMask(message: MaskMessage): Mask {
  if (message.segmentation.case !== "cocoRle") throw new TypeError("a mask without run lengths");
  const { counts, size } = message.segmentation.value;
  const { x = 0, y = 0, width = 0, height = 0 } = message.bbox ?? {};
  const logits = message.lowResLogits;
  return {
    size: toSize(size),
    runs: decodeCounts(counts, toSize(size)),
    area: Number(message.area),
    bbox: { x, y, width, height },
    predictedIou: message.predictedIou,
    stabilityScore: message.stabilityScore,
    token: message.tokenIndex,
    // A copy: the bytes are a part of the response.
    ...(logits.length > 0 && { logits: logits.slice() }),
  };
}

export function toSteps(timings: readonly StageTiming[]): Step[] {
  return timings.map(({ stage, durationMs }) => ({ name: stage, ms: durationMs }));
}

export function toEmbedding(
  message: EmbeddingMessage | undefined,
  timings: readonly StageTiming[],
): Embedding {
  if (!message) throw new TypeError("a response without an embedding");
  const { id, imageSize, model, cached } = message;
  return { id, size: toSize(imageSize), model, cached, steps: toSteps(timings) };
}

export function toModel(message: ModelMessage): ModelInfo {
  const defaults = message.automaskDefaults;
  const rule = message.stabilityRule;
  return {
    name: message.name,
    description: message.description,
    family: message.family,
    isDefault: message.default,
    imageSide: message.imageSide,
    maskSide: message.maskSide,
    maskTokens: message.maskTokens,
    stabilityRule: rule ? { delta: rule.delta, thresh: rule.thresh } : null,
    embeddingBytes: Number(message.embeddingBytes),
    decoderSha256: message.decoderSha256,
    supportsAutomask: message.capabilities?.automask ?? false,
    automask: {
      pointsPerSide: defaults?.pointsPerSide ?? 32,
      predIouThresh: defaults?.predIouThresh ?? 0.88,
      stabilityScoreThresh: defaults?.stabilityScoreThresh ?? 0.95,
    },
  };
}

function toSize(size: Size | undefined): Size {
  return { width: size?.width ?? 0, height: size?.height ?? 0 };
}
