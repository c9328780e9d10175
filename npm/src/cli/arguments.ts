/** Lets a command use changed copies of the configurations that it would use. */

import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { findConfig } from "../config/files.js";
import type { Sibling } from "../config/sibling.js";
import { writeSibling } from "../config/sibling.js";
import { Failure } from "../failure.js";

/** A configuration and its copy. */
export interface Replaced {
  original: string;
  sibling: Sibling;
}

/** Programs that run a program of node_modules, with the words that may follow. */
const RUNNERS: Record<string, string[]> = {
  npx: [],
  bunx: [],
  pnpx: [],
  npm: ["exec", "x"],
  pnpm: ["exec", "dlx"],
  yarn: ["exec", "dlx", "run"],
  bun: ["x"],
  node: [],
};
/** wrangler's option of a configuration, alone or with its value. */
const CONFIG_OPTION = /^(-c|--config)(=|$)/s;
const SCRIPT_RUNNERS = ["npm", "pnpm", "yarn", "bun"];

/**
 * Variables from which frameworks take the configuration's path. The first one is for a project's own files, for example
 * SvelteKit's. @cloudflare/vite-plugin, and so Astro's adapter, reads the second. Nitro, and so Nuxt, reads the third.
 */
const PATH_VARIABLES = [
  "TAILRACE_WRANGLER_CONFIG",
  "CLOUDFLARE_VITE_WRANGLER_CONFIG_PATH",
  "NITRO_WRANGLER_CONFIG_PATH",
];
/** Words of commands whose result is deployed. */
const BUILDS = ["build", "deploy", "generate", "publish", "upload"];

/**
 * Return the command with a copy of each configuration in which the AI bindings are local.
 *
 * A command that is not wrangler's, for example `vite`, is returned as it is: frameworks take the path from variables.
 *
 * @param command - Program and arguments.
 * @param folder - The folder in which the command will run.
 * @throws Failure - A configuration is missing or invalid, or wrangler's command is not `dev`.
 */
export function useLocalConfigs(command: string[], folder: string): { argv: string[]; siblings: Replaced[] } {
  const script = scriptOf(command, folder);
  const at = wranglerAt(script?.words ?? command);
  if (script !== undefined) checkScript(script, at);
  if (at < 0) return forFramework(command, script?.words ?? command, folder);
  checkCommand((script?.words ?? command).slice(at + 1));
  if (script === undefined || command.some((word) => CONFIG_OPTION.test(word))) return replaceIn(command, folder, []);
  // The script's own -c would conflict with a second one. Its other options stay as they are.
  const own = script.words.slice(at + 2);
  const { argv, siblings } = replaceIn(own, folder, []);
  const added = argv.slice(own.length);
  if (added.length === 0) {
    for (const { sibling } of siblings) sibling.remove();
    throw new Failure(`The script "${script.name}" sets -c: run it as tailrace dev -- ${script.words.join(" ")}.`);
  }
  const divider = script.runner === "npm" && !command.includes("--") ? ["--"] : [];
  return { argv: [...command, ...divider, ...added], siblings };
}

/**
 * Refuse a command of wrangler 3 that a copy of the configuration would refuse with newer versions, such as `deploy`.
 *
 * @param command - Program and arguments.
 * @param folder - The folder in which the command will run.
 * @throws Failure - The command, or a program of its script, is wrangler's and is neither `dev` nor `pages dev`.
 */
export function checkWrangler3(command: string[], folder: string): void {
  const script = scriptOf(command, folder)
    ?.words.join(" ")
    .split(/[;&|]+/);
  const programs = script?.map((text) => text.trim().split(/\s+/)) ?? [command];
  for (const words of programs) {
    const at = wranglerAt(words);
    const [name, next] = words.slice(at + 1).filter((word) => !word.startsWith("-"));
    if (at >= 0 && name !== "dev" && !(name === "pages" && next === "dev")) {
      throw new Failure(onlyDev(words.slice(at + 1)));
    }
  }
}

/** Return the variables that direct frameworks to the first copy. */
export function pathVariables(siblings: Replaced[]): Record<string, string> {
  const path = siblings[0]?.sibling.path;
  return path === undefined ? {} : Object.fromEntries(PATH_VARIABLES.map((name) => [name, path]));
}

/** Return a command without wrangler as it is, with a copy of the project's configuration if there is one. */
function forFramework(command: string[], words: string[], folder: string): { argv: string[]; siblings: Replaced[] } {
  const original = findConfig(folder);
  if (original === undefined) {
    process.stderr.write(
      `[tailrace] There is no wrangler configuration in ${folder} or above it: the command gets TAILRACE_URL and TAILRACE_TOKEN alone.\n`,
    );
    return { argv: command, siblings: [] };
  }
  const build = words.find((word) => BUILDS.includes(word));
  if (build !== undefined) {
    throw new Failure(
      `tailrace dev is for dev servers, and "${words.join(" ")}" prepares a deployment: run it without tailrace dev.`,
    );
  }
  return { argv: command, siblings: [{ original, sibling: writeSibling(original) }] };
}

/** Replace the configurations named in `words`. If there is none, append a copy of the project's. */
function replaceIn(words: string[], folder: string, siblings: Replaced[]): { argv: string[]; siblings: Replaced[] } {
  const cwd = resolve(folder, optionOf(words, "--cwd") ?? ".");
  const replace = (path: string): string => {
    const original = resolve(cwd, path);
    const sibling = writeSibling(original);
    siblings.push({ original, sibling });
    if (sibling.bindings.length === 0) {
      process.stderr.write(`[tailrace] ${path} has no AI binding ("ai": { "binding": "AI" }).\n`);
    }
    return sibling.path;
  };
  const argv = words.map((word, index) => {
    const [, name, value] = /^(--config|-c)=(.*)$/s.exec(word) ?? [];
    if (value !== undefined) return `${name}=${replace(value)}`;
    return ["-c", "--config"].includes(words[index - 1] ?? "") ? replace(word) : word;
  });
  if (siblings.length === 0) {
    const found = findConfig(cwd);
    if (found === undefined) {
      throw new Failure(`There is no wrangler.jsonc, wrangler.json or wrangler.toml in ${cwd} or above it.`);
    }
    argv.push("-c", replace(found));
  }
  return { argv, siblings };
}

function optionOf(words: string[], name: string): string | undefined {
  const joined = words.find((word) => word.startsWith(`${name}=`));
  if (joined !== undefined) return joined.slice(name.length + 1);
  const at = words.indexOf(name);
  return at < 0 ? undefined : words[at + 1];
}

/** Return the position of the word `wrangler` if the words run it, or -1. */
function wranglerAt(words: string[]): number {
  const isWrangler = (word: string | undefined): boolean => /^wrangler(\.js|\.cmd)?(@.*)?$/.test(basename(word ?? ""));
  // Variables before the program: NODE_ENV=test wrangler dev.
  let at = words.findIndex((word) => !/^\w+=/.test(word));
  if (at < 0) return -1;
  if (isWrangler(words[at])) return at;
  const between = RUNNERS[basename(words[at] ?? "").replace(/\.(cmd|exe)$/, "")];
  if (between === undefined) return -1;
  for (at++; at < words.length && (words[at]?.startsWith("-") || between.includes(words[at] ?? "")); ) at++;
  return isWrangler(words[at]) ? at : -1;
}

/** Refuse commands other than `wrangler dev`: a copy must never be deployed. */
function checkCommand(words: string[]): void {
  const [name, next] = words.filter((word) => !word.startsWith("-"));
  if (name === "dev") return;
  if (name === "pages" && next === "dev") {
    throw new Failure(
      "wrangler pages dev takes no other configuration: use the Vite plugin, or getPlatformProxy of tailrace/platform.",
    );
  }
  throw new Failure(onlyDev(words));
}

function onlyDev(words: string[]): string {
  const name = words.find((word) => !word.startsWith("-")) ?? "";
  return `tailrace dev runs wrangler dev only, not wrangler ${name}: run that command without tailrace dev.`;
}

/**
 * Refuse a script in which wrangler is one of several programs: words that follow a script reach only the last of them.
 *
 * @param at - The position of `wrangler` if the script begins with it, or -1.
 */
function checkScript({ name, words }: { name: string; words: string[] }, at: number): void {
  const text = words.join(" ");
  const isOne = at < 0 ? !/\bwrangler(@\S+)?\s+dev\b/.test(text) : !words.some((word) => /^[&|]+$|[&;]$/.test(word));
  if (isOne || /\btailrace\s+dev\b/.test(text)) return;
  throw new Failure(
    `The script "${name}" runs wrangler dev beside other programs: write tailrace dev -- before wrangler dev there, and run the script itself.`,
  );
}

/** Return the script of package.json that a command runs, such as `npm run dev`. */
function scriptOf(command: string[], folder: string): { runner: string; name: string; words: string[] } | undefined {
  const runner = basename(command[0] ?? "").replace(/\.(cmd|exe)$/, "");
  if (!SCRIPT_RUNNERS.includes(runner)) return undefined;
  const words = command.slice(1).filter((word) => !word.startsWith("-"));
  const name = words[0] === "run" ? words[1] : runner === "npm" && words[0] !== "start" ? undefined : words[0];
  const text = name === undefined ? undefined : scriptsIn(folder)[name];
  if (name === undefined || text === undefined) return undefined;
  return { runner, name, words: text.trim().split(/\s+/) };
}

function scriptsIn(folder: string): Record<string, string> {
  for (let at = resolve(folder); ; at = dirname(at)) {
    const path = join(at, "package.json");
    if (existsSync(path)) {
      try {
        return (JSON.parse(readFileSync(path, "utf8")) as { scripts?: Record<string, string> }).scripts ?? {};
      } catch {
        return {};
      }
    }
    if (at === dirname(at)) return {};
  }
}
