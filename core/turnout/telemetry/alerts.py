"""Alerts: what needs a person, once, with what to do about it.

`Rule` is pure: records and the time in, alerts out. A provider that refuses our credential (401, 403) or does not know
the model (404) will go on doing so, while every request quietly falls back and costs more: nobody notices by
themselves. The same holds for a ledger that cannot be written. Each is told at most once per `every_s`.
"""

import queue
import threading
from collections.abc import Callable, Sequence

import msgspec

from ..exchange import Attempt
from .record import Record

CREDENTIAL = "credential_refused"
MODEL = "model_not_found"
LEDGER = "ledger_write_failed"

# An attempt's reason -> the alert. Normally the provider's status; the kind of the fault where it had none.
BY_REASON = {"401": CREDENTIAL, "403": CREDENTIAL, "404": MODEL, "credential": CREDENTIAL, "not_found": MODEL}

# A caller who may name models freely can make up as many wrong ones as they like: neither memory nor mail may follow.
MOST_KEYS = 1_000
MOST_PER_WINDOW = 20

MOST_POSTS = 100
POST_S = 3.0
CLOSE_S = 4.0


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """One alert. `seen` counts how often it happened since the last time it was told, this time included."""

    alert: str
    message: str
    do: str
    provider: str = ""
    account: str = ""
    model: str = ""
    reason: str = ""
    seen: int = 1


class Rule:
    """Which alerts are due. Times are monotonic nanoseconds."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.suppressed = 0  # not told because too many different ones were due at once
        self._told: dict[tuple[str, str, str, str], list[int]] = {}  # -> [when told, seen since]
        self._window_ns = 0
        self._in_window = 0

    def of_attempts(self, attempts: Sequence[Attempt], now_ns: int) -> list[Alert]:
        """Alerts due for a request's attempts; nearly always none."""
        out: list[Alert] = []
        for a in attempts:
            if a.reason and (name := BY_REASON.get(a.reason)):
                seen = self._due((name, a.provider, a.account, a.model), now_ns)
                if seen:
                    out.append(_of_attempt(name, a, seen))
        return out

    def of_ledger(self, error: str, lost: int, waiting_bytes: int, now_ns: int) -> Alert | None:
        """The alert that is due while the ledger cannot be written, else None. `error` empty: all is well."""
        if not error:
            return None
        seen = self._due((LEDGER, "", "", ""), now_ns)
        if not seen:
            return None
        gone = f", {lost} rows are lost" if lost else ", none is lost yet"
        return Alert(
            LEDGER,
            f"the ledger cannot be written: {error}; {waiting_bytes} bytes of rows wait in memory{gone}",
            "make room or give back the right to write in state.dir; rows are kept in memory up to 16 MiB and retried",
        )

    def _due(self, key: tuple[str, str, str, str], now_ns: int) -> int:
        """How often it was seen since it was last told, if it is to be told now; else 0."""
        every_ns = int(self.every_s * 1e9)
        entry = self._told.get(key)
        if entry is not None:
            entry[1] += 1
            if now_ns - entry[0] < every_ns:
                return 0
        if key[0] != LEDGER:
            if now_ns - self._window_ns >= every_ns:
                self._window_ns, self._in_window = now_ns, 0
            if self._in_window >= MOST_PER_WINDOW:
                self.suppressed += 1
                return 0
            self._in_window += 1
        seen = entry[1] if entry is not None else 1
        self._told.pop(key, None)
        if len(self._told) >= MOST_KEYS:
            del self._told[next(iter(self._told))]  # the one told longest ago
        self._told[key] = [now_ns, 0]
        return seen


def _of_attempt(name: str, a: Attempt, seen: int) -> Alert:
    who = f"{a.provider} (account {a.account})" if a.account else a.provider
    model = a.model[:200]
    if name == CREDENTIAL:
        message = (
            f"{who} refused our credential with {a.reason} for model {model}; requests go to other targets or fail"
        )
        do = f"check the api_key of provider {a.provider}, and that it may use {model}"
    else:
        message = f"{who} does not know model {model} ({a.reason}); requests go to other targets or fail"
        do = f"check the model name in the targets of provider {a.provider}, and its base_url"
    return Alert(name, message, do, a.provider, a.account, model, a.reason, seen)


def slack(alert: Alert) -> bytes:
    """The webhook's body: `{"text": ...}`, which Slack, Mattermost and others take. Names cannot mention anybody."""
    text = f"[turnout] {alert.alert}: {alert.message}. To do: {alert.do}."
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(raw, safe)
    return msgspec.json.encode({"text": text})


class Webhook:
    """POSTs bodies to one URL from a thread of its own, which starts with the first. Bounded: full = drop and count.

    The URL is a credential: it is never printed, and of an exception only the class is told.
    """

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self.url = url
        self.lost = 0
        self._say = say
        self._queue: queue.Queue[bytes | None] = queue.Queue(MOST_POSTS)
        self._thread: threading.Thread | None = None

    def post_nowait(self, body: bytes) -> None:
        """Hand over one body. Never waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(body)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Wait for what is under way, at most `CLOSE_S`."""
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        import httpx  # 60 ms and 10 MB that most processes never need

        while (body := self._queue.get()) is not None:
            try:
                answer = httpx.post(
                    self.url, content=body, headers={"content-type": "application/json"}, timeout=POST_S
                )
                trouble = "" if answer.is_success else f"answered {answer.status_code}"
            except Exception as e:  # whatever it was, the next alert gets its try
                trouble = type(e).__name__
            if trouble:
                self.lost += 1
                self._say(f"an alert did not reach the webhook: {trouble}")


class Alerts:
    """The sink: what is due goes to `tell` (one alert, as a line on stderr) and to the webhook, if there is one."""

    name = "alerts"

    def __init__(
        self, rule: Rule, webhook: Webhook | None, tell: Callable[[Alert], None], now_ns: Callable[[], int]
    ) -> None:
        self.rule = rule
        self.webhook = webhook
        self._tell = tell
        self._now_ns = now_ns

    def add(self, record: Record) -> None:
        """Look at one record."""
        for alert in self.rule.of_attempts(record.attempts, self._now_ns()):
            self.raise_(alert)

    def raise_(self, alert: Alert) -> None:
        """Tell one alert that is due."""
        self._tell(alert)
        if self.webhook is not None:
            self.webhook.post_nowait(slack(alert))

    def flush(self, now_ns: int) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Let the webhook finish."""
        if self.webhook is not None:
            self.webhook.close()
