import { ChevronIcon } from "./icons";

interface SelectProps {
  readonly label: string;
  readonly value: string;
  readonly options: readonly string[];
  readonly title?: string;
  readonly onChange: (value: string) => void;
}

/** A choice of names, with its label beside it. */
export function Select({ label, value, options, title, onChange }: SelectProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <span class="select">
        <select
          value={value}
          title={title}
          onChange={(event) => onChange(event.currentTarget.value)}
        >
          {options.map((option) => (
            <option key={option} value={option}>
              {option}
            </option>
          ))}
        </select>
        <ChevronIcon size={16} />
      </span>
    </label>
  );
}
