/** Finds a running Tailrace server, or starts one. */

import { DEFAULT_URL, defaultToken } from "./address.js";
import { Failure } from "./failure.js";
import { findLaunch } from "./server/command.js";
import { acceptsToken, probe, waitUntilReady } from "./server/probe.js";
import type { Progress } from "./server/progress.js";
import { onStandardError, SILENT } from "./server/progress.js";
import { start } from "./server/start.js";

export { Failure } from "./failure.js";

/** Options of startServer. */
export interface ServerOptions {
  /** URL of a server that runs. Default: TAILRACE_URL. If neither is set, a server is looked for, or else started. */
  url?: string;
  /** API token for the server. Default: TAILRACE_TOKEN, or "local-token". */
  token?: string;
  /** The project's folder. A virtual environment in it, or above it, may have a server. Default: the current folder. */
  folder?: string;
  /** Seconds until the server has to be ready. Default: TAILRACE_START_SECONDS, or 120. */
  seconds?: number;
  /** Whether to print nothing on standard error. */
  quiet?: boolean;
  /** Ends the start. startServer then throws, and leaves no process. */
  signal?: AbortSignal;
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

const DEFAULT_SECONDS = 120;

const refused = (url: string): string =>
  `The Tailrace server at ${url} refuses the token: set TAILRACE_TOKEN to one that it accepts.`;

/** The server of this process and its number of users. All copies of this package in a process share it. */
interface Shared {
  server: Promise<Server>;
  users: number;
}
const SHARED = Symbol.for("tailrace.server");
const shared = globalThis as { [SHARED]?: Shared | undefined };

/**
 * Return a server that answers: the one at `url` or TAILRACE_URL, one on port 8787, or one that this function starts.
 *
 * A started server stops when the last caller has called `stop()`, and when this process ends, whatever the reason. Calls
 * in one process share it. TAILRACE_URL and TAILRACE_TOKEN of this process are set to the server's, for its bindings.
 *
 * @throws Failure - The configured server does not answer, or none can be started. The message says what to do.
 */
export async function startServer(options: ServerOptions = {}): Promise<Server> {
  const own = shared[SHARED] ?? { server: findOrStart(options), users: 0 };
  shared[SHARED] = own;
  own.users++;
  let server: Server;
  try {
    server = await own.server;
  } catch (error) {
    if (shared[SHARED] === own) shared[SHARED] = undefined;
    throw error;
  }
  let isStopped = false;
  const stop = async (): Promise<void> => {
    if (isStopped) return;
    isStopped = true;
    if (--own.users > 0) return;
    if (shared[SHARED] === own) shared[SHARED] = undefined;
    await server.stop();
  };
  return { ...server, stop };
}

async function findOrStart(options: ServerOptions): Promise<Server> {
  const token = options.token ?? defaultToken();
  const seconds = options.seconds ?? (Number(process.env.TAILRACE_START_SECONDS) || DEFAULT_SECONDS);
  const progress = options.quiet ? SILENT : onStandardError();
  const before = { TAILRACE_URL: process.env.TAILRACE_URL, TAILRACE_TOKEN: process.env.TAILRACE_TOKEN };
  try {
    const given = options.url ?? process.env.TAILRACE_URL;
    const found = await findRunning(given, 1000 * seconds, progress, options.signal);
    const stop = async (): Promise<void> => restore(before);
    if (found !== undefined) {
      if (!(await acceptsToken(found, token))) throw new Failure(refused(found));
      return use({ url: found, token, started: false, stop });
    }
    const launch = findLaunch(options.folder ?? process.cwd(), token);
    const started = await start(launch, 1000 * seconds, progress, options.signal);
    if (!(await acceptsToken(started.url, token))) {
      await started.stop();
      throw new Failure(refused(started.url));
    }
    progress.done(`Tailrace is ready at ${started.url} after ${started.seconds.toFixed(1)} s.`);
    const end = async (): Promise<void> => {
      restore(before);
      await started.stop();
    };
    return use({ url: started.url, token, started: true, stop: end });
  } finally {
    progress.end();
  }
}

/** Let the bindings of this process use the server. */
function use(server: Server): Server {
  process.env.TAILRACE_URL = server.url;
  process.env.TAILRACE_TOKEN = server.token;
  return server;
}

function restore(before: Record<string, string | undefined>): void {
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

/** Return the URL of a running server: the given one, or one on the usual port. */
async function findRunning(
  given: string | undefined,
  milliseconds: number,
  progress: Progress,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const url = given || DEFAULT_URL;
  if (!URL.canParse(url)) throw new Failure(`Tailrace's URL has to be like ${DEFAULT_URL}, but it is ${url}.`);
  const { origin } = new URL(url);
  let found = await probe(origin);
  if (found === "loading") {
    progress.stage(`Waiting for the Tailrace server at ${origin}, whose models load`);
    if (!(await waitUntilReady(origin, milliseconds, signal))) {
      throw new Failure(`The Tailrace server at ${origin} was not ready after ${Math.round(milliseconds / 1000)} s.`);
    }
    found = "ready";
  }
  if (found === "ready") {
    progress.done(`Using the Tailrace server at ${origin}.`);
    return origin;
  }
  if (!given) return undefined;
  const reasons = { other: "another program listens there", silent: "it does not answer in 2 s" };
  const what = found in reasons ? reasons[found as keyof typeof reasons] : "nothing listens there";
  throw new Failure(
    `There is no Tailrace server at ${url}: ${what}. Start it, or unset TAILRACE_URL to have one started.`,
  );
}
