//! The mock's bytes: everything is made once; a chunk only gets its number and its time stamp patched in.

use memchr::memmem;

/// What a plain answer must contain: its first and last words. Also in `check`.
pub const ANSWER_BEGIN: &str = "Turnout bench answer:";
pub const ANSWER_END: &str = "end of the bench answer.";
const ANSWER_BYTES: usize = 1031;
const NUMBER_DIGITS: usize = 5;
/// 18 digits of nanoseconds are 31 years of uptime.
const STAMP_DIGITS: usize = 18;

/// A whole HTTP answer, head and body, of 1,031 body bytes with usage.
pub fn plain_answer() -> Vec<u8> {
    let json = |filler: &str| {
        format!(
            concat!(
                r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"bench-1","choices":"#,
                r#"[{{"index":0,"message":{{"role":"assistant","content":"{} {} {}","refusal":null}},"logprobs":null,"#,
                r#""finish_reason":"stop"}}],"usage":{{"prompt_tokens":61,"completion_tokens":160,"total_tokens":221,"#,
                r#""prompt_tokens_details":{{"cached_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0}}}},"#,
                r#""system_fingerprint":"fp_bench"}}"#
            ),
            ANSWER_BEGIN, filler, ANSWER_END
        )
    };
    let room = ANSWER_BYTES - json("").len();
    let filler: String =
        "a switch moves the train to another track while it rolls, ".chars().cycle().take(room).collect();
    answer(200, "OK", "", &json(&filler))
}

/// A whole HTTP answer with a JSON body; `extra` are further header lines, each ending in CRLF.
pub fn answer(status: u16, reason: &str, extra: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\n\
         openai-processing-ms: 1\r\n{extra}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The answer of the faults `f503` and `f429`.
pub fn fault_answer(status: u16) -> Vec<u8> {
    let (reason, extra, kind) = match status {
        429 => ("Too Many Requests", "retry-after: 1\r\n", "rate_limit_exceeded"),
        _ => ("Service Unavailable", "", "server_error"),
    };
    let body = format!(r#"{{"error":{{"message":"mock fault","type":"{kind}","param":null,"code":"{kind}"}}}}"#);
    answer(status, reason, extra, &body)
}

pub const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
x-request-id: req_bench\r\nopenai-processing-ms: 1\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// The events of a stream, each already a chunk of HTTP.
pub struct Events {
    pub role: Vec<u8>,
    pub finish: Vec<u8>,
    pub usage: Vec<u8>,
    /// `[DONE]` and the end of the body.
    pub done: Vec<u8>,
    content: Vec<u8>,
    number_at: usize,
    stamp_at: usize,
}

impl Default for Events {
    fn default() -> Self {
        let content = event(r#"{"index":0,"delta":{"content":"w#####@$$$$$$$$$$$$$$$$$$ "},"finish_reason":null}"#, "");
        let number_at = memmem::find(&content, b"#####@").unwrap_or(0);
        let mut done = framed("data: [DONE]\n\n");
        done.extend_from_slice(b"0\r\n\r\n");
        Events {
            role: event(r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}"#, ""),
            finish: event(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, ""),
            usage: event("", r#","usage":{"prompt_tokens":61,"completion_tokens":160,"total_tokens":221}"#),
            done,
            number_at,
            stamp_at: number_at + NUMBER_DIGITS + 1,
            content,
        }
    }
}

impl Events {
    /// The content event with this number (from 0) and this time.
    pub fn content(&mut self, number: u32, stamp_ns: u64) -> &[u8] {
        digits(&mut self.content[self.number_at..][..NUMBER_DIGITS], number as u64);
        digits(&mut self.content[self.stamp_at..][..STAMP_DIGITS], stamp_ns);
        &self.content
    }
}

fn digits(into: &mut [u8], mut n: u64) {
    for place in into.iter_mut().rev() {
        *place = b'0' + (n % 10) as u8;
        n /= 10;
    }
}

fn event(choice: &str, tail: &str) -> Vec<u8> {
    framed(&format!(
        "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\
         \"model\":\"bench-1\",\"choices\":[{choice}]{tail}}}\n\n"
    ))
}

fn framed(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_answer_is_1031_bytes() {
        let all = plain_answer();
        let body = memmem::find(&all, b"\r\n\r\n").unwrap() + 4;
        assert_eq!(all.len() - body, ANSWER_BYTES);
    }

    #[test]
    fn a_content_event_is_about_180_bytes_and_patched() {
        let mut events = Events::default();
        let text = String::from_utf8(events.content(7, 123_456_789).to_vec()).unwrap();
        assert!(text.contains("w00007@000000000123456789 "), "{text}");
        assert!((170..210).contains(&text.len()), "{}", text.len());
    }
}
