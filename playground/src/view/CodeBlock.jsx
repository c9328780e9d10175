// A block of code with its language and a button that copies it.

import { useMemo } from "preact/hooks";
import { CopyButton } from "./CopyButton.jsx";
import { highlighted } from "./highlight.js";

/** @param {{text: string, language: string}} props */
export function CodeBlock({ text, language }) {
  const parts = useMemo(() => highlighted(text, language), [text, language]);
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <CopyButton text={text} what="code" />
      </figcaption>
      <pre tabIndex={0} dir="ltr">
        <code>{parts ? parts.map(([name, value]) => (name ? <span class={name}>{value}</span> : value)) : text}</code>
      </pre>
    </figure>
  );
}
