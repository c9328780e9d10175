import adapter from "@sveltejs/adapter-cloudflare";

export default {
  kit: { adapter: adapter({ platformProxy: { configPath: process.env.TAILRACE_WRANGLER_CONFIG } }) },
};
