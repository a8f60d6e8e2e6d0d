import { useSignal } from "@preact/signals";

import { model, modelName, server } from "../state/connection";
import { browserDecoding, switchBrowserDecoding } from "../state/decoding";
import { image, selectModel } from "../state/image";
import type { LoadedImage } from "../types";
import { ImageIcon, KeyboardIcon, Mark } from "./icons";
import { isChoosing } from "./intake";
import { Select } from "./select";
import { Shortcuts } from "./shortcuts";

/** The top of the page: what is served, and where prompts are decoded. */
export function Header() {
  const showsShortcuts = useSignal(false);
  const decoding = browserDecoding.value;
  return (
    <header class="header">
      <h1 class="brand">
        <Mark />
        samserve
      </h1>
      {image.value && <OpenedImage shown={image.value} />}
      <span class="spacer" />
      <button
        type="button"
        class="icon-button"
        aria-label="Keyboard shortcuts"
        title="Keyboard shortcuts"
        onClick={() => {
          showsShortcuts.value = true;
        }}
      >
        <KeyboardIcon size={20} />
      </button>
      {server.value && (
        <div class="settings">
          <Select
            label="Model"
            value={modelName.value}
            options={server.value.models.map(({ name }) => name)}
            title={model.value?.description ?? ""}
            onChange={selectModel}
          />
          <DecodingSwitch />
        </div>
      )}
      <p class="header-note" role="status">
        {decoding.kind === "impossible" &&
          `The server decodes, as the browser cannot: ${decoding.reason}`}
      </p>
      {showsShortcuts.value && (
        <Shortcuts
          onClose={() => {
            showsShortcuts.value = false;
          }}
        />
      )}
    </header>
  );
}

function OpenedImage({ shown: { name, size } }: { readonly shown: LoadedImage }) {
  return (
    <>
      <button
        type="button"
        class="button"
        onClick={() => {
          isChoosing.value = true;
        }}
      >
        <ImageIcon />
        <span class="button-text">Open image</span>
      </button>
      <p class="file" title={name}>
        <span class="file-name">{name}</span>
        <span class="file-size">
          {size.width} × {size.height}
        </span>
      </p>
    </>
  );
}

const PLACES = {
  off: "server",
  loading: "loading…",
  on: "browser",
  impossible: "impossible",
} as const;

function DecodingSwitch() {
  const decoding = browserDecoding.value;
  return (
    <div class={`decoding decoding-${decoding.kind}`}>
      <label class="switch">
        <input
          type="checkbox"
          role="switch"
          aria-label="Decode in the browser"
          aria-describedby="decoding-state"
          aria-checked={decoding.kind !== "off"}
          checked={decoding.kind !== "off"}
          onChange={(event) => switchBrowserDecoding(event.currentTarget.checked)}
        />
        <span class="switch-track" />
        <span class="switch-text">Decode in the browser</span>
      </label>
      <span id="decoding-state" class="chip" role="status">
        {PLACES[decoding.kind]}
      </span>
    </div>
  );
}
