#!/bin/sh
# Sends the bridge on this machine the same prompt twice: first with the reply as a stream, then as one JSON body.
#
#   TAILRACE_HTTP_ADDRESS   address of the bridge; 127.0.0.1:8787 if unset
#   TAILRACE_TOKEN          an API token of the bridge; any text if it has no tokens
set -eu

address=${TAILRACE_HTTP_ADDRESS:-127.0.0.1:8787}
token=${TAILRACE_TOKEN:-any-token}
url="http://$address/client/v4/accounts/local/ai/run/@cf/meta/llama-2-7b-chat-int8"

# -N: show each event when it arrives. --fail-with-body: show an error's body, and exit with an error code.
curl -N --silent --show-error --fail-with-body -X POST "$url" \
    -H "Authorization: Bearer $token" \
    -H "Content-Type:application/json" \
    -d '{ "prompt": "where is new york?", "stream": true }'

curl --silent --show-error --fail-with-body -X POST "$url" \
    -H "Authorization: Bearer $token" \
    -H "Content-Type:application/json" \
    -d '{ "prompt": "where is new york?" }'
echo
