/** Supports wrangler 3, whose AI binding takes its address from variables. */

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

/** Return whether the project in a folder has wrangler 3. */
export function isWrangler3(folder: string): boolean {
  try {
    const path = createRequire(join(folder, "package.json")).resolve("wrangler/package.json");
    return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version.startsWith("3.");
  } catch {
    return false;
  }
}

/** Return the variables that direct the AI binding of wrangler 3 to Tailrace. */
export function wrangler3Variables(url: string, token: string): Record<string, string> {
  return {
    CLOUDFLARE_API_BASE_URL: `${url}/client/v4`,
    CLOUDFLARE_API_TOKEN: token,
    CLOUDFLARE_ACCOUNT_ID: "0".repeat(32),
  };
}
