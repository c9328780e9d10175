// The settings: their defaults, what the browser keeps of them, and the faults in what was typed.

import { keep, recall } from "./storage.js";

/** @import { Schema, Settings } from "./types.js" */

/** Longest reply in tokens, so that one reply does not fill the window. */
const LONGEST = "512";

/** @returns {Settings} */
export const defaults = () => ({
  model: "",
  second: "",
  api: "run",
  system: "",
  numbers: { max_tokens: LONGEST },
  stop: "",
  format: "text",
  schema: "",
  tools: "",
  effort: "",
  lora: "",
  theme: "",
});

/** @returns {Settings} The kept settings. Values of another type than the defaults are left out. */
export function readSettings() {
  const settings = defaults();
  try {
    const kept = JSON.parse(recall("localStorage", "settings") || "{}");
    for (const name of /** @type {(keyof Settings)[]} */ (Object.keys(settings))) {
      if (typeof kept[name] === typeof settings[name]) Object.assign(settings, { [name]: kept[name] });
    }
  } catch {
    return defaults();
  }
  return settings;
}

/** @param {Settings} settings */
export const keepSettings = (settings) => keep("localStorage", "settings", JSON.stringify(settings));

/** @returns {{token: string, account: string, isRemembered: boolean}} */
export function readAccess() {
  const remembered = recall("localStorage", "token");
  return {
    token: remembered || recall("sessionStorage", "token"),
    account: recall("localStorage", "account") || recall("sessionStorage", "account"),
    isRemembered: Boolean(remembered),
  };
}

/** @param {{token: string, account: string, isRemembered: boolean}} access */
export function keepAccess({ token, account, isRemembered }) {
  for (const [key, value] of Object.entries({ token, account })) {
    keep("localStorage", key, isRemembered ? value : "");
    keep("sessionStorage", key, value);
  }
}

/** @type {Record<string, string>} */
const LABELS = { max_tokens: "Longest reply", top_p: "Top p", top_k: "Top k", min_p: "Min p" };

/** @param {string} name */
export const labelOf = (name) => LABELS[name] ?? name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

/** @param {Schema} schema */
export const isNumber = (schema) => ["number", "integer"].some((type) => [schema.type].flat().includes(type));
// These change the form of the reply, which the page does not show.
const HIDDEN = ["n", "logprobs", "top_logprobs", "max_completion_tokens"];
/**
 * @param {string} name
 * @param {Schema} schema
 */
export const isShown = (name, schema) => isNumber(schema) && !HIDDEN.includes(name);
/** @param {Schema} schema */
const isWhole = (schema) => ![schema.type].flat().includes("number");
/** @param {Schema} schema */
export const stepOf = (schema) => (isWhole(schema) ? 1 : 0.05);

export const NO_NUMBER = "This is not a number.";

/**
 * Return what is wrong with a number that was typed; empty: nothing.
 * @param {string} text
 * @param {Schema} schema
 */
export function numberFault(text, schema) {
  if (text.trim() === "") return "";
  const value = Number(text);
  if (!Number.isFinite(value)) return NO_NUMBER;
  if (isWhole(schema) && !Number.isInteger(value)) return "This must be a whole number.";
  const { minimum, exclusiveMinimum, maximum } = schema;
  if (value < minimum) return `The smallest value is ${minimum}.`;
  if (value <= exclusiveMinimum) return `This must be above ${exclusiveMinimum}.`;
  if (value > maximum) return `The largest value is ${maximum}.`;
  return "";
}

/**
 * Return what is wrong with JSON text; empty: nothing.
 * @param {string} text
 * @param {"object" | "array"} kind
 */
export function jsonFault(text, kind) {
  if (!text.trim()) return "";
  try {
    const value = JSON.parse(text);
    if (kind === "array" && !Array.isArray(value)) return "This must be a list: [ … ].";
    if (kind === "object" && (typeof value !== "object" || Array.isArray(value) || !value)) return "This must be an object: { … }.";
    return "";
  } catch (error) {
    return `This is not JSON: ${error instanceof Error ? error.message : error}`;
  }
}

/**
 * Return the first fault of the settings with its field; undefined: none.
 * @param {Settings} settings
 * @param {Record<string, Schema>} fields The model's parameters.
 * @param {Record<string, boolean>} bad Names of the fields whose text is no number.
 */
export function firstFault(settings, fields, bad) {
  for (const [name, schema] of Object.entries(fields)) {
    const fault = isNumber(schema) && (bad[name] ? NO_NUMBER : numberFault(settings.numbers[name] ?? "", schema));
    if (fault) return { id: name, fault: `${labelOf(name)}: ${fault}` };
  }
  const tools = jsonFault(settings.tools, "array");
  if (tools) return { id: "tools", fault: `Tools: ${tools}` };
  if (settings.format !== "json_schema") return undefined;
  const schema = settings.schema.trim() ? jsonFault(settings.schema, "object") : "A JSON Schema is missing.";
  return schema ? { id: "schema", fault: `JSON Schema: ${schema}` } : undefined;
}
