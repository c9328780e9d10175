import { tailrace } from "tailrace/vitest";
import { cloudflareTest } from "@cloudflare/vitest-POOL";

export default {
  plugins: [cloudflareTest(tailrace({ wrangler: { configPath: "suite.jsonc" } }))],
  test: { globalSetup: ["tailrace/vitest"], include: ["ai.test.mjs"] },
};
