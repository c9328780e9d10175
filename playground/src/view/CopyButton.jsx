// A button that copies a text.

import { useState } from "preact/hooks";

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

/**
 * Copy a text. Browsers have a clipboard on https and localhost only; elsewhere a selection is copied.
 * @param {string} text
 */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    const isCopied = document.execCommand("copy");
    box.remove();
    return isCopied;
  }
}
