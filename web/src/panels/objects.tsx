import { useRef } from "preact/hooks";

import {
  activate,
  activeObject,
  objects,
  recolour,
  remove,
  rename,
  setVisible,
} from "../state/document";
import type { SegmentedObject } from "../types";
import { count, fromHex, toHex } from "./format";
import { EyeIcon, EyeOffIcon, TrashIcon } from "./icons";
import { Panel } from "./section";

/** The objects with their names and colours. */
export function Objects() {
  const number = objects.value.length;
  // Who has begun a second one knows how.
  const isFirst = number === 1 && activeObject.value !== null;
  return (
    <Panel title="Objects" aside={number > 0 && <span class="aside">{number}</span>}>
      {number === 0 ? (
        <p class="hint">None yet. The first click or box begins one.</p>
      ) : (
        <ul class="objects">
          {objects.value.map((object, index) => (
            <Row key={object.id} object={object} number={index + 1} />
          ))}
        </ul>
      )}
      {isFirst && (
        <p class="hint">
          Further clicks refine this object. For another one: “New object”, or <kbd>N</kbd>.
        </p>
      )}
    </Panel>
  );
}

interface RowProps {
  readonly object: SegmentedObject;
  /** In the list, from 1. */
  readonly number: number;
}

function Row({ object, number }: RowProps) {
  const { id, visible } = object;
  const isActive = activeObject.value?.id === id;
  return (
    <li class={`object${isActive ? " is-active" : ""}${visible ? "" : " is-hidden"}`}>
      <input
        type="color"
        class="swatch"
        aria-label={`Colour of object ${number}`}
        title="Colour"
        value={toHex(object.colour)}
        onChange={(event) => recolour(id, fromHex(event.currentTarget.value))}
      />
      <div class="object-text">
        <NameField object={object} number={number} />
        <span class="object-prompt">{describe(object)}</span>
      </div>
      <button
        type="button"
        class="object-select"
        aria-pressed={isActive}
        title="Clicks in the image belong to this object"
        onClick={() => activate(id)}
      >
        Edit
        <span class="visually-hidden"> object {number}</span>
      </button>
      <button
        type="button"
        class="icon-button small"
        aria-label={`Show object ${number}`}
        aria-pressed={visible}
        title={visible ? "Hide" : "Show"}
        onClick={() => setVisible(id, !visible)}
      >
        {visible ? <EyeIcon /> : <EyeOffIcon />}
      </button>
      <button
        type="button"
        class="icon-button small"
        aria-label={`Delete object ${number}`}
        title="Delete"
        onClick={() => remove(id)}
      >
        <TrashIcon />
      </button>
    </li>
  );
}

function NameField({ object, number }: RowProps) {
  const reverts = useRef(false);
  const commit = (field: HTMLInputElement) => {
    const name = field.value.trim();
    if (name && !reverts.current && name !== object.name) rename(object.id, name);
    else field.value = object.name;
    reverts.current = false;
  };
  return (
    <input
      type="text"
      class="name-field"
      aria-label={`Name of object ${number}`}
      value={object.name}
      maxLength={80}
      spellcheck={false}
      autocomplete="off"
      onBlur={(event) => commit(event.currentTarget)}
      onKeyDown={(event) => {
        if (event.key !== "Enter" && event.key !== "Escape") return;
        event.stopPropagation();
        reverts.current = event.key === "Escape";
        event.currentTarget.blur();
      }}
    />
  );
}

function describe({ prompt: { points, box }, answers }: SegmentedObject): string {
  const parts = [points.length > 0 && count(points.length, "point"), box && "box"];
  const text = parts.filter(Boolean).join(", ");
  if (text) return text;
  return answers.length > 0 ? "from everything" : "no prompts";
}
