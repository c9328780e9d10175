/** Finds a running Tailrace server, or starts one. */

import { defaultToken } from "./address.js";
import { Failure } from "./failure.js";
import { findLaunch } from "./server/command.js";
import { probe, waitUntilReady } from "./server/probe.js";
import { onStandardError, SILENT } from "./server/progress.js";
import type { Progress } from "./server/progress.js";
import { start } from "./server/start.js";

export { Failure } from "./failure.js";

/** Options of startServer. */
export interface ServerOptions {
  /** URL of a server that runs. Default: TAILRACE_URL. If neither is set, a server is looked for, or else started. */
  url?: string;
  /** API token for the server. Default: TAILRACE_TOKEN, or "local-token". */
  token?: string;
  /** The project's folder, in which a virtual environment may be. Default: the current folder. */
  folder?: string;
  /** Seconds until the server has to be ready. Default: TAILRACE_START_SECONDS, or 120. */
  seconds?: number;
  /** Print nothing on standard error. */
  quiet?: boolean;
}

/** A server that answers. */
export interface Server {
  /** URL of the bridge, without a path. */
  url: string;
  /** API token for it. */
  token: string;
  /** Whether this package started it. */
  started: boolean;
  /** Stop the server if this package started it, and wait until its processes have ended. */
  stop(): Promise<void>;
}

const DEFAULT_URL = "http://127.0.0.1:8787";
const DEFAULT_SECONDS = 120;

/** A started server and its number of users. All copies of this package in a process share it. */
interface Shared {
  server: Promise<Server>;
  users: number;
}
const SHARED = Symbol.for("tailrace.server");
const shared = globalThis as { [SHARED]?: Shared | undefined };

/**
 * Return a server that answers: the one at `url` or TAILRACE_URL, one on port 8787, or one that this function starts.
 *
 * A started server stops with `stop()`, and when this process ends, whatever the reason. Calls in one process share it.
 * The process' own TAILRACE_URL and TAILRACE_TOKEN are set to the server's, for the bindings of this process.
 *
 * @throws Failure - The configured server does not answer, or none can be started. The message says what to do.
 */
export async function startServer(options: ServerOptions = {}): Promise<Server> {
  const known = shared[SHARED];
  if (known !== undefined && options.url === undefined) {
    known.users++;
    return known.server;
  }
  const server = findOrStart(options);
  if (options.url === undefined) {
    shared[SHARED] = { server, users: 1 };
    server.catch(() => (shared[SHARED] = undefined));
  }
  const { url, token } = await server;
  process.env.TAILRACE_URL = url;
  process.env.TAILRACE_TOKEN = token;
  return server;
}

async function findOrStart(options: ServerOptions): Promise<Server> {
  const token = options.token ?? defaultToken();
  const milliseconds = 1000 * (options.seconds ?? (Number(process.env.TAILRACE_START_SECONDS) || DEFAULT_SECONDS));
  const progress = options.quiet ? SILENT : onStandardError();
  try {
    const url = await findRunning(options.url ?? process.env.TAILRACE_URL, milliseconds, progress);
    if (url !== undefined) return { url, token, started: false, stop: async () => undefined };
    const began = Date.now();
    const started = await start(findLaunch(options.folder ?? process.cwd()), milliseconds, progress);
    progress.done(`Tailrace is ready at ${started.url} after ${((Date.now() - began) / 1000).toFixed(1)} s.`);
    return { url: started.url, token, started: true, stop: once(() => release(started.stop)) };
  } finally {
    progress.end();
  }
}

/** Return the URL of a running server: the given one, or one on the usual port. */
async function findRunning(given: string | undefined, milliseconds: number, progress: Progress): Promise<string | undefined> {
  const url = given || DEFAULT_URL;
  if (!URL.canParse(url)) throw new Failure(`Tailrace's URL has to be like http://127.0.0.1:8787, not ${url}.`);
  const { origin } = new URL(url);
  const found = await probe(origin);
  if (found === "ready") progress.done(`Using the Tailrace server at ${origin}.`);
  if (found === "ready") return origin;
  if (found === "loading") {
    progress.stage(`Waiting for the Tailrace server at ${origin}, whose models load`);
    if (await waitUntilReady(origin, milliseconds)) return origin;
    throw new Failure(`The Tailrace server at ${origin} was not ready after ${Math.round(milliseconds / 1000)} s.`);
  }
  if (!given) return undefined;
  const what = found === "other" ? "another program listens there" : "nothing listens there";
  throw new Failure(`There is no Tailrace server at ${url}: ${what}. Start it, or unset TAILRACE_URL to have one started.`);
}

/** Stop the shared server after its last user. */
async function release(stop: () => Promise<void>): Promise<void> {
  shared[SHARED] = undefined;
  delete process.env.TAILRACE_URL;
  await stop();
}

function once(action: () => Promise<void>): () => Promise<void> {
  let result: Promise<void> | undefined;
  return () => {
    const known = shared[SHARED];
    if (known !== undefined && --known.users > 0) return Promise.resolve();
    return (result ??= action());
  };
}
