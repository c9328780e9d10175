// What the browser keeps: conversations in IndexedDB, settings in localStorage, and the token for the session.

import { createStore, del, entries, get, update } from "idb-keyval";
import { merged } from "./tree.js";

/** @import { Conversation } from "./types.js" */

const NAME = "tailrace";
const FORMAT = 1;
/** @type {ReturnType<typeof createStore> | undefined} */
let opened;
const conversations = () => (opened ??= createStore(NAME, "conversations"));
const channel = typeof BroadcastChannel === "undefined" ? undefined : new BroadcastChannel(NAME);

/** @returns {Promise<Conversation[]>} The kept conversations, the newest first. */
export async function listConversations() {
  const found = /** @type {[string, Conversation][]} */ (await entries(conversations()));
  return found.map(([, conversation]) => conversation).sort((one, other) => other.updated - one.updated);
}

/**
 * @param {string} id
 * @returns {Promise<Conversation | undefined>}
 */
export const readConversation = (id) => get(id, conversations());

/**
 * Keep a conversation. Turns that another tab has added stay.
 * @param {Conversation} conversation
 */
export async function saveConversation(conversation) {
  const copy = structuredClone(conversation);
  await update(copy.id, (/** @type {Conversation | undefined} */ stored) => merged(stored, copy), conversations());
  channel?.postMessage({ id: copy.id });
}

/** @param {string} id */
export async function deleteConversation(id) {
  await del(id, conversations());
  channel?.postMessage({ id, isDeleted: true });
}

/**
 * Call back when another tab has changed or deleted a conversation.
 * @param {(change: {id: string, isDeleted?: boolean}) => void} listener
 */
export function onOtherTab(listener) {
  channel?.addEventListener("message", ({ data }) => listener(data));
}

/**
 * Return all conversations as the text of a file.
 * @param {Conversation[]} kept
 */
export const exported = (kept) => JSON.stringify({ tailrace: FORMAT, conversations: kept }, null, 1);

/**
 * Return the conversations of an exported file.
 * @param {string} text
 * @returns {Conversation[]}
 * @throws {Error} With a sentence for people, if the text is no such file.
 */
export function imported(text) {
  const wrong = new Error("This file has no conversations that the playground exported.");
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw wrong;
  }
  if (found?.tailrace !== FORMAT || !Array.isArray(found.conversations)) throw wrong;
  if (!found.conversations.every(isConversation)) throw wrong;
  return found.conversations;
}

/** @param {any} value */
function isConversation(value) {
  const isText = (/** @type {unknown} */ text) => typeof text === "string";
  const isTurn = (/** @type {any} */ turn) =>
    isText(turn?.id) &&
    (turn.parent === null || isText(turn.parent)) &&
    (turn.role === "assistant" ? Array.isArray(turn.replies) && turn.replies.every(isReply) : isText(turn.text));
  const isReply = (/** @type {any} */ reply) =>
    [reply?.text, reply?.thoughts, reply?.model, reply?.finish].every(isText) &&
    Array.isArray(reply.calls) &&
    reply.calls.every((/** @type {any} */ call) => [call?.id, call?.name, call?.arguments].every(isText));
  const hasTurns = value?.turns && typeof value.turns === "object" && Object.values(value.turns).every(isTurn) && isTree(value.turns);
  return Boolean(isText(value?.id) && isText(value.title) && Number.isFinite(value.updated) && hasTurns);
}

/**
 * Return whether the parents of all turns end at a first turn. Otherwise a walk along them has no end.
 * @param {Conversation["turns"]} turns
 */
function isTree(turns) {
  const good = new Set();
  for (const [id, turn] of Object.entries(turns)) {
    if (turn.id !== id) return false;
    const seen = new Set();
    for (let at = turn; at && !good.has(at.id); at = turns[at.parent ?? ""]) {
      if (seen.has(at.id)) return false;
      seen.add(at.id);
    }
    for (const each of seen) good.add(each);
  }
  return true;
}

/**
 * Return a value of localStorage or sessionStorage. A browser that blocks storage has none.
 * @param {"localStorage" | "sessionStorage"} area
 * @param {string} key
 */
export function recall(area, key) {
  try {
    return window[area].getItem(`${NAME}-${key}`) ?? "";
  } catch {
    return "";
  }
}

/**
 * Keep a value, or remove an empty one.
 * @param {"localStorage" | "sessionStorage"} area
 * @param {string} key
 * @param {string} value
 */
export function keep(area, key, value) {
  try {
    if (value) window[area].setItem(`${NAME}-${key}`, value);
    else window[area].removeItem(`${NAME}-${key}`);
  } catch {
    // The value lasts as long as the page.
  }
}
