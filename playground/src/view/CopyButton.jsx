// A button that copies a text.

import { useState } from "preact/hooks";
import { copied } from "./copied.js";

const SHOWN_MS = 2000;

/** @param {{text: string, what: string}} props `what` completes the label for screen readers. */
export function CopyButton({ text, what }) {
  const [label, setLabel] = useState("Copy");
  const copy = async () => {
    setLabel((await copied(text)) ? "Copied" : "Not copied");
    setTimeout(() => setLabel("Copy"), SHOWN_MS);
  };
  return (
    <button type="button" class="small" onClick={copy} aria-label={`${label} ${what}`}>
      {label}
    </button>
  );
}
