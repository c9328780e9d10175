/** Lets a command use the changed copy of a configuration: wrangler by an option, frameworks by variables. */

import { readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { findConfig } from "../config/files.js";
import { writeSibling } from "../config/sibling.js";
import type { Sibling } from "../config/sibling.js";
import { Failure } from "../failure.js";

/** A configuration and its changed copy. */
export interface Replaced {
  original: string;
  sibling: Sibling;
}

/** A command that uses changed copies. `variables` are for its environment. */
export interface Prepared {
  argv: string[];
  variables: Record<string, string>;
  replaced: Replaced[];
}

/** The variable from which @cloudflare/vite-plugin takes the configuration's path. Astro's adapter uses this plugin. */
export const VITE_VARIABLE = "CLOUDFLARE_VITE_WRANGLER_CONFIG_PATH";

/**
 * The variables that frameworks read. The first is for a project's own configuration, as in SvelteKit's adapter.
 * Nitro, and so Nuxt, replaces the entry `wrangler.configPath` of its runtime configuration by the last.
 */
const PATH_VARIABLES = ["TAILRACE_WRANGLER_CONFIG", VITE_VARIABLE, "NITRO_WRANGLER_CONFIG_PATH"];

/**
 * Write a copy of each configuration that wrangler's options name, or of the project's, and let the command use them.
 *
 * @param command - The program and its arguments.
 * @throws Failure - There is no configuration, or it is invalid.
 */
export function prepare(command: string[]): Prepared {
  const replaced: Replaced[] = [];
  const replace = (path: string): string => {
    const original = resolve(path);
    const sibling = writeSibling(original);
    replaced.push({ original, sibling });
    return sibling.path;
  };
  const separator = wranglerSeparator(command);
  // Other programs have options of these names too, as `vite -c` and `sh -c`.
  const argv = separator === undefined ? [...command] : replaceOptions(command, replace);
  if (replaced.length === 0) {
    const found = process.env[VITE_VARIABLE] || findConfig(process.cwd());
    if (found === undefined) throw new Failure("There is no wrangler.json, wrangler.jsonc or wrangler.toml here or above.");
    const path = replace(found);
    if (separator !== undefined) argv.push(...separator, "-c", path);
  }
  const path = replaced[0]?.sibling.path as string;
  return { argv, variables: Object.fromEntries(PATH_VARIABLES.map((name) => [name, path])), replaced };
}

/** Replace the paths after `-c` and `--config`. */
function replaceOptions(command: string[], replace: (path: string) => string): string[] {
  const argv: string[] = [];
  for (let index = 0; index < command.length; index++) {
    const word = command[index] as string;
    const [, name, value] = /^(--config|-c)=(.*)$/s.exec(word) ?? [];
    if (value !== undefined) argv.push(`${name}=${replace(value)}`);
    else if ((word === "-c" || word === "--config") && index + 1 < command.length) {
      argv.push(word, replace(command[++index] as string));
    } else argv.push(word);
  }
  return argv;
}

/**
 * Return the words between a command that runs wrangler and more options for wrangler, or undefined for other programs.
 *
 * The command may be a script of package.json, such as `npm run dev` with the script `wrangler dev`.
 */
function wranglerSeparator(command: string[]): string[] | undefined {
  if (command.some((word) => basename(word).replace(/\.(cmd|js)$/, "") === "wrangler")) return [];
  const [program = "", ...args] = command;
  const manager = basename(program).replace(/\.cmd$/, "");
  if (!["npm", "pnpm", "yarn", "bun"].includes(manager)) return undefined;
  const name = args[0] === "run" ? args[1] : args[0];
  if (name === undefined || !/^(npx |pnpm (exec )?|bunx )?wrangler [^&|;]*$/.test(script(name))) return undefined;
  return manager === "npm" && !args.includes("--") ? ["--"] : [];
}

/** Return the text of a script of the current folder's package.json, or "". */
function script(name: string): string {
  try {
    const { scripts } = JSON.parse(readFileSync(join(process.cwd(), "package.json"), "utf8")) as { scripts?: Record<string, string> };
    return scripts?.[name]?.trim() ?? "";
  } catch {
    return "";
  }
}
