import { effect, type Signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { model } from "../state/connection";
import {
  cancelEverything,
  clear,
  found,
  keep,
  minArea,
  minPredictedIou,
  minStability,
  pointsPerSide,
  type Run,
  run,
  segmentEverything,
  shown,
} from "../state/everything";
import { image } from "../state/image";
import { formatPart, formatScore } from "./format";
import { GridIcon } from "./icons";
import { Panel } from "./section";
import { Select } from "./select";
import { formatTimeLeft, timeLeft } from "./time-left";

const GRIDS = ["8", "16", "32"];
const TICK_MS = 500;

// The sliders begin at what the model's authors filter by.
effect(() => {
  const defaults = model.value?.automask;
  if (!defaults) return;
  minPredictedIou.value = defaults.predIouThresh;
  minStability.value = defaults.stabilityScoreThresh;
});

/** Segment everything, and filter what was found. */
export function Everything() {
  const state = run.value;
  if (model.value && !model.value.supportsAutomask)
    return (
      <Panel title="Everything">
        <p class="hint">The server does not offer it for {model.value.name}.</p>
      </Panel>
    );
  return (
    <Panel title="Everything" aside={state.kind !== "running" && <PointsPerSide />}>
      {state.kind === "running" ? <Running run={state} /> : <Start />}
      {state.kind === "done" && <Result />}
    </Panel>
  );
}

function PointsPerSide() {
  return (
    <Select
      label="Points per side"
      value={String(pointsPerSide.value)}
      options={GRIDS}
      onChange={(value) => {
        pointsPerSide.value = Number(value);
      }}
    />
  );
}

function Start() {
  const isDone = run.value.kind === "done";
  return (
    <button
      type="button"
      class={`button wide${isDone ? "" : " primary"}`}
      disabled={!image.value}
      onClick={() => void segmentEverything()}
    >
      <GridIcon />
      Segment everything
    </button>
  );
}

function Running({ run: { done, total, started } }: { readonly run: Run & { kind: "running" } }) {
  const now = useSignal(performance.now());
  useEffect(() => {
    const timer = setInterval(() => {
      now.value = performance.now();
    }, TICK_MS);
    return () => clearInterval(timer);
  }, []);
  const part = total > 0 ? done / total : 0;
  const elapsed = Math.max(now.value, performance.now()) - started;
  return (
    <div class="everything-run">
      <progress value={part} max={1} aria-label="Progress of everything" />
      <p class="progress-text">
        <strong>{Math.floor(part * 100)} %</strong>
        <span>{formatTimeLeft(timeLeft(done, total, elapsed))}</span>
      </p>
      <button type="button" class="button" onClick={cancelEverything}>
        Cancel
      </button>
    </div>
  );
}

function Result() {
  const number = shown.value.length;
  return (
    <div class="everything-result">
      <Slider name="Predicted IoU at least" value={minPredictedIou} format={formatScore} />
      <Slider name="Stability at least" value={minStability} format={formatScore} />
      <AreaSlider />
      <p class="shown-count" role="status">
        <strong>{number}</strong> of {found.value.length} masks shown
      </p>
      <p class="hint">A click on a mask in the image keeps that one as an object.</p>
      <div class="button-row">
        <button
          type="button"
          class="button primary"
          disabled={number === 0}
          onClick={() => keep(shown.value)}
        >
          Keep as objects
        </button>
        <button type="button" class="button" onClick={clear}>
          Discard
        </button>
      </div>
    </div>
  );
}

interface SliderProps {
  readonly name: string;
  /** 0 to 1. */
  readonly value: Signal<number>;
  readonly format: (value: number) => string;
}

function Slider({ name, value, format }: SliderProps) {
  return (
    <label class="slider">
      <span>{name}</span>
      <output>{format(value.value)}</output>
      <input
        type="range"
        min="0"
        max="1"
        step="0.01"
        aria-label={name}
        aria-valuetext={format(value.value)}
        value={value.value}
        onInput={(event) => {
          value.value = event.currentTarget.valueAsNumber;
        }}
      />
    </label>
  );
}

/** The slider for areas; small ones matter, so that its value is the third root of the area. */
function AreaSlider() {
  const text = `${formatPart(minArea.value)} of the image`;
  return (
    <label class="slider">
      <span>Area at least</span>
      <output>{formatPart(minArea.value)}</output>
      <input
        type="range"
        min="0"
        max="1"
        step="0.01"
        aria-label="Area at least"
        aria-valuetext={text}
        value={Math.cbrt(minArea.value)}
        onInput={(event) => {
          minArea.value = event.currentTarget.valueAsNumber ** 3;
        }}
      />
    </label>
  );
}
