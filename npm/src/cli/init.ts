/** The command `tailrace init`: changes a project's files after showing the difference. */

import { existsSync, readFileSync, realpathSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline/promises";
import type { Config } from "../config/files.js";
import { CONFIG_NAMES, readConfig } from "../config/files.js";
import { Failure } from "../failure.js";
import type { Edit } from "../init/edits.js";
import { editPackage, editVite, editVitest, isUse } from "../init/edits.js";
import { difference } from "../init/show.js";

interface Change {
  path: string;
  before: string;
  after: string;
}

const ALREADY = "This project uses the local AI binding already: nothing to change.\n";
const NOTHING =
  "Nothing to change: no script runs wrangler dev, and no configuration has a plugin of Cloudflare. " +
  "Start the dev server with npx tailrace dev -- npm run dev.\n";
const EXTENSIONS = ["ts", "mts", "js", "mjs"];

/**
 * Change the configuration of the project in the current folder.
 *
 * @param args - `--yes`: change without asking.
 * @returns 0 if the files were changed or need no change, 1 if the user declined.
 * @throws Failure - This is no project, a file is invalid, or there is no terminal to ask in. Nothing is changed.
 */
export async function init(args: string[]): Promise<number> {
  const unknown = args.find((word) => word !== "--yes" && word !== "-y");
  if (unknown !== undefined) throw new Failure(`tailrace init has no option ${unknown}. It has --yes.`);
  const folder = process.cwd();
  const { changes, advice, isUsed } = plan(folder);
  for (const { path, before, after } of changes)
    process.stdout.write(`${colored(difference(path, before, after))}\n\n`);
  for (const line of advice) process.stdout.write(`By hand: ${line}.\n`);
  if (changes.length === 0) {
    if (advice.length === 0) process.stdout.write(isUsed ? ALREADY : NOTHING);
    return 0;
  }
  if (args.length === 0 && !(await agree(changes.length))) {
    process.stdout.write("Nothing was changed.\n");
    return 1;
  }
  apply(folder, changes);
  process.stdout.write(`Changed ${changes.map(({ path }) => path).join(", ")}. Deploys are not affected.\n`);
  return 0;
}

/** Compute all changes before the first is made, so that an invalid file leaves the project as it is. */
function plan(folder: string): { changes: Change[]; advice: string[]; isUsed: boolean } {
  const config = CONFIG_NAMES.map((name) => join(folder, name)).find(existsSync);
  if (!existsSync(join(folder, "package.json"))) throw new Failure(`There is no package.json in ${folder}.`);
  if (config !== undefined && !hasBinding(readConfig(config))) {
    throw new Failure(`${config} has no AI binding. Add it first: "ai": { "binding": "AI" }.`);
  }
  const vite = configsOf(folder, "vite");
  const vitest = configsOf(folder, "vitest");
  const usesVite = vite.some((name) => readFileSync(join(folder, name), "utf8").includes("@cloudflare/vite-plugin"));
  const edits: [string, (text: string) => Edit][] = [
    ["package.json", (text) => editPackage(text, config !== undefined && !usesVite)],
    ...vite.map((name) => [name, both] as [string, typeof both]),
    ...vitest.map((name) => [name, editVitest] as [string, typeof editVitest]),
  ];
  const changes: Change[] = [];
  const advice: string[] = [];
  let isUsed = false;
  for (const [path, edit] of edits) {
    const before = readFileSync(join(folder, path), "utf8");
    // The edits add lines that end as those of most files. A file of Windows keeps its own ends.
    const isWindows = before.includes("\r\n") && !/[^\r]\n/.test(before);
    const { text, byHand } = edit(isWindows ? before.replaceAll("\r\n", "\n") : before);
    if (text !== undefined) changes.push({ path, before, after: isWindows ? text.replaceAll("\n", "\r\n") : text });
    if (byHand !== undefined) advice.push(`in ${path}, ${byHand}`);
    isUsed ||= isUse(before);
  }
  return { changes, advice, isUsed };
}

/** A Vite configuration may contain vitest's too. */
function both(text: string): Edit {
  const vite = editVite(text);
  return vite.text === undefined && vite.byHand === undefined ? editVitest(text) : vite;
}

function configsOf(folder: string, tool: string): string[] {
  return EXTENSIONS.map((extension) => `${tool}.config.${extension}`).filter((name) => existsSync(join(folder, name)));
}

function hasBinding(config: Config): boolean {
  const environments = Object.values((config.env ?? {}) as Record<string, Config>);
  return [config, ...environments].some((section) => section?.ai !== undefined);
}

function colored(text: string): string {
  if (!process.stdout.isTTY || process.env.NO_COLOR) return text;
  return text.replace(/^-.*$/gm, "\x1b[31m$&\x1b[39m").replace(/^\+.*$/gm, "\x1b[32m$&\x1b[39m");
}

async function agree(count: number): Promise<boolean> {
  if (!process.stdin.isTTY)
    throw new Failure("Nothing was changed: there is no terminal to ask in. Run it with --yes.");
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  try {
    const question = terminal.question(`Change ${count === 1 ? "this file" : `these ${count} files`}? [y/N] `);
    // Ctrl-C rejects the question. Ctrl-D only closes the terminal.
    const closed = new Promise<string>((resolve) => terminal.once("close", () => resolve("\n")));
    const answer = await Promise.race([question.catch(() => "\n"), closed]);
    if (answer === "\n") process.stdout.write("\n");
    return /^y(es)?$/i.test(answer.trim());
  } finally {
    terminal.close();
  }
}

/** Write all new files beside the old ones, then replace these. A full disk leaves all of them as they are. */
function apply(folder: string, changes: Change[]): void {
  // A link stays one: the file behind it changes.
  const files = changes.map(({ path, after }) => {
    const real = realpathSync(join(folder, path));
    return { path: real, next: `${real}.tailrace-new`, after };
  });
  try {
    for (const { path, next, after } of files) writeFileSync(next, after, { mode: statSync(path).mode });
    for (const { path, next } of files) renameSync(next, path);
  } catch (error) {
    for (const { next } of files) rmSync(next, { force: true });
    throw new Failure(`The files cannot be written: ${(error as Error).message}.`);
  }
}
