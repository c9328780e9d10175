// The body and the path of a request, made from the settings. Requests and snippets use the same ones.

import { isNumber } from "./settings.js";

/** @import { Schema, Settings } from "./types.js" */

/**
 * Return the request's body.
 * @param {Record<string, unknown>[]} messages
 * @param {Settings} settings Without faults.
 * @param {Record<string, Schema>} fields The model's parameters.
 * @param {string} model
 * @returns {Record<string, unknown>}
 */
export function bodyOf(messages, settings, fields, model) {
  const isChat = settings.api === "chat";
  const system = settings.system.trim() ? [{ role: "system", content: settings.system.trim() }] : [];
  /** @type {Record<string, unknown>} */
  const body = { ...(isChat && { model }), messages: [...system, ...messages], stream: true };
  if (isChat) body.stream_options = { include_usage: true };
  for (const [name, text] of Object.entries(settings.numbers)) {
    const isKnown = !(name in fields) || isNumber(fields[name]);
    if (isKnown && text.trim() !== "" && Number.isFinite(Number(text))) body[name] = Number(text);
  }
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.effort) body.reasoning_effort = settings.effort;
  if (settings.lora) body.lora = settings.lora;
  const format = formatOf(settings, isChat);
  if (format) body.response_format = format;
  const tools = parsed(settings.tools);
  if (Array.isArray(tools) && tools.length) body.tools = tools;
  return body;
}

/**
 * @param {Settings} settings
 * @param {boolean} isChat
 */
function formatOf({ format, schema }, isChat) {
  if (format === "text") return undefined;
  if (format === "json_object") return { type: "json_object" };
  const value = parsed(schema) ?? {};
  return { type: "json_schema", json_schema: isChat ? { name: "reply", schema: value } : value };
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Return the path of the API below the page's folder.
 * @param {string} account
 */
export const apiOf = (account) => `client/v4/accounts/${encodeURIComponent(account)}/ai`;

/**
 * Return the path of a request that runs a model.
 * @param {Settings["api"]} api
 * @param {string} account
 * @param {string} model
 */
export const pathOf = (api, account, model) =>
  api === "chat"
    ? `${apiOf(account)}/v1/chat/completions`
    : `${apiOf(account)}/run/${encodeURI(model).replace(/[?#]/g, encodeURIComponent)}`;
