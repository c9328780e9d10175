/** Returns the address and the token of the bridge when neither is configured. */

/** The bridge's default address. */
export const DEFAULT_URL = "http://127.0.0.1:8787";

/** Return TAILRACE_URL, or the bridge's default URL. */
export function defaultUrl(): string {
  return process.env.TAILRACE_URL || DEFAULT_URL;
}

/** Return TAILRACE_TOKEN, or a token for a bridge that accepts any. */
export function defaultToken(): string {
  return process.env.TAILRACE_TOKEN || "local-token";
}
