/**
 * Provides the helper for @cloudflare/vitest-plugin and @cloudflare/vitest-pool-workers, and a `globalSetup` for vitest.
 *
 * `plugins: [cloudflareTest(tailrace({ wrangler: { configPath: "./wrangler.jsonc" } }))]` and
 * `test: { globalSetup: ["tailrace/vitest"] }`.
 */

import { resolve } from "node:path";
import { findConfig } from "./config/files.js";
import { writeSibling } from "./config/sibling.js";
import { Failure } from "./failure.js";
import { startServer } from "./server.js";

/** The options of the Workers pool that this package changes. */
export interface WorkersPoolOptionsLike {
  wrangler?: { configPath?: string; environment?: string };
}

/**
 * Return the options of the Workers pool with a local AI binding.
 *
 * @param options - The pool's options. Without `wrangler.configPath`, the configuration of the current folder is used.
 * @throws Failure - There is no configuration, or it is invalid.
 */
export function tailrace<Options extends WorkersPoolOptionsLike>(options: Options = {} as Options): Options {
  const path = options.wrangler?.configPath;
  const original = path ? resolve(path) : findConfig(process.cwd());
  if (original === undefined) throw new Failure("There is no wrangler configuration: set wrangler.configPath.");
  return { ...options, wrangler: { ...options.wrangler, configPath: writeSibling(original).path } };
}

/** Start or find a server before the tests, and return the function that stops it after them. vitest calls this function. */
export async function setup(): Promise<() => Promise<void>> {
  const server = await startServer();
  return () => server.stop();
}
