// The list of kept conversations.

import { useRef, useState } from "preact/hooks";
import { importText, open, remove, rename, startNew } from "../logic/history.js";
import { exported } from "../logic/storage.js";
import { state, update } from "../logic/store.js";
import { isComposing } from "./keys.js";

/** @import { Conversation } from "../logic/types.js" */

/** @param {{onChoose: () => void}} props */
export function Conversations({ onChoose }) {
  const [wanted, setWanted] = useState("");
  const shown = state.kept.filter((conversation) => has(conversation, wanted.trim().toLowerCase()));
  return (
    <>
      <button type="button" class="new primary" onClick={() => (startNew(), onChoose())} aria-keyshortcuts="Control+Shift+O">
        New chat
      </button>
      <input
        id="search"
        type="search"
        aria-label="Search conversations"
        placeholder="Search"
        value={wanted}
        onInput={(event) => setWanted(event.currentTarget.value)}
      />
      <ul class="kept" aria-label="Kept conversations">
        {shown.map((conversation) => (
          <Entry key={conversation.id} conversation={conversation} onChoose={onChoose} />
        ))}
      </ul>
      {!shown.length && <p class="hint">{wanted ? "Nothing found." : "No conversations yet."}</p>}
      <Files />
    </>
  );
}

/**
 * @param {Conversation} conversation
 * @param {string} wanted In lower case.
 */
const has = ({ title, turns }, wanted) =>
  !wanted ||
  title.toLowerCase().includes(wanted) ||
  Object.values(turns).some((turn) =>
    [turn.text ?? "", ...(turn.replies ?? []).map(({ text }) => text)].some((text) => text.toLowerCase().includes(wanted)));

/** @param {{conversation: Conversation, onChoose: () => void}} props */
function Entry({ conversation, onChoose }) {
  const [isRenaming, setRenaming] = useState(false);
  const title = conversation.title || "Untitled";
  const isOpen = useRef(false);
  const start = () => {
    isOpen.current = true;
    setRenaming(true);
  };
  // Chromium reports a blur when the field is removed, also after Escape.
  const done = (/** @type {string | undefined} */ text) => {
    if (isOpen.current && text !== undefined) rename(conversation, text);
    isOpen.current = false;
    setRenaming(false);
  };
  if (isRenaming) {
    return (
      <li>
        <input
          aria-label="Title"
          dir="auto"
          ref={(box) => box?.focus()}
          defaultValue={title}
          onBlur={(event) => done(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (isComposing(event)) return;
            if (event.key === "Enter") done(event.currentTarget.value);
            if (event.key === "Escape") (event.stopPropagation(), done(undefined));
          }}
        />
      </li>
    );
  }
  const isCurrent = conversation.id === state.conversation.id;
  return (
    <li class={isCurrent ? "current" : ""}>
      <button type="button" class="title" dir="auto" aria-current={isCurrent ? "true" : undefined} onClick={() => (open(conversation), onChoose())}>
        {title}
      </button>
      <button type="button" class="small" aria-label={`Rename ${title}`} onClick={start}>
        ✎
      </button>
      <button type="button" class="small" aria-label={`Delete ${title}`} onClick={() => remove([conversation])}>
        ✕
      </button>
    </li>
  );
}

function Files() {
  const chooser = useRef(/** @type {HTMLInputElement | null} */ (null));
  const save = () => {
    const link = document.createElement("a");
    const address = URL.createObjectURL(new Blob([exported(state.kept)], { type: "application/json" }));
    link.href = address;
    link.download = `tailrace-conversations-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  const load = async () => {
    const file = chooser.current?.files?.[0];
    if (!file || !chooser.current) return;
    chooser.current.value = "";
    try {
      const count = await importText(await file.text());
      update({ status: `${count} conversation${count === 1 ? "" : "s"} imported.` });
    } catch (error) {
      update({ problem: { text: error instanceof Error ? error.message : String(error), remedies: [] } });
    }
  };
  return (
    <div class="files">
      <button type="button" class="small" disabled={!state.kept.length} onClick={save}>
        Export
      </button>
      <button type="button" class="small" onClick={() => chooser.current?.click()}>
        Import
      </button>
      <input ref={chooser} id="import" class="visually-hidden" type="file" accept=".json,application/json" tabIndex={-1} aria-label="File to import" onChange={load} />
      <button type="button" class="small" disabled={!state.kept.length} onClick={() => remove([...state.kept])}>
        Delete all
      </button>
    </div>
  );
}
