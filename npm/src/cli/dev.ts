/** The command `tailrace dev`: runs a command, by default `wrangler dev`, with a local AI binding. */

import { spawn } from "node:child_process";
import { watch } from "node:fs";
import { constants } from "node:os";
import { basename, delimiter, dirname, join, resolve } from "node:path";
import { findConfig } from "../config/files.js";
import { writeSibling } from "../config/sibling.js";
import type { Sibling } from "../config/sibling.js";
import { Failure } from "../failure.js";
import { startServer } from "../server.js";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Run a command with a local AI binding.
 *
 * @param args - Arguments after `dev`: options, `--` and the command.
 * @returns The command's exit code, or 128 + n if signal n ended it.
 */
export async function dev(args: string[]): Promise<number> {
  const given = args[0] === "--" ? args.slice(1) : args;
  const command = given.length ? given : ["wrangler", "dev"];
  const { argv, siblings } = replaceConfigs(command);
  let server: Awaited<ReturnType<typeof startServer>> | undefined;
  const watchers = siblings.map(({ original, sibling }) => watchOriginal(original, sibling));
  try {
    server = await startServer();
    return await run(argv, server.url, server.token);
  } finally {
    for (const watcher of watchers) watcher.close();
    for (const { sibling } of siblings) sibling.remove();
    await server?.stop();
  }
}

type Replaced = { original: string; sibling: Sibling };

/** Write a sibling for each configuration that the command names, or for the project's, and let the command use them. */
function replaceConfigs(command: string[]): { argv: string[]; siblings: Replaced[] } {
  const siblings: Replaced[] = [];
  const replace = (path: string): string => {
    const original = resolve(path);
    const sibling = writeSibling(original);
    siblings.push({ original, sibling });
    return sibling.path;
  };
  const argv: string[] = [];
  for (let index = 0; index < command.length; index++) {
    const word = command[index] as string;
    const [, name, value] = /^(--config|-c)=(.*)$/s.exec(word) ?? [];
    if (value !== undefined) argv.push(`${name}=${replace(value)}`);
    else if ((word === "-c" || word === "--config") && index + 1 < command.length) {
      argv.push(word, replace(command[++index] as string));
    } else argv.push(word);
  }
  if (siblings.length === 0) {
    const found = findConfig(process.cwd());
    if (found === undefined) throw new Failure("There is no wrangler.json, wrangler.jsonc or wrangler.toml here or above.");
    argv.push("-c", replace(found));
  }
  return { argv, siblings };
}

/** Update the sibling when its original changes. wrangler watches the sibling and reloads. */
function watchOriginal(original: string, sibling: Sibling): { close(): void } {
  let timer: NodeJS.Timeout | undefined;
  const update = (): void => {
    try {
      sibling.update();
    } catch (error) {
      process.stderr.write(`[tailrace] ${(error as Error).message} The last valid configuration stays in use.\n`);
    }
  };
  return watch(dirname(original), (_event, name) => {
    if (name !== basename(original)) return;
    clearTimeout(timer);
    timer = setTimeout(update, 50);
  });
}

/** Run the command with the project's own programs first in PATH, and pass signals to it. */
async function run(argv: string[], url: string, token: string): Promise<number> {
  const [program, ...args] = argv as [string, ...string[]];
  const env = {
    ...process.env,
    TAILRACE_URL: url,
    TAILRACE_TOKEN: token,
    PATH: [...binFolders(), process.env.PATH ?? ""].join(delimiter),
  };
  const child = spawn(program, args, { stdio: "inherit", env, shell: process.platform === "win32" });
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
  for (const signal of SIGNALS) process.on(signal, pass);
  try {
    return await new Promise((resolve, reject) => {
      child.on("error", (error: NodeJS.ErrnoException) =>
        reject(error.code === "ENOENT" ? new Failure(`The command ${program} was not found.`) : error),
      );
      child.on("exit", (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
    });
  } finally {
    for (const signal of SIGNALS) process.off(signal, pass);
  }
}

function binFolders(): string[] {
  const found: string[] = [];
  for (let at = process.cwd(); ; at = dirname(at)) {
    found.push(join(at, "node_modules", ".bin"));
    if (dirname(at) === at) return found;
  }
}
