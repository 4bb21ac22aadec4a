"""Every failure of a request, and the one table that turns it into a status and an OpenAI-shaped body.

A `Fault` is made at the edge where a failure is first understood: a socket, a parser, a rule. It says whose fault it
is (`source`), what happened (`kind`) and where trying again makes sense (`retry`). Nothing else writes error bodies.
"""

import msgspec

# Whose fault it is: decides who is told, and whether a breaker learns from it.
CLIENT = "client"
GATEWAY = "gateway"
UPSTREAM = "upstream"

# Where a second try makes sense.
NEVER = "never"  # the request itself is at fault: every target would say the same
SAME = "same"  # the same target may do better in a moment, others too
OTHER = "other"  # not there again in this request, but another target may do
# There is no "only if unsent" here: a pooled connection that the peer had closed before it saw the request is opened
# again inside the upstream client (upstream/client.py), which is the one place that knows nothing was sent.


class Row(msgspec.Struct, frozen=True):
    """One line of the table: what the client gets for a kind of fault."""

    status: int
    type: str
    code: str
    source: str
    retry: str = NEVER


# kind -> what the client sees and where we may try again. The types are OpenAI's; the codes are stable names that
# users alert on. 502 and 504 are what a client's own retry logic understands as "the other side's fault".
TABLE: dict[str, Row] = {
    # the caller's
    "bad_json": Row(400, "invalid_request_error", "invalid_json", CLIENT),
    "duplicate_field": Row(400, "invalid_request_error", "duplicate_field", CLIENT),
    "missing_field": Row(400, "invalid_request_error", "missing_required_parameter", CLIENT),
    "bad_field": Row(400, "invalid_request_error", "invalid_value", CLIENT),
    "bad_header": Row(400, "invalid_request_error", "invalid_header", CLIENT),
    "bad_host": Row(400, "invalid_request_error", "invalid_host", CLIENT),
    "truncated_body": Row(400, "invalid_request_error", "truncated_body", CLIENT),
    "bad_encoding": Row(415, "invalid_request_error", "unsupported_content_encoding", CLIENT),
    "no_key": Row(401, "invalid_request_error", "invalid_api_key", CLIENT),
    "bad_key": Row(401, "invalid_request_error", "invalid_api_key", CLIENT),
    "not_allowed": Row(403, "invalid_request_error", "model_not_allowed", CLIENT),
    "no_path": Row(404, "invalid_request_error", "unknown_url", CLIENT),
    "no_route": Row(404, "invalid_request_error", "model_not_found", CLIENT),
    "bad_method": Row(405, "invalid_request_error", "method_not_allowed", CLIENT),
    "body_timeout": Row(408, "invalid_request_error", "request_timeout", CLIENT),
    "too_large": Row(413, "invalid_request_error", "request_too_large", CLIENT),
    "client_gone": Row(499, "invalid_request_error", "client_closed_request", CLIENT),
    # the provider said the request itself is wrong: handed on as it is
    "refused": Row(400, "invalid_request_error", "invalid_request", CLIENT),
    # the provider's
    "connect": Row(502, "upstream_error", "upstream_connect_failed", UPSTREAM, SAME),
    "tls": Row(502, "upstream_error", "upstream_tls_failed", UPSTREAM, OTHER),
    "reset": Row(502, "upstream_error", "upstream_reset", UPSTREAM, SAME),
    "protocol": Row(502, "upstream_error", "upstream_protocol_error", UPSTREAM, OTHER),
    "content_type": Row(502, "upstream_error", "upstream_content_type", UPSTREAM, OTHER),
    "bad_answer": Row(502, "upstream_error", "upstream_bad_answer", UPSTREAM, SAME),
    "answer_too_large": Row(502, "upstream_error", "upstream_answer_too_large", UPSTREAM, OTHER),
    "server_error": Row(502, "upstream_error", "upstream_error", UPSTREAM, SAME),
    "overloaded": Row(503, "upstream_error", "upstream_overloaded", UPSTREAM, SAME),
    "rate_limited": Row(429, "rate_limit_error", "rate_limit_exceeded", UPSTREAM, SAME),
    "credential": Row(502, "upstream_error", "upstream_credential_refused", UPSTREAM, OTHER),
    "not_found": Row(502, "upstream_error", "upstream_model_not_found", UPSTREAM, OTHER),
    # a target that was silent once is silent again more often than not, and the client has waited long enough
    "connect_timeout": Row(504, "timeout_error", "upstream_connect_timeout", UPSTREAM, OTHER),
    "ttft_timeout": Row(504, "timeout_error", "upstream_first_token_timeout", UPSTREAM, OTHER),
    "plain_timeout": Row(504, "timeout_error", "upstream_timeout", UPSTREAM, OTHER),
    "idle_timeout": Row(504, "timeout_error", "upstream_idle_timeout", UPSTREAM, OTHER),
    "total_timeout": Row(504, "timeout_error", "request_timeout", GATEWAY),
    "interrupted": Row(502, "upstream_error", "upstream_stream_interrupted", UPSTREAM, OTHER),
    # ours
    "no_seam": Row(502, "upstream_error", "upstream_stream_interrupted", GATEWAY, OTHER),  # its answer cannot be joined
    "no_target": Row(503, "upstream_error", "no_target_available", GATEWAY),
    "draining": Row(503, "server_error", "shutting_down", GATEWAY),
    # RFC 9111, 5.2.1.7: nothing is kept that would answer the request, and it must not be asked for
    "not_cached": Row(504, "invalid_request_error", "not_cached", GATEWAY),
    "internal": Row(500, "server_error", "internal_error", GATEWAY),
}

TIMEOUTS = frozenset(kind for kind in TABLE if kind.endswith("_timeout"))


class Fault(Exception):
    """One failure of a request or of an attempt.

    `kind` is a key of `TABLE`. `message` is for the caller: what was wrong, which field, what to do; it holds no
    key or stack trace. `said` is what the provider said: it may repeat the prompt, so the client gets it and logs get
    only `note`, our own words. `param` names the request field. `retry_after_s` is how long the upstream asked us to
    stay away. `upstream_status` and `body` keep what a provider said, where it is handed on as it is.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        said: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        upstream_status: int = 0,
        body: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        retry: str | None = None,
    ) -> None:
        super().__init__(message)
        row = TABLE[kind]
        self.kind = kind
        self.note = message
        self.message = f"{message}: {said}" if said else message
        self.param = param
        self.code = code or row.code
        self.retry_after_s = retry_after_s
        self.upstream_status = upstream_status
        self.body = body
        self.headers = headers
        self.source = row.source
        self.retry = retry or row.retry

    @property
    def status(self) -> int:
        """The status the client gets: the provider's own where its refusal is handed on, else the table's."""
        return self.upstream_status if self.kind == "refused" else TABLE[self.kind].status

    @property
    def reason(self) -> str:
        """The short word for headers, logs and metrics: the upstream's status where it had one, else the kind."""
        return str(self.upstream_status) if self.upstream_status else self.kind

    def to_body(self) -> bytes:
        """The OpenAI-shaped error body. A refusal that the provider worded itself is handed on byte for byte."""
        if self.kind == "refused" and self.body:
            return self.body
        return error_body(self.message, TABLE[self.kind].type, self.param, self.code)


def error_body(message: str, type_: str, param: str | None, code: str | None) -> bytes:
    """`{"error": {message, type, param, code}}`: all four keys, because the SDKs read all four."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
