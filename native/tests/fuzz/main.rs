//! A mutation fuzzer for all that reads bytes of others: the SSE scanner, the readers of chunks and of request fields, the
//! canonical spelling of a body, the framing guard, a whole server connection, a relay from an upstream to a client, and TLS.
//! It needs no nightly toolchain; each case follows from its number.
//!
//! Runs for TURNOUT_FUZZ_S seconds in all (4 unless told). TURNOUT_FUZZ_FIRST sets the first case's number. Seeds are the
//! excerpts below and, where they are there, the recorded vectors beside the project (or in TURNOUT_FUZZ_DATA). A case that
//! fails is printed with its number and its bytes. A target is one file here and one line in `targets`.

mod canonical;
mod chance;
mod chunk;
mod connection;
mod fields;
mod guard;
mod peer;
mod relay;
mod seeds;
mod sse;

use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use canonical::canonical;
use chance::{mutate, Chance};
use chunk::chunk;
use connection::{connection, handshake, HELLO};
use fields::fields;
use guard::guard;
use peer::PANICS;
use relay::relay;
use seeds::{base64, own, recorded};
use sse::sse;

type Target = (&'static str, fn(&[u8], &mut Chance), Vec<Vec<u8>>);

fn targets() -> Vec<Target> {
    let mut streams = own(&[
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"h\\u00e9 \\ud83d\\ude00\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\ndata: [DONE]\n\n",
        "\u{feff}: ping\r\n\r\nevent: x\r\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}}]}\r\n\r\ndata: {\"error\":{\"message\":\"overloaded\",\"code\":529}}\r\n\r\n",
        "data: noise\n\ndata: {broken\n\ndata: {\"a\":1}\ndata: \ndata:{}\n\rid: 5\r\r",
    ]);
    streams.extend(recorded("sse/sse_vectors.jsonl"));
    streams.extend(recorded("sse/llm_stream_damage.jsonl"));
    let mut requests = own(&[
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloPOST /y HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "\r\n\r\nCONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    ]);
    requests.extend(recorded("http1/h1_vectors.jsonl"));
    let json = own(&[
        "{\"model\":\"fast\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"a\\\"b\\u1234\"}],\"x\":[1,-2.5e3,null,false]}",
        " { \"id\" : \"c\" , \"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"st\\u006fp\"}],\"usage\":{\"prompt_tokens\":1} } ",
        "{\"error\":\"no\"}",
        "{\"stream\":true,\"b\":{\"stream\":1,\"\u{e9}\":[\"\\u00e9\\n\\/\\\\\\\"\"],\"a\":{\"z\":1.0,\"y\":{}}},\"\\u0061\":2,\"b\":null,\"a\\\"\":[]}",
        "{}",
    ]);
    let hello = base64(HELLO);
    vec![
        ("relay", relay, streams.clone()),
        ("sse", sse, streams),
        ("chunk", chunk, json.clone()),
        ("fields", fields, json.clone()),
        ("canonical", canonical, json),
        ("guard", guard, requests.clone()),
        ("connection", connection, requests),
        ("handshake", handshake, vec![hello]),
    ]
}

#[test]
fn bytes_of_others_do_no_harm() {
    let number = |name: &str, or: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    let (seconds, first) = (number("TURNOUT_FUZZ_S", 4), number("TURNOUT_FUZZ_FIRST", 0));
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tell(info);
    }));
    let targets = targets();
    let share = Duration::from_secs(seconds) / targets.len() as u32;
    for (name, check, seeds) in targets {
        let began = Instant::now();
        let mut case = first;
        while began.elapsed() < share || case < first + 50 {
            let mut chance = Chance(case);
            let data = mutate(&mut chance, &seeds);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&data, &mut chance))) {
                println!("target {name}, case {case}: {}", data.escape_ascii());
                resume_unwind(panic);
            }
            case += 1;
        }
        println!("{name}: {} cases from {} seeds", case - first, seeds.len());
    }
}
