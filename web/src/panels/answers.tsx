import { useEffect } from "preact/hooks";

import { activeObject, chooseAnswer } from "../state/document";
import { image } from "../state/image";
import { waiting } from "../state/prompting";
import { formatPart, formatScore } from "./format";
import { isEditable } from "./intake";
import { Panel } from "./section";
import { Thumbnail } from "./thumbnail";

const THUMBNAIL_SIDE = 92;

/** The answers of the model to the prompts of the active object, side by side. */
export function Answers() {
  const object = activeObject.value;
  const shown = image.value;
  useEffect(chooseByKey, []);
  if (!object || !shown || object.answers.length === 0)
    return (
      <Panel title="Answers">
        <p class="hint">
          {waiting.value
            ? "Waiting for the answer…"
            : object && object.prompt.points.length === 0 && !object.prompt.box
              ? `Click to segment ${object.name}.`
              : "Click on an object in the image. One click can mean a part or the whole: the model then has three answers."}
        </p>
      </Panel>
    );
  return (
    <Panel title="Answers" aside={<span class="aside">{object.name}</span>}>
      <div
        class={`answers${waiting.value ? " is-waiting" : ""}`}
        role="radiogroup"
        aria-label={`Answers for ${object.name}`}
      >
        {object.answers.map((mask, index) => (
          <label
            key={mask.token}
            class="answer"
            title={`Covers ${formatPart(mask.area / (mask.size.width * mask.size.height))} of the image`}
          >
            <input
              type="radio"
              name={`answer-${object.id}`}
              aria-label={`Answer ${index + 1}, score ${formatScore(mask.predictedIou)}`}
              checked={index === object.chosen}
              onChange={() => chooseAnswer(object.id, index)}
            />
            <Thumbnail mask={mask} colour={object.colour} image={shown} side={THUMBNAIL_SIDE} />
            <span class="answer-scores" aria-hidden="true">
              <span class="answer-number">{index + 1}</span>
              <strong title="Predicted IoU">{formatScore(mask.predictedIou)}</strong>
              <span title="Stability score">stable {formatScore(mask.stabilityScore)}</span>
            </span>
          </label>
        ))}
      </div>
    </Panel>
  );
}

/** Choose answers by the keys 1 to 3, wherever the focus is. */
function chooseByKey(): () => void {
  const stop = new AbortController();
  window.addEventListener(
    "keydown",
    (event) => {
      const hasModifier = event.ctrlKey || event.altKey || event.metaKey;
      if (hasModifier || isEditable(event.target) || document.querySelector("dialog[open]")) return;
      const object = activeObject.peek();
      const index = Number(event.key) - 1;
      if (object?.answers[index]) chooseAnswer(object.id, index);
    },
    { signal: stop.signal },
  );
  return () => stop.abort();
}
