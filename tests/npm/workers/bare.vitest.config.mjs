// Without the package: BINDING is the address of the bridge's listener for bindings (TAILRACE_BINDING_ADDRESS).
import { cloudflareTest } from "@cloudflare/vitest-POOL";

const ai = { binding: "AI", remoteProxyConnectionString: new URL(process.env.BINDING) };

export default {
  plugins: [cloudflareTest({ remoteBindings: false, wrangler: { configPath: "suite.jsonc" }, miniflare: { ai } })],
  test: { include: ["ai.test.mjs"] },
};
