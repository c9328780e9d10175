/**
 * Provides a Vite plugin that gives Workers in `vite dev` a local AI binding. `vite build` is not affected.
 *
 * `plugins: [tailrace(), cloudflare()]`
 */

import { resolve } from "node:path";
import { findConfig } from "./config/files.js";
import type { Sibling } from "./config/sibling.js";
import { writeSibling } from "./config/sibling.js";
import { localBinding } from "./config/swap.js";
import type { ServerOptions } from "./server.js";
import { startServer } from "./server.js";

/** Options of the Vite plugin. */
export interface TailraceViteOptions extends ServerOptions {
  /** Path of the wrangler configuration. Default: the one in Vite's root, or above it. */
  configPath?: string;
}

/** The resolved configuration that @cloudflare/vite-plugin passes to its option `config`: the part that changes. */
export interface WorkerConfigLike {
  ai?: { binding: string } | undefined;
  unsafe?: { bindings?: unknown[] } | undefined;
}

/** The parts of Vite's plugin interface that this package uses. */
export interface TailraceVitePlugin {
  name: string;
  enforce: "pre";
  config(user: { root?: string }, env: { command: string; isPreview?: boolean; mode: string }): Promise<void>;
  configureServer(server: {
    watcher: { add(path: string): void; on(event: string, f: (path: string) => void): void };
  }): void;
  /** For the option `config` of `cloudflare()` and of its `auxiliaryWorkers`, if these set a `configPath`. */
  worker(config: WorkerConfigLike): void;
}

/** The variable from which @cloudflare/vite-plugin takes the path of the configuration if its options have none. */
const PATH_VARIABLE = "CLOUDFLARE_VITE_WRANGLER_CONFIG_PATH";

/** The copies of this process, by the path of their original. */
const copies = new Map<string, Sibling>();

/**
 * Return a Vite plugin that starts or finds a Tailrace server and replaces the AI binding while Vite serves.
 *
 * It has to precede `cloudflare()`. If `cloudflare()` has a `configPath`, pass `worker` as its `config` too.
 */
export function tailrace(options: TailraceViteOptions = {}): TailraceVitePlugin {
  let isServing = false;
  let sibling: Sibling | undefined;
  let original: string | undefined;
  return {
    name: "tailrace",
    enforce: "pre",

    async config(user, { command, isPreview }) {
      isServing = command === "serve" && !isPreview && !process.env.VITEST;
      if (!isServing) return;
      const root = resolve(user.root ?? process.cwd());
      original = originalIn(root, options.configPath);
      // The bindings read the server's address and token from the variables of this process, not from the copy.
      await startServer({ folder: root, ...options });
      if (original === undefined) return;
      // Vite calls this function again when it restarts.
      copies.get(original)?.remove();
      sibling = writeSibling(original);
      copies.set(original, sibling);
      process.env[PATH_VARIABLE] = sibling.path;
    },

    configureServer({ watcher }) {
      if (original === undefined) return;
      watcher.add(original);
      watcher.on("change", (changed) => changed === original && update(sibling));
    },

    worker(config) {
      const name = config.ai?.binding;
      if (!isServing || name === undefined) return;
      delete config.ai;
      config.unsafe = { ...config.unsafe, bindings: [...(config.unsafe?.bindings ?? []), localBinding(name)] };
    },
  };
}

/** Return the path of the configuration of which `cloudflare()` gets a copy, or undefined. */
function originalIn(root: string, configPath: string | undefined): string | undefined {
  const given = configPath ?? process.env[PATH_VARIABLE];
  if (!given) return findConfig(root);
  const path = resolve(root, given);
  const [known] = [...copies].find(([, copy]) => copy.path === path) ?? [];
  return known ?? path;
}

function update(sibling: Sibling | undefined): void {
  try {
    sibling?.update();
  } catch (error) {
    console.error(`[tailrace] ${(error as Error).message} The last valid configuration stays in use.`);
  }
}
