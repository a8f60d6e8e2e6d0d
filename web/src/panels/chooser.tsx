import { SAMPLES } from "../samples";
import { model } from "../state/connection";
import { ImageIcon } from "./icons";
import { openFirst, openSample } from "./intake";

/** The ways to open an image: choose a file, drop or paste one, or take a sample. */
export function Chooser({ label }: { readonly label: string }) {
  return (
    <div class="chooser">
      <ImageIcon size={44} />
      <p class="chooser-title">Drop an image here</p>
      <label class="button primary file-button">
        {label}
        <input
          type="file"
          accept="image/*"
          aria-label={label}
          onChange={(event) => {
            openFirst([...(event.currentTarget.files ?? [])]);
            // So that the same file can be chosen again.
            event.currentTarget.value = "";
          }}
        />
      </label>
      <p class="hint">
        or paste one with <kbd>Ctrl</kbd> <kbd>V</kbd>
      </p>
      <h2 class="samples-title">No image at hand? Try a sample</h2>
      <ul class="samples">
        {SAMPLES.map((sample) => (
          <li key={sample.name}>
            <button
              type="button"
              class="sample"
              aria-label={`Sample: ${sample.name}`}
              onClick={() => void openSample(sample)}
            >
              <img src={sample.url} alt="" width="104" height="78" loading="lazy" />
              <span>{sample.name}</span>
            </button>
          </li>
        ))}
      </ul>
      <p class="hint">
        The image is sent to this server only
        {model.value && `, to be encoded by ${model.value.name}`}.
      </p>
    </div>
  );
}
