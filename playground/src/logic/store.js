// The state of the page. A change is made by `update`, which redraws the page once a frame.

import { readAccess, readSettings } from "./settings.js";
import { keep, recall } from "./storage.js";
import { newConversation } from "./tree.js";

/** @import { Remedy } from "./explain.js" */
/** @import { Conversation, Model, Schema, Turn } from "./types.js" */

/**
 * A running answer.
 * @typedef {{conversation: Conversation, turn: Turn, controller: AbortController}} Run
 */

export const state = {
  settings: readSettings(),
  access: readAccess(),
  /** The account of the requests: that of the field, or of the token. */
  account: "",
  /** @type {Model[]} */
  models: [],
  /** @type {Record<string, Record<string, Schema>>} Fields of the models, by name. */
  fields: {},
  /** @type {Record<string, boolean>} Number fields whose text is no number. */
  bad: {},
  status: "Looking for models…",
  hasModels: false,
  /** @type {{text: string, remedies: Remedy[], turn?: Turn} | null} */
  problem: null,
  /** @type {Conversation[]} */
  kept: [],
  storageProblem: "",
  /** @type {Conversation[]} Conversations that were deleted last. */
  removed: [],
  conversation: newConversation(),
  /** @type {Run | null} */
  run: null,
  /** The number of answers that were started since the page was loaded. */
  numAnswers: 0,
  draft: recall("sessionStorage", "draft"),
  /** @type {string[]} The latest events, as received. */
  events: [],
  /** @type {Record<string, unknown>[] | null} Messages of the latest request. */
  sent: null,
};

/** @type {Set<() => void>} */
const listeners = new Set();
let isScheduled = false;

/** @param {Partial<typeof state>} [changes] */
export function update(changes = {}) {
  Object.assign(state, changes);
  if (isScheduled) return;
  isScheduled = true;
  const draw = () => {
    isScheduled = false;
    for (const listener of listeners) listener();
  };
  // Browsers draw no frames of a hidden page.
  if (document.hidden) setTimeout(draw, 200);
  else requestAnimationFrame(draw);
}

/**
 * Change the text in the box, which outlasts a reload.
 * @param {string} text
 */
export function setDraft(text) {
  keep("sessionStorage", "draft", text);
  update({ draft: text });
}

/**
 * @param {() => void} listener
 * @returns {() => void} Ends the subscription.
 */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Return the chosen model, or undefined while there is none. */
export const model = () => state.models.find(({ name }) => name === state.settings.model);
/** Return the fields of the chosen model. */
export const fields = () => state.fields[state.settings.model] ?? {};
