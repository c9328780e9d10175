/** Finds and reads a project's wrangler configuration. */

import { existsSync, readFileSync } from "node:fs";
import { dirname, extname, join, resolve } from "node:path";
import type { ParseError } from "jsonc-parser";
import { parse as parseJsonc, printParseErrorCode } from "jsonc-parser";
import { parse as parseToml } from "smol-toml";
import { Failure } from "../failure.js";

/** A configuration without a fixed form. */
export type Config = Record<string, unknown>;

/** The names of a configuration, in wrangler's order. */
export const CONFIG_NAMES = ["wrangler.json", "wrangler.jsonc", "wrangler.toml"];

/**
 * Return the path of the configuration that wrangler would use in a folder, or undefined.
 *
 * Like wrangler, prefer a name over a folder: a wrangler.json further up wins over a wrangler.toml in the folder.
 */
export function findConfig(folder: string): string | undefined {
  for (const name of CONFIG_NAMES) {
    for (let at = resolve(folder); ; at = dirname(at)) {
      if (existsSync(join(at, name))) return join(at, name);
      if (dirname(at) === at) break;
    }
  }
  return undefined;
}

/**
 * Read a configuration.
 *
 * @throws Failure - The file is missing or has a syntax error. The sentence names file, line and column.
 */
export function readConfig(path: string): Config {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new Failure(`${path} cannot be read: ${(error as Error).message}.`);
  }
  return parseConfig(text, path);
}

/**
 * Parse the text of a configuration: TOML, or JSON with comments and trailing commas.
 *
 * @throws Failure - The text has a syntax error.
 */
export function parseConfig(text: string, path: string): Config {
  const value = extname(path) === ".toml" ? fromToml(text, path) : fromJson(text, path);
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new Failure(`${path} has to contain an object.`);
  }
  return value as Config;
}

function fromToml(text: string, path: string): unknown {
  try {
    return parseToml(text.replace(/^\uFEFF/, ""));
  } catch (error) {
    const { line, column, message } = error as { line?: number; column?: number; message: string };
    throw new Failure(`${path}:${line ?? 1}:${column ?? 1}: ${message.split("\n")[0]}.`);
  }
}

function fromJson(text: string, path: string): unknown {
  const errors: ParseError[] = [];
  const value: unknown = parseJsonc(text.replace(/^\uFEFF/, " "), errors, { allowTrailingComma: true });
  const [first] = errors;
  if (first !== undefined) {
    const before = text.slice(0, first.offset).split("\n");
    const reason = printParseErrorCode(first.error)
      .replace(/([a-z])([A-Z])/g, "$1 $2")
      .toLowerCase();
    throw new Failure(`${path}:${before.length}:${(before.at(-1)?.length ?? 0) + 1}: the JSON is invalid (${reason}).`);
  }
  return value;
}
