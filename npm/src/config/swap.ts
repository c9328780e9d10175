/** Replaces the AI bindings of a wrangler configuration with bindings of this package's plugin. */

import type { TailraceOptions } from "../index.js";
import { ownFile } from "../paths.js";
import type { Config } from "./files.js";

/**
 * The path of the plugin. miniflare resolves a name from its own folder, where a package manager that isolates packages
 * has no `tailrace`. A path always works.
 */
export const PLUGIN_PATH = ownFile("index.js");

/** Any type other than "ai": wrangler warns about an unsafe binding whose type it supports by itself. */
const TYPE = "tailrace";

/** Return the binding that replaces `ai`. It is a member of `unsafe.bindings`. */
export function localBinding(name: string, options: TailraceOptions = {}, plugin: string = PLUGIN_PATH): object {
  return { name, type: TYPE, dev: { plugin: { package: plugin, name: "tailrace" }, options } };
}

/**
 * Replace the AI bindings of the top level and of all environments.
 *
 * @param config - The configuration. It is changed.
 * @param options - Options of the new bindings.
 * @returns The names of the replaced bindings, without duplicates.
 */
export function swapBindings(config: Config, options: TailraceOptions = {}): string[] {
  const environments = Object.values((config.env ?? {}) as Record<string, Config>);
  const names = [config, ...environments].map((section) => swapOne(section, options));
  return [...new Set(names.filter((name) => name !== undefined))];
}

function swapOne(section: Config, options: TailraceOptions): string | undefined {
  const name = (section?.ai as { binding?: unknown } | undefined)?.binding;
  if (typeof name !== "string") return undefined;
  const unsafe = (section.unsafe ?? {}) as { bindings?: object[] };
  delete section.ai;
  section.unsafe = { ...unsafe, bindings: [...(unsafe.bindings ?? []), localBinding(name, options)] };
  return name;
}
