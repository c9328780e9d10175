/** The command `tailrace dev`: runs a command, by default `wrangler dev`, with a local AI binding. */

import { watch } from "node:fs";
import { basename, dirname } from "node:path";
import type { Sibling } from "../config/sibling.js";
import type { Server } from "../server.js";
import { startServer } from "../server.js";
import { checkWrangler3, pathVariables, useLocalConfigs } from "./arguments.js";
import { run } from "./run.js";
import { Stop } from "./stop.js";
import { isWrangler3, wrangler3Variables } from "./wrangler3.js";

/** Editors write a file in several steps. */
const WRITTEN_MILLISECONDS = 50;

/**
 * Run a command with a local AI binding.
 *
 * @param args - Arguments after `dev`: `--` and the command, or options of `wrangler dev`.
 * @returns The command's exit code, or 128 + n if signal n ended it.
 * @throws Failure - The configuration is invalid, no server can be started, or the command does not exist.
 */
export async function dev(args: string[]): Promise<number> {
  const command = commandOf(args);
  const stop = new Stop();
  const isOld = isWrangler3(process.cwd());
  if (isOld) checkWrangler3(command, process.cwd());
  const { argv, siblings } = isOld ? { argv: command, siblings: [] } : useLocalConfigs(command, process.cwd());
  const watchers = siblings.map(({ original, sibling }) => watchOriginal(original, sibling));
  let server: Server | undefined;
  try {
    server = await startServer({ signal: stop.signal });
    if (stop.signal.aborted) return stop.exitCode;
    return await run(argv, { ...pathVariables(siblings), ...variables(server, isOld) }, stop);
  } catch (error) {
    // A signal also ends a start, which then fails.
    if (stop.signal.aborted) return stop.exitCode;
    throw error;
  } finally {
    for (const watcher of watchers) watcher.close();
    for (const { sibling } of siblings) sibling.remove();
    await server?.stop();
    stop.close();
  }
}

/** Return the command: the one after `--`, or `wrangler dev` with the given options. */
function commandOf(args: string[]): string[] {
  const divider = args.indexOf("--");
  const options = divider < 0 ? args : args.slice(0, divider);
  const rest = divider < 0 ? [] : args.slice(divider + 1);
  if (rest.length === 0) return ["wrangler", "dev", ...options];
  return options.length === 0 ? rest : [...rest, ...options];
}

function variables({ url, token }: Server, isOld: boolean): Record<string, string> {
  return { TAILRACE_URL: url, TAILRACE_TOKEN: token, ...(isOld ? wrangler3Variables(url, token) : {}) };
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
  const watcher = watch(dirname(original), (_event, name) => {
    if (name !== basename(original)) return;
    clearTimeout(timer);
    timer = setTimeout(update, WRITTEN_MILLISECONDS);
  });
  const close = (): void => {
    clearTimeout(timer);
    watcher.close();
  };
  return { close };
}
