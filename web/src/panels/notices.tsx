import { dismiss, type Notice, notices } from "../state/notices";
import { CloseIcon, InformationIcon, WarningIcon } from "./icons";

/** Messages over the image, the newest last; each stays until it is dismissed. */
export function Notices() {
  const informations = notices.value.filter(({ kind }) => kind === "information");
  const errors = notices.value.filter(({ kind }) => kind === "error");
  return (
    <div class="notices">
      {/* It is there from the start: only changes of a live region are announced. */}
      <div role="status">{informations.map(toItem)}</div>
      {errors.map((notice) => (
        <div role="alert" key={notice.id}>
          {toItem(notice)}
        </div>
      ))}
    </div>
  );
}

function toItem({ id, kind, text, details }: Notice) {
  return (
    <div class={`notice notice-${kind}`} key={id}>
      {kind === "error" ? <WarningIcon size={20} /> : <InformationIcon size={20} />}
      <div class="notice-text">
        <p>{text}</p>
        {details && <p class="notice-details">{details}</p>}
      </div>
      <button
        type="button"
        class="icon-button small"
        aria-label="Dismiss"
        title="Dismiss"
        onClick={() => dismiss(id)}
      >
        <CloseIcon size={16} />
      </button>
    </div>
  );
}
