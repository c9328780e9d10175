/** The command `tailrace dev`: runs a command, by default `wrangler dev`, with a local AI binding. */

import { spawn } from "node:child_process";
import { watch } from "node:fs";
import { constants } from "node:os";
import { basename, delimiter, dirname, join } from "node:path";
import type { Sibling } from "../config/sibling.js";
import { Failure } from "../failure.js";
import { startServer } from "../server.js";
import { prepare } from "./command.js";

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
  const { argv, variables, replaced } = prepare(command);
  let server: Awaited<ReturnType<typeof startServer>> | undefined;
  const watchers = replaced.map(({ original, sibling }) => watchOriginal(original, sibling));
  try {
    server = await startServer();
    return await run(argv, { ...variables, TAILRACE_URL: server.url, TAILRACE_TOKEN: server.token });
  } finally {
    for (const watcher of watchers) watcher.close();
    for (const { sibling } of replaced) sibling.remove();
    await server?.stop();
  }
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
async function run(argv: string[], variables: Record<string, string>): Promise<number> {
  const [program, ...args] = argv as [string, ...string[]];
  const env = {
    ...process.env,
    ...variables,
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
