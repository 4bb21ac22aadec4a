"""The commented starter config that `turnout init` writes. A test decodes it, so it names only what exists."""

TEMPLATE = """\
# Turnout's config. Checked as a whole: an unknown field or a bad value refuses the file and names the line.
#   turnout check turnout.yaml        says what is wrong, without starting anything
#   turnout serve --config turnout.yaml
# A changed file (or SIGHUP) is checked and swapped in while requests run; a bad one leaves the old config in place.
#
# Secrets stand here by reference only: env:NAME or file:/absolute/path. A literal is refused.
# Commented lines show the defaults.

listen:
  host: 127.0.0.1               # 0.0.0.0 to serve other machines
  port: 8080                    # 0: the system picks one and it is printed at start
  # workers: 1                  # processes, 1 to 256; one fills one core, so at most one per core
  # backlog: 4096               # connections that may wait to be accepted; the kernel's somaxconn caps it
  # max_connections: 20000      # per worker, idle ones counted; mind `ulimit -n`
  # header_timeout_ms: 5000     # a client must have sent its request head by then (slow-loris defence)
  # idle_timeout_ms: 75000      # an idle keep-alive connection is closed after this; longer than your load balancer's
  # body_timeout_ms: 30000      # ... and its body; raise it for big uploads over slow lines
  # max_body_bytes: 33554432    # 32 MiB; lower it if nobody sends images or audio
  # drain_s: 60                 # how long SIGTERM waits for running requests; at least as long as your longest stream
  # tls: null                   # or {cert: /path/cert.pem, key: "file:/path/key.pem"}; null is plain HTTP

# Who may ask. Clients send the key as `Authorization: Bearer`, `x-api-key` or `api-key`.
# Without any key Turnout does not start, except with --dev on a loopback address.
auth:
  keys:
    - name: app                 # shown in logs and metrics; the key itself never is
      key: env:TURNOUT_KEY      # make one with: openssl rand -hex 32
      # team: search            # keys of one team share caches and limits; not set: the key stands alone
      # tags: [prod]            # labels for logs and cost reports
      # models: ["*"]           # what this key may ask for; `*` stands for any run of characters
      # direct: false           # true: may also ask for `provider/model`, past the routes

# Where requests can go. Any server that speaks OpenAI's API: OpenAI, Azure (v1), vLLM, Groq, Mistral, OpenRouter ...
providers:
  openai:
    kind: openai
    base_url: https://api.openai.com/v1     # ends where /chat/completions begins; http only to loopback and private hosts
    api_key: env:OPENAI_API_KEY
    # headers: {}               # sent with every request, e.g. {HTTP-Referer: "https://example.com"} for OpenRouter
    # include_usage: true       # ask streams for their token counts; false for servers that refuse `stream_options`
    # ca_bundle: null           # PEM file, for a server with a certificate of your own; not set: the system's store
    # proxy: null               # http://host:port of an egress proxy; the environment's proxy variables are not read
    # max_idle_connections: 1024  # kept open for the next request, per worker
  # groq:
  #   kind: openai
  #   base_url: https://api.groq.com/openai/v1
  #   api_key: env:GROQ_API_KEY

# What clients ask for, and where that goes. A route's targets are tried until one answers.
routes:
  - name: fast
    match: {model: fast}        # what the client sends as `model`; `gpt-*` and `*` work too
    targets:
      - {provider: openai, model: gpt-4o-mini}      # without `model` the client's own model name is passed on
      # - {provider: groq, model: llama-3.3-70b-versatile, weight: 1}
    # routing_policy: {kind: ordered}   # ordered: as they stand here | weighted: by each target's share of the weights
    #                           # | least-latency | least-busy | round-robin | cost-optimized | usage | prefix-affinity
    #                           # | conditional
    # timeouts:                 # milliseconds; each one that passes moves the request to the next target
    #   connect_ms: 3000        # TCP and TLS; lower it when all targets are near
    #   ttft_ms: 15000          # streams: to the first token. 120000 for models that the catalog marks as reasoning
    #   idle_ms: 20000          # streams: silence between tokens
    #   plain_ms: 120000        # unstreamed: to the head of the answer. 600000 for reasoning models
    #   total_ms: 600000        # the whole request with all its attempts
    # retries:
    #   max: 2                  # how often targets that failed in this request are tried again, 0 to 10
    #   budget: 0.1             # retries earned per success: 0.1 = at most about 10 % more load when all is failing
    # hedge: null               # {}: a stream that is late with its first token is put to the next target as well, for
    #                           # at most 5 % more requests
    # stream:                   # a stream that breaks after its first token
    #   on_failure: continue    # another target goes on | restart: begins again inside a window | terminate: an error event
    #   tool_calls: hold        # shown once they are whole | pass: as they come, a cut in one is an error
    #   max_cutovers: 2         # per request
    # plain: pass               # assemble: upstreams stream what a client wants whole, so that cuts are repaired there too
    # max_body_bytes: null      # bytes; not set: that of `listen`
    # set: {}                   # body fields to write over the client's, e.g. {temperature: 0}

# /metrics and /admin, on a listener of their own.
# admin:
#   host: 127.0.0.1
#   port: 8081
#   key: null                   # env:NAME; required as soon as the host is not loopback

# log:
#   requests: all               # one JSON line per request on stdout: all | errors | off. Never prompts, never keys

# telemetry:
#   traces:
#     endpoint: null            # OTLP over HTTP, e.g. http://127.0.0.1:4318; not set: no traces
#     sample: 0.05              # share of requests that start a trace; a caller's sampled trace is always continued
#     service_name: turnout
#     headers: {}               # for the collector; values by reference, e.g. {x-token: env:OTLP_TOKEN}
#   alerts:
#     webhook: null             # env:NAME of a URL that hears of refused credentials and unknown models
#     every_s: 60               # the same alert at most this often

# state:
#   dir: ./turnout-state        # the ledger; put it on a disk that outlives the process

# Prices and sizes over the built-in table's, for models it lacks or that cost you something else.
# models:
#   my-llama: {input_usd_per_mtok: "0.20", output_usd_per_mtok: "0.60", context_tokens: 131072}
"""
