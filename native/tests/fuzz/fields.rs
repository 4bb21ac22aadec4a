//! The reader of a request's fields: the quick one, in each way it looks at bytes, against the one that takes its time.

#[cfg(target_arch = "x86_64")]
use _native::kernels::blocks::{Avx2, Sse2};
use _native::kernels::blocks::{Look, Words};
use _native::kernels::quick::Cursor;
use _native::kernels::scan::{full_scan, scan};

use crate::chance::Chance;

const NAMES: [&str; 3] = ["model", "stream", "messages"];

type Found = Option<((usize, bool), [usize; 6])>;

fn quick(data: &[u8], look: impl Look) -> Found {
    let names = NAMES.map(|name| name.as_bytes().to_vec());
    let mut spans = [0; 6];
    let found = Cursor::new(data, look)?.fields(&names, &mut spans)?;
    Some((found, spans))
}

/// What the slow one finds, after the others were seen to find the same, or nothing.
fn agreed(data: &[u8]) -> Found {
    let names = NAMES.map(|name| name.as_bytes().to_vec());
    let mut spans = [0; 6];
    let full = full_scan(data, &names, &mut spans);
    let want = full.as_ref().ok().map(|found| (*found, spans));
    let mut ways = vec![quick(data, Words)];
    #[cfg(target_arch = "x86_64")]
    {
        ways.push(quick(data, Sse2));
        ways.extend(Avx2::found().map(|look| quick(data, look)));
    }
    for way in &ways {
        // Names that are escaped are left to the slow one.
        assert!(
            *way == want || way.is_none() && data.contains(&b'\\'),
            "{}",
            data.escape_ascii()
        );
        assert_eq!(*way, ways[0]);
    }
    let mut spans = [0; 6];
    assert_eq!(scan(data, &names, &mut spans), full);
    want
}

pub fn fields(data: &[u8], chance: &mut Chance) {
    if let Some((_, spans)) = agreed(data) {
        for span in spans.chunks(2).filter(|span| span[0] != usize::MAX) {
            assert!(span[0] < span[1] && span[1] <= data.len());
        }
    }
    // The same with its parts elsewhere in the blocks.
    let at = data.iter().position(|c| *c == b'{').map_or(0, |i| i + 1);
    let pad = chance.below(130);
    let field = format!("\"{}\":[],", "x".repeat(pad));
    agreed(&[&data[..at], field.as_bytes(), &data[at..]].concat());
    agreed(&[&b" ".repeat(pad), data].concat());
}

/// Bodies that are right and each of them with a byte changed, for every place of every part in a block or between two.
#[test]
fn blocks_may_end_anywhere() {
    let parts: [&str; 22] = [
        r#"""#,
        r#""a""#,
        r#""\"""#,
        r#""\\""#,
        r#""\\\"\\\\""#,
        r#""a\\\\\\\"""#,
        r#""\n\/\b\f\r\t""#,
        r#""\u00e9x""#,
        r#""\ud83d\ude00\u0041""#,
        r#""\\ud83d""#,
        "\"é\"",
        "\"😀a\"",
        "[]",
        "{}",
        r#"{"a":{"b":"c"}}"#,
        r#"["",[ "\\" , {"" : [{}]}]]"#,
        "-1.5e+3",
        "0",
        "true",
        "false",
        "null",
        " \n\t \r          \"\\n\" \n ",
    ];
    let changes = *b"\"\\x}]{[,: \n\x00\xc3\xff0-etu/d";
    let mut good = 0;
    for part in parts {
        for pad in 0..130 {
            let front = [
                format!("{{\"p\":\"{}\",\"model\":", "p".repeat(pad)),
                format!("{}{{\"model\":", " ".repeat(pad)),
            ];
            for (k, front) in front.iter().enumerate() {
                let back = ["}", ",\"stream\":[\"\",1]}"][(pad + k) % 2];
                let body = format!("{front}{part}{back}").into_bytes();
                good += usize::from(agreed(&body).is_some());
                for place in front.len()..front.len() + part.len() {
                    let mut other = body.clone();
                    other[place] = changes[(place + pad) % changes.len()];
                    agreed(&other);
                    agreed(&body[..place]);
                }
            }
        }
    }
    assert_eq!(good, 2 * 130 * (parts.len() - 1), "all but the first are right");
}

/// An escape that is none, a half of a pair, a control character and a byte that is no UTF-8, at every place.
#[test]
fn a_flaw_is_found_at_every_place() {
    for flaw in [
        "\\x",
        "\\",
        "\\ud83d",
        "\\ude00",
        "\\ud83d\\ud83d",
        "\\ud83d\\\\ude00",
        "\\u12g4",
        "\u{1}",
        "\n",
    ] {
        for front in 0..130 {
            for back in [0, 1, 63, 64, 65] {
                let body = format!("{{\"a\":\"{}{flaw}{}\"}}", "\\\\".repeat(front), "y".repeat(back));
                assert_eq!(agreed(body.as_bytes()), None, "{body}");
                let body = format!("{{\"a\":\"{}{flaw}{}\"}}", "é".repeat(front), "z\\n".repeat(back));
                assert_eq!(agreed(body.as_bytes()), None, "{body}");
            }
        }
    }
    for place in 0..200 {
        let mut body = format!("{{\"a\":\"{}\"}}", "x".repeat(200)).into_bytes();
        body[6 + place] = 0x80;
        assert_eq!(agreed(&body), None);
    }
}
