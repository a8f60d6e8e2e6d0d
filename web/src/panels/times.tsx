import { callCounts, type Measurement, measurements } from "../state/measurements";
import { formatMs } from "./format";
import { Panel } from "./section";
import { shownSteps } from "./steps";

/** How long the last action of each kind took, step by step. */
export function Times() {
  const { sent, answered, cancelled, failed } = callCounts.value;
  return (
    <Panel title="Times">
      {measurements.value.length === 0 ? (
        <p class="hint">Each action, once there was one, with the time of its steps.</p>
      ) : (
        <div class="times-scroll">
          <table class="times">
            <thead>
              <tr>
                <th scope="col">Step</th>
                <th scope="col">Where</th>
                <th scope="col" class="number">
                  Time
                </th>
              </tr>
            </thead>
            {measurements.value.map((measurement) => (
              <Rows key={measurement.action} measurement={measurement} />
            ))}
          </table>
        </div>
      )}
      <p class="call-counts">
        Previews and clicks: {sent} sent, {answered} answered, {cancelled} cancelled, {failed}{" "}
        failed
      </p>
    </Panel>
  );
}

function Rows({ measurement }: { readonly measurement: Measurement }) {
  const { action, place, ms } = measurement;
  return (
    <tbody>
      <tr class="action">
        <th scope="row">{action}</th>
        <td>
          <span class={`chip place-${place}`}>{place}</span>
        </td>
        <td class="number">{formatMs(ms)}</td>
      </tr>
      {shownSteps(measurement).map((step) => (
        <tr key={step.name} class="step">
          <th scope="row">{step.name}</th>
          <td>
            <Bar part={ms > 0 ? step.ms / ms : 0} />
          </td>
          <td class="number">{formatMs(step.ms)}</td>
        </tr>
      ))}
    </tbody>
  );
}

/** A bar as long as *part* of its space. */
function Bar({ part }: { readonly part: number }) {
  const percent = Math.min(100, Math.max(1, part * 100));
  return (
    <svg class="bar" width="100%" height="6" aria-hidden="true">
      <rect class="bar-space" width="100%" height="6" rx="3" />
      <rect class="bar-part" width={`${percent}%`} height="6" rx="3" />
    </svg>
  );
}
