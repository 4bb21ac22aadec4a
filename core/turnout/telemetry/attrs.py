"""Every name a span, an event or a resource carries, once.

`gen_ai.*`, `http.*`, `server.*`, `error.*` and `service.*` are OpenTelemetry's semantic conventions (GenAI: development
status, the shape since v1.37). The `LEGACY` names are older ones on which people's alerts and dashboards stand today.
"""

# resource
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"

# GenAI conventions
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds, streams only
INPUT_TOKENS = "gen_ai.usage.input_tokens"  # cached ones too
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"  # reasoning ones too
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
CONVERSATION = "gen_ai.conversation.id"

# general conventions
ERROR_TYPE = "error.type"
HTTP_METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# LEGACY
SYSTEM = "gen_ai.system"
LLM_PROMPT = "llm.token_count.prompt"
LLM_COMPLETION = "llm.token_count.completion"
COST_USD = "cost_usd"  # double, of the whole request; left out where a price is not known

# ours
REQUEST_ID = "turnout.request_id"
ROUTE = "turnout.route"
SURFACE = "turnout.surface"
KEY = "turnout.key"
TENANT = "turnout.tenant"
SESSION = "turnout.session"
TAGS = "turnout.tags"
PROMPT_VERSION = "turnout.prompt_version"
CACHE = "turnout.cache"
GUARDRAIL = "turnout.guardrail"
FALLBACK = "turnout.fallback"
ATTEMPTS = "turnout.attempts"
TTFT_MS = "turnout.ttft_ms"
OVERHEAD_US = "turnout.overhead_us"
CONFIG_VERSION = "turnout.config_version"
UPSTREAM = "turnout.provider"  # the provider's name in the config
ACCOUNT = "turnout.account"
ATTEMPT = "turnout.attempt"  # 1 = the first
CAUSE = "turnout.cause"  # first | fallback | retry | hedge | cut-over
ATTEMPT_COST_USD = "turnout.attempt.cost_usd"  # not `cost_usd`: a sum over spans must count a request once
ESTIMATED = "turnout.usage.estimated"
FROM = "turnout.from"
TO = "turnout.to"
REASON = "turnout.reason"
CHARS = "turnout.delivered_chars"
OUTCOME = "turnout.outcome"  # continued | repeated | terminated
GAP_MS = "turnout.gap_ms"  # from the break to the client's next event

# span events
EVENT_TTFT = "turnout.ttft"
EVENT_FALLBACK = "turnout.fallback"
EVENT_CUTOVER = "turnout.cutover"

# A provider's kind in the config -> the conventions' word for it. A kind that is missing here goes out as it is.
PROVIDER_NAMES = {
    "azure": "azure.ai.openai",
    "azure-openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
