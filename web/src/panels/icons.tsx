/** Icons of 24 units, drawn in the colour of the text; the text beside them names them. */

import type { ComponentChildren } from "preact";

interface IconProps {
  readonly size?: number;
}

type Icon = (props: IconProps) => preact.JSX.Element;

function icon(children: ComponentChildren): Icon {
  return ({ size = 18 }) => (
    <svg
      class="icon"
      width={size}
      height={size}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="1.8"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      {children}
    </svg>
  );
}

export const ForegroundIcon = icon(
  <>
    <circle cx="12" cy="12" r="8.2" />
    <path d="M12 8.5v7M8.5 12h7" />
  </>,
);
export const BackgroundIcon = icon(
  <>
    <circle cx="12" cy="12" r="8.2" />
    <path d="M8.5 12h7" />
  </>,
);
export const BoxIcon = icon(
  <>
    <path d="M8 5.5h8M18.5 8v8M16 18.5H8M5.5 16V8" />
    <path d="M4 4h3v3H4zM17 4h3v3h-3zM17 17h3v3h-3zM4 17h3v3H4z" />
  </>,
);
export const PanIcon = icon(
  <path d="M12 3v18M3 12h18M12 3 9.6 5.4M12 3l2.4 2.4M12 21l-2.4-2.4M12 21l2.4-2.4M3 12l2.4-2.4M3 12l2.4 2.4M21 12l-2.4-2.4M21 12l-2.4 2.4" />,
);
export const UndoIcon = icon(<path d="M8.5 5 4 9.5 8.5 14M4.5 9.5H14a5.2 5.2 0 0 1 0 10.4h-3" />);
export const RedoIcon = icon(
  <path d="M15.5 5 20 9.5 15.5 14M19.5 9.500H10a5.2 5.2 0 0 0 0 10.400h3" />,
);
export const PlusIcon = icon(<path d="M12 5v14M5 12h14" />);
export const MinusIcon = icon(<path d="M5 12h14" />);
export const ClearIcon = icon(
  <path d="m9.5 19.5-5.2-5.200a1.5 1.5 0 0 1 0-2.100l7.9-7.900a1.5 1.5 0 0 1 2.1 0l5.2 5.200a1.5 1.5 0 0 1 0 2.100l-7.9 7.900zM8.2 8.300l7.3 7.300M9.5 19.500H20" />,
);
export const FitIcon = icon(
  <path d="M4 9V4.500h4.500M20 9V4.500h-4.500M4 15v4.500h4.500M20 15v4.500h-4.5" />,
);
export const ChevronIcon = icon(<path d="m7 10 5 5 5-5" />);
export const CloseIcon = icon(<path d="m6 6 12 12M18 6 6 18" />);
export const TrashIcon = icon(
  <path d="M4.5 6.500h15M9.5 6.500V4h5v2.500M6.5 6.5 7.3 20h9.400l.8-13.500M10.2 10.500v6M13.8 10.500v6" />,
);
export const EyeIcon = icon(
  <>
    <path d="M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12z" />
    <circle cx="12" cy="12" r="2.8" />
  </>,
);
export const EyeOffIcon = icon(
  <path d="M4 4l16 16M9.8 5.800A9 9 0 0 1 12 5.500c6 0 9.5 6.5 9.5 6.500a17 17 0 0 1-3 3.700M6.3 7.300A16.5 16.5 0 0 0 2.5 12S6 18.5 12 18.500a9 9 0 0 0 4.7-1.300M10 10a2.8 2.8 0 0 0 4 4" />,
);
export const ImageIcon = icon(
  <>
    <rect x="3.5" y="4.5" width="17" height="15" rx="2.5" />
    <circle cx="9" cy="10" r="1.6" />
    <path d="m4 17 4.5-4 3 2.500L16 11l4.5 4.5" />
  </>,
);
export const KeyboardIcon = icon(
  <>
    <rect x="2.5" y="6" width="19" height="12.5" rx="2.5" />
    <path d="M6.5 10h.01M10.2 10h.01M13.8 10h.01M17.5 10h.01M8 14.500h8" />
  </>,
);
export const DownloadIcon = icon(<path d="M12 4v11M7.5 10.5 12 15l4.5-4.500M4.5 19.500h15" />);
export const GridIcon = icon(
  <path d="M6 6h.01M12 6h.01M18 6h.01M6 12h.01M12 12h.01M18 12h.01M6 18h.01M12 18h.01M18 18h.01" />,
);
export const WarningIcon = icon(<path d="M12 4 2.8 19.500h18.400zM12 10v4.500M12 17.200h.01" />);
export const InformationIcon = icon(
  <>
    <circle cx="12" cy="12" r="8.5" />
    <path d="M12 11.500v4.500M12 8.200h.01" />
  </>,
);

/** The mark of the page: a mask around a point. */
export function Mark() {
  return (
    <svg class="mark" width="26" height="26" viewBox="0 0 32 32" aria-hidden="true">
      <path
        class="mark-mask"
        d="M16 4c6.5-1.5 12 3 12 9.500S24 28 16.5 28 4 23.5 4 16.5 9 5.5 16 4z"
      />
      <circle class="mark-point" cx="16" cy="16" r="3.6" />
    </svg>
  );
}
