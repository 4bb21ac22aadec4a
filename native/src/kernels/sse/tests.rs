use super::*;

const ROLE: &str =
    r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
const TEXT: &str = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"h\u00e9llo \ud83d\ude00"}}]}"#;
const FINISH: &str = r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"st\u006fp"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;
const ERROR: &str = r#"{"error":{"message":"overloaded","code":529}}"#;

fn stream(chunks: &[&str], end: &str) -> Vec<u8> {
    chunks
        .iter()
        .flat_map(|c| format!("data: {c}{end}{end}").into_bytes())
        .collect()
}

fn run(pieces: &[&[u8]], strip: bool) -> (Vec<u8>, Marks) {
    let mut scanner = Scanner::new(strip);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(scanner.feed(piece).of(piece));
    }
    out.extend_from_slice(&scanner.close());
    (out, scanner.marks)
}

#[test]
fn hands_on_whole_input_where_it_lies() {
    let s = stream(&[ROLE, TEXT, FINISH, "[DONE]"], "\n");
    let mut scanner = Scanner::new(true);
    assert_eq!(scanner.feed(&s), Passed::Range(0..s.len()));
    let m = &scanner.marks;
    assert_eq!(
        (m.chunks, m.finish.as_str(), m.done, m.broken),
        (1, "stop", true, Broken::No)
    );
    assert_eq!(m.content_bytes, r#""h\u00e9llo \ud83d\ude00""#.len() as u64);
}

#[test]
fn every_split_gives_the_same() {
    for end in ["\n", "\r\n", "\r"] {
        let s = stream(&[ROLE, TEXT, USAGE, "noise", FINISH, "[DONE]"], end);
        let whole = run(&[&s], true);
        assert_eq!(whole.1.usage.as_deref().map(<[u8]>::len), Some(59));
        for i in 0..=s.len() {
            let got = run(&[&s[..i], &s[i..]], true);
            assert_eq!(got.1, whole.1, "{i}");
            if end != "\r\n" {
                assert_eq!(got.0, whole.0, "{i}");
            }
        }
        let bytes: Vec<&[u8]> = s.chunks(1).collect();
        assert_eq!(run(&bytes, true).1, whole.1);
    }
}

#[test]
fn takes_out_the_usage_chunk_only_when_told() {
    let s = stream(&[TEXT, USAGE, "[DONE]"], "\n");
    assert_eq!(run(&[&s], true).0, stream(&[TEXT, "[DONE]"], "\n"));
    assert_eq!(run(&[&s], false).0, s);
}

#[test]
fn hands_on_nothing_from_a_break_on() {
    let before = stream(&[TEXT], "\n");
    for (bad, why) in [(r#"{"id":"c","choices":[{"#, Broken::Chunk), (ERROR, Broken::No)] {
        let (out, marks) = run(&[&stream(&[TEXT, bad, TEXT], "\n"), &before], false);
        assert_eq!((out, marks.broken), (before.clone(), why));
    }
    let (out, marks) = run(&[&stream(&["a", "b", "c", TEXT, "d", TEXT], "\n")], false);
    assert_eq!((out, marks.broken), (before, Broken::Noise));
}

#[test]
fn an_event_over_the_limit_is_a_break() {
    let mut s = stream(&[TEXT], "\n");
    let sound = s.clone();
    s.extend_from_slice(b"data: ");
    s.resize(s.len() + MAX_EVENT_BYTES, b'x');
    let pieces: Vec<&[u8]> = s.chunks(65_536).collect();
    for pieces in [vec![&s[..]], pieces] {
        let (out, marks) = run(&pieces, false);
        assert_eq!((&out, marks.broken), (&sound, Broken::TooLong));
    }
}

/// A bounded fuzz run: no input may panic, and how it is cut up may not change what is seen.
#[test]
fn any_bytes_in_any_pieces() {
    let seeds = [
        stream(&[ROLE, TEXT, TEXT, FINISH, USAGE, "[DONE]"], "\n"),
        stream(&[ROLE, TEXT, ERROR], "\r\n"),
        stream(&[TEXT, USAGE, FINISH, ": x"], "\r"),
        b"\xef\xbb\xbf: hi\n\nevent: message\ndata: {\"choices\":\ndata: [{\"text\":\"a\"}]}\n\ndata\n\n".to_vec(),
    ];
    let bits: [&[u8]; 16] = [
        b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"\"", b"\\", b"{", b"}", b"[", b"]", b",", b"null", b"\xff",
        b"\\ud800", b"1e999",
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut dice = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let mut whole_streams = 0;
    for round in 0..100_000 {
        let mut s = seeds[dice(seeds.len())].clone();
        for _ in 0..dice(5) {
            let at = dice(s.len() + 1);
            match dice(5) {
                0 => s.truncate(at),
                1 => drop(s.splice(at..at, bits[dice(bits.len())].iter().copied())),
                2 => drop(s.drain(at..(at + dice(9)).min(s.len()))),
                3 if at < s.len() => s[at] = dice(256) as u8,
                _ => {
                    let from = dice(s.len() + 1);
                    let copy = s[from..(from + dice(80)).min(s.len())].to_vec();
                    drop(s.splice(at..at, copy));
                }
            }
        }
        let strip = round % 2 == 0;
        let (out, mut marks) = run(&[&s], strip);
        assert!(out.len() <= s.len() + 2);
        whole_streams += usize::from(marks.broken == Broken::No && marks.chunks > 0);
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut rest = &s[..];
        while !rest.is_empty() {
            let most = 1 + dice(60);
            let (piece, more) = rest.split_at((1 + dice(most)).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        let (_, mut cut) = run(&pieces, strip);
        // A CRLF cut in two ends one event and begins the next one: their bytes may differ by that LF.
        marks.error_event.clear();
        cut.error_event.clear();
        assert_eq!(marks, cut, "{}", String::from_utf8_lossy(&s));
    }
    assert!(whole_streams > 20_000);
}
