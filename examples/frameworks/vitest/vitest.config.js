import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { tailrace } from "tailrace/vitest";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [cloudflareTest(tailrace({ wrangler: { configPath: "./wrangler.jsonc" } }))],
  test: { globalSetup: ["tailrace/vitest"] },
});
