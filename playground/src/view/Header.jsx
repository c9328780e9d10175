// The bar at the top: the models, the theme, and the buttons of the panels.

import { change } from "../logic/access.js";
import { state } from "../logic/store.js";

/** @import { Settings } from "../logic/types.js" */

/** @type {[Settings["theme"], string][]} */
const THEMES = [["", "System"], ["light", "Light"], ["dark", "Dark"]];

/**
 * A model's name without its owner, which fits on a phone, or the whole name if another model would look the same.
 * @param {string} name
 */
function shortName(name) {
  const last = (/** @type {string} */ text) => text.slice(text.lastIndexOf("/") + 1);
  const isUnique = state.models.filter((model) => last(model.name) === last(name)).length === 1;
  return isUnique ? last(name) : name;
}

/** @param {{isListOpen: boolean, isPanelOpen: boolean, onList: () => void, onPanel: () => void, onKeys: () => void}} props */
export function Header({ isListOpen, isPanelOpen, onList, onPanel, onKeys }) {
  const { settings, models } = state;
  return (
    <header>
      <button type="button" id="open-list" aria-expanded={isListOpen} aria-controls="list" onClick={onList}>
        Chats
      </button>
      <h1>Tailrace</h1>
      <span class="models">
        <select id="model" aria-label="Model" title={settings.model} value={settings.model} disabled={!models.length} onChange={(event) => change({ model: event.currentTarget.value })}>
          {models.length ? models.map(({ name }) => <option value={name} selected={name === settings.model}>{shortName(name)}</option>) : <option>No models yet</option>}
        </select>
      </span>
      {models.length > 1 && (
        <span class="models second">
            <select id="second" aria-label="Second model" title={settings.second} value={settings.second} onChange={(event) => change({ second: event.currentTarget.value })}>
            <option value="" selected={!settings.second}>No second model</option>
            {models.filter(({ name }) => name !== settings.model).map(({ name }) => <option value={name} selected={name === settings.second}>{shortName(name)}</option>)}
          </select>
        </span>
      )}
      <span class="gap" />
      <span class="theme">
        <select id="theme" aria-label="Theme" value={settings.theme} onChange={(event) => change({ theme: /** @type {any} */ (event.currentTarget.value) })}>
          {THEMES.map(([value, text]) => <option value={value} selected={value === settings.theme}>{text}</option>)}
        </select>
      </span>
      <button type="button" class="keys" onClick={onKeys} aria-keyshortcuts="Control+/">
        Keys
      </button>
      <nav aria-label="Other pages">
        <a href="docs">API reference</a>
      </nav>
      <button type="button" id="open-panel" aria-expanded={isPanelOpen} aria-controls="panel" onClick={onPanel}>
        Settings
      </button>
    </header>
  );
}
