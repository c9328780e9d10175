// The list of conversations: opening, saving, renaming, deleting, importing, and changes of other tabs.

import {
  deleteConversation, imported, listConversations, onOtherTab, readConversation, saveConversation,
} from "./storage.js";
import { state, update } from "./store.js";
import { merged, newConversation, newId, show } from "./tree.js";

/** @import { Conversation } from "./types.js" */

const SAVE_MS = 1500;
const NOT_KEPT = "This browser does not keep the conversations: they end with this page. Export those that you need.";
let lastSaved = 0;

const idInAddress = () => /^#\/c\/([0-9a-f]+)$/.exec(location.hash)?.[1] ?? "";
/** @param {string} id */
const setAddress = (id) => history.replaceState(null, "", id ? `#/c/${id}` : location.pathname + location.search);

/** Read the kept conversations, and open that of the address. */
export async function restore() {
  try {
    update({ kept: await listConversations() });
    const found = state.kept.find(({ id }) => id === idInAddress());
    // A question that was asked meanwhile is in a conversation of its own.
    if (state.conversation.leaf) return;
    if (found) open(found);
    else setAddress("");
  } catch {
    update({ storageProblem: NOT_KEPT });
  }
}

/** @param {Conversation} conversation */
export function open(conversation) {
  if (conversation.id === state.conversation.id && state.conversation.leaf) return;
  abandon();
  const copy = structuredClone(conversation);
  for (const turn of Object.values(copy.turns)) {
    for (const reply of turn.replies ?? []) {
      if (reply.finish === "running" || reply.finish === "waiting") reply.finish = "closed";
    }
  }
  setAddress(copy.id);
  update({ conversation: copy, problem: null, events: [], sent: null, ...(state.hasModels && { status: "Ready." }) });
}

/** Stop the running reply. It stays in its own conversation, as far as it has arrived. */
function abandon() {
  state.run?.controller.abort();
  state.run = null;
}

/** Begin an empty conversation. A running reply is stopped, and stays in its own conversation. */
export function startNew() {
  abandon();
  setAddress("");
  update({ conversation: newConversation(), problem: null, events: [], sent: null, ...(state.hasModels && { status: "Ready." }) });
}

/** @param {Conversation} conversation */
export async function saveNow(conversation) {
  lastSaved = Date.now();
  if (!Object.keys(conversation.turns).length) return forget(conversation);
  if (deleted.has(conversation.id)) return;
  state.kept = [conversation, ...state.kept.filter(({ id }) => id !== conversation.id)];
  if (state.conversation === conversation) setAddress(conversation.id);
  update();
  try {
    await saveConversation(conversation);
  } catch {
    update({ storageProblem: NOT_KEPT });
  }
}

/**
 * Save a conversation during a reply, at most every SAVE_MS.
 * @param {Conversation} conversation
 */
export function saveLater(conversation) {
  if (Date.now() - lastSaved > SAVE_MS) saveNow(conversation);
}

/** @type {Set<string>} Ids of conversations that were deleted while this page is open. */
const deleted = new Set();

/**
 * Delete conversations. `undoRemove` restores them.
 * @param {Conversation[]} conversations
 */
export async function remove(conversations) {
  for (const { id } of conversations) deleted.add(id);
  if (deleted.has(state.conversation.id)) startNew();
  update({ removed: conversations });
  for (const conversation of conversations) await forget(conversation);
}

/** Restore the conversations that were deleted last. */
export async function undoRemove() {
  const { removed } = state;
  update({ removed: [] });
  for (const conversation of removed) {
    deleted.delete(conversation.id);
    await saveNow(conversation);
  }
  update({ kept: [...state.kept].sort((one, other) => other.updated - one.updated) });
}

/** @param {Conversation} conversation */
async function forget(conversation) {
  update({ kept: state.kept.filter(({ id }) => id !== conversation.id) });
  if (state.conversation === conversation) setAddress("");
  await deleteConversation(conversation.id).catch(() => update({ storageProblem: NOT_KEPT }));
}

/**
 * @param {Conversation} conversation
 * @param {string} title
 */
export async function rename(conversation, title) {
  const own = state.conversation.id === conversation.id ? state.conversation : conversation;
  own.title = title.trim() || own.title;
  await saveNow(own);
}

/**
 * Add the conversations of an exported file. One that exists already is merged with its copy.
 * @param {string} text
 * @throws {Error} With a sentence for people, if the text is no such file.
 */
export async function importText(text) {
  const found = imported(text);
  for (const conversation of found) {
    const id = /^[0-9a-f]{8,64}$/.test(conversation.id) ? conversation.id : newId();
    deleted.delete(id);
    await saveConversation({ ...conversation, id });
  }
  update({ kept: await listConversations() });
  return found.length;
}

onOtherTab(async ({ id, isDeleted }) => {
  if (isDeleted) {
    state.kept = state.kept.filter((each) => each.id !== id);
    if (state.conversation.id === id && !state.run) startNew();
    return update();
  }
  const stored = await readConversation(id).catch(() => undefined);
  if (!stored) return;
  state.kept = [stored, ...state.kept.filter((each) => each.id !== id)].sort((one, other) => other.updated - one.updated);
  const own = state.conversation;
  if (own.id === id) {
    // This tab goes on showing its own branch, with what the other one has added below it.
    const both = merged(stored, own);
    Object.assign(own, { turns: both.turns, removed: both.removed, title: stored.title });
    const last = own.leaf ? own.turns[own.leaf] : undefined;
    if (!last) own.leaf = stored.leaf;
    else if (state.run?.conversation !== own) show(own, last);
  }
  update();
});

addEventListener("hashchange", () => {
  const found = state.kept.find(({ id }) => id === idInAddress());
  if (found) open(found);
});
