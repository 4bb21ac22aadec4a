//! The load generator: one line `window start`, one `window end` when they come, then one line of JSON.

use std::io::Write;
use std::net::SocketAddrV4;

use turnout_bench::args::{refuse, Args};
use turnout_bench::drive::{Drive, Mode, Settings};
use turnout_bench::report::{self, Facts};
use turnout_bench::{bodies, poll};

const USAGE: &str =
    "load --url http://127.0.0.1:PORT/v1/chat/completions [--key K] [--model M] [--header 'name: value']...
  --mode closed|open|streams (--streams for short)   default closed
  --conns C         connections, default 32; in open mode the most there may be, default 256
  --rate R          requests a second in open mode, default 200
  --seconds S --warmup W --timeout T                 default 3, 1 and 15
  --body small|agent                                 284 bytes, or 20 KB with tools
  --stream --chunks N --gap MS                       asks the mock for N content chunks MS apart, default 50 and 20
Checks every answer; exits with 1 when one was wrong. See src/plan.rs for what a model name can ask of the mock.";

fn main() {
    let valued = [
        "url", "key", "model", "header", "mode", "conns", "rate", "seconds", "warmup", "timeout", "body", "chunks",
        "gap",
    ];
    let args = Args::read(&valued, &["stream", "streams", "help"], USAGE);
    if args.has("help") {
        println!("{USAGE}");
        return;
    }
    poll::prepare_process();
    let settings = settings(&args);
    let facts = Facts::from(&settings);
    let begin_ns = poll::now_ns();
    let drive = Drive::new(settings).unwrap_or_else(|why| refuse(&format!("epoll: {why}"), ""));
    let totals = drive.run(|what| say(&format!("window {what}")));
    say(&report::json(&totals, &facts, (poll::now_ns() - begin_ns) as f64 / 1e9));
    std::process::exit(!totals.errors.is_empty() as i32);
}

/// At once, not when a buffer is full: the harness reads the CPU clocks when it sees the window's lines.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn settings(args: &Args) -> Settings {
    let mode = match args.text("mode", "closed").as_str() {
        _ if args.has("streams") => Mode::Streams,
        "closed" => Mode::Closed,
        "open" => Mode::Open,
        "streams" => Mode::Streams,
        other => refuse(&format!("--mode {other}"), USAGE),
    };
    let stream = args.has("stream") || mode == Mode::Streams;
    let (chunks, gap_ms): (u32, u64) = (args.number("chunks", 50), args.number("gap", 20));
    let mut model = args.text("model", "m");
    if stream {
        model = format!("{model}-c{chunks}-g{gap_ms}");
    }
    let body = match args.text("body", "small").as_str() {
        "small" => bodies::small(&model, stream),
        "agent" => bodies::agent(&model, stream),
        other => refuse(&format!("--body {other}"), USAGE),
    };
    let (addr, host, path) = target(&args.text("url", ""));
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Accept: {}\r\nUser-Agent: turnout-bench/1\r\n",
        args.text("key", "none"),
        if stream { "text/event-stream" } else { "application/json" },
    );
    for header in args.all("header") {
        head.push_str(&format!("{header}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    let seconds = |name, default| (args.number::<f64>(name, default) * 1e9) as u64;
    let settings = Settings {
        addr,
        request: head.into_bytes(),
        mode,
        conns: args.number("conns", if mode == Mode::Open { 256 } else { 32 }),
        rate: args.number("rate", 200.0),
        warmup_ns: seconds("warmup", 1.0),
        window_ns: seconds("seconds", 3.0),
        timeout_ns: seconds("timeout", 15.0),
        chunks: stream.then_some(chunks),
        gap_ns: gap_ms * 1_000_000,
    };
    if settings.rate <= 0.0 || settings.conns == 0 || settings.window_ns == 0 {
        refuse("--rate, --conns and --seconds must be positive", USAGE);
    }
    settings
}

/// Address, host and path of an `http://` address with an IPv4 host.
fn target(url: &str) -> (SocketAddrV4, String, String) {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| refuse("--url must be http://IP:PORT/path", USAGE));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.replace("localhost", "127.0.0.1").parse() {
        Ok(addr) => (addr, host.to_string(), format!("/{path}")),
        Err(_) => refuse("--url must be http://IP:PORT/path", USAGE),
    }
}
