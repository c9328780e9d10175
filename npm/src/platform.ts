/** Provides getPlatformProxy with a local AI binding, for frameworks that run in Node: SvelteKit, Nuxt, Astro and others. */

import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { GetPlatformProxyOptions, PlatformProxy } from "wrangler";
import { findConfig } from "./config/files.js";
import { writeSibling } from "./config/sibling.js";
import { Failure } from "./failure.js";
import type { Server } from "./server.js";
import { startServer } from "./server.js";

/**
 * Return the bindings of a wrangler configuration for use in Node, as wrangler's function of this name does.
 *
 * The AI binding calls Tailrace. A running server is used, or one is started and stops with `dispose()`.
 *
 * @param options - wrangler's options.
 * @throws Failure - There is no configuration, wrangler is not installed, or no server can be started.
 */
export async function getPlatformProxy<
  Env = Record<string, unknown>,
  CfProperties extends Record<string, unknown> = any,
>(options: GetPlatformProxyOptions = {}): Promise<PlatformProxy<Env, CfProperties>> {
  const original = options.configPath ? resolve(options.configPath) : findConfig(process.cwd());
  if (original === undefined) {
    throw new Failure("There is no wrangler configuration in this folder or above it: set configPath.");
  }
  const wrangler = await importWrangler(dirname(original));
  const sibling = writeSibling(original);
  let server: Server | undefined;
  try {
    server = await startServer({ folder: dirname(original) });
    const { stop } = server;
    const proxy = await wrangler.getPlatformProxy<Env, CfProperties>({ ...options, configPath: sibling.path });
    const dispose = async (): Promise<void> => {
      await proxy.dispose();
      await stop();
    };
    return { ...proxy, dispose };
  } catch (error) {
    await server?.stop();
    throw error;
  } finally {
    sibling.remove();
  }
}

/** Import the project's wrangler. A package that is linked into a project would find another one, or none. */
async function importWrangler(folder: string): Promise<typeof import("wrangler")> {
  for (const from of [folder, process.cwd()]) {
    try {
      const path = createRequire(join(from, "package.json")).resolve("wrangler");
      const module = (await import(pathToFileURL(path).href)) as typeof import("wrangler") & {
        default?: typeof import("wrangler");
      };
      return module.getPlatformProxy === undefined && module.default !== undefined ? module.default : module;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "MODULE_NOT_FOUND") throw error;
    }
  }
  throw new Failure(`wrangler is not installed in ${folder}: run npm install --save-dev wrangler.`);
}
