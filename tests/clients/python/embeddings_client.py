"""The embeddings of OpenAI's SDK, LangChain and LiteLLM: prints the first values of each client's vectors as JSON."""

import json
import sys

import litellm
from langchain_cloudflare import CloudflareWorkersAIEmbeddings
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI

host, model, account = sys.argv[1:]
TEXTS = ["where is new york?", "the city on the Hudson", "a recipe for bread"]

# OpenAI's SDK asks for vectors in base64 and decodes them itself.
sdk = OpenAI(base_url=f"{host}/v1", api_key="any-token", max_retries=0)
# Without check_embedding_ctx_length=False, LangChain sends the ids of OpenAI's own tokenizer instead of text.
over_openai = OpenAIEmbeddings(
    base_url=f"{host}/v1", api_key="any-token", model=model, check_embedding_ctx_length=False, max_retries=0
)
over_cloudflare = CloudflareWorkersAIEmbeddings(
    account_id=account, api_token="any-token", model_name=model, api_base_url=f"{host}/client/v4/accounts"
)
over_litellm = litellm.embedding(model=f"openai/{model}", api_base=f"{host}/v1", api_key="any-token", input=TEXTS)
vectors = {
    "openai": [each.embedding for each in sdk.embeddings.create(model=model, input=TEXTS).data],
    "openai, as numbers": [
        each.embedding for each in sdk.embeddings.create(model=model, input=TEXTS, encoding_format="float").data
    ],
    "langchain, openai": over_openai.embed_documents(TEXTS),
    "langchain, openai, a query": [over_openai.embed_query(text) for text in TEXTS],
    "langchain, cloudflare": over_cloudflare.embed_documents(TEXTS),
    "langchain, cloudflare, a query": [over_cloudflare.embed_query(text) for text in TEXTS],
    "litellm": [each["embedding"] for each in over_litellm.data],
}
print(json.dumps(vectors))
