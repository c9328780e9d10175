/** Reads what miniflare 4 and 5 pass to a plugin, and finds the copy of miniflare that calls it. */

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { TailraceOptions } from "./index.js";

/** A binding of this plugin, as a Worker's configuration has it. */
export interface LocalBinding {
  name: string;
  options: TailraceOptions;
}

/** The part of miniflare's exports that this package uses. */
export interface Miniflare {
  ProxyNodeBinding: new () => object;
}

/** miniflare 4: the bindings of this plugin. */
type Version4 = { name: string; options?: TailraceOptions }[];
/** miniflare 5: the whole Worker. Its bindings are of all types. */
type Version5 = {
  config?: { env?: Record<string, { dev?: { plugin?: { name?: string }; options?: TailraceOptions } }> };
};

/**
 * Return this plugin's bindings among the options of a Worker.
 *
 * @param options - What miniflare passes to a plugin: an array (4), a Worker (5) or undefined.
 */
export function bindingsOf(options: unknown): LocalBinding[] {
  if (Array.isArray(options))
    return (options as Version4).map(({ name, options: own }) => ({ name, options: own ?? {} }));
  const bindings = Object.entries((options as Version5 | undefined)?.config?.env ?? {});
  return bindings
    .filter(([, binding]) => binding?.dev?.plugin?.name === "tailrace")
    .map(([name, binding]) => ({ name, options: binding.dev?.options ?? {} }));
}

const require = createRequire(import.meta.url);

/** Return the files in a stack trace, innermost first. */
function filesOf(error: Error): string[] {
  const found = (error.stack ?? "").matchAll(/(?:\(|at (?:async )?)((?:file:\/\/)?[^()\n]+?):\d+:\d+\)?$/gm);
  return [...found].map(([, path]) => (path?.startsWith("file://") ? fileURLToPath(path) : (path ?? "")));
}

/**
 * Return the copy of miniflare that called the plugin.
 *
 * npm may install several. miniflare recognises a proxy by its class, so that the class of another copy has no effect.
 *
 * @param error - An error created in the function that miniflare called. Its stack trace names miniflare's file.
 */
export async function callersMiniflare(error: Error): Promise<Miniflare> {
  const loaded = Object.entries(require.cache).filter(([, module]) => module?.exports?.ProxyNodeBinding !== undefined);
  const files = filesOf(error);
  const [, caller] = loaded.find(([path]) => files.includes(path)) ?? loaded.at(-1) ?? [];
  if (caller !== undefined) return caller.exports as Miniflare;
  const name = "miniflare";
  return (await import(name)) as Miniflare;
}
