#!/bin/sh
# The command `tailrace` in the image. Inside a container the bridge listens on all addresses, for which it requires a token.
# The default token is not a secret: a published port decides which machines may use it (docs/docker.md).
if [ -z "${TAILRACE_API_TOKENS:-}${TAILRACE_API_TOKENS_FILE:-}" ]; then
    export TAILRACE_API_TOKENS=local-token TAILRACE_TOKEN="${TAILRACE_TOKEN:-local-token}"
    if [ "${1:-}" = serve ]; then
        echo "The API token is local-token (export TAILRACE_TOKEN=local-token). Set TAILRACE_API_TOKENS to replace it." >&2
    fi
fi
exec python -m tailrace_cli "$@"
