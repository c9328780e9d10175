// The models of the server, their parameters, and the account of the token.

import { apiOf } from "./body.js";
import { explained, isLoading } from "./explain.js";
import { get } from "./wire.js";

/** @import { Model, Schema } from "./types.js" */

const RETRY_MS = 2000;
/** The account where neither the field nor the token has one. Without tokens every account is accepted. */
export const ANY_ACCOUNT = "local";

/** @param {any} entry */
const modelOf = (entry) => {
  const values = Object.fromEntries(entry.properties.map((/** @type {any} */ each) => [each.property_id, each.value]));
  return {
    name: entry.name,
    description: entry.description,
    window: Number(values.context_window) || 0,
    room: Number(values.context_length_limit) || Number(values.context_window) || 0,
    longest: Number(values.sequence_length_limit) || 0,
    thinks: values.reasoning === "true",
    adapters: values.adapters ?? [],
  };
};

/**
 * Return the models that generate text. While the server loads, wait and try again.
 * @param {{account: string, token: string}} access
 * @param {(waiting: string) => void} onWait Called with a sentence before each wait.
 * @param {AbortSignal} signal
 * @returns {Promise<{account: string, models: Model[]}>}
 */
export async function listModels({ account, token }, onWait, signal) {
  const started = Date.now();
  for (;;) {
    try {
      const used = account || (await accountOf(token, signal));
      const found = await get(`${apiOf(used)}/models/search?task=Text%20Generation&per_page=1000`, token, signal);
      return { account: used, models: found.map(modelOf) };
    } catch (error) {
      const isDown = error instanceof TypeError;
      if (signal.aborted || !(isDown || isLoading(error))) throw error;
      const seconds = Math.round((Date.now() - started) / 1000);
      const state = isDown ? explained(error).text : await whyNotReady(signal);
      onWait(`${state} Trying again${seconds ? ` (for ${seconds} s so far)` : ""}…`);
    }
    await pause(RETRY_MS, signal);
  }
}

/** @param {AbortSignal} signal */
async function whyNotReady(signal) {
  const reason = await fetch("readyz", { signal }).then((response) => response.json()).then(({ reason: text }) => text).catch(() => "");
  return reason ? `The server is not ready: ${reason.replace(/\.?$/, ".")}` : "The server is still loading its models.";
}

/**
 * Return the account of the token; ANY_ACCOUNT if the token is for every account, or the server needs none.
 * @param {string} token
 * @param {AbortSignal} signal
 */
async function accountOf(token, signal) {
  const accounts = await get("client/v4/accounts", token, signal);
  return accounts[0]?.id ?? ANY_ACCOUNT;
}

/**
 * Return the fields of a request with messages, with the model's own defaults.
 * @param {{account: string, token: string}} access
 * @param {string} model
 * @returns {Promise<Record<string, Schema>>}
 */
export async function fieldsOf({ account, token }, model) {
  const schema = await get(`${apiOf(account)}/models/schema?model=${encodeURIComponent(model)}`, token);
  const forms = schema.input.anyOf ?? [schema.input];
  return (forms.find((/** @type {Schema} */ form) => form.properties?.messages) ?? forms[0]).properties ?? {};
}

/**
 * Wait. Throws AbortError if the signal is aborted.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export const pause = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const stopped = () => reject(new DOMException("Stopped", "AbortError"));
    if (signal.aborted) return stopped();
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stopped);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), stopped()), { once: true });
  });
