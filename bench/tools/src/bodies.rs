//! The requests: `small`, one message of 284 bytes, and `agent`, 20 KB as a coding agent sends them. Always the same
//! bytes: text comes from a fixed generator, so figures of different days are of the same requests.

const AGENT_BYTES: usize = 20_400;
const SMALL_BYTES: usize = 284;
const WORDS: &[&str] = &[
    "the",
    "request",
    "handler",
    "must",
    "return",
    "before",
    "any",
    "socket",
    "is",
    "closed",
    "and",
    "tests",
    "should",
    "cover",
    "each",
    "branch",
    "of",
    "parser",
    "when",
    "upstream",
    "sends",
    "partial",
    "frames",
    "because",
    "retry",
    "policy",
    "counts",
    "tokens",
    "per",
    "tenant",
    "while",
    "ledger",
    "stays",
    "consistent",
    "with",
    "queue",
];
const TOOLS: &[(&str, &str)] = &[
    ("read_file", "path"),
    ("write_file", "path"),
    ("list_dir", "path"),
    ("search", "pattern"),
    ("run_tests", "target"),
    ("shell", "command"),
    ("git_diff", "revision"),
    ("fetch_url", "url"),
];

/// The JSON body for `model`. `stream` asks for events and for the usage at their end.
pub fn small(model: &str, stream: bool) -> String {
    let body = |text: &str| {
        format!(
            r#"{{"model":"{model}","messages":[{{"role":"user","content":"{text}"}}],"temperature":0.7,"max_tokens":256,"user":"user-4711"{}}}"#,
            tail(stream)
        )
    };
    let asked = "Explain in three sentences how a railway turnout moves a running train to another track, and what keeps it from derailing when the switch is thrown late. ";
    let plain_len = body("").len() - tail(stream).len() - model.len() + 1;
    body(&cycled(asked, SMALL_BYTES.saturating_sub(plain_len)))
}

/// 15 messages with tool calls and tool results, 8 tools, a long system prompt.
pub fn agent(model: &str, stream: bool) -> String {
    let mut text = Text(7);
    let mut messages = vec![format!(r#"{{"role":"user","content":"{}"}}"#, text.words(60))];
    for turn in 0..6 {
        let (tool, param) = TOOLS[turn % TOOLS.len()];
        messages.push(format!(
            concat!(
                r#"{{"role":"assistant","content":"{}","tool_calls":[{{"id":"call_{:024}","type":"function","#,
                r#""function":{{"name":"{}","arguments":"{{\"{}\":\"src/engine/{}.py\",\"note\":\"{}\"}}"}}}}]}}"#
            ),
            text.words(18),
            turn,
            tool,
            param,
            text.words(1),
            text.words(14)
        ));
        messages.push(format!(r#"{{"role":"tool","tool_call_id":"call_{turn:024}","content":"{}"}}"#, text.lines(11)));
    }
    messages.push(format!(r#"{{"role":"user","content":"{}"}}"#, text.words(40)));
    let tools: Vec<String> = TOOLS
        .iter()
        .map(|(name, param)| {
            format!(
                concat!(
                    r#"{{"type":"function","function":{{"name":"{}","description":"{}","parameters":{{"type":"object","#,
                    r#""properties":{{"{}":{{"type":"string","description":"{}"}},"note":{{"type":"string","description":"{}"}},"#,
                    r#""limit":{{"type":"integer","minimum":1,"maximum":500}}}},"required":["{}"],"additionalProperties":false}},"strict":true}}}}"#
                ),
                name, text.words(24), param, text.words(10), text.words(10), param
            )
        })
        .collect();
    let body = |system: &str| {
        format!(
            r#"{{"model":"{model}","messages":[{{"role":"system","content":"{system}"}},{}],"tools":[{}],"tool_choice":"auto","temperature":0.2,"max_tokens":2048{}}}"#,
            messages.join(","),
            tools.join(","),
            tail(stream)
        )
    };
    let room = AGENT_BYTES.saturating_sub(body("").len());
    // Plain words, nothing escaped: it may be cut anywhere.
    body(&cycled(&text.words(2000), room))
}

fn tail(stream: bool) -> &'static str {
    if stream {
        r#","stream":true,"stream_options":{"include_usage":true}"#
    } else {
        ""
    }
}

fn cycled(text: &str, len: usize) -> String {
    text.chars().cycle().take(len).collect()
}

/// Words in an order that looks like text and is always the same.
struct Text(u64);

impl Text {
    fn words(&mut self, n: usize) -> String {
        let mut out = Vec::with_capacity(n);
        for _ in 0..n {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.push(WORDS[(self.0 >> 33) as usize % WORDS.len()]);
        }
        out.join(" ")
    }

    /// As a tool prints it: lines with quotes, escaped for JSON.
    fn lines(&mut self, n: usize) -> String {
        (0..n)
            .map(|i| format!("{:>4}: {} = \\\"{}\\\"", i, self.words(3), self.words(5)))
            .collect::<Vec<_>>()
            .join("\\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_sizes() {
        assert_eq!(small("m", false).len(), SMALL_BYTES);
        assert_eq!(agent("m", false).len(), AGENT_BYTES);
        assert_eq!(agent("m", true), agent("m", true));
        assert_eq!(agent("m", false).matches(r#""role":"#).count(), 15);
    }
}
