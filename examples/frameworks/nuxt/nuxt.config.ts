export default defineNuxtConfig({
  compatibilityDate: "2026-08-01",
  nitro: { preset: "cloudflare_module" },
});
