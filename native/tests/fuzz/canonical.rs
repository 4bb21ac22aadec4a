//! The one spelling of a body: what may not change it, done to whatever is a body.

use _native::kernels::canonical::write;
use _native::kernels::scan::full_scan;

use crate::chance::Chance;

/// A place between two tokens, or a character of a string that is no part of an escape, or neither.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Between,
    Letter,
    Inside,
}

/// What stands at each byte of a body that was accepted, and how many objects and lists are open there.
fn places(body: &[u8]) -> Vec<(At, usize)> {
    let (mut out, mut depth, mut i) = (Vec::with_capacity(body.len()), 0, 0);
    let mut string = false;
    while i < body.len() {
        let c = body[i];
        let mut n = 1;
        let at = match c {
            b'"' => {
                string = !string;
                if string {
                    At::Between
                } else {
                    At::Inside
                }
            }
            b'\\' if string => {
                n = if body[i + 1] == b'u' { 6 } else { 2 };
                At::Inside
            }
            _ if string && c.is_ascii_alphanumeric() => At::Letter,
            _ if string => At::Inside,
            b'{' | b'[' => {
                depth += 1;
                At::Between
            }
            b'}' | b']' => {
                depth -= 1;
                At::Between
            }
            b',' | b':' => At::Between,
            _ => At::Inside,
        };
        out.extend(std::iter::repeat((at, depth)).take(n));
        i += n;
    }
    out
}

/// The same value in another spelling: white space before a token, a letter as an escape.
fn respelt(body: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * body.len());
    for (c, (at, _)) in body.iter().zip(places(body)) {
        match at {
            At::Between if chance.below(4) == 0 => {
                out.push(b" \t\r\n"[chance.below(4)]);
                out.push(*c);
            }
            At::Letter if chance.below(4) == 0 => out.extend(format!("\\u{c:04x}").bytes()),
            _ => out.push(*c),
        }
    }
    out
}

/// The members of the outermost object, as they are spelt.
fn members(body: &[u8]) -> Vec<&[u8]> {
    let places = places(body);
    let from = body.iter().position(|c| *c == b'{').unwrap() + 1;
    let to = body.iter().rposition(|c| *c == b'}').unwrap();
    let comma = |i: &usize| body[*i] == b',' && places[*i] == (At::Between, 1);
    let mut out = Vec::new();
    let mut start = from;
    for i in (from..to).filter(comma) {
        out.push(&body[start..i]);
        start = i + 1;
    }
    out.push(&body[start..to]);
    out
}

/// The key of an object that has one member, in its one spelling; None if it has none.
fn key(one: &[u8]) -> Option<Vec<u8>> {
    let mut i = 2;
    if one.get(1) != Some(&b'"') {
        return None;
    }
    while one[i] != b'"' {
        i += if one[i] == b'\\' { 2 } else { 1 };
    }
    Some(one[2..i].to_vec())
}

pub fn canonical(data: &[u8], chance: &mut Chance) {
    let skip = [b"stream".to_vec(), b"a\\\"".to_vec()];
    let right = full_scan(data, &[], &mut []).is_ok();
    let written = write(data, &skip);
    assert_eq!(written.is_ok(), right);
    let Ok(out) = written else { return };
    assert!(out.len() <= data.len());
    assert!(std::str::from_utf8(&out).is_ok() && out.starts_with(b"{") && out.ends_with(b"}"));
    // Control characters stand as they are, where JSON has them escaped: with them it is not JSON any more.
    match write(&out, &skip) {
        Ok(again) => assert_eq!(again, out),
        Err(_) => assert!(out.iter().any(|c| *c < 0x20)),
    }
    assert_eq!(write(&respelt(data, chance), &skip).unwrap(), out);
    let mut parts = members(data);
    for i in (1..parts.len()).rev() {
        parts.swap(i, chance.below(i + 1));
    }
    let whole = |parts: &[&[u8]]| [b"{", parts.join(&b',').as_slice(), b"}"].concat();
    let alone: Vec<_> = parts
        .iter()
        .map(|part| write(&whole(&[part]), &skip).unwrap())
        .collect();
    let mut keys: Vec<_> = alone.iter().filter_map(|one| key(one)).collect();
    let n = keys.len();
    keys.sort();
    keys.dedup();
    if keys.len() == n {
        assert_eq!(write(&whole(&parts), &skip).unwrap(), out);
    }
    // What is left out is left out of nothing but the outermost object, and nothing else is.
    let rest: usize = alone.iter().map(|one| one.len() - 2).sum();
    assert_eq!(out.len(), 2 + rest + n.saturating_sub(1));
}
