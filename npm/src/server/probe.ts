/** Asks an address whether a bridge of Tailrace listens there. */

/** What listens at an address: a bridge that answers, one whose models still load, another program, nothing, or no answer in time. */
export type Found = "ready" | "loading" | "other" | "nothing" | "silent";

const PROBE_MILLISECONDS = 2000;

/** Return what listens at `url`. A bridge answers /readyz with a JSON object of its own form. */
export async function probe(url: string): Promise<Found> {
  let response: Response;
  try {
    const signal = AbortSignal.timeout(PROBE_MILLISECONDS);
    response = await fetch(new URL("/readyz", url), { signal, redirect: "manual" });
  } catch (error) {
    return (error as Error).name === "TimeoutError" ? "silent" : "nothing";
  }
  try {
    const { status } = (await response.json()) as { status?: unknown };
    if (response.status === 200 && status === "ready") return "ready";
    if (response.status === 503 && status === "not ready") return "loading";
  } catch {
    // not JSON: another program
  }
  return "other";
}

/**
 * Wait until the bridge at `url` is ready.
 *
 * @param signal - Ends the wait.
 * @returns Whether it is ready: false after `milliseconds`, or if the signal was aborted.
 */
export async function waitUntilReady(url: string, milliseconds: number, signal?: AbortSignal): Promise<boolean> {
  const deadline = Date.now() + milliseconds;
  while (!signal?.aborted) {
    if ((await probe(url)) === "ready") return true;
    if (Date.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return false;
}

/** Return whether the bridge at `url` accepts a token. A bridge without tokens accepts any. */
export async function acceptsToken(url: string, token: string): Promise<boolean> {
  const headers = { authorization: `Bearer ${token}` };
  const signal = AbortSignal.timeout(PROBE_MILLISECONDS);
  const response = await fetch(new URL("/v1/models", url), { headers, signal }).catch(() => undefined);
  return response?.status !== 401 && response?.status !== 403;
}
