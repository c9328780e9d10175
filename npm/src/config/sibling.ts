/** Writes a changed copy of a wrangler configuration into the same folder, so that its relative paths hold. */

import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Failure } from "../failure.js";
import type { TailraceOptions } from "../index.js";
import { isRunning } from "../processes.js";
import { readConfig } from "./files.js";
import { swapBindings } from "./swap.js";

/** The name contains the process id, so that a later start recognises the file of a process that crashed. */
const NAME = /^\.tailrace-(\d+)-\d+\.wrangler\.json$/;
const PATTERN = ".tailrace-*.wrangler.json";
let count = 0;

/** A changed copy of a configuration. */
export interface Sibling {
  /** Path of the copy. */
  path: string;
  /** Names of the replaced bindings. */
  bindings: string[];
  /** Write the copy again, after the configuration changed. Throws Failure if it is invalid, and keeps the copy. */
  update(): void;
  /** Delete the copy. */
  remove(): void;
}

/**
 * Write a copy of a configuration in which all AI bindings call Tailrace. It is deleted when this process ends.
 *
 * @param original - Path of the project's configuration.
 * @param options - Options of the bindings.
 * @throws Failure - The configuration is missing or invalid.
 */
export function writeSibling(original: string, options: TailraceOptions = {}): Sibling {
  const folder = dirname(resolve(original));
  removeStale(folder);
  const config = readConfig(original);
  // wrangler warns that "unsafe" may change. If the project does not contain this field, its users need no warning.
  const hasUnsafe = JSON.stringify(config).includes('"unsafe":');
  if (!hasUnsafe) process.env.WRANGLER_DISABLE_EXPERIMENTAL_WARNING ??= "1";
  const bindings = swapBindings(config, options);
  const path = join(folder, `.tailrace-${process.pid}-${count++}.wrangler.json`);
  ignore(folder);
  const remove = (): void => {
    process.off("exit", remove);
    for (const name of [path, `${path}.new`]) rmSync(name, { force: true });
  };
  const write = (value: object): void => {
    try {
      writeFileSync(`${path}.new`, `${JSON.stringify(value, null, 2)}\n`, { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (error) {
      throw new Failure(`The copy of ${original} cannot be written: ${(error as Error).message}.`);
    }
  };
  process.on("exit", remove);
  write(config);
  const update = (): void => {
    const changed = readConfig(original);
    swapBindings(changed, options);
    write(changed);
  };
  return { path, bindings, update, remove };
}

/** Delete the copies in a folder whose process has ended. */
function removeStale(folder: string): void {
  for (const name of existsSync(folder) ? readdirSync(folder) : []) {
    const pid = NAME.exec(name.replace(/\.new$/, ""))?.[1];
    if (pid !== undefined && Number(pid) !== process.pid && !isRunning(Number(pid)))
      rmSync(join(folder, name), { force: true });
  }
}

/** Add the copies' pattern to the clone's own list of ignored files, so that `git add .` never adds one. */
function ignore(folder: string): void {
  let file: string;
  try {
    const output = execFileSync("git", ["rev-parse", "--git-path", "info/exclude"], {
      cwd: folder,
      stdio: ["ignore", "pipe", "ignore"],
    });
    file = resolve(folder, output.toString().trim());
  } catch {
    return; // no git, or no repository
  }
  try {
    const text = existsSync(file) ? readFileSync(file, "utf8") : "";
    if (text.split("\n").includes(PATTERN)) return;
    mkdirSync(dirname(file), { recursive: true });
    appendFileSync(file, `${text === "" || text.endsWith("\n") ? "" : "\n"}${PATTERN}\n`);
  } catch {
    // A repository that cannot be written is no reason to stop.
  }
}
