"""The bridge: Cloudflare's public Workers AI API (REST and SSE) in front, gRPC `Run` behind."""
